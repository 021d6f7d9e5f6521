"""What a model reads. B rows, L tokens."""

from typing import Any, NamedTuple

Array = Any
"""A `jax.Array` on the devices, a numpy array on the host."""


class Tokens(NamedTuple):
    """Tokenised rows; all int32 of shape [B, L]."""

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
    weights_B: Array
    """float32; 0 marks a filler row."""
    rows_B: Array
    """int32 row numbers in the data set; -1 marks a filler row."""
