"""Hugging Face folders in and out: names, types and shards."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from folders import rewrite, tensors_of, write_sharded
from safetensors.numpy import load_file

from jaxft import hub, pretrained
from jaxft.models import Blueprint, load_pretrained, save_pretrained
from jaxft.nn.weights import Path as WeightPath

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


@pytest.fixture
def folder(tiny_bert_folder, tmp_path) -> Path:
    """A copy of a tiny BERT to change."""
    return Path(shutil.copytree(tiny_bert_folder, tmp_path / "model"))


def weights_of(folder: Path, output: str | None = None) -> dict[WeightPath, np.ndarray]:
    """The parameters that a folder gives, fresh ones left out."""
    checkpoint = pretrained.Checkpoint(folder)
    drawn = Blueprint.draw(checkpoint.config, output=output, num_labels=2)
    return pretrained.read(drawn.match(checkpoint), drawn.weights)


def assert_equal(mine: dict[WeightPath, np.ndarray], other: dict[WeightPath, np.ndarray]) -> None:
    assert mine.keys() == other.keys()
    for path, value in mine.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, other[path], str(path))


@pytest.mark.parametrize("change", ["bert.{}", "{}"], ids=["prefix", "no prefix"])
def test_tensors_are_found_with_and_without_the_prefix(folder, change):
    expected = weights_of(folder)
    rewrite(folder, {change.format(name): x for name, x in tensors_of(folder).items()})
    assert_equal(weights_of(folder), expected)


def test_old_names_of_the_norms_are_understood(folder):
    expected = weights_of(folder)
    rewrite(
        folder,
        {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): x
            for name, x in tensors_of(folder).items()
        },
    )
    assert "embeddings.LayerNorm.gamma" in tensors_of(folder)
    assert_equal(weights_of(folder), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_half_and_double_precision_files_are_read_as_float32(folder, dtype):
    """float16 and bfloat16 fit into float32: each value is the file's own."""
    stored = {name: x.astype(TYPES[dtype]) for name, x in tensors_of(folder).items()}
    rewrite(folder, {name: x.astype(np.float32) for name, x in stored.items()})
    expected = weights_of(folder)
    rewrite(folder, stored)
    assert_equal(weights_of(folder), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_export_in_half_precision_is_rounded_once_and_says_so(folder, tmp_path, dtype):
    save_pretrained(load_pretrained(folder), tmp_path / "half", dtype=dtype)
    found, original = tensors_of(tmp_path / "half"), tensors_of(folder)
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(found[name], tensor.astype(TYPES[dtype]))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype


def test_large_exports_are_sharded_as_transformers_does_and_read_back(folder):
    pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    from transformers import AutoModel

    expected, tensors = weights_of(folder), tensors_of(folder)
    names = write_sharded(folder, tensors, shard_bytes=20_000)
    index = json.loads((folder / hub.INDEX).read_text())
    shards = names - {hub.INDEX}
    assert len(shards) > 2
    assert shards == {
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(names))
    }
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for name in shards:
        held = load_file(folder / name)
        assert sum(x.nbytes for x in held.values()) <= 20_000 or len(held) == 1
        assert all(index["weight_map"][tensor] == name for tensor in held)
    assert_equal(weights_of(folder), expected)
    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())


def test_a_second_export_leaves_nothing_of_the_first(folder):
    """Stale shards would be read in place of the new weights, or beside them."""
    tensors = tensors_of(folder)
    write_sharded(folder, tensors, shard_bytes=20_000)
    assert write_sharded(folder, tensors, shard_bytes=10**9) == {hub.SINGLE}
    assert hub.INDEX in write_sharded(folder, tensors, shard_bytes=30_000)
    assert hub.SINGLE not in {path.name for path in folder.iterdir()}


def test_each_device_reads_its_own_slice(folder):
    """Split along the layers, the rows and the columns of what the file holds transposed."""
    checkpoint = pretrained.Checkpoint(folder)
    drawn = Blueprint.draw(checkpoint.config)
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"))
    split = jax.sharding.NamedSharding(mesh, jax.P("a", "b", "c"))
    path = ("encoder", "layers", "up", "kernel")
    places = dict.fromkeys(drawn.weights, jax.sharding.NamedSharding(mesh, jax.P())) | {path: split}
    value = pretrained.read(drawn.match(checkpoint), drawn.weights, places)[path]
    assert value.addressable_shards[0].data.shape == (1, 16, 32)
    np.testing.assert_array_equal(value, weights_of(folder)[path])


def test_a_fine_tuned_head_is_read_and_can_be_replaced(folder):
    head = {
        "classifier.weight": np.ones((2, 32), np.float32),
        "classifier.bias": np.ones(2, np.float32),
    }
    rewrite(folder, {f"bert.{name}": x for name, x in tensors_of(folder).items()} | head)
    read = weights_of(folder, output="classify")
    assert (np.asarray(read["heads", "classify", "kernel"]) == 1).all()

    checkpoint = pretrained.Checkpoint(folder)
    drawn = Blueprint.draw(checkpoint.config, output="classify", num_labels=5)
    matched = drawn.match(checkpoint, new_head=True)
    assert {weight.hf for weight in matched.new} == head.keys()
    assert matched.unused == dict.fromkeys(head, "the old head; model.new_head is set")


def test_other_labels_than_the_checkpoints_are_not_of_its_problem(folder, tmp_path):
    """transformers' pipeline would answer with bare logits of what it takes for a regression."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"problem_type": "regression", "id2label": {"0": "score"}}
    (folder / "config.json").write_text(json.dumps(config))
    for labels, problem in {1: "regression", 3: None}.items():
        with pytest.warns(UserWarning, match="new, initialised at random"):
            model = load_pretrained(folder, output="classify", num_labels=labels)
        save_pretrained(model, tmp_path / str(labels))
        saved = json.loads((tmp_path / str(labels) / "config.json").read_text())
        assert saved.get("problem_type") == problem
        assert len(saved["id2label"]) == labels
