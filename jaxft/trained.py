"""The weights of a run, opened for use: what evaluate, predict and export have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
def open_trained(workdir: Workdir, step: str, say: Say) -> Iterator[Trained]:
    """Opens checkpoint `step` ("best", "last" or a number) of a workdir, its weights split over all
    devices: one of them need not hold all.

    Raises:
        UserError: there is no run, no such checkpoint, or it cannot be read.
    """
    saved = workdir.require("config.json")
    say(keep_compiled())
    with workdir.model_folder() as folder:
        mesh = make_mesh({"fsdp": -1})
        experiment = reopen(saved, workdir.require("task.json"), folder, mesh, say)
    checkpoints = experiment.checkpoints(workdir.checkpoints, say, writes=False)
    try:
        chosen = _choose(step, checkpoints.steps, checkpoints.best, workdir)
        restored = checkpoints.restore(experiment.abstract_params, step=chosen)
        say(f"Weights of step {chosen} ({step}) of {workdir}")
        yield Trained(experiment, restored.params, chosen, workdir)
    finally:
        checkpoints.close()


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
