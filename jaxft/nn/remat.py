"""Which activations of a layer the backward pass finds kept, and where; it recomputes the rest."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name

Activation = Literal["block_input", "qkv", "attention_out", "mlp_hidden"]
"""What the blocks of every family mark: what enters a layer; queries, keys and values as attention
takes them; what attention gives, before the output projection; what enters the last projection of
the feed-forward part.
"""
Place = Literal["device", "host"]
HOST = "pinned_host"
"""JAX's name for the memory of the host that devices copy to and from."""


def mark(x: jax.Array, name: Activation) -> jax.Array:
    """`x`, known to `recomputed` by this name."""
    return checkpoint_name(x, name)


def recomputed(
    body: Callable, mode: Literal["none", "full", "dots"], kept: Mapping[Activation, Place]
) -> Callable:
    """A scan's body that recomputes in its backward pass: nothing, everything but the `kept`
    activations, or everything but its matrix products.
    """
    if mode == "none":
        return body
    policies = jax.checkpoint_policies
    if mode == "dots":
        policy = policies.dots_with_no_batch_dims_saveable
    else:
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[name for name, place in kept.items() if place == "device"],
            names_which_can_be_offloaded=[name for name, place in kept.items() if place == "host"],
            offload_src="device",
            offload_dst=HOST,
        )
    return jax.checkpoint(body, prevent_cse=False, policy=policy)
