"""Cross-entropy over a vocabulary, in chunks of tokens: all logits are never in memory at once, and
tokens of weight 0 cost nothing.

B rows, L tokens, T tokens of all rows of a device, C tokens of a chunk, D model width, V
vocabulary. The gradients are worked out beside the loss, so that each chunk's logits are computed
once. Source of the idea: Hsu et al. 2024, Liger Kernel, section 3.2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxft.nn.partition import FSDP, ROWS, SEQUENCE, WIDTH, shards
from jaxft.nn.products import kernel_gradient, product, rounded

LOGITS_BYTES = 2**28
"""Of one chunk's float32 logits on one device, about."""
LEAST_TOKENS = 256
"""Of a part of a chunk: each reads and writes the head's whole gradient, which takes as long as 80
tokens more on CPU, and as some hundreds on accelerators.
"""
_TOKENS = (*ROWS, SEQUENCE)


def vocabulary_loss(
    hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> jax.Array:
    """Sum over the tokens of weight * -log softmax(hidden @ head)[target], a float32 scalar."""
    return _loss(hidden_BLD, head_DV.astype(hidden_BLD.dtype), targets_BL, weights_BL)


def token_scores(
    hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(-log softmax at the target, whether the target has the largest logit), each times the
    weight, float32 [B, L]; without gradients.
    """

    def scores(hidden_BLD: jax.Array, head_DV: jax.Array, *more_BL: jax.Array) -> tuple:
        head_DV = rounded(head_DV)

        def chunk(_: tuple, part: tuple) -> tuple[tuple, tuple]:
            hidden_CD, targets_C, weights_C = part
            logits_CV = _logits(hidden_CD, head_DV)
            hit_C = logits_CV.argmax(-1) == targets_C
            return (), (_nll(logits_CV, targets_C) * weights_C, jnp.where(hit_C, weights_C, 0))

        parts, said = (hidden_BLD, *more_BL), (more_BL[-1],) * 2
        return _over_learnt(chunk, (), parts, said, head_DV.shape[1])[1]

    tokens = P(ROWS, SEQUENCE)
    run = _by_tokens(scores, (tokens, P(), tokens, tokens), (tokens, tokens))
    return run(hidden_BLD, head_DV.astype(hidden_BLD.dtype), targets_BL, weights_BL)


@jax.custom_vjp
def _loss(
    hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> jax.Array:
    return token_scores(hidden_BLD, head_DV, targets_BL, weights_BL)[0].sum()


def _forward(
    hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> tuple[jax.Array, tuple]:
    def both(hidden_BLD: jax.Array, head_DV: jax.Array, *more_BL: jax.Array) -> tuple:
        head_DV = rounded(head_DV)

        def chunk(sums: tuple, part: tuple) -> tuple[tuple, jax.Array]:
            loss, d_head_DV = sums
            hidden_CD, targets_C, weights_C = part
            logits_CV = _logits(hidden_CD, head_DV)
            loss += (_nll(logits_CV, targets_C) * weights_C).sum()
            hit_CV = lax.broadcasted_iota(jnp.int32, logits_CV.shape, 1) == targets_C[:, None]
            d_logits_CV = jax.nn.softmax(logits_CV) - hit_CV.astype(jnp.float32)
            d_logits_CV = (d_logits_CV * weights_C[:, None]).astype(head_DV.dtype)
            d_head_DV += kernel_gradient(rounded(hidden_CD), d_logits_CV)
            d_hidden_CD = product("CV,DV->CD", d_logits_CV, head_DV)
            return (loss, d_head_DV), d_hidden_CD.astype(hidden_CD.dtype)

        zeros = jnp.float32(0), jnp.zeros(head_DV.shape, jnp.float32)
        parts = hidden_BLD, *more_BL
        sums, d_hidden_BLD = _over_learnt(chunk, zeros, parts, hidden_BLD, head_DV.shape[1])
        # Once for all chunks: a reduction in the loop would send the whole head each time.
        return *_summed(*sums, split=split), d_hidden_BLD

    split = head_DV.shape[0] % shards(FSDP) == 0
    tokens, head = P(ROWS, SEQUENCE), P(FSDP if split else None)
    run = _by_tokens(both, (tokens, P(), tokens, tokens), (P(), head, tokens))
    loss, d_head_DV, d_hidden_BLD = run(hidden_BLD, head_DV, targets_BL, weights_BL)
    return loss, (d_hidden_BLD, d_head_DV)


def _summed(loss: jax.Array, d_head_DV: jax.Array, *, split: bool) -> tuple[jax.Array, jax.Array]:
    """Over all devices' tokens; of the gradient each device gets the part whose weights it has,
    where they are `split`.
    """
    if shards(*_TOKENS) == 1:
        return loss, d_head_DV
    others = [axis for axis in _TOKENS if axis != FSDP or not split]
    if split:
        scatter = partial(lax.psum_scatter, axis_name=FSDP, scatter_dimension=0, tiled=True)
        if d_head_DV.shape[1] % shards(WIDTH) == 0:
            # Of an axis left to the compiler, it would gather what is to be scattered.
            words = P(None, WIDTH)
            scatter = jax.shard_map(
                scatter, in_specs=words, out_specs=words, axis_names={WIDTH}, check_vma=False
            )
        d_head_DV = scatter(d_head_DV)
    return lax.psum(loss, _TOKENS), lax.psum(d_head_DV, others)


def _backward(kept: tuple, d_loss: jax.Array) -> tuple:
    d_hidden_BLD, d_head_DV = kept
    dtype = d_hidden_BLD.dtype
    return (d_hidden_BLD * d_loss.astype(dtype), (d_head_DV * d_loss).astype(dtype), None, None)


_loss.defvjp(_forward, _backward)


def _logits(hidden_CD: jax.Array, head_DV: jax.Array) -> jax.Array:
    return product("CD,DV->CV", rounded(hidden_CD), head_DV)


def _nll(logits_CV: jax.Array, targets_C: jax.Array) -> jax.Array:
    picked_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits_CV, axis=-1) - picked_C


def _over_learnt(
    chunk: Callable, sums: Any, parts_BL: tuple, said_BL: Any, vocabulary: int
) -> tuple[Any, Any]:
    """A scan of `chunk` over the tokens whose weight, the last part, is not 0: the sums, and what
    is said of each token, shaped as `said_BL`; 0 of the others.

    The learnt tokens are laid together, and the loops end behind them.
    """
    parts_T = _flat(parts_BL)
    learnt_T = parts_T[-1] != 0
    chunks, pieces, piece = _chunks(learnt_T.size, vocabulary)
    room = chunks * pieces * piece
    before_T = jnp.cumsum(learnt_T, dtype=jnp.int32)
    places_T = jnp.where(learnt_T, before_T - 1, room)
    tokens_T = jnp.arange(learnt_T.size, dtype=jnp.int32)
    tokens = jnp.full(room, learnt_T.size).at[places_T].set(tokens_T, mode="drop")
    said = jax.tree.map(lambda x: jnp.zeros((room, *x.shape[1:]), x.dtype), _flat(said_BL))

    def step(_: jax.Array, state: tuple, size: int) -> tuple:
        start, sums, said = state
        tokens_C = lax.dynamic_slice_in_dim(tokens, start, size)
        sums, now = chunk(sums, _at(parts_T, tokens_C))
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return start + size, sums, jax.tree.map(put, said, now)

    learnt = before_T[-1]
    if shards(*_TOKENS) > 1:
        # All devices loop as often: over `tensor` they meet in the loop.
        learnt = lax.pmax(learnt, _TOKENS)
    state, left = (jnp.int32(0), sums, said), -(-learnt // piece)
    for n in sorted({pieces, 1}, reverse=True):  # whole chunks, then pieces of one
        state = lax.fori_loop(0, left // n, partial(step, size=n * piece), state)
        left %= n
    _, sums, said = state
    said_T = _at(said, places_T)
    return sums, jax.tree.map(lambda x, like: x.reshape(like.shape), said_T, said_BL)


def _at(arrays: Any, places: jax.Array) -> Any:
    """Rows of arrays; 0 for places beyond the last."""
    return jax.tree.map(lambda x: jnp.take(x, places, 0, mode="fill", fill_value=0), arrays)


def _flat(arrays_BL: Any) -> Any:
    """[B, L, ...] -> [T, ...]"""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays_BL)


def _chunks(tokens: int, vocabulary: int) -> tuple[int, int, int]:
    """How many chunks keep the logits within `LOGITS_BYTES`, a power of 2 as most lengths are; the
    pieces of a chunk, since the last need not be whole; and the tokens in a piece.

    Many chunks have one piece each: a second loop takes the TPU's compiler ten seconds.
    """
    least = -(-4 * tokens * vocabulary // LOGITS_BYTES)
    chunks = 1 << (least - 1).bit_length()
    pieces = max(1, min(4, 8 // chunks, tokens // chunks // LEAST_TOKENS))
    return chunks, pieces, -(-tokens // (chunks * pieces))


def _by_tokens(function: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """The function on each device's own tokens; other axes of the mesh stay the compiler's."""
    if shards(*_TOKENS) == 1:
        return function
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=set(_TOKENS), check_vma=False
    )
