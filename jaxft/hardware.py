"""What the devices here can do: precision, attention kernel, memory."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxft.errors import UserError
from jaxft.nn.remat import HOST, Activation, Place


def choose_dtype(wanted: str, device: jax.Device) -> Any:
    """bfloat16 where the hardware multiplies it fast (TPU, GPU since Ampere), else float32."""
    if wanted != "auto":
        return wanted
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "gpu" and float(getattr(device, "compute_capability", "0")) >= 8.0:
        return "bfloat16"
    return "float32"


def choose_matmul_precision(wanted: str, dtype: str) -> str | None:
    """JAX's default precision of products. Its own is the device's, which for float32 arrays is
    bfloat16 on TPU and tensorfloat32 on GPU: float32 computation would not be that.
    """
    if dtype == "float32":
        return "float32" if wanted == "auto" else wanted
    if wanted != "auto":
        raise UserError(
            f"model.matmul_precision={wanted!r} is about products of float32 arrays, and the "
            f"computation is in {dtype}: leave it out, or take model.dtype=float32."
        )
    return None


def has_amx() -> bool:
    """Whether this host's processor multiplies tiles of bfloat16."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


def choose_attention(
    wanted: str,
    dtype: str,
    dropout: float,
    device: jax.Device,
    *,
    head_width: int,
    packed: bool,
    parts: int = 1,
) -> Any:
    """The device's own kernel where it can do what is asked, else XLA's; an explicit choice is kept
    or refused. `packed`: whether examples share rows; `parts`: in how many each row is split.
    """
    # Source: jax 0.10.2, _src/cudnn/fused_attention_stablehlo.py, check_is_flash_attention.
    widest = 256 if float(getattr(device, "compute_capability", "0")) >= 9.0 else 128
    dropping = f"attention dropout {dropout:g} (model.attention_dropout=0 turns it off)"
    obstacles = {
        "cudnn": {
            f"a {device.platform} device": device.platform != "gpu",
            f"{dtype} computation": dtype != "bfloat16",
            f"heads {head_width} wide (cuDNN's are multiples of 8, here up to {widest})": (
                head_width % 8 != 0 or head_width > widest
            ),
            dropping: dropout > 0,
            "examples that share rows (data.packing=none keeps them apart)": packed,
            f"rows that mesh.context={parts} splits": parts > 1,
        },
        "splash": {
            f"a {device.platform} device": device.platform != "tpu",
            dropping: dropout > 0,
        },
        "blocked": {f"a {device.platform} device": device.platform != "cpu"},
        "xla": {},
    }
    standing = {
        kernel: [what for what, there in each.items() if there]
        for kernel, each in obstacles.items()
    }
    if wanted == "auto":
        return next(kernel for kernel, each in standing.items() if not each)
    if standing[wanted]:
        raise UserError(
            f"model.attention={wanted!r} is impossible with {' and '.join(standing[wanted])}; use "
            "'xla' or 'auto'."
        )
    return wanted


def check_host_memory(offload: bool, kept: Mapping[Activation, Place], device: jax.Device) -> None:
    """Raises UserError where the config keeps something in host memory that the device cannot
    reach.
    """
    asking = [f"model.kept_activations.{name}=host" for name in kept if kept[name] == "host"]
    asking += ["optim.offload=true"] if offload else []
    kinds = [memory.kind for memory in device.addressable_memories()] if asking else []
    if asking and HOST not in kinds:
        raise UserError(
            f"{' and '.join(asking)}: a {device.platform} device has no {HOST} memory (it has "
            f"{', '.join(kinds)}). Leave that out; mesh.fsdp, a smaller train.batch_size or "
            "more train.gradient_accumulation_steps save memory too."
        )


def memory_bytes(peak: bool = False) -> int | None:
    """Bytes in use (or at most so far) on this process's first device; on CPU, of the process, and
    None where its system does not tell.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use" if peak else "bytes_in_use"]
    import resource

    if peak:
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.exists() else None
