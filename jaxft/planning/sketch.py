"""A run described without its weights, on devices that need not exist: what a plan looks at."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from jaxft import hub, pretrained, tasks
from jaxft.config import Config, Data, Model, Schedule
from jaxft.data.batches import BatchSource
from jaxft.data.features import Split, read_splits
from jaxft.data.plan import Plan
from jaxft.errors import UserError
from jaxft.experiment import Experiment, Say, assemble
from jaxft.nn.tokens import Batch
from jaxft.nn.weights import Tree, unflatten
from jaxft.parts import Parts
from jaxft.shapes import SHAPES, fields_of
from jaxft.sharding import placed
from jaxft.workdir import Workdir

STAND_IN = [{"text": "a", "label": "one"}, {"text": "b", "label": "two"}]
"""Rows that any task can read, for the shapes of its batches where there are no data."""


@dataclass(frozen=True)
class Layout:
    """How the examples of an update lie in rows."""

    rows: int
    slots: int
    """Examples a row at most."""
    width: int
    """Tokens of the widest rows."""
    batch_size: int
    """The `train.batch_size` that this is for."""


@dataclass(frozen=True)
class Sketch:
    """A run's parts and the size of its batches."""

    experiment: Experiment
    split: Split
    """The training split, or a stand-in."""
    layout: Layout
    plan: Plan | None
    """None: the data are not at hand, or not the tokenizer."""
    examples: int | None
    """Of the training split; None where nobody knows."""

    @classmethod
    def of(cls, parts: Parts) -> "Sketch":
        """Of a run that is made."""
        plan, split = parts.plan, parts.splits["train"]
        rows, slots = plan.shape
        layout = Layout(rows, slots, plan.widths[-1], parts.config.train.batch_size)
        return cls(parts.experiment, split, layout, plan, len(split))

    @property
    def config(self) -> Config:
        return self.experiment.config

    @property
    def width(self) -> int:
        """Tokens of the widest rows."""
        return self.layout.width

    @property
    def rows(self) -> int:
        """Of an update, over all devices and micro-batches."""
        train = self.config.train
        return self._rows(train.batch_size, train.gradient_accumulation_steps)

    @property
    def evaluation_rows(self) -> int:
        return self._rows(self.experiment.eval_batch_size, 1)

    def _rows(self, batch_size: int, micro_batches: int) -> int:
        unit = self.experiment.row_shards * micro_batches
        return ceil(self.layout.rows * batch_size / self.layout.batch_size / unit) * unit

    @property
    def steps(self) -> int | None:
        """Updates of the run; None where nobody knows."""
        train = self.config.train
        if train.max_steps is not None:
            return train.max_steps
        if self.plan is not None and train.batch_size == self.layout.batch_size:
            return Schedule.of(self.config, self.plan.batches_per_epoch).total
        if self.examples is None:
            return None
        return Schedule.of(self.config, ceil(self.examples / train.batch_size)).total

    @property
    def working(self) -> Tree:
        """The weights that the model computes with, as shapes with shardings."""
        experiment = self.experiment
        shapes = jax.eval_shape(experiment.store.working, experiment.abstract_params)
        return placed(shapes, unflatten(experiment.places.near))

    def batch(self, rows: int) -> Batch:
        """A batch of so many rows as shapes with shardings."""
        one = BatchSource(
            _Shaped(self.split.lengths, (1, self.layout.slots)),  # type: ignore[arg-type]
            self.split.features,
            self.experiment.task.collate,
            1,
            np.ones(1, bool),
        ).empty(self.width)
        place = self.experiment.rows
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=place), one
        )


@dataclass(frozen=True)
class _Shaped:
    """As much of a `Plan` as an empty batch needs."""

    lengths: np.ndarray
    shape: tuple[int, int]


def sketch(config: Config, devices: Sequence[Any], say: Say, examples: int | None = None) -> Sketch:
    """The run of `config` on these devices; nothing but a config.json is downloaded. `examples`
    takes the place of what the data hold.

    Raises:
        UserError: whatever `train` would refuse, or a model whose shape is not known here.
    """
    model, at_hand = _model(config.model)
    data = _data_here(config.data)
    if data is not None and at_hand and examples is None:
        say("Reading the data")
        here = replace(config, model=model, data=data)
        experiment, splits, _ = assemble(here, _quiet, devices)
        made = Sketch.of(Parts(experiment, splits, Workdir("plan"), _quiet))
        return replace(made, experiment=replace(experiment, config=config))
    if data is not None and examples is None:
        module = tasks.named(config.task.name)
        rows = read_splits(module, data, config.task, _quiet)
        examples = len(rows["train"].dataset)
    with tempfile.TemporaryDirectory() as folder:
        file = FilePath(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in STAND_IN))
        stand_in = Data(
            train=str(file),
            validation=str(file),
            max_length=config.data.max_length,
            packing=config.data.packing,
            cache_dir=folder,
        )
        task = type(config.task)(name=config.task.name)
        named = replace(config, model=model, data=stand_in, task=task)
        experiment, splits, _ = assemble(named, _quiet, devices)
    width = ceil(config.data.max_length / experiment.width_unit) * experiment.width_unit
    layout = Layout(config.train.batch_size, 1, width, config.train.batch_size)
    return Sketch(replace(experiment, config=config), splits["train"], layout, None, examples)


def _quiet(text: str) -> None:
    """A plan tells what matters by itself."""


def _model(model: Model) -> tuple[Model, bool]:
    """The same architecture from scratch, and whether its tokenizer is at hand."""
    name = model.config if isinstance(model.config, str) else model.pretrained
    if name is None:
        fields, tokenizer = model.config, model.tokenizer
    elif hub.at_hand(name) is None and (known := fields_of(name)) is not None:
        fields, tokenizer = known, model.tokenizer or name
    else:
        try:
            folder = hub.config_folder(name)
        except UserError as error:
            names = ", ".join(SHAPES)
            raise UserError(f"{error} Shapes that are known without one: {names}.") from error
        fields = pretrained.Checkpoint(folder).config
        tokenizer = model.tokenizer or str(folder)
    here = hub.at_hand(tokenizer) if tokenizer is not None else None
    has = here is not None and any((here / file).exists() for file in _TOKENIZER_FILES)
    scratch = replace(
        model, pretrained=None, config=fields, tokenizer=str(here) if has else None, new_head=False
    )
    return scratch, has or tokenizer is None


_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json")


def _data_here(data: Data) -> Data | None:
    """The data with what is on this machine, None where the training set is not."""
    train = data.train
    sources = list(train) if isinstance(train, dict) else [train]
    if not all(source is not None and FilePath(source).expanduser().exists() for source in sources):
        return None
    validation = data.validation
    if validation is not None and not FilePath(validation).expanduser().exists():
        validation = sources[0]  # without one, it would be cut from the training set
    return replace(data, validation=validation, test=None, evaluations={})
