"""Running a model over a whole split and putting its rows back in order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxft.data.batches import BatchSource, put, rows_here
from jaxft.data.features import EVALUATION, Rows, Split, tokenise
from jaxft.data.plan import Plan
from jaxft.errors import NonFiniteAnswers
from jaxft.experiment import Experiment
from jaxft.generate import Generator
from jaxft.stderr import Say, silently

WIDTHS = 3
"""How many widths unpacked evaluation uses at most; training sees each row more often."""
Outputs = dict[str, np.ndarray]
"""What `task.predict` gives per example, [N, ...], in the order of the split."""


@dataclass(frozen=True)
class Tools:
    """What a task answers rows with."""

    experiment: Experiment
    params: Any
    seed: int = 0
    programs: dict = field(default_factory=dict)
    """What generation has compiled."""
    say: Say = silently

    @property
    def tokenizer(self) -> Any:
        return self.experiment.tokenizer

    @property
    def positions(self) -> int:
        """Tokens that the model has positions for."""
        return self.experiment.drawn.dims.max_length

    def outputs(self, rows: Rows) -> Outputs:
        """What `task.predict` gives per row."""
        experiment = self.experiment
        data = experiment.config.data
        split = tokenise(rows, experiment.task, self.tokenizer, data, self.say)
        return Scorer(experiment, {"input": split})(self.params, "input")

    @property
    def generate(self) -> Generator:
        experiment = self.experiment
        return Generator(
            experiment.rolled.merge,
            self.params,
            experiment.mesh,
            experiment.rows,
            experiment.row_shards,
            self.programs,
        )


class Scorer:
    """The compiled eval step over batches of one size; every process gets every row's outputs."""

    def __init__(self, experiment: Experiment, splits: Mapping[str, Split]):
        data = experiment.config.data
        self._experiment = experiment
        self._step = experiment.eval_step()
        self._loader: tuple[Callable[[Any], Any], Any] | None = None
        self._compiled: dict[tuple[tuple[int, int], int], Callable] = {}
        self._splits = dict(splits)
        self._programs: dict = {}
        self._wanted = {
            name: experiment.task.wanted(split.rows, self._tools(None))
            for name, split in splits.items()
            if not name.startswith(EVALUATION)
        }
        plans = {
            name: Plan(
                split.lengths,
                experiment.eval_batch_size,
                data.max_length,
                seed=None,
                packing="none" if data.packing == "none" else "batch",
                row_unit=experiment.row_shards,
                width_unit=experiment.width_unit,
                widths_at_most=WIDTHS,
            )
            for name, split in splits.items()
        }
        # Splits of one shape share their programs; the width decides how many rows there are.
        width = max(plan.widths[-1] for plan in plans.values())
        wide = {name: replace(plan, floor=(0, 0, width)) for name, plan in plans.items()}
        rows, slots = np.max([plan.shape for plan in wide.values()], axis=0).tolist()
        self._plans = {n: replace(plan, floor=(rows, slots, width)) for n, plan in wide.items()}

    def compile(self, params: Any) -> None:
        """Compiles the programs that the splits need; `params` may be abstract."""
        if self._loader is None:
            self._loader = self._experiment.loader(params)
            for wanted in self._wanted.values():
                self._experiment.task.compile(wanted, self._tools(self._loader[1]))
        _, working = self._loader
        for name, plan in self._plans.items():
            for width in plan.widths:
                if (plan.shape, width) not in self._compiled:
                    batch = put(self._source(name).empty(width), self._experiment.rows)
                    with jax.set_mesh(self._experiment.mesh):
                        compiled = self._step.lower(working, batch).compile()
                    self._compiled[plan.shape, width] = compiled

    def __call__(self, params: Any, name: str) -> Outputs:
        """Outputs of every example of the split `name`, padding dropped by number."""
        return self._outputs(self._working(params), name)

    def scores(self, params: Any, name: str) -> tuple[dict[str, float], Outputs]:
        """The task's scores of a split, and the outputs they come from."""
        working, task = self._working(params), self._experiment.task
        outputs = self._outputs(working, name)
        scores = task.scores(outputs, self._splits[name].targets)
        generated = task.generated(self._wanted.get(name, ()), self._tools(working))
        return {**scores, **generated}, outputs

    def _working(self, params: Any) -> Any:
        """The weights to compute with, of those that are kept."""
        self.compile(params)
        assert self._loader is not None
        return self._loader[0](params)

    def _outputs(self, working: Any, name: str) -> Outputs:
        """Raises: NonFiniteAnswers."""
        plan, source = self._plans[name], self._source(name)
        pending = [
            self._compiled[plan.shape, plan[k][1]](working, put(source[k], self._experiment.rows))
            for k in range(len(source))
        ]
        parts = [jax.tree.map(np.asarray, part) for part in pending]
        rows = np.concatenate([part.pop("rows_N") for part in parts])
        order = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
        found = {key: np.concatenate([part[key] for part in parts])[order] for key in parts[0]}
        if bad := np.count_nonzero(~np.isfinite(found["losses_N"])):
            raise NonFiniteAnswers(
                f"{self._splits[name].rows.source}: the model answers {bad} of {len(order)} rows "
                "with what is no finite number; these weights are of no use."
            )
        return found

    def _tools(self, params: Any) -> Tools:
        return Tools(self._experiment, params, programs=self._programs)

    def _source(self, name: str) -> BatchSource:
        plan = self._plans[name]
        return BatchSource(
            plan,
            self._splits[name].features,
            self._experiment.task.collate,
            plan.batches_per_epoch,
            rows_here(plan.shape[0], self._experiment.rows),
        )
