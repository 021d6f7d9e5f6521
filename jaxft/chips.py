"""Accelerators: what one device of each kind can do at most.

Sources, read in November 2026. TPUs: Google Cloud's page on each version, and for the v4's links
Jouppi et al. 2023 ("TPU v4", table 4). The memory is what the compiler grants a program (libtpu
0.0.42), but for the v4, which it does not describe. GPUs: NVIDIA's data sheets, half of what they
give with sparsity, and for the B200 the DGX B200's guide. The kinds are the SXM modules where
nothing else is said; others of a family count as those where they have no line of their own.

Links are sold by both directions together, and half of that stands here. "How to Scale Your Model"
(Austin et al. 2025, chapter 2) counts on a tenth less over a TPU's. Of the v5e's memory Google has
published 819 GB/s, 800 GB/s and 800 GiB/s; the book has 810. The way to the host is PCIe, each
direction by itself: of TPUs from the book, of GPUs half of the data sheet's rate.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device: a chip, or the half of one where JAX sees halves."""

    kind: str
    """How JAX's `device_kind` begins."""
    platform: str
    flops: float
    """Dense bfloat16 operations per second."""
    hbm_bytes: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    """To all its neighbours together, one direction."""
    host_bytes_per_s: float | None
    """From the host's memory, and as much to it at the same time; None: not published."""
    devices_per_chip: int = 1
    """Devices that are paid for as one chip."""


CHIPS = {
    "v4": Chip("TPU v4", "tpu", 275e12, 32 * GIB, 1.2e12, 300e9, 16e9),
    "v5e": Chip("TPU v5 lite", "tpu", 197e12, 15.75 * GIB, 0.819e12, 200e9, 16e9),
    "v5p": Chip("TPU v5", "tpu", 459e12, 95.74 * GIB, 2.765e12, 600e9, 16e9),
    "v6e": Chip("TPU v6 lite", "tpu", 918e12, 31.25 * GIB, 1.638e12, 400e9, 32e9),
    "tpu7x": Chip("TPU7x", "tpu", 1153.5e12, 94.75 * GIB, 3.69e12, 300e9, None, devices_per_chip=2),
    "a100": Chip("NVIDIA A100", "gpu", 312e12, 80e9, 2.039e12, 300e9, 32e9),
    "a100-40gb": Chip("NVIDIA A100-SXM4-40GB", "gpu", 312e12, 40e9, 1.555e12, 300e9, 32e9),
    "h100": Chip("NVIDIA H100", "gpu", 989e12, 80e9, 3.35e12, 450e9, 64e9),
    "h100-nvl": Chip("NVIDIA H100 NVL", "gpu", 835e12, 94e9, 3.9e12, 300e9, 64e9),
    "h100-pcie": Chip("NVIDIA H100 PCIe", "gpu", 756e12, 80e9, 2e12, 300e9, 64e9),
    "h200": Chip("NVIDIA H200", "gpu", 989e12, 141e9, 4.8e12, 450e9, 64e9),
    "h200-nvl": Chip("NVIDIA H200 NVL", "gpu", 835e12, 141e9, 4.8e12, 450e9, 64e9),
    "b200": Chip("NVIDIA B200", "gpu", 2250e12, 180e9, 8e12, 900e9, 64e9),
}
"""By the name that a topology has, where there is one."""


def of_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls so, None where it is not known."""
    known = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 operations per second of one device, None where it is not known."""
    chip = of_kind(device_kind)
    return chip.flops if chip else None
