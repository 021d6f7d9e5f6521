"""Two processes of two devices each train, evaluate, save, stop and go on as one process of four
does.
"""

import json
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
import runs

from jaxft.sharding import make_mesh

KEYS = {"mesh.data": 2, "mesh.fsdp": 2, "optim.adam_epsilon": 1e-4, "train.eval_steps": 6}
OTHER_COLLECTIVES = 2e-6
"""Relative difference of losses: gloo sums between processes in another order than one process
does.
"""
WEIGHTS = 1e-5
"""Difference of weights after 12 updates of up to 1e-3."""
STOP = """
import os, signal, time
from jaxft.interrupts import Interrupts
stop = Interrupts.stop
def stop_at_5(self, step):
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)  # the coordinator asks everyone for a step to stop at
    return stop(self, step)
Interrupts.stop = stop_at_5
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


def finish(process: subprocess.Popen) -> Said:
    out, err = process.communicate(timeout=150)
    return Said(process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def pair(words: list[str], codes: tuple[str, str] = ("", "")) -> tuple[Said, Said]:
    """What the two processes of one run said."""
    address = f"--coordinator_address=localhost:{free_port()}"
    sooner = {"JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    started = [
        runs.start([*words, address, "--num_processes=2", f"--process_id={i}"], code, **sooner)
        for i, code in enumerate(codes)
    ]
    return tuple(map(finish, started))


@pytest.fixture(scope="module")
def keys(tmp_path_factory, tiny_bert_folder) -> dict[str, Any]:
    data = runs.tables(tmp_path_factory.mktemp("data"))
    return {"model.pretrained": tiny_bert_folder} | KEYS | data


@pytest.fixture(scope="module")
def one(tmp_path_factory, keys) -> Path:
    """The same mesh in this process, on four of its devices."""
    workdir = tmp_path_factory.mktemp("one")
    four = partial(make_mesh, devices=jax.devices()[:4])
    with mock.patch("jaxft.experiment.make_mesh", four):
        runs.run(workdir, keys)
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory, keys, one) -> tuple[Path, list[tuple[Said, Said]]]:
    """A run that gets a SIGTERM in its second process and is started again."""
    workdir = tmp_path_factory.mktemp("two")
    stopped = pair(runs.argv(keys, workdir), ("", STOP))
    assert not (workdir / "result.json").exists()
    return workdir, [stopped, pair(runs.argv(keys, workdir))]


def test_a_signal_to_one_process_saves_and_leaves_in_all(two):
    _, [(first, second), _] = two
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "Stopped by SIGTERM after step" in first.err


def test_two_processes_stopped_and_going_on_equal_one(two, one):
    workdir, [_, (first, second)] = two
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "Resuming after step" in first.err
    ours, theirs = runs.metrics(workdir), runs.metrics(one)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in {"train/loss", "train/grad_norm", "validation/loss"} & mine.keys():
            assert mine[name] == pytest.approx(other[name], rel=OTHER_COLLECTIVES)
    result, expected = (json.loads((w / "result.json").read_text()) for w in (workdir, one))
    assert result["processes"] == 2
    assert expected["processes"] == 1
    for split in ("validation", "test"):
        assert result[split] == pytest.approx(expected[split], rel=OTHER_COLLECTIVES)
    ours, theirs = runs.arrays(workdir, 12), runs.arrays(one, 12)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=WEIGHTS, err_msg=name)


def test_only_the_first_process_speaks_and_writes(two):
    workdir, said = two
    for first, second in said:
        assert "Mesh data=2, fsdp=2, tensor=1" in first.err
        assert second.out == ""
        for ours in ("jaxft", "step", "validation", "WARNING"):
            assert ours not in second.err  # gloo and the catcher of signals do speak
    assert json.loads(said[1][0].out) == json.loads((workdir / "result.json").read_text())
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1


def test_pitfall_20_two_processes_export_what_one_does(one, tmp_path):
    """Each block is gathered by both, and the first one writes."""
    verb = "from jaxft import export as train"
    small = f"{verb}; from jaxft.nn import weights; weights.BLOCK_BYTES = 3000"
    words = [f"--workdir={one}", "--dtype=bfloat16", f"--output={tmp_path}/two"]
    first, second = pair(words, (small,) * 2)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "weights read back equal" in first.err
    assert (first.out, second.out) == (f"{tmp_path}/two\n", "")
    runs.VERBS["export"].main([*words[:2], f"--output={tmp_path}/one"])
    assert runs.content(tmp_path / "two") == runs.content(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
