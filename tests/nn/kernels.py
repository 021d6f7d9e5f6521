"""What tests of attention kernels compare."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def with_gradients(mix: Callable[..., jax.Array], qkv: Sequence[jax.Array]) -> tuple:
    """What it gives, and the gradients of a sum that weighs every element otherwise."""

    def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = mix(*qkv)
        factors = jnp.sin(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
        return (mixed.astype(jnp.float32) * factors).sum(), mixed

    grads, mixed = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
    return mixed, *grads
