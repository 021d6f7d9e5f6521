"""Splash attention: JAX's flash attention for TPUs, which skips what the mask hides.

B rows, L tokens, H query heads, G key-value heads, K head width.
"""

from functools import lru_cache, partial
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec as P

from jaxft.nn.attention import WIDTH_UNITS

LANES = WIDTH_UNITS["splash"]
BLOCK = 512
"""Queries, and keys, of a block at most."""


def splash_attention(
    q_BLHK: jax.Array,
    k_BLGK: jax.Array,
    v_BLGK: jax.Array,
    segments_BL: jax.Array,
    *,
    causal: bool,
    window: int | None,
    interpret: bool = False,
) -> jax.Array:
    """Attention within segments, [B, L, H, K]; `q` is scaled already.

    The mask counts places in the row: within a segment whose tokens follow each other without a
    gap, those are as far apart as positions are. Each device works on its own rows and heads.

    Raises:
        ValueError: a row width that the kernel cannot cut into blocks.
    """
    length = q_BLHK.shape[1]
    if length % LANES:
        raise ValueError(
            f"attention='splash' needs rows of a multiple of {LANES} tokens, not {length}"
        )

    def rows(q_BHLK: Any, k_BGLK: Any, v_BGLK: Any, segments_BL: Any) -> jax.Array:
        kernel = _kernel(length, q_BHLK.shape[1], causal, window, interpret)

        def row(q_HLK: Any, k_GLK: Any, v_GLK: Any, segments_L: Any) -> jax.Array:
            return kernel(q_HLK, k_GLK, v_GLK, splash.SegmentIds(segments_L, segments_L))

        return jax.vmap(row)(q_BHLK, k_BGLK, v_BGLK, segments_BL)

    run: Any = rows
    mesh = jax.sharding.get_abstract_mesh()
    if {"data", "fsdp", "tensor"} <= set(mesh.axis_names):
        of_heads, of_rows = P(("data", "fsdp"), "tensor"), P(("data", "fsdp"))
        run = jax.shard_map(
            rows,
            in_specs=(of_heads, of_heads, of_heads, of_rows),
            out_specs=of_heads,
            check_vma=False,
        )
    swapped = (x.swapaxes(1, 2) for x in (q_BLHK, k_BLGK, v_BLGK))
    return run(*swapped, segments_BL).swapaxes(1, 2)


@lru_cache(maxsize=32)
def _mask(length: int, heads: int, causal: bool, window: int | None) -> Any:
    shape = (length, length)
    one: Any
    if window is not None:
        one = masks.LocalMask(shape, (window - 1, 0 if causal else window - 1), offset=0)
    else:
        one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    return masks.MultiHeadMask([one] * heads)


def _kernel(length: int, heads: int, causal: bool, window: int | None, interpret: bool) -> Any:
    block = next(size for size in range(min(BLOCK, length), 0, -LANES) if length % size == 0)
    forward = ("block_q", "block_kv", "block_kv_compute")
    backward = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    equal: dict[str, Any] = dict.fromkeys((*forward, *backward), block)
    sizes = splash.BlockSizes(**equal)
    make = partial(splash.make_splash_mha, head_shards=1, q_seq_shards=1, interpret=interpret)
    return make(mask=_mask(length, heads, causal, window), block_sizes=sizes)
