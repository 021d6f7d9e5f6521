"""Settings of the host process that matter for speed."""

import ctypes
import sys

from jaxft.xla_flags import for_gpu, on_tpu

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next step, on hosts that compute on CPU; call it before
    JAX starts.

    XLA's CPU backend allocates and frees hundreds of MB a step, and mapping those pages anew took
    an eighth of its time (docs/benchmarks.md). Source: mallopt(3).
    """
    if not sys.platform.startswith("linux") or on_tpu() or for_gpu():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for parameter, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, -1),
            (_M_TOP_PAD, 64 * 2**20),
        ):
            mallopt(parameter, value)
