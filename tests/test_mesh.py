"""One run in every split of eight devices, and what each device then holds."""

from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import runs
import talk
from parity import CASES

from jaxft import config as configs
from jaxft import tasks
from jaxft.config import Optim
from jaxft.data.batches import put
from jaxft.experiment import Experiment, assemble
from jaxft.models import Blueprint
from jaxft.nn.tokens import Batch
from jaxft.planning import places
from jaxft.sharding import AXES, bytes_per_device, make_mesh
from jaxft.step import TrainState
from jaxft.train import Run
from jaxft.workdir import Workdir

UPDATES = 3
SOON: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""Compiles in a third of the time: there are some fifty programs."""
with suppress(jax.errors.JaxRuntimeError):  # newer XLA has no such option
    quick = SOON | {"xla_cpu_use_fusion_emitters": False}
    jax.jit(lambda: 0).lower().compile(compiler_options=quick)
    SOON = quick
Split = tuple[int, int, int, int]
"""Sizes of `AXES`: data, fsdp, context, tensor."""
ONE: Split = (1, 1, 1, 1)
SPLITS = [
    (data, fsdp, context, tensor)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    for context in (1, 2, 4, 8)
    for tensor in (1, 2, 4, 8)
    if data * fsdp * context * tensor == 8
]
HEADS = {"bert": 4, "llama": 2}
"""What `tensor` can split of the tiny models: attention heads, or key-value heads."""
OTHER_ORDER = 2e-6
"""Relative difference of losses and gradient norms: another mesh adds the same numbers in another
order.
"""
WEIGHT_BY_WEIGHT = 1e-4
"""Difference of a weight's first moments after the updates, relative to the largest."""


class Trained(NamedTuple):
    state: TrainState
    losses: np.ndarray
    grad_norms: np.ndarray
    batch: Batch
    experiment: Experiment


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_bert_folder):
    """A few updates on a mesh of these sizes; encoders and GPT-2 with dropout."""
    root = tmp_path_factory.mktemp("mesh")

    @cache
    def assembled(family: str) -> tuple:
        if family in talk.MODELS:
            data = talk.lines(root / "chats.jsonl", talk.chats())
            raw = talk.recipe(root, data)
            raw["model"] = {"config": talk.MODELS[family]}
            raw["data"]["max_length"] = 96
            raw["optim"]["warmup_steps"], raw["train"]["max_steps"] = 1, UPDATES
            return assemble(configs.from_dict(raw, tasks.options), lambda text: None)
        # The tokenizer's padding: by another one RoBERTa counts its positions.
        fields = {"model_type": family, "initializer_range": 0.1, "pad_token_id": 0}
        keys = {"model.config": CASES[family] | fields}
        keys |= {"model.pretrained": None, "model.tokenizer": tiny_bert_folder}
        keys = {"model.pretrained": tiny_bert_folder} if family == "bert" else keys
        keys |= {"optim.adam_epsilon": 1e-4, "train.max_steps": UPDATES}
        return runs.assembled(keys | runs.tables(root))

    @cache
    def first_state(family: str) -> TrainState:
        """On the host: drawn once, not by a program for each mesh."""
        experiment, _, matched = assembled(family)
        return jax.device_get(experiment.initial_state(experiment.optimizer(UPDATES), matched))

    @cache
    def on(split: Split, family: str = "bert", zero_stage: int = 3) -> Trained:
        experiment, splits, _ = assembled(family)
        mesh = make_mesh(dict(zip(AXES, split, strict=True)), jax.devices()[: prod(split)])
        stage = replace(experiment.config.mesh, zero_stage=zero_stage)
        config = replace(experiment.config, mesh=stage)
        # With the layers in a scan: one of them to compile.
        experiment = replace(experiment, mesh=mesh, config=config, drawn=experiment.rolled)
        run = Run(experiment, splits, Workdir("never written"), lambda text: None)
        state = jax.device_put(
            first_state(family), jax.tree.map(lambda x: x.sharding, run.abstract)
        )
        seen: list[tuple[float, float]] = []
        with jax.set_mesh(mesh):
            batches = [put(run.source[k], experiment.rows) for k in range(UPDATES)]
            traced = experiment.train_step(run.optimizer).lower(state, batches[0], np.int32(0))
            step = traced.compile(compiler_options=SOON)
            for k, batch in enumerate(batches):
                state, metrics = step(state, batch, np.int32(k))
                seen.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        return Trained(state, *np.array(seen).T, batches[0], experiment)

    return on


def assert_same_run(ours: Trained, one: Trained) -> None:
    assert np.ptp(one.losses) > 1e-3, "the losses must tell batches and updates apart"
    np.testing.assert_allclose(ours.losses, one.losses, rtol=OTHER_ORDER)
    np.testing.assert_allclose(ours.grad_norms, one.grad_norms, rtol=10 * OTHER_ORDER)
    # The sums of gradients, weight by weight: a norm of all hides a small one, and Adam its scale.
    sums = jax.tree_util.tree_leaves_with_path(one.state.opt_state)
    for (path, theirs), mine in zip(sums, jax.tree.leaves(ours.state.opt_state), strict=True):
        name, largest = jax.tree_util.keystr(path), np.abs(theirs).max()
        if ".mu[" in name and "['key']['bias']" not in name:  # softmax cancels that: noise is left
            assert np.abs(np.asarray(mine) - theirs).max() < WEIGHT_BY_WEIGHT * largest, name


@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        ("v6e:4x4", {"fsdp": 8, "tensor": 2}),
        ("v5p:4x4x4", {"fsdp": 8, "tensor": 8}),
        ("v6e:16x16", {"fsdp": 64, "tensor": 4}),
        ("v6e:8x8", {"fsdp": 16, "context": 4}),
    ],
)
def test_a_mesh_may_split_the_sides_of_a_slice(topology, sizes):
    mesh = make_mesh(sizes, places.find(topology, compiling=False).devices)
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == sizes
    # What is sent most often goes between neighbours: each is next to another of its group.
    inner = mesh.shape["context"] * mesh.shape["tensor"]
    for group in mesh.devices.reshape(-1, inner):
        coords = np.array([device.coords for device in group])
        apart = np.abs(coords[:, None] - coords).sum(-1)
        assert (np.sort(apart)[:, 1] == 1).all()


@pytest.mark.parametrize(
    ("family", "split"),
    [(family, split) for family in HEADS for split in SPLITS if HEADS[family] % split[3] == 0],
    ids=str,
)
def test_pitfall_02_every_split_of_eight_devices_gives_the_losses_of_one(train, family, split):
    assert_same_run(train(split, family), train(ONE, family))


@pytest.mark.parametrize("family", sorted({*CASES, *talk.MODELS} - set(HEADS)))
def test_every_other_family_splits_rows_tokens_and_heads_at_once(train, family):
    assert_same_run(train((1, 2, 2, 2), family), train(ONE, family))


@pytest.mark.parametrize("family", HEADS)
def test_weights_that_stay_whole_change_no_loss(train, family):
    split = (1, 4, 1, 2)
    ours = train(split, family, zero_stage=2)
    assert_same_run(ours, train(split, family))
    whole = jax.tree.leaves(jax.tree.map(lambda x: x.sharding.spec, ours.state.params))
    assert not any("fsdp" in str(spec) for spec in whole)
    assert_split(ours.state.opt_state, 4)


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


@pytest.mark.parametrize("split", [(1, 8, 1, 1), (2, 2, 1, 2)])
def test_after_an_update_devices_hold_their_parts_and_what_was_said(train, split):
    trained = train(split)
    fsdp = split[1]
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
    experiment = train((1, 8, 1, 1)).experiment
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


@pytest.mark.parametrize("stage", [2, 3])
def test_inside_the_update_gradients_are_split_as_the_moments_are(train, stage):
    trained = train((1, 8, 1, 1), zero_stage=stage)
    optimizer, seen = trained.experiment.optimizer(UPDATES), {}

    def update(grads: Any, *rest: Any, **more: Any) -> tuple:
        for path, grad in jax.tree_util.tree_leaves_with_path(grads):
            note = partial(seen.__setitem__, (path, grad.shape))
            jax.debug.inspect_array_sharding(grad, callback=note)
        return optimizer.update(grads, *rest, **more)

    step = trained.experiment.train_step(optimizer._replace(update=update))
    with jax.set_mesh(trained.experiment.mesh):
        traced = step.lower(trained.state, trained.batch, np.int32(0))
        traced.compile(compiler_options=SOON)
    assert len(seen) == len(trained.experiment.drawn.weights)
    for (path, shape), place in seen.items():
        if any(size % 8 == 0 for size in shape):
            assert prod(place.shard_shape(shape)) * 8 == prod(shape), jax.tree_util.keystr(path)
