"""Running a model over a whole split and putting its rows back in order."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxft.data.batches import SCORING_LENGTHS, BatchSource, Plan, put, rows_here
from jaxft.data.features import Split
from jaxft.experiment import Experiment

Outputs = dict[str, np.ndarray]
"""What `task.predict` gives per row, [N, ...], in the order of the split."""


class Scorer:
    """The compiled eval step over batches of one size; every process gets every row's outputs."""

    def __init__(self, experiment: Experiment, splits: Mapping[str, Split]):
        train = experiment.config.train
        shards = experiment.row_shards
        batch_size = -(-(train.eval_batch_size or train.batch_size) // shards) * shards
        self._experiment = experiment
        self._mine = rows_here(batch_size, experiment.rows)
        self._step = experiment.eval_step()
        self._compiled: dict[int, Callable] = {}
        self._splits = dict(splits)
        max_length = experiment.config.data.max_length
        self._plans = {
            name: Plan(
                split.lengths, batch_size, max_length, seed=None, lengths_at_most=SCORING_LENGTHS
            )
            for name, split in splits.items()
        }

    def compile(self, params: Any) -> None:
        """Compiles the programs that the splits need; `params` may be abstract."""
        for name, plan in self._plans.items():
            for length in set(plan.shapes) - set(self._compiled):
                batch = put(self._source(name).empty(length), self._experiment.rows)
                with jax.set_mesh(self._experiment.mesh):
                    self._compiled[length] = self._step.lower(params, batch).compile()

    def __call__(self, params: Any, name: str) -> Outputs:
        """Outputs of every row of the split `name`, padding dropped by row number."""
        self.compile(params)
        plan, source = self._plans[name], self._source(name)
        pending = [
            self._compiled[plan[k][1]](params, put(source[k], self._experiment.rows))
            for k in range(len(source))
        ]
        parts = [jax.tree.map(np.asarray, part) for part in pending]
        rows = np.concatenate([part.pop("rows_B") for part in parts])
        order = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
        return {key: np.concatenate([part[key] for part in parts])[order] for key in parts[0]}

    def scores(self, params: Any, name: str) -> tuple[dict[str, float], Outputs]:
        """The task's scores of a split, and the outputs they come from."""
        outputs = self(params, name)
        return self._experiment.task.scores(outputs, self._splits[name].targets), outputs

    def _source(self, name: str) -> BatchSource:
        plan = self._plans[name]
        return BatchSource(
            plan,
            self._splits[name].features,
            self._experiment.task.collate,
            plan.batches_per_epoch,
            self._mine,
        )
