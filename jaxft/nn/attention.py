"""One attention function, several kernels.

Shape suffixes: B rows, L query tokens, S key tokens, H query heads, G key-value heads, R = H / G
query heads to one of those, K head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxft.nn.layers import dropout
from jaxft.nn.partition import ROWS, SEQUENCE, WIDTH, constrain
from jaxft.nn.remat import mark
from jaxft.nn.tokens import Tokens

WIDTH_UNITS = {"splash": 128}
"""Kernels that cut rows into blocks, and what the rows' width must be a multiple of."""


class Side(NamedTuple):
    """What decides who sees whom, of queries or of keys; both int32."""

    segments_BL: jax.Array
    """Only tokens of one segment see each other; 0 is padding."""
    positions_BL: jax.Array
    """Counted within the segment: `causal` and `window` compare these, never places in the row."""

    @classmethod
    def of(cls, tokens: Tokens) -> "Side":
        return cls(tokens.segments_BL, tokens.positions_BL)


def attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    queries: Side,
    keys: Side,
    *,
    kernel: str,
    causal: bool = False,
    window: int | None = None,
    scale: float | jax.Array | None = None,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Dot-product attention within segments, softmax in float32; returns [B, L, H, K].

    `causal` hides keys after the query, `window` those `window` or more before it. `scale` is
    K^-0.5 by default; `rate` drops attention weights. Query heads share the key-value heads evenly,
    neighbours together. Source: Vaswani et al. 2017, section 3.2.1; Ainslie et al. 2023.

    Raises:
        ValueError: the kernel cannot do what is asked; it never falls back to another one.
    """
    scale = q_BLHK.shape[-1] ** -0.5 if scale is None else scale
    q_BLHK = q_BLHK * jnp.asarray(scale, q_BLHK.dtype)
    rate = rate if key is not None else 0.0
    if kernel == "splash":
        from jaxft.nn.splash import splash_attention

        if rate or queries is not keys:
            raise ValueError("attention='splash' has no dropout, and keys and queries of one row")
        return splash_attention(
            q_BLHK, k_BSGK, v_BSGK, queries.segments_BL, causal=causal, window=window
        )
    # Of a row that `context` splits, each device has its own queries and sees all keys.
    q_BLHK = constrain(q_BLHK, ROWS, SEQUENCE, WIDTH)
    k_BSGK, v_BSGK = (constrain(x, ROWS, None, WIDTH) for x in (k_BSGK, v_BSGK))
    if kernel == "blocked":
        from jaxft.nn.blocked import Rules, blocked_attention

        if queries is not keys:
            raise ValueError("attention='blocked' needs keys and queries of the same tokens")
        rules = Rules(causal, window, rate)
        return blocked_attention(q_BLHK, k_BSGK, v_BSGK, queries, rules, key)
    if kernel == "cudnn":
        mixed_BLHK = _cudnn(q_BLHK, k_BSGK, v_BSGK, queries, keys, causal, window, rate)
    else:
        seen_BLS = visible(queries, keys, causal, window)
        mixed_BLHK = _xla(q_BLHK, k_BSGK, v_BSGK, seen_BLS, rate, key)
    return mark(mixed_BLHK, "attention_out")  # the other kernels mark their own


def _xla(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    seen_BLS: jax.Array,
    rate: float,
    key: jax.Array | None,
) -> jax.Array:
    B, L, H, K = q_BLHK.shape
    S, G = k_BSGK.shape[1:3]
    if H == G:
        logits_BHLS = jnp.einsum("BLHK,BSHK->BHLS", q_BLHK, k_BSGK)
    else:
        q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
        logits_BHLS = jnp.einsum("BLGRK,BSGK->BGRLS", q_BLGRK, k_BSGK).reshape(B, H, L, S)
    lowest = jnp.finfo(jnp.float32).min
    logits_BHLS = jnp.where(seen_BLS[:, None], logits_BHLS.astype(jnp.float32), lowest)
    weights_BHLS = jax.nn.softmax(logits_BHLS, axis=-1).astype(v_BSGK.dtype)
    weights_BHLS = dropout(weights_BHLS, rate, key)
    if H == G:
        return jnp.einsum("BHLS,BSHK->BLHK", weights_BHLS, v_BSGK)
    weights_BGRLS = weights_BHLS.reshape(B, G, H // G, L, S)
    return jnp.einsum("BGRLS,BSGK->BLGRK", weights_BGRLS, v_BSGK).reshape(B, L, H, K)


def visible(queries: Side, keys: Side, causal: bool, window: int | None) -> jax.Array:
    """bool [B, L, S]: which key each query sees."""
    seen_BLS = queries.segments_BL[:, :, None] == keys.segments_BL[:, None, :]
    if causal or window is not None:
        ahead_BLS = keys.positions_BL[:, None, :] - queries.positions_BL[:, :, None]
        if causal:
            seen_BLS &= ahead_BLS <= 0
        if window is not None:
            seen_BLS &= jnp.abs(ahead_BLS) < window
    return seen_BLS


def _cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    queries: Side,
    keys: Side,
    causal: bool,
    window: int | None,
    rate: float,
) -> jax.Array:
    """cuDNN's flash attention by lengths, not by mask: rows hold one right-padded example each."""
    if rate:
        raise ValueError("attention='cudnn' has no attention dropout; set it to 0 or use 'xla'")
    if queries is not keys:
        raise ValueError("attention='cudnn' needs keys and queries of the same tokens")
    if window is not None and not causal:
        raise ValueError("attention='cudnn' has windows of causal attention only; use 'xla'")
    lengths_B = (queries.segments_BL != 0).sum(-1, dtype=jnp.int32)
    # An all-padding row (the last batch's filler) still needs one key to attend to.
    lengths_B = jnp.maximum(lengths_B, 1)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=1.0,
        is_causal=causal,
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
