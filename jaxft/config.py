"""A recipe and the shell's overrides -> one checked, frozen Config; saved and compared again.

What keys there are stands in `sections.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, get_args, get_origin

from jaxft import schema, shapes, values
from jaxft.errors import UserError
from jaxft.recipe import plain, run_recipe
from jaxft.sections import DEFAULT_EPOCHS, Checkpoint, Config, Data, Mesh, Model, Optim, Train
from jaxft.stderr import Say, silently

__all__ = ["Checkpoint", "Config", "Data", "Mesh", "Model", "Optim", "Train"]

TaskOptions = Callable[[str], type]
# These change where a run is computed and what is kept of it, never what it computes.
FREE_ON_RESUME = (
    "mesh.",
    "checkpoint.",
    "data.cache_dir",
    "train.eval_batch_size",
    "train.logging_steps",
    "train.report_to",
    "model.activation_checkpointing",
    "model.kept_activations",
    "optim.offload",
)


def load(
    path: str,
    arg: str,
    overrides: Mapping[str, str],
    task_options: TaskOptions,
    *,
    needs_data: bool = True,
    say: Say = silently,
) -> Config:
    """The config of a recipe file, with the shell's overrides (dotted key -> word) on top.

    `task_options` gives a task's own options, a frozen dataclass, by the task's name.
    Raises: UserError with everything that is wrong, at once.
    """
    model = values.read(overrides.get("model.pretrained", "None"), str | None)
    recipe = run_recipe(Path(path), arg, model)
    config = _resolve(recipe, overrides, task_options, f"the config {path}", needs_data)
    if left := _left_out(recipe.get("data", {}), config, overrides):
        say(
            f"A flag gives data.train, which leaves out the recipe's {', '.join(left)}; a flag "
            "that gives it too keeps it"
        )
    return config


def from_dict(
    raw: Mapping[str, Any], task_options: TaskOptions, overrides: Mapping[str, str] | None = None
) -> Config:
    """The config that `to_dict` wrote, or any nested dict of keys, checked and completed."""
    return _resolve(plain(raw), overrides or {}, task_options, "the config")


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts that JSON can hold."""
    return dataclasses.asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value; a key that holds a dict is one value."""
    flat: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        inside = isinstance(value, dict)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if inside else {name: value}
    return flat


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> its two values, where they differ; None where a task lacks the key."""
    left, right = flatten(a), flatten(b)
    pairs = {name: (left.get(name), right.get(name)) for name in left | right}
    shared = left.keys() & right.keys()
    return {name: (x, y) for name, (x, y) in pairs.items() if x != y or name not in shared}


def resume_conflicts(saved: Config, given: Config) -> list[str]:
    """The dotted keys that differ and that a resumed run must not change."""
    return [name for name in differences(saved, given) if not name.startswith(FREE_ON_RESUME)]


def steps(value: values.CountOrShare, total: int) -> int:
    """A number of updates: a count as it is, a share of all rounded up, as in transformers: only 0
    gives 0, and 0.07 of 100, which is 7.000000000000001, gives 8.
    """
    return value if isinstance(value, int) else math.ceil(total * value)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When what happens, in updates."""

    total: int
    evaluate: int
    save: int
    log: int

    @classmethod
    def of(cls, config: Config, batches_per_epoch: int) -> "Schedule":
        train = config.train
        total = train.max_steps or math.ceil(
            (train.num_train_epochs or DEFAULT_EPOCHS) * batches_per_epoch
        )
        evaluate = steps(train.eval_steps, total)
        save = config.checkpoint.save_steps
        log = steps(train.logging_steps, total)
        return cls(total, evaluate, steps(save, total) if save else evaluate, log)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known dotted name that was most likely meant, or None if none is like it."""

    def likeness(candidate: str) -> float:
        (meant_home, _, meant), (home, _, last) = candidate.rpartition("."), name.rpartition(".")
        score = SequenceMatcher(None, last, meant).ratio()
        if len(last) > 1 and last == "".join(word[:1] for word in meant.split("_")):
            score = max(score, 0.9)  # lr: learning_rate
        if min(len(last), len(meant)) >= 5 and (last in meant or meant in last):
            score = max(score, 0.7 + 0.1 * score)  # epochs: num_train_epochs
        return score + 0.2 * SequenceMatcher(None, home, meant_home).ratio() if score > 0.6 else 0

    best = max(known, key=likeness, default="")
    return best if best and likeness(best) else None


def _left_out(section: Mapping[str, Any], config: Config, flags: Iterable[str]) -> list[str]:
    """What a recipe's data section holds out and a flag's data.train took away."""
    own, kept = {f"data.{key}": value for key, value in section.items()}, flatten(config)
    return [
        f"{name}={own[name]}"
        for name in schema.OF_TRAIN
        if own.get(name) is not None and kept[name] is None and name not in flags
    ]


@dataclasses.dataclass(frozen=True)
class _UnknownTask:
    """Stands in for the options of a task that does not exist, so that the rest can be checked."""


def _resolve(
    raw: dict[str, Any],
    overrides: Mapping[str, str],
    task_options: TaskOptions,
    source: str,
    needs_data: bool = True,
) -> Config:
    wrong: dict[str, str] = {}  # key -> its problem, in words
    section = raw.get("task")
    said = section.get("name") if isinstance(section, Mapping) else None
    name = overrides.get("task.name", said if isinstance(said, str) else schema.DEFAULT_TASK)
    try:
        task = task_options(name)
    except UserError as problem:
        task = _UnknownTask
        wrong["task.name"] = str(problem)
        raw = {home: value for home, value in raw.items() if home != "task"}
        overrides = {k: word for k, word in overrides.items() if not k.startswith("task.")}

    homes = schema.sections(task)
    table = {key.name: key for key in schema.keys(task)}
    flat = _gather(raw, overrides, homes, table, wrong)
    parts: dict[str, Any] = {home: {} for home in homes}
    for name, value in flat.items():
        home, _, last = name.rpartition(".")
        try:
            taken = values.accept(value, table[name].hint, table[name].must)
            (parts[home] if home else parts)[last] = taken
        except ValueError as problem:
            wrong.setdefault(name, f"{name} = {values.short(value)}: {problem}")
    config = Config(**parts | {home: kind(**parts[home]) for home, kind in homes.items()})
    for names, clash in schema.contradictions(config, needs_data):
        if not any(_is_in(name, concerned) for name in wrong for concerned in names):
            wrong[" ".join(names)] = clash
    if wrong:
        count = "1 problem" if len(wrong) == 1 else f"{len(wrong)} problems"
        raise UserError("\n  ".join([f"{count} in {source}:", *wrong.values()]))
    return config


def _gather(
    raw: Mapping[str, Any],
    overrides: Mapping[str, str],
    homes: Mapping[str, type],
    table: Mapping[str, schema.Key],
    wrong: dict[str, str],
) -> dict[str, Any]:
    """Dotted key -> what recipe and shell say of it; what is no key goes to `wrong`."""
    flat: dict[str, Any] = {}
    for home, value in raw.items():
        inside = home in homes and isinstance(value, Mapping)
        flat |= {f"{home}.{k}": v for k, v in value.items()} if inside else {str(home): value}
    for name in [name for name in flat if name not in table]:
        wrong[name] = f"{name} = {values.short(flat.pop(name))}: {_unknown(name, homes, table)}"
    for name, word in overrides.items():
        try:
            if name in table:
                flat[name] = values.read(word, table[name].hint, table[name].must)
            elif not _set_below(flat, name, word, table):
                raise ValueError(_unknown(name, homes, table))
        except ValueError as problem:
            flat.pop(name, None)
            wrong[name] = f"--config.{name}={word}: {problem}"

    def flagged(name: str) -> bool:
        return any(_is_in(key, name) for key in overrides)

    for pair in schema.EITHER:
        for one, other in (pair, pair[::-1]):
            if flagged(one) and not flagged(other) and flat.get(one) is not None:
                flat[other] = None
    if flagged("data.train") and flat.get("data.train") is not None:
        flat |= {name: None for name in schema.OF_TRAIN if name not in overrides}
    if isinstance(model := flat.get("model.pretrained"), str):
        flat["model.pretrained"] = shapes.hub_id(model)
    epochs, limit = "train.num_train_epochs", "train.max_steps"
    if flat.get(epochs) is None and flat.get(limit) is None:
        flat[epochs] = DEFAULT_EPOCHS
    return flat


def _is_in(name: str, owner: str) -> bool:
    return f"{name}.".startswith(f"{owner}.")


def _set_below(flat: dict[str, Any], name: str, word: str, table: Mapping[str, schema.Key]) -> bool:
    """Sets one entry of the key that holds a dict; False where there is no such key."""
    owner = next((known for known in table if _is_in(name, known)), "")
    kinds = values.members(table[owner].hint) if owner else ()
    element = next((get_args(kind)[1] for kind in kinds if get_origin(kind) is dict), None)
    if element is None:
        return False
    below = name.removeprefix(f"{owner}.")
    # JSON nests by dots; any other dict has regexes for keys, and the dots are theirs.
    *outer, last = below.split(".") if element is Any else [below]
    value = values.read(word, element, table[owner].must)
    target = flat
    for part in [owner, *outer]:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[last] = value
    return True


def _unknown(name: str, homes: Iterable[str], table: Mapping[str, schema.Key]) -> str:
    """Why there is no such key, what was probably meant, and what there is."""
    if name in homes:
        return f"a section; set its keys: {', '.join(k for k in table if _is_in(k, name))}"
    owner = next((known for known in table if _is_in(name, known)), None)
    if owner:
        return f"{owner} is {table[owner].allowed}, with no keys below it"
    home = name.partition(".")[0]
    guess = closest(name, [*table] if "." in name else [*table, *homes])
    inside = [known.partition(".")[2] for known in table if home in homes and _is_in(known, home)]
    there = f"{home} has: {', '.join(inside)}" if inside else f"there are: {', '.join(homes)}, seed"
    return f"no such key{f'; did you mean {guess}?' if guess else ''}\n    {there}"
