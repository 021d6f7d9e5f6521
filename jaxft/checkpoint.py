"""Checkpoints of a run: asynchronous, sharded, committed whole; the last n and the best k are kept.

One checkpoint holds parts that load on their own: `params`, `optimizer` (step and moments), and
`meta` as plain JSON.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxft.errors import UserError
from jaxft.nn.weights import Tree
from jaxft.stderr import Say, aloud

TRIES = 50
STEP = "step"
"""Stands among a checkpoint's scores, for what ranks them sees nothing else."""
_policies = ocp.training.preservation_policies
_FAILURES = (OSError, ValueError)
"""What a save raises when it cannot be written; the second is tensorstore's, for a full disk
too.
"""


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back."""

    step: int
    params: Tree
    optimizer: Any
    meta: dict[str, Any]


class Checkpoints:
    """The `checkpoints/` folder of a workdir, which may be a URL that epath knows (gs://).

    `metric` names the score that decides which are best; a lower one is better if
    `lower_is_better`. Without `writes`, another process may be saving there.
    """

    def __init__(
        self,
        folder: epath.Path,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        metric: str = "",
        lower_is_better: bool = False,
        say: Say = aloud,
        writes: bool = True,
    ):
        self.folder, self.metric, self.say = folder, metric, say
        self.keep_best = keep_best
        self.sign = -1.0 if lower_is_better else 1.0
        best = _policies.BestN(
            get_metric_fn=self._rank, n=keep_best, keep_checkpoints_without_metrics=False
        )
        self._keep = _policies.AnyPreservationPolicy([_policies.LatestN(keep_last), best])
        # Its threads log every failure with a page of traceback, and then raise it for us to tell.
        for noisy in ("absl", "asyncio"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        self._orbax = self._open(clean=writes)

    def _open(self, *, clean: bool) -> Any:
        return ocp.training.Checkpointer(
            self.folder, preservation_policy=self._keep, cleanup_tmp_directories=clean
        )

    def _rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """A higher one is better; the first of equals is."""
        value = float(metrics.get(self.metric, "nan"))
        return (self.sign * value if isfinite(value) else float("-inf"), -metrics.get(STEP, 0))

    @property
    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    @property
    def best(self) -> int | None:
        """The step with the best score, the first of equals; None when none was scored or none is
        kept for its score.
        """
        scored = [c for c in self._orbax.checkpoints if c.metrics and self.metric in c.metrics]
        if not scored or not self.keep_best:
            return None
        return max(scored, key=lambda checkpoint: self._rank(checkpoint.metrics)).step

    def save(
        self,
        step: int,
        *,
        params: Tree,
        optimizer: Any,
        meta: Mapping[str, Any],
        scores: Mapping[str, float] | None,
    ) -> None:
        """Starts a save and returns once the arrays are copied; a failure keeps the ones before and
        is said.

        A step that is there already is left as it is.
        """
        self.wait()
        if step in self.steps:
            return
        try:
            self._orbax.save_checkpointables_async(
                step,
                {"params": params, "optimizer": optimizer},
                metrics={**scores, STEP: step} if scores else None,
                custom_metadata=dict(meta),
                force=True,
            )
        except _FAILURES as error:
            self._failed(error)

    def wait(self) -> None:
        """Until the save in progress is committed."""
        try:
            self._orbax.wait()
        except _FAILURES as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if jax.process_count() > 1:
            raise error
        with suppress(*_FAILURES):
            self._orbax.close()
        # Not by orbax, which removes them beside the run: where a writer of the failed save is not
        # done, the removal fails and takes the next save with it.
        self._remove_torn()
        self._orbax = self._open(clean=False)
        kept = ", ".join(map(str, self.steps)) or "none"
        self.say(
            "WARNING: a checkpoint could not be saved, the run goes on. Those before it are "
            f"untouched: {kept}.\n  {_in_short(error)}"
        )

    def _remove_torn(self) -> None:
        """Removes what a failed save left, whose last writers may be adding to it yet; what they
        make anew after that, the next start removes.
        """
        for _ in range(TRIES):
            with suppress(OSError):
                for torn in self.folder.glob("*.orbax-checkpoint-tmp"):
                    torn.rmtree()
                return
            time.sleep(0.1)

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the weights of `step`; nothing of a damaged one, which `restore`
        is to tell.
        """
        try:
            return dict(self._orbax.checkpointables_metadata(step).custom_metadata or {})
        except Exception:  # whatever its reader raises
            return {}

    def restore(
        self,
        params: Tree,
        optimizer: Any = None,
        step: int | None = None,
    ) -> Restored:
        """The checkpoint of `step`, or the newest that can be read; one that cannot is put aside
        and said.

        `params` and `optimizer` are abstract trees that say how each array lies on this run's mesh.
        Without `optimizer` its part is not read.

        Raises:
            UserError: `step` is not there or cannot be read, or none can.
        """
        wanted = {"params": params}
        if optimizer is not None:
            wanted["optimizer"] = optimizer
        if step is not None and step not in self.steps:
            raise UserError(f"{self.folder} has no step {step}; there are {self.steps}.")
        damaged = []
        for candidate in [step] if step is not None else reversed(self.steps):
            try:
                # One by one: where a part fails, orbax forgets to await those after it.
                parts = {
                    name: self._orbax.load_checkpointables(candidate, {name: part})[name]
                    for name, part in wanted.items()
                }
                meta = self._orbax.checkpointables_metadata(candidate).custom_metadata
            except Exception as error:  # a damaged folder raises whatever its reader raises
                reason = f"  {_in_short(error)}"
                if step is not None:
                    raise UserError(
                        f"Checkpoint {step} of {self.folder} cannot be read:\n{reason}"
                    ) from error
                self.say(f"WARNING: checkpoint {candidate} cannot be read:\n{reason}")
                damaged.append(candidate)
                continue
            if damaged:
                self._put_aside(damaged)
                self.say(
                    f"Falling back to checkpoint {candidate}; what is damaged lies in {self._aside}"
                )
            return Restored(candidate, parts["params"], parts.get("optimizer"), dict(meta or {}))
        raise UserError(
            f"None of the checkpoints under {self.folder} can be read "
            f"({', '.join(map(str, damaged))}). All are still there. Choose another --workdir to "
            "start anew."
        )

    @property
    def _aside(self) -> epath.Path:
        return self.folder.parent / "damaged_checkpoints"

    def _put_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints out of the way of their next save; nothing is deleted."""
        if jax.process_index() == 0:
            self._aside.mkdir(exist_ok=True)
            number = sum(1 for _ in self._aside.iterdir())
            for step in steps:
                (self.folder / str(step)).rename(self._aside / f"{step}-{number}")
        multihost_utils.sync_global_devices("damaged checkpoints are put aside")
        self._orbax.reload()

    def close(self) -> None:
        self.wait()
        self._orbax.close()


def check_room(folder: epath.Path, bytes_each: int, count: int) -> None:
    """Raises UserError when the disk cannot hold `count` checkpoints in all under `folder`; URLs
    are not asked.
    """
    if "://" in str(folder):
        return
    count -= sum(child.name.isdigit() for child in folder.iterdir()) if folder.is_dir() else 0
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < bytes_each * count:
        raise UserError(
            f"{folder}: {free / 1e9:.3g} GB are free, but {count} checkpoints of "
            f"{bytes_each / 1e9:.3g} GB each are to come (checkpoint.keep_last + "
            "checkpoint.keep_best + the one being written). Free some room, keep fewer or choose "
            "another --workdir."
        )


def _in_short(error: BaseException) -> str:
    """The first line of what lies at the bottom of it; its end says most."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0]
    return (
        f"{type(error).__name__}: {line if len(line) < 300 else f'{line[:80]} ... {line[-200:]}'}"
    )
