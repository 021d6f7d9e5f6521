"""Where the float32 weights and the moments live between updates, and how one reaches them."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding

from jaxft.nn.weights import Path, Tree, Weight, flatten, part, unflatten

Space = jax.memory.Space
Moved = tuple[Tree, optax.OptState]
"""Parameters and the optimizer's state, of all weights or of some."""
Update = Callable[..., Moved]
"""(moved, gradients) -> moved, for any part of the weights; of a stack one layer at a time, with
its index as the third argument.
"""
Look = Callable[[Weight, jax.Array], jax.Array]
"""Something of a weight, a stack of layers or one layer of it."""


class Store(Protocol):
    """What holds weights and moments."""

    def look(self, params: Tree, function: Look) -> Tree:
        """`function` of every weight, in the devices' memory."""

    def working(self, params: Tree) -> Tree:
        """The weights that the model computes with, in the devices' memory."""

    def update(self, update: Update, moved: Moved, grads: Tree, accepted: jax.Array) -> Moved:
        """Every weight and moment after the update, which returns them as they were where it is not
        `accepted`.
        """


@dataclass(frozen=True, eq=False)
class OnDevice:
    """All in the devices' memory, updated at once."""

    weights: Mapping[Path, Weight]
    places: Mapping[Path, NamedSharding]
    """How the weights lie, which may be updated in parts."""
    branches: bool = False
    """Whether an update that is not accepted is left out, not undone."""

    def look(self, params: Tree, function: Look) -> Tree:
        return unflatten({path: function(self.weights[path], x) for path, x in flatten(params)})

    def working(self, params: Tree) -> Tree:
        return params

    def update(self, update: Update, moved: Moved, grads: Tree, accepted: jax.Array) -> Moved:
        if self.branches:
            return lax.cond(accepted, update, lambda moved, _: moved, moved, grads)
        params, opt_state = update(moved, grads)
        # Parts are gathered before the choice: the TPU's compiler copies a weight before and after
        # a gather into its place, and chooses in place.
        params = jax.tree.map(lax.with_sharding_constraint, params, unflatten(self.places))
        return _where(accepted, (params, opt_state), moved)


@dataclass(frozen=True, eq=False)
class OnHost:
    """All in the host's memory; of the stacks one layer at a time is with the devices, which hold
    a working copy beside it.
    """

    weights: Mapping[Path, Weight]
    places: Mapping[Path, NamedSharding]
    """How the working copy lies on the devices."""
    dtype: str
    """Of the computation."""

    @cached_property
    def _groups(self) -> list[tuple[int, list[Path]]]:
        """What is moved at a time: of stacks of so many layers one layer; 0: a weight alone."""
        stacks: dict[tuple[int, ...], list[Path]] = {}
        for path, weight in self.weights.items():
            if weight.stacked:
                stacks.setdefault(weight.layers, []).append(path)
        alone = [(0, [path]) for path, weight in self.weights.items() if not weight.stacked]
        return [(len(layers), paths) for layers, paths in stacks.items()] + alone

    def look(self, params: Tree, function: Look) -> Tree:
        seen: dict[Path, jax.Array] = {}
        for count, paths in self._groups:
            held = part(params, paths)

            def of(one: Tree) -> dict[Path, jax.Array]:
                near = jax.device_put(one, Space.Device)
                return {path: function(self.weights[path], x) for path, x in flatten(near)}

            def of_layer(i: jax.Array, held: Tree = held) -> dict[Path, jax.Array]:
                return of(jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, False), held))

            seen |= lax.map(of_layer, jnp.arange(count)) if count else of(held)
        return unflatten({path: seen[path] for path in self.weights})

    def working(self, params: Tree) -> Tree:
        """Rounded where the model would round before it multiplies; tables and what is small stay
        float32, so that their gradients are summed in float32.
        """

        def load(weight: Weight, x: jax.Array) -> jax.Array:
            matrix = weight.kind == "kernel" and (weight.stacked or "vocab" in weight.axes)
            return x.astype(self.dtype if matrix else x.dtype)

        places = unflatten(self.places)
        return jax.tree.map(lax.with_sharding_constraint, self.look(params, load), places)

    def update(self, update: Update, moved: Moved, grads: Tree, accepted: jax.Array) -> Moved:
        parts = []
        for count, paths in self._groups:
            held, some = _part(moved, paths), part(grads, paths)
            if count:
                parts.append(_by_layer(update, held, some, count, accepted))
            else:
                parts.append(_alone(update, held, some, accepted))
        return jax.tree.map(_joined, *parts, is_leaf=_is_tree)


def _by_layer(update: Update, moved: Moved, grads: Tree, count: int, accepted: jax.Array) -> Moved:
    """A stack's update. The loop's carry stays with the host; a scan would need all of it twice."""

    def body(i: jax.Array, held: Moved) -> Moved:
        def fetch(before: jax.Array, now: jax.Array) -> jax.Array:
            return jax.device_put(lax.dynamic_slice_in_dim(now, i, 1), Space.Device)

        def keep(new: jax.Array, held: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(held, jax.device_put(new, Space.Host), i, 0)

        layer = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i, 1), grads)
        # Counts come from `moved`: each layer's update is the same one.
        before = _each(fetch, moved, held)
        return _each(keep, _where(accepted, update(before, layer, i), before), held)

    return lax.fori_loop(0, count, body, moved)


def _alone(update: Update, moved: Moved, grads: Tree, accepted: jax.Array) -> Moved:
    """The update of a weight in no stack: a loop whose one turn the compiler cannot foresee.
    Outside of a loop it would fetch all such weights as early as the forward pass, compute on the
    host what it need not send back, and hold 17 GB more for Llama-3-8B.
    """

    def body(_: jax.Array, held: Moved) -> Moved:
        after = update(_each(lambda x: jax.device_put(x, Space.Device), held), grads)
        return _each(lambda x: jax.device_put(x, Space.Host), after)

    return lax.fori_loop(0, accepted.astype(jnp.int32), body, moved)


def _where(accepted: jax.Array, new: Moved, old: Moved) -> Moved:
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old)


def _is_tree(x: Any) -> bool:
    """Whether it holds one thing per weight: in an optimizer's state only such are dicts."""
    return isinstance(x, dict)


def _part(moved: Moved, paths: Container[Path]) -> Moved:
    return jax.tree.map(lambda x: part(x, paths) if _is_tree(x) else x, moved, is_leaf=_is_tree)


def _joined(first: Any, *others: Any) -> Any:
    """One tree from those of parts; of a count, which all have, the first."""
    if not _is_tree(first):
        return first
    return unflatten({path: x for tree in (first, *others) for path, x in flatten(tree)})


def _each(function: Callable[..., jax.Array], first: Moved, *others: Moved) -> Moved:
    """`function` of everything that belongs to a weight, beside the counts of the first."""

    def node(first: Any, *others: Any) -> Any:
        return jax.tree.map(function, first, *others) if _is_tree(first) else first

    return jax.tree.map(node, first, *others, is_leaf=_is_tree)
