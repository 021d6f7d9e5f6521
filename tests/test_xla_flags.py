"""XLA's flags: set for the hardware that is there, never against the user, and known to XLA."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from jaxft import xla_flags
from jaxft.planning.places import ENVIRONMENT

HERE = {"gpu": "jax_cuda13_plugin", "tpu": "libtpu", "cpu": "", "cpu with libtpu": "libtpu"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends that JAX was installed for some hardware, and nobody has said anything."""

    def make(kind: str) -> None:
        found = {HERE[kind]: object()}
        monkeypatch.setattr(xla_flags, "find_spec", found.get)
        device = tmp_path / "accel0"
        monkeypatch.setattr(xla_flags, "TPU_DEVICES", (tmp_path / "absent", device))
        if kind == "tpu":
            device.touch()

    for name in (
        "XLA_FLAGS",
        "LIBTPU_INIT_ARGS",
        "JAX_PLATFORMS",
        "MEGASCALE_NUM_SLICES",
        xla_flags.GPU_MEMORY[0],
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return make


@pytest.mark.parametrize("kind", ["cpu", "cpu with libtpu"])
def test_a_cpu_machine_gets_the_cpus(kind, machine):
    machine(kind)
    xla_flags.choose()
    assert os.environ["XLA_FLAGS"] == " ".join(
        f"--{name}={xla_flags.CPU[name]}" for name in xla_flags.CPU
    )
    assert "LIBTPU_INIT_ARGS" not in os.environ


def test_a_gpu_machine_told_to_use_its_cpu_gets_the_cpus(machine, monkeypatch):
    machine("gpu")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    xla_flags.choose()
    assert "xla_gpu" not in os.environ["XLA_FLAGS"]
    assert "xla_cpu" in os.environ["XLA_FLAGS"]


@pytest.mark.parametrize(
    ("kind", "variable", "flags"),
    [
        ("cpu", "XLA_FLAGS", xla_flags.CPU),
        ("gpu", "XLA_FLAGS", xla_flags.GPU),
        ("tpu", "LIBTPU_INIT_ARGS", xla_flags.TPU),
    ],
)
def test_flags_are_set_and_said_and_the_users_own_win(kind, variable, flags, machine, monkeypatch):
    machine(kind)
    first, *rest = flags
    monkeypatch.setenv(variable, f"--{first}=mine --another=1")
    (said,) = xla_flags.choose()
    words = os.environ[variable].split()
    assert said == f"{variable}: {os.environ[variable]}"
    assert words[:2] == [f"--{first}=mine", "--another=1"]
    assert words[2:] == [f"--{name}={flags[name]}" for name in rest]
    variable, share = xla_flags.GPU_MEMORY
    assert os.environ.get(variable) == (share if kind == "gpu" else None)


def test_several_slices_get_more(machine, monkeypatch):
    machine("tpu")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    (said,) = xla_flags.choose()
    assert all(name in said for name in xla_flags.TPU | xla_flags.TPU_SLICES)


def test_docs_explain_each():
    text = (REPOSITORY / "docs" / "xla_flags.md").read_text()
    flags = xla_flags.CPU | xla_flags.GPU | xla_flags.TPU | xla_flags.TPU_SLICES
    assert all(f"`{name}" in text for name in flags)


def ended(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_this_jaxlib_knows_the_cpus_and_gpus_flags():
    words = [f"--{name}={value}" for name, value in (xla_flags.CPU | xla_flags.GPU).items()]
    program = "import jax; jax.devices()"
    done = ended(program, XLA_FLAGS=" ".join(words))
    assert done.returncode == 0, done.stderr
    unknown = ended(program, XLA_FLAGS=" ".join([*words, "--xla_gpu_no_such_flag=true"]))
    assert unknown.returncode != 0, "it would have said so"


def test_this_libtpu_knows_the_tpu_flags():
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    flags = xla_flags.TPU | xla_flags.TPU_SLICES
    words = [f"--{name}={value}" for name, value in flags.items()]
    # As in a run: JAX is imported when the flags are set.
    program = """
import os, jax
os.environ["LIBTPU_INIT_ARGS"] = os.environ["GIVEN"]
from jax.experimental import topologies
topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
"""
    done = ended(program, GIVEN=" ".join(words), **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    unknown = ended(program, GIVEN=" ".join([*words, "--xla_tpu_no_such_flag=true"]), **ENVIRONMENT)
    assert "Unknown command line flag" in unknown.stderr, "it would have said so"
