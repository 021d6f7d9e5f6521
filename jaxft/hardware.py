"""What the devices here can do: precision, attention kernel, memory."""

from typing import Any

import jax

from jaxft.errors import UserError


def choose_dtype(wanted: str, device: jax.Device) -> Any:
    """bfloat16 where the hardware multiplies it fast (TPU, GPU since Ampere), else float32."""
    if wanted != "auto":
        return wanted
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "gpu" and float(getattr(device, "compute_capability", "0")) >= 8.0:
        return "bfloat16"
    return "float32"


def choose_attention(
    wanted: str, dtype: str, dropout: float, device: jax.Device, *, packed: bool
) -> Any:
    """The device's own kernel where it can do what is asked, else XLA's; an explicit choice is kept
    or refused. `packed`: whether examples share rows.
    """
    dropping = f"attention dropout {dropout:g} (model.attention_dropout=0 turns it off)"
    obstacles = {
        "cudnn": {
            f"a {device.platform} device": device.platform != "gpu",
            f"{dtype} computation": dtype != "bfloat16",
            dropping: dropout > 0,
            "examples that share rows (data.packing=none keeps them apart)": packed,
        },
        "splash": {
            f"a {device.platform} device": device.platform != "tpu",
            dropping: dropout > 0,
        },
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


def memory_bytes(peak: bool = False) -> int | None:
    """Bytes in use (or at most so far) on this process's first device; on CPU, of the process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use" if peak else "bytes_in_use"]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if peak else None
