"""The parts of a run, each made once, from its experiment and its splits, when first needed."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import Any

import jax
import numpy as np

from jaxft import config as configs
from jaxft.checkpoint import Checkpoints
from jaxft.config import Config, Schedule
from jaxft.data.batches import BatchSource, put, rows_here
from jaxft.data.features import Split
from jaxft.data.plan import Plan
from jaxft.depths import Depths
from jaxft.errors import UserError
from jaxft.experiment import Experiment
from jaxft.history import History
from jaxft.nn.weights import flops_per_token
from jaxft.optim import learning_rates_by_depth
from jaxft.progress import Progress
from jaxft.recorder import Recorder, Work
from jaxft.report import RunLog
from jaxft.scoring import Scorer
from jaxft.stderr import Say
from jaxft.step import TrainState
from jaxft.workdir import Workdir


@dataclass
class Parts:
    """What a run is made of."""

    experiment: Experiment
    splits: dict[str, Split]
    workdir: Workdir
    say: Say
    history: History = field(default_factory=History)

    @property
    def config(self) -> Config:
        return self.experiment.config

    @cached_property
    def plan(self) -> Plan:
        data, train = self.config.data, self.config.train
        split = self.splits["train"]
        if 0 in split.counts:
            assert isinstance(data.train, dict), "a source by itself is refused where it is read"
            empty = list(data.train)[split.counts.index(0)]
            raise UserError(f"{empty}: no row is left to learn from; take it out of data.train.")
        once = Plan(
            split.lengths,
            train.batch_size,
            data.max_length,
            self.config.seed,
            data.packing,
            counts=split.counts,
            weights=split.rows.weights,
            width_unit=self.experiment.width_unit,
            row_unit=self.experiment.row_shards * train.gradient_accumulation_steps,
        )
        total = Schedule.of(self.config, once.batches_per_epoch).total
        return replace(once, epochs=ceil(total / once.batches_per_epoch))

    @cached_property
    def schedule(self) -> Schedule:
        return Schedule.of(self.config, self.plan.batches_per_epoch)

    @cached_property
    def source(self) -> BatchSource:
        mine = rows_here(self.plan.shape[0], self.experiment.rows)
        features, collate = self.splits["train"].features, self.experiment.task.collate
        return BatchSource(self.plan, features, collate, self.schedule.total, mine)

    @cached_property
    def optimizer(self) -> Any:
        return self.experiment.optimizer(self.schedule.total)

    @cached_property
    def abstract(self) -> TrainState:
        return self.experiment.abstract_state(self.optimizer)

    @property
    def metric(self) -> str:
        return self.experiment.metric

    @cached_property
    def depths(self) -> Depths:
        return Depths(self.experiment.drawn.weights, self.experiment.store)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return self.experiment.checkpoints(self.workdir.checkpoints, self.say, writes=True)

    @cached_property
    def scorer(self) -> Scorer:
        held_out = {name: split for name, split in self.splits.items() if name != "train"}
        return Scorer(self.experiment, held_out)

    def recall(self) -> int:
        """The newest step that is saved, with its history; its weights are not looked at."""
        newest = max(self.checkpoints.steps, default=0)
        if newest:
            self.history = History.from_meta(self.checkpoints.meta(newest))
        return newest

    def compile(self, start: int = 0) -> dict[int, Callable]:
        """The update for each width of the rows after `start`, and the evaluation, so that memory
        errors come now and not later.
        """
        began_s = time.perf_counter()
        jitted = self.experiment.train_step(self.optimizer)

        def compile_for(length: int) -> Callable:
            batch = put(self.source.empty(length), self.experiment.rows)
            with jax.set_mesh(self.experiment.mesh):
                return jitted.lower(self.abstract, batch, np.int32(0)).compile()

        # Compilation leaves Python's lock, so that several programs compile side by side.
        lengths = self.plan.widths_of(start, self.schedule.total)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            steps = dict(zip(lengths, pool.map(compile_for, lengths), strict=True))
        with jax.set_mesh(self.experiment.mesh):
            self.depths.compile(self.abstract.params)
        self.scorer.compile(self.abstract.params)
        took_s = time.perf_counter() - began_s
        self.history.compile_s += took_s
        listed = ", ".join(map(str, lengths))
        self.say(
            f"Compiled the update for {self.plan.shape[0]} rows of {listed} tokens, and "
            f"evaluation, in {took_s:.1f} s"
        )
        return steps

    def recorder(self, start: int, stack: ExitStack) -> Recorder:
        """Log, progress bar and history of the updates after `start`; the stack closes them."""
        config, weights = self.config, self.experiment.drawn.weights
        writes = jax.process_index() == 0
        saved = configs.to_dict(config)
        log = RunLog(
            self.workdir.path, saved, config.train.report_to, start or None, enabled=writes
        )
        return Recorder(
            stack.enter_context(log),
            stack.enter_context(Progress(self.schedule.total, start, enabled=writes)),
            self.history,
            every=self.schedule.log,
            learning_rates=learning_rates_by_depth(config.optim, weights, self.schedule.total),
            depths=self.depths,
        )

    def work(self, step: int, length: int) -> Work:
        """What update `step` computes."""
        computed = self.plan.shape[0] * length
        flops = flops_per_token(self.experiment.drawn.weights, length) * computed
        return Work(self.plan.examples(step - 1), self.plan.tokens(step - 1), flops)
