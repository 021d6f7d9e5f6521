"""One run in every split of eight devices, and what each device then holds."""

from dataclasses import replace
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import runs

from jaxft.config import Optim
from jaxft.data.batches import BatchSource, put, rows_here
from jaxft.data.plan import Plan
from jaxft.experiment import Experiment
from jaxft.models import Blueprint
from jaxft.nn.tokens import Batch
from jaxft.sharding import bytes_per_device, make_mesh
from jaxft.step import TrainState

UPDATES = 4
SPLITS = [
    (data, fsdp, tensor)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    for tensor in (1, 2, 4)  # the tiny BERT has four heads
    if data * fsdp * tensor == 8
]
OTHER_ORDER = 2e-6
"""Relative difference of losses and gradient norms: another mesh adds the same numbers in another
order.
"""


class Trained(NamedTuple):
    state: TrainState
    losses: np.ndarray
    grad_norms: np.ndarray
    batch: Batch
    experiment: Experiment


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_bert_folder):
    """A few updates with dropout on a mesh of these sizes."""
    keys = {"model.pretrained": tiny_bert_folder, "optim.adam_epsilon": 1e-4}
    assembled = runs.assembled(keys | runs.tables(tmp_path_factory.mktemp("mesh")))

    @cache
    def on(data: int, fsdp: int, tensor: int) -> Trained:
        experiment, splits, matched = assembled
        devices = jax.devices()[: data * fsdp * tensor]
        mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices)
        experiment = replace(experiment, mesh=mesh)
        optimizer = experiment.optimizer(UPDATES)
        state = experiment.initial_state(optimizer, matched)
        plan = Plan(
            splits["train"].lengths, runs.BATCH, runs.LENGTH, 0, row_unit=experiment.row_shards
        )
        mine = rows_here(plan.shape[0], experiment.rows)
        source = BatchSource(plan, splits["train"].features, experiment.task.collate, UPDATES, mine)
        seen = []
        with jax.set_mesh(mesh):
            batches = [put(source[k], experiment.rows) for k in range(UPDATES)]
            traced = experiment.train_step(optimizer).lower(state, batches[0], np.int32(0))
            step = traced.compile(compiler_options={"xla_backend_optimization_level": 0})  # sooner
            for k, batch in enumerate(batches):
                state, metrics = step(state, batch, np.int32(k))
                seen.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        return Trained(state, *np.array(seen).T, batches[0], experiment)

    return on


@pytest.mark.parametrize(
    "split", SPLITS, ids=lambda split: "data={} fsdp={} tensor={}".format(*split)
)
def test_pitfall_02_every_split_of_eight_devices_gives_the_losses_of_one(train, split):
    one, eight = train(1, 1, 1), train(*split)
    assert np.ptp(one.losses) > 1e-3, "the losses must tell batches and updates apart"
    np.testing.assert_allclose(eight.losses, one.losses, rtol=OTHER_ORDER)
    np.testing.assert_allclose(eight.grad_norms, one.grad_norms, rtol=10 * OTHER_ORDER)


def held(tree: Any) -> dict[int, int]:
    """Bytes on each device, as they lie there."""
    found: dict[int, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            found[shard.device.id] = found.get(shard.device.id, 0) + shard.data.nbytes
    return found


def assert_split(tree: Any, ways: int) -> None:
    """Every leaf with an axis that `ways` divides lies in as many different parts, or more."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if any(size % ways == 0 for size in leaf.shape):
            part = prod(leaf.sharding.shard_shape(leaf.shape))
            assert part * ways <= leaf.size, jax.tree_util.keystr(path)


@pytest.mark.parametrize("split", [(1, 8, 1), (2, 2, 2)])
def test_after_an_update_devices_hold_their_parts_and_what_was_said(train, split):
    trained = train(*split)
    _, fsdp, _ = split
    assert_split(trained.state.params, fsdp)
    assert_split(trained.state.opt_state, fsdp)
    for tree in (trained.state.params, trained.state.opt_state):
        places = jax.tree.map(lambda leaf: leaf.sharding, tree)
        assert set(held(tree).values()) == {bytes_per_device(tree, places)}


MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
UNSPLIT = 0.002
"""What may stay whole, as a share of the weights' bytes: the head's bias, counters, one factor per
word (30522 = 2 x 15261).
"""


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "sgd"])
def test_with_fsdp_8_nothing_of_minilm_that_can_be_split_is_replicated(train, optimizer):
    experiment = train(1, 8, 1).experiment
    drawn = Blueprint.draw(MINILM, output="classify", num_labels=3)
    config = replace(experiment.config, optim=Optim(name=optimizer))
    experiment = replace(experiment, drawn=drawn, config=config)
    abstract = experiment.abstract_state(experiment.optimizer(10))
    assert_split(abstract, 8)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract.params))
    for tree in (abstract.params, abstract.opt_state):
        places = jax.tree.map(lambda leaf: leaf.sharding, tree)
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        assert bytes_per_device(tree, places) <= total / 8 + UNSPLIT * weights


def test_inside_the_update_gradients_are_split_as_their_weights_are(train):
    trained = train(1, 8, 1)
    optimizer, seen = trained.experiment.optimizer(UPDATES), {}

    def update(grads: Any, *rest: Any) -> tuple:
        for path, grad in jax.tree_util.tree_leaves_with_path(grads):
            note = partial(seen.__setitem__, (path, grad.shape))
            jax.debug.inspect_array_sharding(grad, callback=note)
        return optimizer.update(grads, *rest)

    step = trained.experiment.train_step(optimizer._replace(update=update))
    with jax.set_mesh(trained.experiment.mesh):
        step.lower(trained.state, trained.batch, np.int32(0)).compile()
    assert len(seen) == len(trained.experiment.drawn.weights)
    for (path, shape), place in seen.items():
        if any(size % 8 == 0 for size in shape):
            assert prod(place.shard_shape(shape)) * 8 == prod(shape), jax.tree_util.keystr(path)
