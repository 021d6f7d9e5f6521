"""Cross-entropy over a vocabulary, in chunks of tokens: all logits are never in memory at once.

B rows, L tokens, C tokens of a row in a chunk, D model width, V vocabulary. The gradients are
worked out beside the loss, so that each chunk's logits are computed once. Source of the idea: Hsu
et al. 2024, Liger Kernel, section 3.2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxft.nn.partition import ROWS, SEQUENCE, shards

LOGITS_BYTES = 2**28
"""Of one chunk's float32 logits on one device, about."""
_TOKENS = (*ROWS, SEQUENCE)


def vocabulary_loss(
    hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> jax.Array:
    """Sum over the tokens of weight * -log softmax(hidden @ head)[target], a float32 scalar."""
    return _loss(hidden_BLD, head_DV.astype(hidden_BLD.dtype), targets_BL, weights_BL)


def token_scores(
    hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(-log softmax at the target, float32; whether the target has the largest logit, bool), each
    [B, L]; without gradients.
    """

    def scores(hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array) -> tuple:
        def chunk(_: None, part: tuple) -> tuple[None, tuple]:
            hidden_BCD, targets_BC = part
            logits_BCV = _logits(hidden_BCD, head_DV)
            return None, (_nll(logits_BCV, targets_BC), logits_BCV.argmax(-1) == targets_BC)

        n = _chunks(hidden_BLD, head_DV)
        _, scored = lax.scan(chunk, None, _cut((hidden_BLD, targets_BL), n))
        return _joined(scored)

    tokens = P(ROWS, SEQUENCE)
    head_DV = head_DV.astype(hidden_BLD.dtype)
    run = _by_tokens(scores, (tokens, P(), tokens), (tokens, tokens))
    return run(hidden_BLD, head_DV, targets_BL)


@jax.custom_vjp
def _loss(
    hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> jax.Array:
    nll_BL, _ = token_scores(hidden_BLD, head_DV, targets_BL)
    return (nll_BL * weights_BL).sum()


def _forward(
    hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> tuple[jax.Array, tuple]:
    def both(hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array, weights_BL: Any):
        def chunk(sums: tuple, part: tuple) -> tuple[tuple, jax.Array]:
            loss, d_head_DV = sums
            hidden_BCD, targets_BC, weights_BC = part
            logits_BCV = _logits(hidden_BCD, head_DV)
            loss += (_nll(logits_BCV, targets_BC) * weights_BC).sum()
            hit_BCV = lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2) == targets_BC[..., None]
            d_logits_BCV = (jax.nn.softmax(logits_BCV) - hit_BCV) * weights_BC[..., None]
            d_logits_BCV = d_logits_BCV.astype(hidden_BCD.dtype)
            d_head_DV += _product("BCD,BCV->DV", hidden_BCD, d_logits_BCV)
            d_hidden_BCD = _product("BCV,DV->BCD", d_logits_BCV, head_DV)
            return (loss, d_head_DV), d_hidden_BCD.astype(hidden_BCD.dtype)

        n = _chunks(hidden_BLD, head_DV)
        zeros = jnp.float32(0), jnp.zeros(head_DV.shape, jnp.float32)
        parts = _cut((hidden_BLD, targets_BL, weights_BL), n)
        (loss, d_head_DV), d_hidden = lax.scan(chunk, zeros, parts)
        # Once for all chunks: a reduction in the loop would send the whole head each time.
        sums = lax.psum((loss, d_head_DV), _TOKENS) if shards(*_TOKENS) > 1 else (loss, d_head_DV)
        return *sums, _joined(d_hidden)

    tokens = P(ROWS, SEQUENCE)
    run = _by_tokens(both, (tokens, P(), tokens, tokens), (P(), P(), tokens))
    loss, d_head_DV, d_hidden_BLD = run(hidden_BLD, head_DV, targets_BL, weights_BL)
    return loss, (d_hidden_BLD, d_head_DV)


def _backward(kept: tuple, d_loss: jax.Array) -> tuple:
    d_hidden_BLD, d_head_DV = kept
    dtype = d_hidden_BLD.dtype
    return (d_hidden_BLD * d_loss.astype(dtype), (d_head_DV * d_loss).astype(dtype), None, None)


_loss.defvjp(_forward, _backward)


def _product(axes: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(axes, one, other, preferred_element_type=jnp.float32)


def _logits(hidden_BCD: jax.Array, head_DV: jax.Array) -> jax.Array:
    return _product("BCD,DV->BCV", hidden_BCD, head_DV)


def _nll(logits_BCV: jax.Array, targets_BC: jax.Array) -> jax.Array:
    picked_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BCV, axis=-1) - picked_BC


def _chunks(hidden_BLD: jax.Array, head_DV: jax.Array) -> int:
    """How many equal parts of the rows keep the logits within `LOGITS_BYTES`."""
    rows, length, _ = hidden_BLD.shape
    most = LOGITS_BYTES // (4 * rows * head_DV.shape[1])
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= max(most, 1))


def _cut(arrays: tuple, n: int) -> tuple:
    """[B, L, ...] -> [n, B, L / n, ...]"""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:]).swapaxes(0, 1), arrays
    )


def _joined(parts: Any) -> Any:
    """[n, B, C, ...] -> [B, n * C, ...]"""
    return jax.tree.map(
        lambda x: x.swapaxes(0, 1).reshape(x.shape[1], x.shape[0] * x.shape[2], *x.shape[3:]), parts
    )


def _by_tokens(function: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """The function on each device's own tokens; other axes of the mesh stay the compiler's."""
    if shards(*_TOKENS) == 1:
        return function
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=set(_TOKENS), check_vma=False
    )
