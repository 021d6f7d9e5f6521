"""The TPU's compiler, in processes of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from jaxft.planning.places import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 280
needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is missing"
)


def compiled(program: str, *arguments: str) -> str:
    """What a program prints that compiles for TPUs."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **ENVIRONMENT, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
