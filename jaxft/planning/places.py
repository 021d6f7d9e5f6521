"""Where a plan is for: the devices here, or a slice that need not exist.

No call of libtpu lists its topologies, so their names stand here.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from math import ceil, prod
from pathlib import Path as FilePath
from typing import Any

import jax

from jaxft.chips import CHIPS, Chip, of_kind
from jaxft.errors import UserError
from jaxft.nn.remat import HOST
from jaxft.xla_flags import choose_for_tpu

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_GPUS = ("1", "2", "4", "8")
TOPOLOGIES = {
    "v5e": _FLAT,
    "v6e": _FLAT,
    "v5p": ("1x1x1", *_DEEP),
    "tpu7x": _DEEP,
    **dict.fromkeys(("a100", "h100", "h200", "b200"), _GPUS),
}
"""Chip -> layouts; of GPUs how many, on one host."""
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Without these libtpu asks the network what machine this is, and says much on stderr."""


@dataclass(frozen=True)
class Place:
    """Devices and what is known of them."""

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    hbm_bytes: int | None
    """Of one device."""
    compiles: bool
    """Whether there is a compiler for them here."""

    @property
    def chips(self) -> int:
        """What is paid for."""
        return ceil(len(self.devices) / (self.chip.devices_per_chip if self.chip else 1))

    @property
    def kind(self) -> str:
        return self.devices[0].device_kind


class _Memory(str):
    """As much of a `jax.Memory` as is asked for; JAX takes that of a device it does not know for
    the name of its kind.
    """

    @property
    def kind(self) -> str:
        return str(self)


@dataclass(frozen=True)
class _Client:
    """As much of the client of a `jax.Device`."""

    def process_index(self) -> int:
        return 0


@dataclass(frozen=True)
class _Described:
    """As much of a `jax.Device` as a mesh and its shardings ask for."""

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, ...]
    core_on_chip: int
    process_index: int = 0
    slice_index: int = 0
    client: _Client = _Client()
    compute_capability: str = "9.0"

    def default_memory(self) -> _Memory:
        return _Memory("device")

    def addressable_memories(self) -> list[_Memory]:
        """TPUs and GPUs have both."""
        return [self.default_memory(), _Memory(HOST)]


def find(topology: str | None, *, compiling: bool = True) -> Place:
    """The devices of a topology such as v5e:4x4 or h100:8, by default those here.

    Raises:
        UserError: there is no such topology, or no compiler for it where one is wanted.
    """
    if topology is None:
        return _here(compiling)
    name, _, layout = topology.partition(":")
    if layout not in TOPOLOGIES.get(name, ()):
        listed = "\n".join(f"  {chip}:{{{','.join(all_)}}}" for chip, all_ in TOPOLOGIES.items())
        raise UserError(f"--topology={topology} is not known; there is\n{listed}")
    chip = CHIPS[name]
    if chip.platform == "gpu" or not compiling:
        return Place(topology, _described(chip, layout), chip, int(chip.hbm_bytes), False)
    if find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs the TPU compiler, which is not installed: "
            "pip install 'jaxft[tpu]'. It needs no TPU. --no_compile plans without it, by "
            "estimates alone."
        )
    return Place(topology, _by_libtpu(topology, layout), chip, int(chip.hbm_bytes), True)


def _by_libtpu(topology: str, layout: str) -> tuple[Any, ...]:
    from jax.experimental import topologies

    choose_for_tpu()  # as the run will
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    one = {"chips_per_host_bounds": (1, 1, 1)} if _sizes(layout) == 1 else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one)
    except RuntimeError as error:
        raise UserError(f"--topology={topology}: libtpu refuses it: {error}") from error
    return tuple(described.devices)


def _described(chip: Chip, layout: str) -> tuple[_Described, ...]:
    sides = [int(side) for side in layout.split("x")]
    sides += [1] * (3 - len(sides))
    places = product(*map(range, reversed(sides)), range(chip.devices_per_chip))
    return tuple(
        _Described(i, chip.platform, chip.kind, (x, y, z), core)
        for i, (z, y, x, core) in enumerate(places)
    )


def _sizes(layout: str) -> int:
    return prod(int(side) for side in layout.split("x"))


def _here(compiling: bool) -> Place:
    devices = tuple(jax.devices())
    chip = of_kind(devices[0].device_kind)
    stats = devices[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is None and devices[0].platform == "cpu":
        limit = _host_memory(devices) // len(devices)
    if limit is None and chip is not None:
        limit = int(chip.hbm_bytes)
    return Place("this machine", devices, chip, limit, compiling)


def _host_memory(devices: Sequence[jax.Device]) -> int:
    """Bytes of memory that this process may use."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = FilePath("/sys/fs/cgroup/memory.max")
    if group.exists() and (word := group.read_text().strip()).isdigit():
        limit = min(limit, int(word))
    return limit
