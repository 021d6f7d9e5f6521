"""The training step. Start reading here: everything else prepares its arguments.

Pure functions over plain nested dicts; rng, optimizer and model are arguments. B rows, L
tokens, M examples a row.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from jaxft.nn.tokens import Batch
from jaxft.nn.weights import Tree
from jaxft.store import Moved, Store


class TrainState(NamedTuple):
    """All that an update changes, and the frozen weights it reads."""

    step: jax.Array
    """int32: how many updates have been made."""
    params: Tree
    """Trainable float32 weights."""
    frozen: Tree
    opt_state: optax.OptState


class Task(Protocol):
    """What a step needs of a task."""

    def loss(self, model: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The sum of the losses and the sum of the weights over a batch, both scalars."""

    def predict(self, model: Any, batch: Batch) -> Mapping[str, jax.Array]:
        """A few numbers per example, each [B * M, ...]."""


Merge = Callable[[Tree], nnx.Module]


def train_step(
    state: TrainState,
    batch: Batch,
    step: jax.Array,
    *,
    task: Task,
    merge: Merge,
    optimizer: optax.GradientTransformationExtraArgs,
    gradients: Tree,
    seed: int,
    micro_batches: int,
    store: Store,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update: sum the loss over micro-batches, divide once by the global weight, clip, update.

    `gradients` says how each gradient lies on the mesh; the `store` has the weights to compute
    with, and moves weights and moments through the update.

    The update is refused when its loss or gradient is not finite, and from then on, because `step`
    (the update the host means to make) and `state.step` differ: a bad batch leaves the state as it
    was before it.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    working = store.working(state.params)

    def loss_sum(params: Tree, micro: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return task.loss(merge(join(params, state.frozen)), micro, key)

    def sums_of(micro: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Tree]:
        value_and_grad = jax.value_and_grad(loss_sum, has_aux=True)
        (loss, weight), grads = value_and_grad(working, micro, key)
        return loss, weight, lax.with_sharding_constraint(grads, gradients)

    def accumulate(sums: tuple, part: tuple) -> tuple[tuple, None]:
        # The TPU's compiler would move sums over devices out of the loop, and fails over bfloat16.
        made = lax.optimization_barrier(sums_of(*part))
        added = jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, made)
        return added, None

    if micro_batches == 1:
        loss, weight, grads = sums_of(batch, key)
    else:
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), (0.0, 0.0, working))
        parts = deal(batch, micro_batches), jax.random.split(key, micro_batches)
        (loss, weight, grads), _ = lax.scan(accumulate, zeros, parts)

    # A batch may hold none but rows of weight 0 (task.class_weights): it teaches nothing.
    weight = jnp.where(weight == 0, 1.0, weight)

    def scaled(grads: Tree, by: jax.Array | float) -> Tree:
        return jax.tree.map(lambda g: g.astype(jnp.float32) * by, grads)

    # The norm of the sums: that of the means would have them written to memory first.
    loss, grad_norm = loss / weight, optax.tree.norm(scaled(grads, 1.0)) / weight
    accepted = (step == state.step) & jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def update(moved: Moved, grads: Tree, layer: jax.Array | None = None) -> Moved:
        params, opt_state = moved
        updates, after = optimizer.update(
            scaled(grads, 1.0 / weight), opt_state, params, grad_norm=grad_norm, layer=layer
        )
        return jax.tree.map(jnp.add, params, updates), after

    params, opt_state = store.update(update, (state.params, state.opt_state), grads, accepted)
    new = TrainState(state.step + accepted.astype(jnp.int32), params, state.frozen, opt_state)
    return new, {"loss": loss, "grad_norm": grad_norm, "accepted": accepted}


def eval_step(params: Tree, batch: Batch, *, task: Task, merge: Merge) -> Mapping[str, jax.Array]:
    """Per-example predictions with the numbers of the examples."""
    return {**task.predict(merge(params), batch), "rows_N": batch.rows_BM.reshape(-1)}


def deal(batch: Batch, hands: int) -> Batch:
    """[B, ...] -> [hands, B / hands, ...], row i to hand i mod `hands`: a row stays on its
    device.
    """
    return jax.tree.map(lambda x: x.reshape(-1, hands, *x.shape[1:]).swapaxes(0, 1), batch)


def join(trainable: Tree, frozen: Tree) -> Tree:
    """One parameter tree from the two halves, which share no leaf."""
    if not frozen:
        return trainable
    return {
        key: join(trainable.get(key, {}), frozen.get(key, {}))
        if isinstance(trainable.get(key, frozen.get(key)), dict)
        else trainable.get(key, frozen.get(key))
        for key in trainable | frozen
    }
