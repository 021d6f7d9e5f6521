"""Mesh, axis rules and the start of several processes.

A weight is split over `tensor` along the axis that attention heads, feed-forward units or the
vocabulary index, and over `fsdp` along any axis that divides; what remains is replicated. Rows of a
batch are split over `data` and `fsdp`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path as FilePath
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft.errors import UserError
from jaxft.nn.weights import Path, Weight

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))
_TENSOR_AXES = ("heads", "mlp", "vocab")


def start_processes(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Join the other processes of the job: by flags, or by itself on TPU pods and under SLURM.

    Raises:
        UserError: only some of the flags are given.
    """
    flags = (coordinator, count, index)
    if any(flag is not None for flag in flags):
        if any(flag is None for flag in flags):
            raise UserError(
                "--coordinator_address, --num_processes and --process_id go together: give all "
                "three or none."
            )
    elif not _in_cluster():
        return
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # gloo announces its connections on the process's stdout, which is for results.
        sys.stdout = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=30)


def _in_cluster() -> bool:
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return True
    on_tpu = FilePath("/dev/accel0").exists() or FilePath("/dev/vfio/0").exists()
    return on_tpu and find_spec("libtpu") is not None


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
    types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(wanted.values()), AXES, axis_types=types, devices=devices)
    except NotImplementedError as error:  # JAX splits no side of a slice
        given = ", ".join(f"mesh.{axis}={size}" for axis, size in wanted.items())
        raise UserError(
            f"{given} cannot be laid on the sides of this slice of {len(devices)} devices: a size "
            "must be the product of some of its sides."
        ) from error


def check_divides(mesh: Mesh, *, heads: int, batch_size: int, micro_batches: int) -> None:
    """Raises UserError where the mesh cannot split the batch or the attention heads."""
    row_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (row_shards * micro_batches):
        unit = row_shards * micro_batches
        raise UserError(
            f"train.batch_size={batch_size} cannot be split over mesh.data x mesh.fsdp = "
            f"{row_shards} and "
            f"train.gradient_accumulation_steps = {micro_batches}: use a multiple of {unit}, such "
            "as "
            f"{max(unit, round(batch_size / unit) * unit)}."
        )
    if heads % mesh.shape["tensor"]:
        fits = [n for n in range(1, heads + 1) if heads % n == 0]
        raise UserError(
            f"mesh.tensor={mesh.shape['tensor']} cannot split {heads} attention heads; possible "
            f"are {fits}."
        )


def spec(shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh) -> PartitionSpec:
    """How an array with these logical axes lies on the mesh."""
    splits: list[list[str]] = [[] for _ in shape]
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    if tensor > 1:
        for i, axis in enumerate(axes):
            if axis in _TENSOR_AXES and shape[i] % tensor == 0:
                splits[i].append("tensor")
                break
    if fsdp > 1:
        # The model width first, since every weight has it; the layer axis last, since a scan slices
        # it.
        order = sorted(
            range(len(shape)), key=lambda i: (axes[i] == "layers", axes[i] != "embed", -shape[i])
        )
        for i in order:
            if shape[i] % (fsdp * prod(mesh.shape[name] for name in splits[i])) == 0:
                splits[i].append("fsdp")
                break
    return PartitionSpec(*(tuple(names) if names else None for names in splits))


def weight_shardings(weights: Mapping[Path, Weight], mesh: Mesh) -> dict[Path, NamedSharding]:
    """A sharding per weight."""
    return {p: NamedSharding(mesh, spec(w.shape, w.axes, mesh)) for p, w in weights.items()}


def state_shardings(state: Any, weights: Mapping[Path, Weight], mesh: Mesh) -> Any:
    """Shardings for any tree that repeats the parameters' paths, such as a TrainState with its
    moments.

    A leaf shaped like its weight lies as the weight does; another one (a factored moment) is split
    where it divides.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        keys = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
        weight = weights.get(keys)
        if weight is not None and weight.shape == leaf.shape:
            axes = weight.axes
        else:
            axes = ("layers" if weight and weight.stacked else None, *(None,) * leaf.ndim)[
                : leaf.ndim
            ]
        return NamedSharding(mesh, spec(leaf.shape, axes, mesh))

    return jax.tree_util.tree_map_with_path(place, state)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes that one device holds of a tree of shaped leaves under `shardings`."""
    leaves = jax.tree.leaves(
        jax.tree.map(lambda x, s: prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    )
    return sum(leaves)
