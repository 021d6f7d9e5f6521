"""The nearest changes to a config that make it fit."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

from jax.sharding import Mesh

from jaxft import schema, tasks, values
from jaxft.chips import Chip
from jaxft.config import Config
from jaxft.errors import UserError
from jaxft.flags import PREFIX
from jaxft.planning.estimate import Estimator, Footprint
from jaxft.planning.places import Place
from jaxft.planning.roofline import roofline, sent_bytes
from jaxft.planning.sketch import Sketch
from jaxft.sharding import AXES, make_mesh

FILLED = 0.95
"""Share of a device's memory that an estimate may fill to count as fitting."""
CHANGES: dict[str, dict[Any, float]] = {
    "mesh.zero_stage": {3: 0.5},
    "model.activation_checkpointing": {"dots": 0.9, "full": 1.0},
    "train.eval_batch_size": {None: 0.5},
    "train.gradient_accumulation_steps": {2: 1.0, 4: 1.1, 8: 1.2, 16: 1.3, 32: 1.4, 64: 1.5},
    "optim.moments_dtype": {"bfloat16": 2.0},
    "optim.offload": {True: 3.0},
    "train.batch_size": {0.5: 4.0, 0.25: 4.5, 0.125: 5.0},
}
"""Key -> what it may become and how far away that is: what keeps the result comes before what
changes it. A batch size is a share of the given one; accumulation a multiple.
"""
FARTHER: dict[str, Callable[[Any, Any], bool]] = {
    "model.activation_checkpointing": lambda value, than: (value, than) == ("full", "dots"),
    "train.gradient_accumulation_steps": operator.gt,
    "train.batch_size": operator.lt,
    **dict.fromkeys((f"mesh.{axis}" for axis in AXES), operator.ne),
}
"""Key -> whether a value goes the way of another one, and farther; the first split is enough."""
MESH_COSTS = {"fsdp": 1.0, "tensor": 1.5, "context": 2.0}
"""Of a mesh whose split over these is another."""


@dataclass(frozen=True)
class Suggestion:
    """A change that fits."""

    changes: dict[str, Any]
    footprint: Footprint
    evaluation_bytes: int
    sketch: Sketch
    step_s: float | None
    """At best, where the chip is known."""

    @property
    def peak_bytes(self) -> int:
        """Of update or evaluation, on one device."""
        return max(self.footprint.peak, self.evaluation_bytes)

    @property
    def flags(self) -> list[str]:
        return [f"{PREFIX}{key}={value}" for key, value in self.changes.items()]


def suggest(
    sketch: Sketch, place: Place, estimate: Estimator, fitting: Sequence[Suggestion] = ()
) -> Iterator[Suggestion]:
    """Changes that fit by the estimate, the nearest first.

    What goes further than one of `fitting` is left out: the same keys as far or farther, and
    perhaps more keys. The caller may add to `fitting` what turned out to fit.
    """
    assert place.hbm_bytes is not None
    room = FILLED * place.hbm_bytes
    for _, changes in sorted(_neighbours(sketch, place), key=lambda pair: pair[0]):
        if any(_goes_further(changes, one.changes) for one in fitting):
            continue
        neighbour = changed(sketch, place, changes)
        if neighbour is None:
            continue
        footprint = estimate(neighbour)
        if footprint.peak > room or (evaluation := estimate.evaluation(neighbour)) > room:
            continue
        step_s = _step_s(neighbour, footprint, place.chip)
        yield Suggestion(changes, footprint, evaluation, redrawn(neighbour), step_s)


def _goes_further(changes: dict[str, Any], than: dict[str, Any]) -> bool:
    """Whether every key of the other changes is here, with its value or a farther one."""
    return all(
        key in changes
        and (changes[key] == value or (key in FARTHER and FARTHER[key](changes[key], value)))
        for key, value in than.items()
    )


def changed(sketch: Sketch, place: Place, changes: dict[str, Any]) -> Sketch | None:
    """The run with these keys changed, to be estimated; None where it cannot be so."""
    config = _with(sketch.config, changes)
    if next(schema.contradictions(config, needs_data=False), None) is not None:
        return None
    try:
        mesh = _mesh(tuple((axis, vars(config.mesh)[axis]) for axis in AXES), place.devices)
        experiment = replace(sketch.experiment, config=config, mesh=mesh)
        experiment.check_divides()
    except UserError:
        return None
    return replace(sketch, experiment=experiment)


def redrawn(sketch: Sketch) -> Sketch:
    """The run with its model computed as its config says, ready to be compiled."""
    experiment, mode = sketch.experiment, sketch.config.model.activation_checkpointing
    compute: Any = replace(experiment.drawn.compute, activation_checkpointing=mode)
    return replace(sketch, experiment=replace(experiment, drawn=experiment.drawn.redraw(compute)))


@lru_cache(maxsize=256)
def _mesh(sizes: tuple[tuple[str, int], ...], devices: tuple[Any, ...]) -> Mesh:
    return make_mesh(dict(sizes), devices)


def _neighbours(sketch: Sketch, place: Place) -> Iterator[tuple[float, dict[str, Any]]]:
    """Every combination of changes, with how far away it is."""
    table = {key.name: key for key in schema.keys(tasks.options(schema.DEFAULT_TASK))}
    config = sketch.config
    options: list[list[tuple[float, dict[str, Any]]]] = [_meshes(sketch)]
    for name, choices in CHANGES.items():
        now = _get(config, name)
        allowed: list[tuple[float, dict[str, Any]]] = [(0.0, {})]
        for choice, cost in choices.items():
            value = _meant(name, choice, now)
            try:
                values.accept(value, table[name].hint, table[name].must)
            except ValueError:
                continue
            if value != now:
                allowed.append((cost, {name: value}))
        options.append(allowed)
    for combination in product(*options):
        cost = sum(part for part, _ in combination)
        if cost:
            yield cost, {k: v for _, changes in combination for k, v in changes.items()}


def _meant(name: str, choice: Any, now: Any) -> Any:
    if name == "train.gradient_accumulation_steps":
        return now * choice
    if name == "train.batch_size":
        return round(now * choice)
    return choice


def _meshes(sketch: Sketch) -> list[tuple[float, dict[str, Any]]]:
    """Other splits of the same devices, as `mesh` keys, the present one first."""
    shape = sketch.experiment.mesh.shape
    free = sketch.experiment.mesh.size
    sizes = [n for n in range(1, free + 1) if free % n == 0]
    found: list[tuple[float, dict[str, Any]]] = [(0.0, {})]
    for split in product(sizes, repeat=len(AXES)):
        wanted = dict(zip(AXES, split, strict=True))
        if prod(split) != free or all(shape[axis] == n for axis, n in wanted.items()):
            continue
        if sketch.experiment.drawn.dims.heads % wanted["tensor"]:
            continue
        cost = sum(c for axis, c in MESH_COSTS.items() if wanted[axis] != shape[axis])
        given = vars(sketch.config.mesh)
        changes = {f"mesh.{axis}": n for axis, n in wanted.items() if given[axis] != n}
        found.append((cost, changes))
    # Of equal distance, the one that splits the weights the most.
    return sorted(found, key=lambda one: (one[0], -one[1].get("mesh.fsdp", 0)))


def _step_s(sketch: Sketch, footprint: Footprint, chip: Chip | None) -> float | None:
    if chip is None:
        return None
    return roofline(sketch, footprint, chip, sent_bytes(sketch)).step_s


def _get(config: Config, name: str) -> Any:
    home, _, key = name.partition(".")
    return getattr(getattr(config, home), key)


def _with(config: Config, changes: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        home, _, key = name.partition(".")
        sections.setdefault(home, {})[key] = value
    made = {home: replace(getattr(config, home), **keys) for home, keys in sections.items()}
    return replace(config, **made)
