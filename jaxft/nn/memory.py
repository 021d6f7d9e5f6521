"""What generation remembers: keys and values of the tokens so far.

B rows, L new tokens, S remembered tokens, G key-value heads, K head width, N layers.
"""

from typing import NamedTuple

import jax
from jax import lax

from jaxft.nn.attention import Side


class Memory(NamedTuple):
    """Keys and values of the tokens so far, each [B, S, G, K]; [N, B, S, G, K] for a stack."""

    k: jax.Array
    v: jax.Array


class Recall(NamedTuple):
    """Where new tokens go in a memory, and what is in it."""

    start: jax.Array
    """int32: the place of the first new token, the same in all rows."""
    keys: Side
    """Of everything remembered, the new tokens included; empty places have segment 0."""


def remember(memory: Memory, k_BLGK: jax.Array, v_BLGK: jax.Array, recall: Recall) -> Memory:
    """The memory with new keys and values from `recall.start` on."""
    at = (0, recall.start, 0, 0)
    k = lax.dynamic_update_slice(memory.k, k_BLGK.astype(memory.k.dtype), at)
    v = lax.dynamic_update_slice(memory.v, v_BLGK.astype(memory.v.dtype), at)
    return Memory(k, v)
