"""Matrix products with weights, at JAX's default matmul precision.

Where that is bfloat16, the factors of a product of float32 arrays are rounded here: XLA's CPU
backend does not look at the precision, but multiplies bfloat16 several times faster where the
processor can (AMX). Sums stay float32.

B rows, L tokens, T tokens of all rows, D width in, F width out.
"""

import jax
import jax.numpy as jnp

from jaxft.nn.partition import ROWS, SEQUENCE, shards


def multiply(x_BLD: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """[B, L, F] of x's dtype; any number of axes may stand before D."""
    # As a plain matrix product: with two row axes XLA's CPU backend transposes copies for the
    # gradient.
    x_TD, kernel_DF = x_BLD.reshape(-1, x_BLD.shape[-1]), kernel_DF.astype(x_BLD.dtype)
    rounding = _rounds() and x_BLD.dtype == jnp.float32
    product_TF = _of_rounded(x_TD, kernel_DF) if rounding else x_TD @ kernel_DF
    return product_TF.reshape(*x_BLD.shape[:-1], -1)


def product(axes: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """einsum with float32 sums."""
    return jnp.einsum(axes, one, other, preferred_element_type=jnp.float32)


def rounded(x: jax.Array) -> jax.Array:
    """`x` as a factor."""
    return x.astype(jnp.bfloat16) if _rounds() else x


def kernel_gradient(x_TD: jax.Array, d_TF: jax.Array) -> jax.Array:
    """The sum over tokens of x times d, float32 [D, F]."""
    T, D = x_TD.shape
    if not _rounds() or T % 2 or shards(*ROWS, SEQUENCE) > 1:
        return product("TD,TF->DF", x_TD, d_TF)
    # XLA's CPU backend takes a transposition into the product, which makes it a slow one; but not
    # one of three axes.
    return product("DT,TF->DF", jnp.moveaxis(x_TD.reshape(2, -1, D), -1, 0).reshape(D, T), d_TF)


@jax.custom_vjp
def _of_rounded(x_TD: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    return _forward(x_TD, kernel_DF)[0]


def _forward(x_TD: jax.Array, kernel_DF: jax.Array) -> tuple[jax.Array, tuple]:
    factors = rounded(x_TD), rounded(kernel_DF)
    return product("TD,DF->TF", *factors), factors


def _backward(factors: tuple, d_TF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_TD, kernel_DF = factors
    d_TF = rounded(d_TF)
    return product("TF,DF->TD", d_TF, kernel_DF), kernel_gradient(x_TD, d_TF)


_of_rounded.defvjp(_forward, _backward)


def _rounds() -> bool:
    return jax.config.values["jax_default_matmul_precision"] == "bfloat16"
