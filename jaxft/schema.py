"""What a config is held to: the table of its keys, and what contradicts itself."""

import codecs
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from jaxft.sections import Checkpoint, Config, Data, Model, Optim, Train, key
from jaxft.values import words

DEFAULT_TASK = "classify"
Clash = tuple[tuple[str, ...], str]
"""The keys (or section) concerned, and what to change."""

# One of each pair decides; a flag that sets one takes the place of a recipe's other.
EITHER = (("model.pretrained", "model.config"), ("train.max_steps", "train.num_train_epochs"))
# What a recipe holds out belongs to its data.train: a flag that gives another one drops these too.
OF_TRAIN = ("data.validation", "data.test")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One row of the table of keys."""

    name: str  # dotted
    hint: Any  # the type, as annotated
    must: str  # the range of its numbers, "" for any
    default: Any
    help: str

    @property
    def allowed(self) -> str:
        return ", ".join(filter(None, [words(self.hint), self.must]))


@cache
def task_section(options: type) -> type:
    """The section `task`: a task's own options with its name, if they do not hold it themselves."""
    if any(field.name == "name" for field in dataclasses.fields(options)):
        return options
    name = ("name", str, key(DEFAULT_TASK, "what is learnt: a file of jaxft/tasks"))
    return dataclasses.make_dataclass("Task", [name], bases=(options,), frozen=True, kw_only=True)


def sections(task: type) -> dict[str, type]:
    """Section name -> its dataclass, with the task's as `task_section` makes it."""
    types: dict[str, type] = get_type_hints(Config) | {"task": task_section(task)}
    return {name: kind for name, kind in types.items() if dataclasses.is_dataclass(kind)}


def keys(task: type) -> list[Key]:
    """Every key there is when the task's options are of this type, in the schema's order."""
    homes = sections(task)
    inside = [each for name, home in homes.items() for each in _declared(home, f"{name}.")]
    return inside + [each for each in _declared(Config, "") if each.name not in homes]


def _declared(section: type, prefix: str) -> Iterator[Key]:
    hints = get_type_hints(section)
    # A task's name comes first, whatever class declares it.
    for field in sorted(dataclasses.fields(section), key=lambda field: field.name != "name"):
        if field.metadata.keys() - {"help", "must"}:
            raise TypeError(f"{prefix}{field.name}: metadata may hold only help and must")
        made = field.default_factory
        yield Key(
            name=prefix + field.name,
            hint=hints[field.name],
            must=field.metadata.get("must", ""),
            default=field.default if made is dataclasses.MISSING else made(),
            help=field.metadata.get("help", ""),
        )


def contradictions(config: Config, needs_data: bool = True) -> Iterator[Clash]:
    """What types and ranges cannot say."""
    yield from _model_clashes(config.model)
    yield from _length_clashes(config.train, config.optim, config.checkpoint)
    axes = [f"mesh.{name}" for name, size in vars(config.mesh).items() if size == -1]
    if len(axes) > 1:
        yield (
            tuple(axes),
            f"{' and '.join(axes)} are -1, and only one axis can take all devices that are left; "
            "set the others, to 1 for instance",
        )
    for pattern in config.optim.lr_multipliers:
        try:
            re.compile(pattern)
        except re.error as error:
            yield (
                ("optim.lr_multipliers",),
                f"optim.lr_multipliers: {pattern!r} is no regular expression: {error}",
            )
    yield from _data_clashes(config.data, needs_data)
    if hasattr(config.task, "clashes"):
        yield from config.task.clashes(config.data)


def _model_clashes(model: Model) -> Iterator[Clash]:
    if model.pretrained is not None and model.config is not None:
        yield (
            EITHER[0],
            f"model.pretrained = {model.pretrained!r} and model.config are both set; "
            "keep the first to fine-tune, the second to train from scratch",
        )
    if model.pretrained is None and model.config is None:
        yield (
            ("model",),
            "model.pretrained and model.config are both None; name a checkpoint: a folder, or a "
            "hub id such as sentence-transformers/all-MiniLM-L6-v2",
        )
    if model.pretrained is None and any(model.new_tokens.values()):
        yield (
            ("model.new_tokens", "model.pretrained"),
            f"model.new_tokens = {model.new_tokens!r} asks for means of trained rows, and "
            "from scratch there are none; give None instead of the texts",
        )
    if model.kept_activations and model.activation_checkpointing != "full":
        yield (
            ("model.kept_activations", "model.activation_checkpointing"),
            f"model.kept_activations = {model.kept_activations} are exceptions from full "
            f"checkpointing, and model.activation_checkpointing = "
            f"{model.activation_checkpointing!r}; set it to full, or leave the former out",
        )


def _length_clashes(train: Train, optim: Optim, checkpoint: Checkpoint) -> Iterator[Clash]:
    steps, warmup = train.max_steps, optim.warmup_steps
    if steps is not None and train.num_train_epochs is not None:
        yield (
            EITHER[1],
            f"train.max_steps = {steps} and train.num_train_epochs = "
            f"{train.num_train_epochs:g} both say when to stop; set one of them to None",
        )
    if train.batch_size % train.gradient_accumulation_steps:
        yield (
            ("train.batch_size", "train.gradient_accumulation_steps"),
            f"train.batch_size = {train.batch_size} cannot be split into "
            f"train.gradient_accumulation_steps = {train.gradient_accumulation_steps} equal "
            "micro-batches; change one of them",
        )
    if steps is not None and isinstance(warmup, int) and warmup > steps:
        yield (
            ("optim.warmup_steps", "train.max_steps"),
            f"optim.warmup_steps = {warmup} is more than train.max_steps = {steps}; the rate would "
            "never reach optim.learning_rate",
        )
    if train.early_stopping_patience is not None and checkpoint.keep_best == 0:
        yield (
            ("train.early_stopping_patience", "checkpoint.keep_best"),
            "train.early_stopping_patience goes back to the best checkpoint, and "
            "checkpoint.keep_best = 0 keeps none; set it to 1",
        )


def _data_clashes(data: Data, needs_data: bool) -> Iterator[Clash]:
    if data.train is None and needs_data:
        yield ("data",), "data.train is None; name the file, folder or hub id to train on"
    if isinstance(data.train, dict) and not next(iter(data.train.values()), 0):
        yield (
            ("data.train",),
            f"data.train = {data.train!r}: an epoch is one pass over the first source, whose "
            "weight must be above 0",
        )
    if data.delimiter is not None and len(data.delimiter) != 1:
        yield ("data.delimiter",), f"data.delimiter = {data.delimiter!r}: must be one character"
    try:
        codecs.lookup(data.encoding)
    except (LookupError, ValueError):
        yield (
            ("data.encoding",),
            f"data.encoding = {data.encoding!r}: no encoding that Python knows; "
            "utf-8, latin-1 and cp1252 are common ones",
        )
