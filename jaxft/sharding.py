"""Mesh and axis rules.

A weight is split over `tensor` along the axis that attention heads, feed-forward units or the
vocabulary index, and over `fsdp` along any axis that divides; what remains is replicated. Rows of a
batch are split over `data` and `fsdp`, the tokens of a row over `context`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft.errors import UserError
from jaxft.nn import partition
from jaxft.nn.weights import Path, Weight

AXES = (*partition.ROWS, partition.SEQUENCE, partition.WIDTH)
"""Outermost first: what is sent most often goes between neighbours."""
ROWS = PartitionSpec(partition.ROWS)
_TENSOR_AXES = ("heads", "mlp", "vocab")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh; one size may be -1 for "the rest".

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    wanted = {axis: sizes.get(axis, 1) for axis in AXES}
    fixed = prod(size for size in wanted.values() if size != -1)
    free = [axis for axis, size in wanted.items() if size == -1]
    if free and len(devices) % fixed == 0:
        wanted[free[0]] = len(devices) // fixed
    if prod(wanted.values()) != len(devices):
        given = ", ".join(f"mesh.{axis}={size}" for axis, size in wanted.items())
        raise UserError(
            f"{given} do not multiply to the {len(devices)} devices here. Sizes must divide that; "
            "one may be -1 for the rest."
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # Sides of a slice may be split: v6e:4x4 has no two of 8 and 2 devices otherwise.
        grid = create_device_mesh(tuple(wanted.values()), devices, allow_split_physical_axes=True)
    else:
        across = _across(wanted, slices)
        within = [size // across[axis] for axis, size in wanted.items()]
        grid = create_hybrid_device_mesh(
            within, list(across.values()), devices, allow_split_physical_axes=True
        )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _across(sizes: Mapping[str, int], slices: int) -> dict[str, int]:
    """How many slices of a pod each axis spans: those that are rarely sent over, first.

    Raises:
        UserError: `data` and `fsdp` together cannot span them.
    """
    across, left = dict.fromkeys(sizes, 1), slices
    for axis in partition.ROWS:
        across[axis] = gcd(sizes[axis], left)
        left //= across[axis]
    if left > 1:
        given = " x ".join(f"mesh.{axis}={sizes[axis]}" for axis in partition.ROWS)
        raise UserError(
            f"{given} cannot be spread over {slices} slices, which only these axes span: make "
            f"mesh.data a multiple of {slices}."
        )
    return across


def check_divides(
    mesh: Mesh, *, heads: int, batch_size: int, micro_batches: int, max_length: int
) -> None:
    """Raises UserError where the mesh cannot split the batch, the tokens or the attention heads.

    `heads` are the key-value heads, where they are fewer.
    """
    row_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (row_shards * micro_batches):
        unit = row_shards * micro_batches
        raise UserError(
            f"train.batch_size={batch_size} cannot be split over mesh.data x mesh.fsdp = "
            f"{row_shards} and "
            f"train.gradient_accumulation_steps = {micro_batches}: use a multiple of {unit}, such "
            f"as {_nearest(batch_size, unit)}."
        )
    if max_length % (parts := mesh.shape["context"]):
        raise UserError(
            f"data.max_length={max_length} cannot be split into mesh.context={parts} parts: use a "
            f"multiple of {parts}, such as {_nearest(max_length, parts)}."
        )
    if heads % (tensor := mesh.shape["tensor"]):
        fits = [n for n in range(1, heads + 1) if heads % n == 0 == mesh.size % n]
        raise UserError(
            f"mesh.tensor={tensor} cannot split {heads} (key-value) heads; the nearest that can is "
            f"{min(fits, key=lambda n: abs(n - tensor))} of {fits}."
        )


def _nearest(size: int, unit: int) -> int:
    return max(unit, round(size / unit) * unit)


def spec(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh, *, fsdp: bool = True
) -> PartitionSpec:
    """How an array with these logical axes lies on the mesh; `fsdp`: whether that may split it."""
    splits: list[list[str]] = [[] for _ in shape]
    tensor, parts = mesh.shape["tensor"], mesh.shape["fsdp"]
    if tensor > 1:
        for i, axis in enumerate(axes):
            if axis in _TENSOR_AXES and shape[i] % tensor == 0:
                splits[i].append("tensor")
                break
    if fsdp and parts > 1:
        # The model width first, since every weight has it; the layer axis last, since a scan slices
        # it.
        order = sorted(
            range(len(shape)), key=lambda i: (axes[i] == "layers", axes[i] != "embed", -shape[i])
        )
        for i in order:
            if shape[i] % (parts * prod(mesh.shape[name] for name in splits[i])) == 0:
                splits[i].append("fsdp")
                break
    return PartitionSpec(*(tuple(names) if names else None for names in splits))


@dataclass(frozen=True)
class Places:
    """Where parameters, gradients and optimizer state lie on a mesh.

    `fsdp` splits gradients and optimizer state (`zero_stage` 2), or parameters too (3). Source:
    Rajbhandari et al. 2020 (ZeRO), section 5.
    """

    weights: Mapping[Path, Weight]
    mesh: Mesh
    zero_stage: int = 3
    memory_kind: str | None = None
    """Of the parameters and of what the optimizer's state holds of each; None: the devices' own."""

    @cached_property
    def params(self) -> dict[Path, NamedSharding]:
        return self._of_weights(self.zero_stage == 3, self.memory_kind)

    @property
    def near(self) -> dict[Path, NamedSharding]:
        """Of the weights that the model computes with: in the devices' memory."""
        return self._of_weights(self.zero_stage == 3, None)

    @cached_property
    def gradients(self) -> dict[Path, NamedSharding]:
        return self._of_weights(True, None)

    def _of_weights(self, split: bool, memory_kind: str | None) -> dict[Path, NamedSharding]:
        def place(weight: Weight) -> NamedSharding:
            lies = spec(weight.shape, weight.axes, self.mesh, fsdp=split)
            return NamedSharding(self.mesh, lies, memory_kind=memory_kind)

        return {path: place(weight) for path, weight in self.weights.items()}

    def state(self, state: Any) -> Any:
        """Shardings for any tree that repeats the parameters' paths, such as an optimizer's state.

        A leaf shaped like its weight lies as the weight does when it is split; another one (a
        factored moment) is split where it divides; counts are on the devices.
        """

        def place(path: tuple, leaf: Any) -> NamedSharding:
            keys = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
            weight = self.weights.get(keys)
            axes: Sequence[str | None] = (None,) * leaf.ndim
            if weight is not None and weight.shape == leaf.shape:
                axes = weight.axes
            elif weight is not None and weight.stacked:
                axes = ("layers", *axes[1:])
            kind = self.memory_kind if weight is not None else None
            return NamedSharding(self.mesh, spec(leaf.shape, axes, self.mesh), memory_kind=kind)

        return jax.tree_util.tree_map_with_path(place, state)


def placed(shapes: Any, places: Any) -> Any:
    """A tree of shapes that lie as a tree of shardings says; nothing is allocated."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes that one device holds of a tree of shaped leaves under `shardings`."""
    leaves = jax.tree.leaves(
        jax.tree.map(lambda x, s: prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    )
    return sum(leaves)
