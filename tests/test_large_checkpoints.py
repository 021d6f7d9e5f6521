"""Checkpoints larger than what the host may hold beside the weights: read and written in blocks."""

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import talk
from conftest import REPOSITORY

from jaxft import pretrained, saving
from jaxft.models import Blueprint, write_folder
from jaxft.nn import weights
from jaxft.nn.remat import HOST
from jaxft.nn.weights import Path as WeightPath
from jaxft.nn.weights import flatten
from jaxft.sharding import AXES, Places, make_mesh

NOISE = 24 * 2**20
"""Bytes that the compiler, the interpreter and its threads take meanwhile, whatever is read."""
SPLITS = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 2, 1, 4), (2, 2, 1, 2)]


@pytest.mark.parametrize("devices", [1, 8])
def test_pitfall_28_no_more_than_a_tensor_is_held_beside_the_weights(devices):
    """180 MB of weights in stacks of 38; docs/benchmarks.md has 2 GB."""
    script = REPOSITORY / "benchmarks" / "load_memory.py"
    measured = subprocess.run(
        [sys.executable, script, "--megabytes=180", f"--devices={devices}"],
        # Freed memory goes back at once: glibc keeping it would count as ours.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(measured.stdout)
    assert found["devices"] == devices
    held, tensor = found["weights_bytes"], found["largest_tensor_bytes"]
    assert tensor < found["largest_stack_bytes"] < held < 2e8
    assert held < found["load_peak_bytes"] < held + tensor + NOISE
    assert found["export_peak_bytes"] < tensor + NOISE
    assert found["read_back_peak_bytes"] < tensor + NOISE


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of every matrix, and several readings of each."""
    monkeypatch.setattr(weights, "BLOCK_BYTES", 6000)
    monkeypatch.setattr(pretrained, "ROWS_BYTES", 1000)
    monkeypatch.setattr(saving, "ROWS_BYTES", 1000)


def opened(folder: Path) -> tuple[Blueprint, pretrained.Match]:
    checkpoint = pretrained.Checkpoint(folder)
    drawn = Blueprint.draw(checkpoint.config, output="causal_lm")
    return drawn, drawn.match(checkpoint)


def shared(
    drawn: Blueprint, split: tuple[int, ...], memory_kind: str | None = None
) -> dict[WeightPath, Any]:
    mesh = make_mesh(dict(zip(AXES, split, strict=True)), jax.devices()[: prod(split)])
    return Places(drawn.weights, mesh, memory_kind=memory_kind).params


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_blocks_make_the_weights_and_the_file(small_blocks, family, tmp_path):
    """Fused, transposed and stacked ones, on one device, over a mesh, in host memory."""
    folder = talk.folder(tmp_path, family)
    drawn, matched = opened(folder)
    expected = dict(flatten(talk.drawn(family, 0.1)[1]))
    assert sum(len(weight.blocks()) > 1 for weight in drawn.weights.values()) > 5
    in_host_memory = shared(drawn, (1, 1, 1, 1), HOST)
    for shardings in (None, shared(drawn, SPLITS[1]), shared(drawn, SPLITS[3]), in_host_memory):
        found = pretrained.read(matched, drawn.weights, shardings)
        assert found.keys() == expected.keys()
        for path, value in found.items():
            np.testing.assert_array_equal(value, expected[path], str(path))
            if shardings is not None:
                assert value.sharding.is_equivalent_to(shardings[path], value.ndim)
                assert value.sharding.memory_kind == shardings[path].memory_kind
    write_folder(tmp_path / "out", drawn.config, found, drawn.weights, output="causal_lm")
    written = tmp_path / "out" / "model.safetensors"
    assert written.read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_byte_is_read_once(monkeypatch, split, tmp_path):
    """By the devices that hold it, and for all of them: no process reads more than its own."""
    drawn, matched = opened(talk.folder(tmp_path, "qwen3"))
    read, slices = [], pretrained._slice

    def count(*parts: Any) -> np.ndarray:
        found = slices(*parts)
        read.append(found.size)
        return found

    monkeypatch.setattr(pretrained, "_slice", count)
    pretrained.read(matched, drawn.weights, shared(drawn, split))
    assert sum(read) == sum(weight.size for weight in drawn.weights.values())
    assert len(jax.devices()) == 8
