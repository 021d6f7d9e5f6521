"""What a model reads. B rows, L tokens, M examples a row."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = Any
"""A `jax.Array` on the devices, a numpy array on the host."""


class Tokens(NamedTuple):
    """Tokenised rows, each with one example or more; all int32 of shape [B, L]."""

    ids_BL: Array
    segments_BL: Array
    """Which example of the row a token belongs to, counted from 1; 0 is padding."""
    positions_BL: Array
    """Position within the example; restarts with every segment."""
    types_BL: Array
    """BERT's `token_type_ids`: first or second text of a pair."""


class Batch(NamedTuple):
    """What one optimizer update sees, over all devices and micro-batches."""

    tokens: Tokens
    targets: Any
    """Whatever the task's loss compares with; every leaf has B rows."""
    weights_BM: Array
    """float32; 0 where there is no example."""
    rows_BM: Array
    """int32 numbers of the examples in the data set; -1 where there is none."""


def own(segments_BL: jax.Array, examples: int) -> jax.Array:
    """bool [B, M, L]: which tokens belong to each of a row's first `examples` segments."""
    numbers_M = jnp.arange(1, examples + 1, dtype=jnp.int32)
    return segments_BL[:, None, :] == numbers_M[None, :, None]


def first_token(hidden_BLD: jax.Array, segments_BL: jax.Array, examples: int) -> jax.Array:
    """The hidden state of each example's first token, [B, M, D], wherever padding is."""
    return _pick(hidden_BLD, own(segments_BL, examples).argmax(-1))


def last_token(hidden_BLD: jax.Array, segments_BL: jax.Array, examples: int) -> jax.Array:
    """The hidden state of each example's last token, [B, M, D], wherever padding is."""
    behind_BM = own(segments_BL, examples)[..., ::-1].argmax(-1)
    return _pick(hidden_BLD, segments_BL.shape[1] - 1 - behind_BM)


def _pick(hidden_BLD: jax.Array, places_BM: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden_BLD, places_BM[..., None], axis=1)
