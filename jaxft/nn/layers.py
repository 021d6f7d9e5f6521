"""Layers whose parameters know their logical axes, their checkpoint name and their kind.

Shape suffixes: B rows, L tokens, D model width, F feed-forward width, H heads, K head width,
C classes, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from jaxft.errors import UserError
from jaxft.nn.partition import ANY, FSDP, ROWS, SEQUENCE, constrain, shards
from jaxft.nn.products import multiply
from jaxft.nn.remat import Activation, Place


def _gelu(x: jax.Array) -> jax.Array:
    """Exact, in float32: bfloat16 loses the left tail in `1 + erf`, and erfc costs double."""
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + lax.erf(x32 * 2**-0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activation functions by the names `config.json` gives them."""


def check_activation(name: str) -> None:
    """Raises UserError where a `config.json` names another one."""
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"config.json: activation {name!r} is not one of {known}.")


@dataclass(frozen=True)
class Compute:
    """How a model computes, as opposed to what."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["xla", "blocked", "cudnn", "splash"] = "xla"
    activation_checkpointing: Literal["none", "full", "dots"] = "none"
    kept_activations: tuple[tuple[Activation, Place], ...] = ()
    """What "full" does not recompute, and where it waits."""
    unroll_layers: bool = False
    """Compile each layer of a stack by itself: faster steps on CPU, slower compilation."""


class Linear(nnx.Module):
    """`x @ kernel + bias`; the checkpoint holds `weight` as [out, in] where it is `transposed`.

    `part` (i, n): the checkpoint holds n such layers side by side in one tensor, and this is the
    i-th.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        axes: tuple[str | None, str | None],
        hf: str,
        std: float,
        rngs: nnx.Rngs,
        bias: bool = True,
        transposed: bool = True,
        part: tuple[int, int] | None = None,
    ):
        facts: dict[str, Any] = {} if part is None else {"part": part}
        kernel = std * jax.random.normal(rngs.params(), (d_in, d_out))
        self.kernel = nnx.Param(
            kernel, axes=axes, hf=f"{hf}.weight", kind="kernel", transposed=transposed, **facts
        )
        self.bias = (
            nnx.Param(jnp.zeros(d_out), axes=axes[1:], hf=f"{hf}.bias", kind="bias", **facts)
            if bias
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        product = multiply(x, self.kernel[...])
        return product if self.bias is None else product + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation, computed in float32. Source: Ba et al. 2016, section 3."""

    def __init__(self, width: int, *, hf: str, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width), axes=("embed",), hf=f"{hf}.weight", kind="norm")
        self.bias = nnx.Param(jnp.zeros(width), axes=("embed",), hf=f"{hf}.bias", kind="bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normed = centred * lax.rsqrt(variance + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Division by the root mean square, computed in float32. Source: Zhang & Sennrich 2019."""

    def __init__(self, width: int, *, hf: str, eps: float, axis: str | None = "embed"):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width), axes=(axis,), hf=f"{hf}.weight", kind="norm")

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return (normed * self.scale[...]).astype(x.dtype)


class Embed(nnx.Module):
    """A table of vectors, looked up by index; `tied` is the name of a head that is the same table,
    transposed.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        *,
        axis: str | None,
        hf: str,
        std: float,
        rngs: nnx.Rngs,
        tied: str | None = None,
    ):
        table = std * jax.random.normal(rngs.params(), (rows, width))
        facts: dict[str, Any] = {} if tied is None else {"tied": tied}
        self.table = nnx.Param(
            table, axes=(axis, "embed"), hf=f"{hf}.weight", kind="embedding", **facts
        )

    def __call__(self, index_BL: jax.Array) -> jax.Array:
        table_VD = self.table[...]
        if shards(FSDP) == 1:
            return table_VD[index_BL]
        split = shards(*ROWS), shards(SEQUENCE), shards(FSDP)
        uneven = any(
            n % by for n, by in zip((*index_BL.shape, table_VD.shape[1]), split, strict=True)
        )
        if uneven or len(table_VD) <= index_BL.size // prod(split[:2]):
            # Less is sent by making the table whole than by sending what is looked up.
            return constrain(table_VD, ANY, None)[index_BL]
        tokens = PartitionSpec(ROWS, SEQUENCE)
        return jax.shard_map(
            _look_up,
            in_specs=(PartitionSpec(None, FSDP), tokens),
            out_specs=tokens,
            axis_names={*ROWS, SEQUENCE},
            check_vma=False,
        )(table_VD, index_BL)


def _look_up(table_VD: jax.Array, index_BL: jax.Array) -> jax.Array:
    """Where each device has a part of every vector: it looks that up for the rows of all, and they
    exchange.
    """
    all_BL = lax.all_gather(index_BL, FSDP, axis=0, tiled=True)
    return lax.all_to_all(table_VD[all_BL], FSDP, split_axis=0, concat_axis=2, tiled=True)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate`, scale up the rest; a `key` of None means
    deterministic.

    An element's fate is a hash of its index in the whole array, so that it depends on no device or
    mesh.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round((1.0 - rate) * 2**32)
    keep = hash_indices(x.shape, key) < jnp.uint32(threshold)
    return jnp.where(keep, x * (2**32 / threshold), jnp.zeros_like(x))


def hash_indices(shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """32 bits per element, uint32: an affine map of the index drawn from `key`, then a mixing hash.

    A tenth of the arithmetic of `jax.random.bits`, which was a tenth of a training step and a third
    of its compilation on CPU. Source of the mixing constants: lowbias32, C. Wellons,
    hash-prospector (2018).
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    slope, offset = jax.random.bits(key, (2,), jnp.uint32)
    x = index * (slope | jnp.uint32(1)) + offset
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))


def split(key: jax.Array | None, n: int) -> list[jax.Array | None]:
    """`n` keys from one, or `n` times None."""
    return [None] * n if key is None else list(jax.random.split(key, n))
