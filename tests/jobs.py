"""Jobs of several processes on this machine."""

import socket
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

import runs

KEYS = {"mesh.data": 2, "mesh.fsdp": 2, "optim.adam_epsilon": 1e-4, "train.eval_steps": 6}
"""Of runs on four devices; one set of them, so that they share their compiled programs."""
FASTER = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
"""Compiles without optimizing, and keeps every program for the next job, however small."""


class Said(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str
    ended_s: float
    """By time.monotonic()."""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def finish(process: subprocess.Popen) -> Said:
    out, err = process.communicate(timeout=150)
    return Said(process.returncode, out, err, time.monotonic())


def job(
    words: Sequence[str],
    codes: Sequence[str] = ("", ""),
    *,
    devices: int = 2,
    own: Sequence[Sequence[str]] | None = None,
) -> list[Said]:
    """What the processes of one run said; `codes` run in them before, `own` are words of theirs."""
    address = f"--coordinator_address=localhost:{free_port()}"
    count = f"--num_processes={len(codes)}"
    environment = FASTER | {"JAX_NUM_CPU_DEVICES": str(devices)}
    own = own or [[] for _ in codes]
    started = [
        runs.start([*words, *own[i], address, count, f"--process_id={i}"], code, **environment)
        for i, code in enumerate(codes)
    ]
    return [finish(process) for process in started]
