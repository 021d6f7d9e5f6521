"""The weights of a run, opened for use: what evaluate, predict and export have in common."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxft import schema, values
from jaxft.compilation import keep_compiled
from jaxft.errors import UserError
from jaxft.experiment import Experiment, reopen
from jaxft.sharding import make_mesh
from jaxft.stderr import Say
from jaxft.workdir import Workdir

STEP_HELP = "best (by the run's metric; the default), last, or a step number"


@dataclass(frozen=True)
class Trained:
    """A run's experiment on this machine's devices, with one checkpoint's weights."""

    experiment: Experiment
    params: Any
    step: int
    workdir: Workdir


@contextmanager
def open_trained(
    workdir: Workdir, step: str, say: Say, overrides: Mapping[str, str] | None = None
) -> Iterator[Trained]:
    """Opens checkpoint `step` ("best", "last" or a number) of a workdir, its weights split over all
    devices: one of them need not hold all. `overrides` replace keys of the run's config.

    Raises:
        UserError: there is no run, no such checkpoint, or it cannot be read.
    """
    saved, task = workdir.require("config.json"), workdir.require("task.json")
    say(keep_compiled())
    with workdir.model_folder() as folder:
        mesh = make_mesh({"fsdp": -1})
        experiment = reopen(saved, task, folder, mesh, say, overrides)
    checkpoints = experiment.checkpoints(workdir.checkpoints, say, writes=False)
    try:
        chosen = _choose(step, checkpoints.steps, checkpoints.best, workdir)
        restored = checkpoints.restore(experiment.abstract_params, step=chosen)
        say(f"Weights of step {chosen} ({step}) of {workdir}")
        yield Trained(experiment, restored.params, chosen, workdir)
    finally:
        checkpoints.close()


def in_place_of_keys(
    experiment: Experiment, words: Mapping[str, str], needed: Collection[str]
) -> dict[str, Any]:
    """The values of flags that stand in for keys of the run's task, by the keys' names.

    Raises:
        UserError: the task has not all that is `needed`, or a value is not allowed.
    """
    keys = {key.name.removeprefix("task."): key for key in schema.keys(experiment.module.Options)}
    if words and not set(needed) <= keys.keys():
        raise UserError(
            f"{', '.join(f'--{name}' for name in words)}: the run's task is "
            f"{experiment.config.task.name}, which writes no answers; leave this away."
        )
    read: dict[str, Any] = {}
    for name, word in words.items():
        try:
            read[name] = values.read(word, keys[name].hint, keys[name].must)
        except ValueError as problem:
            raise UserError(f"--{name}={word}: {problem}") from None
    return read


def _choose(step: str, steps: list[int], best: int | None, workdir: Workdir) -> int:
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint yet.")
    if step == "last":
        return steps[-1]
    if step == "best":
        return best if best is not None else steps[-1]
    if not step.isdigit() or int(step) not in steps:
        raise UserError(f"--step={step} is not among {', '.join(map(str, steps))}, best, last.")
    return int(step)
