"""The mesh axes that a model's own code names, and how it says where an activation lies.

Everything here is a no-op outside a mesh, or in one without these axes.
"""

from math import prod
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

FSDP = "fsdp"
"""Splits weights, most of them along the model's width."""
ROWS = ("data", FSDP)
"""Split the rows of a batch."""
SEQUENCE = "context"
"""Splits the tokens of a row."""
WIDTH = "tensor"
"""Splits attention heads, feed-forward units and the vocabulary."""
ANY = PartitionSpec.UNCONSTRAINED
"""Left to the compiler."""


def mesh_shape() -> dict[str, int]:
    """Sizes of the axes above in the mesh that is set; empty where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {} if mesh.empty else dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    return sizes if {*ROWS, SEQUENCE, WIDTH} <= set(sizes) else {}


def shards(*axes: str) -> int:
    """Into how many parts these axes of the mesh that is set split something."""
    sizes = mesh_shape()
    return prod(sizes[axis] for axis in axes) if sizes else 1


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """`x`, lying as `spec` says; axes that it does not reach are whole."""
    return lax.with_sharding_constraint(x, PartitionSpec(*spec)) if mesh_shape() else x


def constrain_tokens(x_BL: jax.Array) -> jax.Array:
    """An activation [B, L, ...] with its rows and tokens split."""
    return constrain(x_BL, ROWS, SEQUENCE)
