"""One attention function, several kernels.

Shape suffixes: B rows, L query tokens, S key tokens, H heads, K head width.
"""

import jax
import jax.numpy as jnp

from jaxft.nn.layers import dropout


def attention(
    q_BLHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    segments_BL: jax.Array,
    *,
    kernel: str,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention within segments, softmax in float32; returns [B, L, H, K].

    Source: Vaswani et al. 2017, section 3.2.1. `rate` drops attention weights.

    Raises:
        ValueError: the kernel cannot do what is asked; it never falls back to another one.
    """
    if kernel == "cudnn":
        return _cudnn(q_BLHK, k_BSHK, v_BSHK, segments_BL, rate if key is not None else 0.0)
    logits_BHLS = jnp.einsum("BLHK,BSHK->BHLS", q_BLHK * q_BLHK.shape[-1] ** -0.5, k_BSHK)
    same_BLS = segments_BL[:, :, None] == segments_BL[:, None, :]
    lowest = jnp.finfo(jnp.float32).min
    logits_BHLS = jnp.where(same_BLS[:, None], logits_BHLS.astype(jnp.float32), lowest)
    weights_BHLS = jax.nn.softmax(logits_BHLS, axis=-1).astype(v_BSHK.dtype)
    weights_BHLS = dropout(weights_BHLS, rate, key)
    return jnp.einsum("BHLS,BSHK->BLHK", weights_BHLS, v_BSHK)


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, segments_BL: jax.Array, rate: float
) -> jax.Array:
    """cuDNN's flash attention by lengths, not by mask: rows hold one right-padded example each."""
    if rate:
        raise ValueError("attention='cudnn' has no attention dropout; set it to 0 or use 'xla'")
    lengths_B = (segments_BL != 0).sum(-1, dtype=jnp.int32)
    # An all-padding row (the last batch's filler) still needs one key to attend to.
    lengths_B = jnp.maximum(lengths_B, 1)
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            query_seq_lengths=lengths_B,
            key_value_seq_lengths=lengths_B,
            implementation="cudnn",
        )
