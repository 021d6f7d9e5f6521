"""Moments in bfloat16: half the memory, computed in float32 and rounded at random.

Rounding to the nearest would freeze them: a second moment decays by 0.1 % an update, and
neighbouring bfloat16 numbers lie 0.4 to 0.8 % apart. Rounded up or down with the odds that make the
mean right, it decays on average. Source of the idea: Zamirai et al. 2020, "Revisiting BFloat16
Training".
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.nn.layers import hash_indices
from jaxft.nn.weights import Path, Weight


class Rounded(NamedTuple):
    """The state of a rule, its moments in bfloat16."""

    step: jax.Array
    """int32: updates so far, from which the next roundings are drawn."""
    rule: optax.OptState


def in_bfloat16(
    rule: optax.GradientTransformation, weights: Mapping[Path, Weight]
) -> optax.GradientTransformationExtraArgs:
    """The rule with float32 arithmetic over moments that are stored in bfloat16.

    How a number is rounded depends on update, weight, layer and place alone, so that a part of the
    tree is updated as the whole is.
    """
    numbers = {path: number for number, path in enumerate(weights)}

    def init(params: optax.Params) -> Rounded:
        return Rounded(jnp.int32(0), _cast(rule.init(params), jnp.bfloat16))

    def update(
        updates: optax.Updates,
        state: Rounded,
        params: optax.Params | None = None,
        *,
        layer: jax.Array | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, Rounded]:
        key = jax.random.fold_in(jax.random.key(0), state.step)
        updates, after = rule.update(updates, _cast(state.rule, jnp.float32), params)

        def store(path: tuple, new: jax.Array, old: jax.Array) -> jax.Array:
            if new.dtype == old.dtype:
                return new
            keys = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
            # Moments of one weight are rounded alike, which biases none of them.
            own = jax.random.fold_in(key, numbers[keys])
            if not weights[keys].stacked:
                return rounded(new, own)
            first = jnp.int32(0) if layer is None else layer
            layers = first + jnp.arange(len(new), dtype=jnp.int32)
            return jax.vmap(lambda x, i: rounded(x, jax.random.fold_in(own, i)))(new, layers)

        stored = jax.tree_util.tree_map_with_path(store, after, state.rule)
        return updates, Rounded(optax.safe_increment(state.step), stored)

    return optax.GradientTransformationExtraArgs(init, update)


def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down with odds that make the mean `x`."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    drawn = hash_indices(x.shape, key) >> jnp.uint32(16)
    up = jax.lax.bitcast_convert_type((bits + drawn) >> jnp.uint32(16) << jnp.uint32(16), x.dtype)
    return jnp.where(jnp.isfinite(x), up, x).astype(jnp.bfloat16)


def _cast(state: optax.OptState, dtype: Any) -> optax.OptState:
    """The state with its floats in `dtype`; counts stay."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )
