"""Splash attention: JAX's flash attention for TPUs, which skips what the mask hides.

B rows, L query tokens, S key tokens, H query heads, G key-value heads, K head width.
"""

from functools import lru_cache
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft.nn.attention import WIDTH_UNITS
from jaxft.nn.partition import ROWS, SEQUENCE, WIDTH, mesh_shape

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
    gap, those are as far apart as positions are.

    Raises:
        ValueError: a row width that the kernel cannot cut into blocks.
    """
    length = q_BLHK.shape[1]
    sizes = mesh_shape() or {SEQUENCE: 1, WIDTH: 1}
    if length % (LANES * sizes[SEQUENCE]):
        raise ValueError(
            f"attention='splash' needs rows of a multiple of {LANES} tokens, not {length}, in each "
            f"of mesh.context={sizes[SEQUENCE]} parts"
        )
    heads = q_BLHK.shape[2] // sizes[WIDTH]
    kernel = _kernel(length, heads, causal, window, sizes[SEQUENCE], interpret)

    def rows(kernel: Any, q_BHLK: Any, k_BGSK: Any, v_BGSK: Any, own_BL: Any, all_BS: Any) -> Any:
        def row(q_HLK: Any, k_GSK: Any, v_GSK: Any, own_L: Any, all_S: Any) -> jax.Array:
            return kernel(q_HLK, k_GSK, v_GSK, splash.SegmentIds(own_L, all_S))

        return jax.vmap(row)(q_BHLK, k_BGSK, v_BGSK, own_BL, all_BS)

    run: Any = rows
    if mesh_shape():
        # Each device has its own rows, heads and queries, and all keys of its rows.
        mesh = jax.sharding.get_abstract_mesh()
        of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, P(None, SEQUENCE)))
        of_queries, of_keys = P(ROWS, WIDTH, SEQUENCE), P(ROWS, WIDTH)
        run = jax.shard_map(
            rows,
            in_specs=(of_kernel, of_queries, of_keys, of_keys, P(ROWS, SEQUENCE), P(ROWS)),
            out_specs=of_queries,
            check_vma=False,
        )
    swapped = (x.swapaxes(1, 2) for x in (q_BLHK, k_BLGK, v_BLGK))
    return run(kernel, *swapped, segments_BL, segments_BL).swapaxes(1, 2)


@lru_cache(maxsize=32)
def _mask(length: int, heads: int, causal: bool, window: int | None) -> Any:
    shape = (length, length)
    one: Any
    if window is not None:
        one = masks.LocalMask(shape, (window - 1, 0 if causal else window - 1), offset=0)
    else:
        one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    return masks.MultiHeadMask([one] * heads)


def _kernel(
    length: int, heads: int, causal: bool, window: int | None, parts: int, interpret: bool
) -> Any:
    """The kernel for `parts` parts of a row's queries."""
    own = length // parts
    block = next(size for size in range(min(BLOCK, own), 0, -LANES) if own % size == 0)
    forward = ("block_q", "block_kv", "block_kv_compute")
    backward = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    equal: dict[str, Any] = dict.fromkeys((*forward, *backward), block)
    sizes = splash.BlockSizes(**equal)
    return splash.make_splash_mha(
        mask=_mask(length, heads, causal, window),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name="attention_out",  # or keeping it would not spare the kernel
        interpret=interpret,
    )
