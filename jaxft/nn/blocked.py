"""Attention for CPUs: in blocks of queries, with a backward pass of its own.

What goes through memory costs more than arithmetic there, so a block's logits are worked out anew
in the backward pass, none is written that autodiff would want, and keys that a whole block cannot
see are left out. Products sum over columns of the left array and rows of the right one: XLA takes
twice as long over the others.

B rows, L tokens of a row, Q queries of a block, S keys before them, G key-value heads, R query
heads to one of those, M = R * Q, K head width. Source: Dao et al. 2022 (FlashAttention), appendix
B.4.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxft.nn.attention import Side, visible
from jaxft.nn.layers import dropout
from jaxft.nn.partition import SEQUENCE, shards
from jaxft.nn.remat import mark

BLOCK = 128
"""Queries of a block."""


class Rules(NamedTuple):
    causal: bool
    window: int | None
    rate: float
    """Of dropped weights."""


class Block(NamedTuple):
    queries: slice
    keys: slice
    """All that any of the queries sees."""


def blocked_attention(
    q_BLHK: jax.Array,
    k_BLGK: jax.Array,
    v_BLGK: jax.Array,
    side: Side,
    rules: Rules,
    key: jax.Array | None,
) -> jax.Array:
    """Attention within segments, [B, L, H, K]; `q` is scaled already.

    Whether a block can see a key goes by places in the row: within a segment whose tokens follow
    each other without a gap, those are as far apart as positions are.
    """
    B, L, H, K = q_BLHK.shape
    G = k_BLGK.shape[2]
    q_BGRLK = q_BLHK.reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BGLK, v_BGLK = k_BLGK.swapaxes(1, 2), v_BLGK.swapaxes(1, 2)
    mixed_BGRLK = _attend(rules, q_BGRLK, k_BGLK, v_BGLK, side, key)
    return mixed_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, H, K)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rules: Rules, *arrays: Any) -> jax.Array:
    return _forward(rules, *arrays)[0]


def _forward(
    rules: Rules,
    q_BGRLK: jax.Array,
    k_BGLK: jax.Array,
    v_BGLK: jax.Array,
    side: Side,
    key: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    mixed, normalisers = [], []
    for block in _blocks(q_BGRLK.shape[3], rules):
        logits_BGMS = _logits(rules, q_BGRLK, k_BGLK, side, block)
        largest_BGM1 = logits_BGMS.max(-1, keepdims=True)
        weights_BGMS = jnp.exp(logits_BGMS - largest_BGM1)
        sum_BGM1 = weights_BGMS.sum(-1, keepdims=True)
        weights_BGMS = dropout(weights_BGMS, rules.rate, _of(block, key)).astype(v_BGLK.dtype)
        mixed_BGMK = jnp.einsum("BGMS,BGSK->BGMK", weights_BGMS, v_BGLK[:, :, block.keys])
        mixed_BGMK = (mixed_BGMK.astype(jnp.float32) / sum_BGM1).astype(v_BGLK.dtype)
        mixed.append(_by_head(mixed_BGMK, q_BGRLK))
        normalisers.append(_by_head(largest_BGM1 + jnp.log(sum_BGM1), q_BGRLK))
    mixed_BGRLK = mark(jnp.concatenate(mixed, 3), "attention_out")
    normaliser_BGRL1 = mark(jnp.concatenate(normalisers, 3), "attention_out")
    return mixed_BGRLK, (q_BGRLK, k_BGLK, v_BGLK, side, key, mixed_BGRLK, normaliser_BGRL1)


def _backward(rules: Rules, kept: tuple, d_mixed_BGRLK: jax.Array) -> tuple:
    q_BGRLK, k_BGLK, v_BGLK, side, key, mixed_BGRLK, normaliser_BGRL1 = kept
    dtype = q_BGRLK.dtype
    weighted_BGRLK = (mixed_BGRLK * d_mixed_BGRLK).astype(jnp.float32)
    mean_BGRL1 = weighted_BGRLK.sum(-1, keepdims=True)
    d_q = []
    d_k_BGKL, d_v_BGKL = (jnp.zeros_like(x.swapaxes(2, 3)) for x in (k_BGLK, v_BGLK))
    for block in _blocks(q_BGRLK.shape[3], rules):
        q_BGMK, d_mixed_BGMK, normaliser_BGM1, mean_BGM1 = (
            _queries(x, block) for x in (q_BGRLK, d_mixed_BGRLK, normaliser_BGRL1, mean_BGRL1)
        )
        k_BGSK, v_BGSK = (x[:, :, block.keys] for x in (k_BGLK, v_BGLK))
        # The elements that forward dropped: they hang on the key and their place alone.
        dropped = partial(dropout, rate=rules.rate, key=_of(block, key))
        weights_BGMS = jnp.exp(_logits(rules, q_BGRLK, k_BGLK, side, block) - normaliser_BGM1)
        d_weights_BGMS = jnp.einsum("BGMK,BGSK->BGMS", d_mixed_BGMK, v_BGSK).astype(jnp.float32)
        d_logits_BGMS = (weights_BGMS * (dropped(d_weights_BGMS) - mean_BGM1)).astype(dtype)
        weights_BGMS = dropped(weights_BGMS).astype(dtype)
        d_q_BGMK = jnp.einsum("BGMS,BGSK->BGMK", d_logits_BGMS, k_BGSK)
        d_k_BGKS = jnp.einsum("BGKM,BGMS->BGKS", q_BGMK.swapaxes(2, 3), d_logits_BGMS)
        d_v_BGKS = jnp.einsum("BGKM,BGMS->BGKS", d_mixed_BGMK.swapaxes(2, 3), weights_BGMS)
        d_q.append(_by_head(d_q_BGMK, q_BGRLK))
        d_k_BGKL = d_k_BGKL.at[..., block.keys].add(d_k_BGKS)
        d_v_BGKL = d_v_BGKL.at[..., block.keys].add(d_v_BGKS)
    d_k_BGLK, d_v_BGLK = d_k_BGKL.swapaxes(2, 3), d_v_BGKL.swapaxes(2, 3)
    return jnp.concatenate(d_q, 3), d_k_BGLK, d_v_BGLK, None, None


_attend.defvjp(_forward, _backward)


def _blocks(length: int, rules: Rules) -> Iterator[Block]:
    # Rows that the mesh splits stay whole: each device has its part of every block.
    size = length if shards(SEQUENCE) > 1 else BLOCK
    for start in range(0, length, size):
        stop = min(start + size, length)
        reach = length if rules.window is None else rules.window - 1
        last = stop if rules.causal else min(stop + reach, length)
        yield Block(slice(start, stop), slice(max(start - reach, 0), last))


def _logits(
    rules: Rules, q_BGRLK: jax.Array, k_BGLK: jax.Array, side: Side, block: Block
) -> jax.Array:
    """float32 [B, G, M, S]; the lowest number where the query does not see the key."""
    k_BGSK = k_BGLK[:, :, block.keys]
    logits_BGMS = jnp.einsum("BGMK,BGSK->BGMS", _queries(q_BGRLK, block), k_BGSK)
    queries, keys = (Side(*(x[:, part] for x in side)) for part in block)
    seen_BQS = visible(queries, keys, rules.causal, rules.window)
    logits_BGRQS = _by_head(logits_BGMS, q_BGRLK).astype(jnp.float32)
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(seen_BQS[:, None, None], logits_BGRQS, lowest).reshape(logits_BGMS.shape)


def _queries(x_BGRLK: jax.Array, block: Block) -> jax.Array:
    """[B, G, M, K] of the block's queries."""
    x_BGRQK = x_BGRLK[:, :, :, block.queries]
    B, G, R, Q, K = x_BGRQK.shape
    return x_BGRQK.reshape(B, G, R * Q, K)


def _by_head(x_BGMK: jax.Array, like_BGRLK: jax.Array) -> jax.Array:
    """[B, G, R, Q, K]"""
    return x_BGMK.reshape(*like_BGRLK.shape[:3], -1, x_BGMK.shape[-1])


def _of(block: Block, key: jax.Array | None) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, block.queries.start)
