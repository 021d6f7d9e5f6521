"""XLA's flags: for GPU and TPU those that overlap communication with computation, for CPU one that
saves memory; docs/xla_flags.md says why each is here and which are not.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

GPU = {
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    "xla_gpu_enable_pipelined_all_gather": "true",
    "xla_gpu_enable_pipelined_all_reduce": "true",
}
"""Those of jaxlib 0.10.2 whose default is another; one that it does not know would end the
process.
"""
TPU = {
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_tpu_enable_async_all_to_all": "true",
    "xla_tpu_enable_ici_ag_pipelining": "true",
    "xla_should_allow_loop_variant_parameter_in_chain": "enabled",
    "xla_should_add_loop_invariant_op_in_chain": "enabled",
}
TPU_SLICES = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
"""For several slices, which meet over the data centre's network."""
CPU = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""The default runs operations side by side, and holds what all of them need."""
TPU_DEVICES = (Path("/dev/accel0"), Path("/dev/vfio/0"))
GPU_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin")


def on_tpu() -> bool:
    """Whether this host has a TPU and libtpu, which alone also compiles for TPUs elsewhere."""
    return any(device.exists() for device in TPU_DEVICES) and find_spec("libtpu") is not None


def for_gpu() -> bool:
    """Whether JAX was installed for GPUs."""
    return any(map(find_spec, GPU_PLUGINS))


def choose() -> list[str]:
    """Sets the flags of GPUs where JAX was installed for them, of a TPU that is here, or else of
    the CPU, and says which; call it before JAX starts. A flag that the environment has already
    keeps its value.
    """
    said: list[str] = []
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if for_gpu() and platforms in ("", "cuda", "gpu", "rocm"):
        said += _add("XLA_FLAGS", GPU)
    if on_tpu() and platforms in ("", "tpu", "tpu,cpu"):
        said += choose_for_tpu(int(os.environ.get("MEGASCALE_NUM_SLICES", "1")))
    return said or _add("XLA_FLAGS", CPU)


def choose_for_tpu(slices: int = 1) -> list[str]:
    """As `choose`, for TPUs that need not be here; libtpu reads them when it is first used."""
    return _add("LIBTPU_INIT_ARGS", TPU | (TPU_SLICES if slices > 1 else {}))


def _add(variable: str, flags: Mapping[str, str]) -> list[str]:
    given = os.environ.get(variable, "").split()
    known = {word.lstrip("-").partition("=")[0] for word in given}
    added = [f"--{name}={value}" for name, value in flags.items() if name not in known]
    os.environ[variable] = " ".join(given + added)
    return [f"{variable}: {' '.join(given + added)}"]
