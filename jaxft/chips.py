"""Accelerators: what one device of each kind can do at most.

Sources: TPUs: Google Cloud's pages on each version, and Austin et al. 2025 ("How to Scale Your
Model", chapter 2) for the links; GPUs: NVIDIA's data sheets (SXM). A TPU's memory is what its
compiler grants a program (libtpu 0.0.42).
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
    devices_per_chip: int = 1
    """Devices that are paid for as one chip."""


CHIPS = {
    "v4": Chip("TPU v4", "tpu", 275e12, 32 * GIB, 1.2e12, 270e9),
    "v5e": Chip("TPU v5 lite", "tpu", 197e12, 15.75 * GIB, 0.82e12, 180e9),
    "v5p": Chip("TPU v5", "tpu", 459e12, 95.74 * GIB, 2.77e12, 540e9),
    "v6e": Chip("TPU v6 lite", "tpu", 918e12, 31.25 * GIB, 1.64e12, 360e9),
    "tpu7x": Chip("TPU7x", "tpu", 1153.5e12, 94.75 * GIB, 3.69e12, 300e9, devices_per_chip=2),
    "a100": Chip("NVIDIA A100", "gpu", 312e12, 80e9, 2.04e12, 300e9),
    "h100": Chip("NVIDIA H100", "gpu", 989e12, 80e9, 3.35e12, 450e9),
    "h200": Chip("NVIDIA H200", "gpu", 989e12, 141e9, 4.8e12, 450e9),
    "b200": Chip("NVIDIA B200", "gpu", 2250e12, 180e9, 8e12, 900e9),
}
"""By the name that a topology has."""


def of_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls so, None where it is not known."""
    known = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 operations per second of one device, None where it is not known."""
    chip = of_kind(device_kind)
    return chip.flops if chip else None
