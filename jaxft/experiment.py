"""Where the parts meet: config -> model, task, data, mesh, optimizer. Everything else is handed
what it needs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft import models, pretrained, tasks
from jaxft.checkpoint import Checkpoints
from jaxft.config import Config, from_dict
from jaxft.data.features import Rows, Split, read_splits, tokenise
from jaxft.drawing import (
    check_head,
    check_lengths,
    check_padding,
    draw,
    say_match,
    say_vocabulary,
)
from jaxft.errors import UserError
from jaxft.models import Blueprint
from jaxft.nn.attention import WIDTH_UNITS
from jaxft.nn.remat import HOST
from jaxft.nn.weights import unflatten
from jaxft.optim import make_optimizer
from jaxft.sharding import ROWS, Places, check_divides, make_mesh, placed
from jaxft.source import load_tokenizer, open_source
from jaxft.stderr import Say
from jaxft.step import TrainState, eval_step, train_step
from jaxft.store import OnDevice, OnHost, Store

LOWER_IS_BETTER = ("loss", "mse", "mae", "perplexity")


@dataclass(frozen=True)
class Experiment:
    """The assembled parts of a run."""

    config: Config
    module: ModuleType
    """The task's module."""
    task: Any
    drawn: Blueprint
    tokenizer: Any
    mesh: Mesh

    @property
    def memory_kind(self) -> str | None:
        """Of the float32 weights and the optimizer's state; None is the devices' own memory."""
        return HOST if self.config.optim.offload else None

    @cached_property
    def places(self) -> Places:
        """Where weights, gradients and the optimizer's state lie."""
        return Places(self.drawn.weights, self.mesh, self.config.mesh.zero_stage, self.memory_kind)

    @cached_property
    def store(self) -> Store:
        """What holds weights and moments between updates."""
        if self.memory_kind is None:
            # A CPU's compiler would copy the moments to undo an update; a GPU waits for a branch.
            on_cpu = self.mesh.devices.flat[0].platform == "cpu"
            return OnDevice(self.drawn.weights, self.places.near, branches=on_cpu)
        return OnHost(self.drawn.weights, self.places.near, self.drawn.compute.dtype)

    @property
    def rows(self) -> NamedSharding:
        """How batches are split."""
        return NamedSharding(self.mesh, ROWS)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def width_unit(self) -> int:
        """What the width of rows must be a multiple of."""
        return WIDTH_UNITS.get(self.drawn.compute.attention, 1) * self.mesh.shape["context"]

    @property
    def row_shards(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def eval_batch_size(self) -> int:
        """Examples that an evaluation takes at once, over all devices; by default a micro-batch's,
        so that what gives updates room does so for evaluations.
        """
        train, shards = self.config.train, self.row_shards
        one = train.eval_batch_size or ceil(train.batch_size / train.gradient_accumulation_steps)
        return ceil(one / shards) * shards

    def check_divides(self) -> None:
        """Raises UserError where the mesh cannot split the batch, the tokens or the heads."""
        check_divides(
            self.mesh,
            heads=self.drawn.dims.heads,
            batch_size=self.config.train.batch_size,
            micro_batches=self.config.train.gradient_accumulation_steps,
            max_length=self.config.data.max_length,
        )

    @property
    def hf_config(self) -> dict[str, Any]:
        """The `config.json` of the model that is being made: task and tokenizer have a say in what
        does not shape it; what does is a fact of the weights (RoBERTa's `pad_token_id` too).
        """
        old = ("num_labels", "_num_labels", "torch_dtype")
        kept = {k: v for k, v in self.drawn.config.items() if k not in old}
        told, shape = self.task.config(self.tokenizer), vars(self.drawn.dims)
        output = self.module.OUTPUT
        return {
            **kept,
            **{name: value for name, value in told.items() if name not in shape},
            "architectures": [self.drawn.module.ARCHITECTURES[output]],
        }

    @property
    def abstract_params(self) -> Any:
        leaves = {
            path: jax.ShapeDtypeStruct(weight.shape, jnp.float32, sharding=self.places.params[path])
            for path, weight in self.drawn.weights.items()
        }
        return unflatten(leaves)

    @property
    def metric(self) -> str:
        """The score that decides which checkpoint is best."""
        return self.config.checkpoint.metric_for_best_model or self.task.main_metric

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER

    def checkpoints(self, folder: epath.Path, say: Say, *, writes: bool) -> Checkpoints:
        """The checkpoints of a run under `folder`."""
        keep = self.config.checkpoint
        return Checkpoints(
            folder,
            keep_last=keep.keep_last,
            keep_best=keep.keep_best,
            metric=self.metric,
            lower_is_better=self.lower_is_better,
            say=say,
            writes=writes,
        )

    def optimizer(self, total_steps: int) -> optax.GradientTransformationExtraArgs:
        return make_optimizer(self.config.optim, self.drawn.weights, total_steps)

    def abstract_state(self, optimizer: optax.GradientTransformation) -> TrainState:
        """The TrainState as shapes with shardings, nothing allocated."""
        params = self.abstract_params
        moments = jax.eval_shape(optimizer.init, params)
        moments = placed(moments, self.places.state(moments))
        step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=self.replicated)
        return TrainState(step, params, {}, moments)

    def initial_state(
        self, optimizer: optax.GradientTransformation, matched: pretrained.Match | None
    ) -> TrainState:
        """Weights from the checkpoint straight into their shards, the rest drawn; moments of
        zero.
        """
        weights = self.drawn.weights
        params = pretrained.read(matched, weights, self.places.params) if matched else {}
        params |= self.drawn.initialise(
            set(weights) - set(params), self.places.params, self.config.seed
        )
        tree = unflatten({path: params[path] for path in weights})
        abstract = self.abstract_state(optimizer)
        places = jax.tree.map(lambda x: x.sharding, abstract)
        init = jax.jit(optimizer.init, out_shardings=places.opt_state)
        return TrainState(jax.device_put(jnp.int32(0), places.step), tree, {}, init(tree))

    def train_step(self, optimizer: optax.GradientTransformation) -> jax.stages.Wrapped:
        """`step.train_step` of this experiment, jitted; the state is donated."""
        step = partial(
            train_step,
            task=self.task,
            merge=self.drawn.merge,
            optimizer=optimizer,
            gradients=unflatten(self.places.gradients),
            seed=self.config.seed,
            micro_batches=self.config.train.gradient_accumulation_steps,
            store=self.store,
        )
        places = jax.tree.map(lambda x: x.sharding, self.abstract_state(optimizer))
        return jax.jit(step, donate_argnums=0, out_shardings=(places, self.replicated))

    @property
    def rolled(self) -> Blueprint:
        """The model with its layers in a scan, which compiles faster than layer by layer; a forward
        pass gains little from the latter.
        """
        return self.drawn.redraw(replace(self.drawn.compute, unroll_layers=False))

    def loader(self, params: Any) -> tuple[Callable[[Any], Any], Any]:
        """What turns the kept weights into those that `eval_step` takes, compiled for `params`,
        which may be abstract; and what it returns, abstract.
        """
        if self.memory_kind is None:
            return lambda params: params, params
        with jax.set_mesh(self.mesh):
            load = jax.jit(self.store.working).lower(params).compile()
        return load, placed(load.out_info, load.output_shardings)

    def eval_step(self) -> jax.stages.Wrapped:
        """`step.eval_step` of this experiment, jitted; every process gets all predictions."""
        step = partial(eval_step, task=self.task, merge=self.rolled.merge)
        return jax.jit(step, out_shardings=self.replicated)


def assemble(
    config: Config, say: Say, devices: Sequence[jax.Device] | None = None
) -> tuple[Experiment, dict[str, Split], pretrained.Match | None]:
    """A new run's parts, its tokenised splits, and which tensors serve which weights; on this
    machine's devices unless others are given, which need not exist.

    Raises:
        UserError: whatever is wrong with model, data or mesh, before anything is written.
    """
    module = tasks.named(config.task.name)
    mesh = make_mesh(vars(config.mesh), devices)
    source = open_source(config.model, say)
    vocabulary = models.dims_of(source.config).vocab_size
    source = source.with_tokens(config.model.new_tokens, vocabulary, say)
    rows = read_splits(module, config.data, config.task, say)
    fresh = config.model.new_head or source.checkpoint is None
    task = module.Task.from_rows(config.task, rows["train"], () if fresh else source.labels)
    say(f"Task: {module.__name__.rpartition('.')[2]}, {task.describe()}")
    drawn = draw(config, source.config, module, task, mesh, say)
    check_head(source, drawn, task, config.model.new_head)
    tokenizer = task.prepare(source.tokenizer)
    experiment = Experiment(config, module, task, drawn, tokenizer, mesh)
    matched = None
    if source.checkpoint is not None:
        matched = drawn.match(source.checkpoint, config.model.new_head, source.new_rows)
    say_match(matched, say)
    check_lengths(drawn, tokenizer, config.data.max_length)
    check_padding(drawn, tokenizer, say)
    say_vocabulary(drawn, tokenizer, mesh.shape["tensor"], say)
    if experiment.metric not in task.score_names:
        raise UserError(
            f"checkpoint.metric_for_best_model={experiment.metric!r} is no score of this task; "
            f"there is {', '.join(task.score_names)}."
        )
    experiment.check_divides()
    return experiment, tokenise_splits(experiment, rows, say), matched


def reopen(
    saved: Mapping[str, Any],
    task: Mapping[str, Any],
    model_folder: FilePath,
    mesh: Mesh,
    say: Say,
    overrides: Mapping[str, str] | None = None,
) -> Experiment:
    """The experiment of a workdir, from its saved config and task and its `model/` folder, on
    another mesh; `overrides` are the shell's, as in `config.load`.
    """
    config = from_dict(saved, tasks.options, overrides)
    # Nothing is updated: no memory has to be saved, and none but the devices' is needed. These need
    # not be the devices of the run, whose kernel they may lack and whose split they do not repeat.
    config = replace(
        config,
        model=replace(config.model, kept_activations={}, attention="auto"),
        optim=replace(config.optim, offload=False),
        mesh=replace(config.mesh, zero_stage=3),
    )
    module = tasks.named(config.task.name)
    hf_config = json.loads((model_folder / "config.json").read_text())
    restored = module.Task(**tasks.from_json(task))
    drawn = draw(config, hf_config, module, restored, mesh, say)
    return Experiment(config, module, restored, drawn, load_tokenizer(model_folder), mesh)


def tokenise_splits(experiment: Experiment, rows: Mapping[str, Rows], say: Say) -> dict[str, Split]:
    """Each split as the model sees it. Raises: UserError for one that cannot be scored."""
    data, task, tokenizer = experiment.config.data, experiment.task, experiment.tokenizer
    splits = {name: tokenise(part, task, tokenizer, data, say) for name, part in rows.items()}
    for split in splits.values():
        if split.targets is not None:
            task.check(split.targets, split.rows.source)
    return splits
