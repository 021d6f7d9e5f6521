"""Checkpoints of a run: asynchronous, sharded, committed whole; the last n and the best k are kept.

One checkpoint holds parts that load on their own: `params`, `optimizer` (step and moments), and `meta` as plain JSON.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxft.errors import UserError
from jaxft.nn.weights import Tree

_policies = ocp.training.preservation_policies


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back."""

    step: int
    params: Tree
    optimizer: Any
    meta: dict[str, Any]


class Checkpoints:
    """The `checkpoints/` folder of a workdir, which may be a URL that epath knows (gs://).

    `metric` names the score that decides which are best; a lower one is better if `lower_is_better`.
    """

    def __init__(
        self,
        folder: epath.Path,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        metric: str = "",
        lower_is_better: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.folder, self.metric, self.say = folder, metric, say
        self.sign = -1.0 if lower_is_better else 1.0
        keep = [_policies.LatestN(keep_last)]
        if keep_best:
            keep.append(
                _policies.BestN(
                    get_metric_fn=self._value, n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        self._orbax = ocp.training.Checkpointer(
            folder,
            preservation_policy=_policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )

    def _value(self, metrics: Mapping[str, float]) -> float:
        value = float(metrics[self.metric])
        return self.sign * value if isfinite(value) else float("-inf")

    @property
    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    @property
    def best(self) -> int | None:
        """The step with the best score; the later one of equals; None when none was scored."""
        scored = [
            (self._value(c.metrics), c.step)
            for c in self._orbax.checkpoints
            if c.metrics and self.metric in c.metrics
        ]
        return max(scored)[1] if scored else None

    def save(
        self,
        step: int,
        *,
        params: Tree,
        optimizer: Any,
        meta: Mapping[str, Any],
        scores: Mapping[str, float] | None,
    ) -> None:
        """Starts a save and returns once the arrays are copied; a failure keeps the ones before and is said."""
        try:
            self._orbax.save_checkpointables_async(
                step,
                {"params": params, "optimizer": optimizer},
                metrics={self.metric: scores[self.metric]} if scores else None,
                custom_metadata=dict(meta),
                force=True,
                overwrite=True,
            )
        except OSError as error:
            self._failed(error)

    def wait(self) -> None:
        """Until the save in progress is committed."""
        try:
            self._orbax.wait()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if jax.process_count() > 1:
            raise error
        kept = ", ".join(map(str, self.steps)) or "none"
        self.say(f"A checkpoint could not be saved ({error}). Earlier ones are untouched: {kept}.")

    def restore(
        self,
        params: Tree,
        optimizer: Any = None,
        step: int | None = None,
    ) -> Restored:
        """The checkpoint of `step`, or the newest that can be read; one that cannot is put aside and said.

        `params` and `optimizer` are abstract trees that say how each array lies on this run's mesh. Without
        `optimizer` its part is not read.

        Raises:
            UserError: `step` is not there or cannot be read, or none can.
        """
        wanted = {"params": params}
        if optimizer is not None:
            wanted["optimizer"] = optimizer
        if step is not None and step not in self.steps:
            raise UserError(f"{self.folder} has no step {step}; there are {self.steps}.")
        for candidate in [step] if step is not None else reversed(self.steps):
            try:
                parts = self._orbax.load_checkpointables(candidate, wanted)
                meta = self._orbax.checkpointables_metadata(candidate).custom_metadata
            except Exception as error:  # a damaged folder raises whatever its reader raises
                reason = f"{type(error).__name__}: {str(error)[:80]}"
                if step is not None:
                    raise UserError(f"Checkpoint {step} cannot be read ({reason}).") from error
                self.say(f"Checkpoint {candidate} cannot be read ({reason}); trying the one before.")
                self._put_aside(candidate)
                continue
            return Restored(candidate, parts["params"], parts.get("optimizer"), dict(meta or {}))
        raise UserError(f"No checkpoint under {self.folder} can be read.")

    def _put_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way of its next save; nothing is deleted."""
        if jax.process_index() == 0:
            aside = self.folder.parent / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            number = sum(1 for _ in aside.iterdir())
            (self.folder / str(step)).rename(aside / f"{step}-{number}")
        self._orbax.reload()

    def close(self) -> None:
        self.wait()
        self._orbax.close()


def check_room(folder: epath.Path, bytes_each: int, count: int) -> None:
    """Raises UserError when the disk cannot hold `count` checkpoints; URLs are not asked."""
    if "://" in str(folder):
        return
    free = shutil.disk_usage(folder).free
    if free < bytes_each * count:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB are free, but {count} checkpoints of {bytes_each / 1e9:.2f} GB each are to "
            "come (checkpoint.keep_last + checkpoint.keep_best + the one being written). Free some room, keep fewer or "
            "choose another --workdir."
        )
