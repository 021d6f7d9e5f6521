"""The typed schema of every config key: what it is, its default, its type, its range."""
# ruff: noqa: RUF009 - key() makes a dataclasses.field, and that is no shared default.

import codecs
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_type_hints

from jaxft.nn.remat import Activation, Place
from jaxft.values import CountOrShare, words

DEFAULT_TASK = "classify"
DEFAULT_EPOCHS = 3.0

# One of each pair decides; a flag that sets one takes the place of a recipe's other.
EITHER = (("model.pretrained", "model.config"), ("train.max_steps", "train.num_train_epochs"))


def key(default: Any, what: str, must: str = "") -> Any:
    """A key of a section: its default, one line for people, the range as `values.within` reads it.

    A task's file, which knows no config, writes the same as `field(metadata={"help", "must"})`.
    """
    metadata = {"help": what, "must": must}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network, and how it is computed."""

    pretrained: str | None = key(None, "checkpoint to start from: a folder or a hub id")
    config: dict[str, Any] | str | None = key(
        None, "to train from scratch: a folder or hub id with a config.json, or its fields"
    )
    tokenizer: str | None = key(None, "folder or hub id of another tokenizer than the model's own")
    new_tokens: dict[str, str | None] = key(
        {},
        "token to add -> text whose tokens' mean its rows begin as; None: the mean of all tokens",
    )
    new_head: bool = key(False, "start the head afresh even where the checkpoint has one")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "precision of the computation; the weights are kept in float32"
    )
    attention: Literal["auto", "xla", "cudnn", "splash"] = key(
        "auto", "attention kernel: XLA's own, cuDNN's on GPU, splash attention on TPU"
    )
    activation_checkpointing: Literal["none", "full", "dots"] = key(
        "none", "recompute activations to save memory: of whole layers, or all but the matmuls"
    )
    kept_activations: dict[Activation, Place] = key(
        {}, "what full checkpointing does not recompute -> the memory it waits in"
    )
    dropout: float | None = key(None, "None: as the checkpoint says", ">= 0 and < 1")
    attention_dropout: float | None = key(None, "None: as the checkpoint says", ">= 0 and < 1")
    classifier_dropout: float | None = key(None, "None: as the checkpoint says", ">= 0 and < 1")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the examples are, and how they become batches."""

    train: str | dict[str, float] | None = key(
        None,
        "a CSV, TSV, JSONL or Parquet file, a saved folder, or a hub id; or several with weights, "
        "an epoch being one pass over the first",
        ">= 0",
    )
    validation: str | None = key(None, "None: cut from the training set")
    test: str | None = key(None, "scored once, after training")
    evaluations: dict[str, str] = key(
        {}, "name -> source: scored before training and at every evaluation, as eval/NAME/..."
    )
    text_column: str | int = key("text", "column name, or its position from 0", ">= 0")
    text_pair_column: str | int | None = key(None, "second text, for pairs", ">= 0")
    label_column: str | int = key("label", "column name, or its position from 0", ">= 0")
    delimiter: str | None = key(None, "between CSV columns; None: by the file's extension")
    quoting: bool = key(True, "whether double quotes enclose CSV fields")
    encoding: str = key("utf-8", "of the text files")
    header: bool = key(True, "whether the first CSV row holds the column names")
    validation_size: CountOrShare = key(
        0.1, "rows, or share of the rows, cut from the training set when validation is None", "> 0"
    )
    max_length: int = key(256, "tokens a text, or a pair of texts, is cut to", ">= 2")
    packing: Literal["batch", "rows", "none"] = key(
        "batch",
        "batch: the examples of an update share rows; rows: train.batch_size counts rows of "
        "max_length, each filled with examples; none: a row each, those of like length together",
    )
    max_dropped: float = key(
        0.01, "share of rows that may be dropped before the run stops", ">= 0 and <= 1"
    )
    cache_dir: str | None = key(None, "for tokenised data; None: jaxft/tokens in the user's cache")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer, its schedule, and the rates of single weights."""

    name: Literal["adamw", "adafactor", "lion", "sgd"] = key("adamw", "optimizer")
    learning_rate: float = key(5e-5, "peak rate, reached after the warmup", ">= 0")
    lr_scheduler_type: Literal[
        "cosine",
        "linear",
        "constant",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "cosine_with_restarts",
        "slanted_triangular",
    ] = key("cosine", "how the rate goes on after the warmup")
    lr_scheduler_kwargs: dict[str, Any] = key({}, "options of the schedule, such as num_cycles")
    warmup_steps: CountOrShare = key(0.1, "updates over which the rate rises from 0", ">= 0")
    weight_decay: float = key(0.01, "of kernels and embeddings; biases and norms never", ">= 0")
    adam_beta1: float = key(0.9, "decay of the mean of the gradients", ">= 0 and < 1")
    adam_beta2: float = key(0.999, "decay of the mean of their squares", ">= 0 and < 1")
    adam_epsilon: float = key(1e-8, "added to the root of the second moment", "> 0")
    momentum: float = key(0.9, "of sgd", ">= 0 and < 1")
    max_grad_norm: float | None = key(1.0, "gradients are clipped to it; None: never", "> 0")
    moments_dtype: Literal["float32", "bfloat16"] = key(
        "float32", "how moments are stored; bfloat16 ones are rounded at random"
    )
    offload: bool = key(
        False, "keep float32 weights and moments in host memory, updated layer by layer"
    )
    layer_decay: float = key(
        1.0, "each layer's rate as a multiple of the layer's above it", "> 0 and <= 1"
    )
    head_lr_multiplier: float = key(
        1.0, "the head's rate as a multiple of optim.learning_rate", ">= 0"
    )
    lr_multipliers: dict[str, float] = key(
        {}, "regex over weight names -> multiple of the rate", ">= 0"
    )


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, in what portions, and what is looked at meanwhile."""

    num_train_epochs: float | None = key(
        None, f"passes over the training set; {DEFAULT_EPOCHS:g} where max_steps is None too", "> 0"
    )
    max_steps: int | None = key(None, "updates, instead of epochs", ">= 1")
    batch_size: int = key(32, "examples an update, over all devices and micro-batches", ">= 1")
    gradient_accumulation_steps: int = key(1, "micro-batches an update is summed from", ">= 1")
    eval_steps: CountOrShare = key(0.1, "updates between evaluations", "> 0")
    eval_batch_size: int | None = key(None, "None: as batch_size", ">= 1")
    logging_steps: CountOrShare = key(10, "updates between log lines", "> 0")
    early_stopping_patience: int | None = key(
        None, "evaluations without a better score before the run ends; None: never", ">= 1"
    )
    report_to: list[Literal["tensorboard", "wandb"]] = key(
        ["tensorboard"], "where metrics go besides metrics.jsonl"
    )


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices each axis splits over; one axis may be -1: all that are left."""

    data: int = key(-1, "copies of the network, each with its part of the batch", "-1 or >= 1")
    fsdp: int = key(1, "parts of batch, weights and optimizer state", "-1 or >= 1")
    context: int = key(1, "parts of each row's tokens, for long rows", "-1 or >= 1")
    tensor: int = key(1, "parts of each layer's heads and widths", "-1 or >= 1")
    zero_stage: int = key(
        3, "what fsdp splits: 2 gradients and optimizer state, 3 weights too", ">= 2 and <= 3"
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Which states of the run are kept."""

    save_steps: CountOrShare | None = key(
        None, "updates between checkpoints; None: at every evaluation", "> 0"
    )
    keep_last: int = key(2, "newest checkpoints kept", ">= 1")
    keep_best: int = key(1, "best checkpoints kept", ">= 0")
    metric_for_best_model: str | None = key(None, "None: the task's own")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    model: Model = dataclasses.field(default_factory=Model)
    task: Any  # the options that the task's own file declares, and the task's name
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    seed: int = key(0, "of every random choice", ">= 0 and < 4294967296")


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
    rows = []
    homes = sections(task)
    for prefix, home in [*((f"{name}.", home) for name, home in homes.items()), ("", Config)]:
        hints = get_type_hints(home)
        # A task's name comes first, whatever class declares it.
        for field in sorted(dataclasses.fields(home), key=lambda field: field.name != "name"):
            if not prefix and field.name in homes:
                continue
            made = field.default_factory
            if field.metadata.keys() - {"help", "must"}:
                raise TypeError(f"{prefix}{field.name}: metadata may hold only help and must")
            rows.append(
                Key(
                    name=prefix + field.name,
                    hint=hints[field.name],
                    must=field.metadata.get("must", ""),
                    default=field.default if made is dataclasses.MISSING else made(),
                    help=field.metadata.get("help", ""),
                )
            )
    return rows


def contradictions(
    config: Config, needs_data: bool = True
) -> Iterator[tuple[tuple[str, ...], str]]:
    """What types and ranges cannot say: the keys (or section) concerned, and what to change."""
    model, train, optim = config.model, config.train, config.optim
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
    if config.model.pretrained is None and any(config.model.new_tokens.values()):
        yield (
            ("model.new_tokens", "model.pretrained"),
            f"model.new_tokens = {config.model.new_tokens!r} asks for means of trained rows, and "
            "from scratch there are none; give None instead of the texts",
        )
    if model.kept_activations and model.activation_checkpointing != "full":
        yield (
            ("model.kept_activations", "model.activation_checkpointing"),
            f"model.kept_activations = {model.kept_activations} are exceptions from full "
            f"checkpointing, and model.activation_checkpointing = "
            f"{model.activation_checkpointing!r}; set it to full, or leave the former out",
        )
    if train.max_steps is not None and train.num_train_epochs is not None:
        yield (
            EITHER[1],
            f"train.max_steps = {train.max_steps} and train.num_train_epochs = "
            f"{train.num_train_epochs:g} both say when to stop; set one of them to None",
        )
    if train.batch_size % train.gradient_accumulation_steps:
        yield (
            ("train.batch_size", "train.gradient_accumulation_steps"),
            f"train.batch_size = {train.batch_size} cannot be split into "
            f"train.gradient_accumulation_steps = {train.gradient_accumulation_steps} equal "
            "micro-batches; change one of them",
        )
    counted = isinstance(optim.warmup_steps, int) and train.max_steps is not None
    if counted and optim.warmup_steps > (train.max_steps or 0):
        yield (
            ("optim.warmup_steps", "train.max_steps"),
            f"optim.warmup_steps = {optim.warmup_steps} is more than train.max_steps = "
            f"{train.max_steps}; the rate would never reach optim.learning_rate",
        )
    if train.early_stopping_patience is not None and config.checkpoint.keep_best == 0:
        yield (
            ("train.early_stopping_patience", "checkpoint.keep_best"),
            "train.early_stopping_patience goes back to the best checkpoint, and "
            "checkpoint.keep_best = 0 keeps none; set it to 1",
        )
    axes = [f"mesh.{name}" for name, size in vars(config.mesh).items() if size == -1]
    if len(axes) > 1:
        yield (
            tuple(axes),
            f"{' and '.join(axes)} are -1, and only one axis can take all devices that are left; "
            "set the others, to 1 for instance",
        )
    for pattern in optim.lr_multipliers:
        try:
            re.compile(pattern)
        except re.error as error:
            yield (
                ("optim.lr_multipliers",),
                f"optim.lr_multipliers: {pattern!r} is no regular expression: {error}",
            )
    yield from _unreadable(config.data, needs_data)


def _unreadable(data: Data, needs_data: bool) -> Iterator[tuple[tuple[str, ...], str]]:
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
