"""A checkpoint that does not fit is refused in one message that names all that is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from folders import edit_config, lose_a_shard, rewrite, tensors_of

from jaxft import hub
from jaxft.errors import UserError
from jaxft.models import load_pretrained


@pytest.fixture
def folder(tiny_bert_folder, tmp_path) -> Path:
    """A copy of a tiny BERT to change."""
    return Path(shutil.copytree(tiny_bert_folder, tmp_path / "model"))


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


def only_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "meta/base"}')
    (folder / hub.SINGLE).rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()


BAD = {
    "an adapter": (only_an_adapter, ["holds an adapter of meta/base", "merge_and_unload"]),
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
        ["'albert' is not supported", "bert, distilbert, gpt2, llama"],
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
        [
            "misshaped  classifier.weight is [7, 32], expected [2, 32]",
            "model.new_head=true (in Python new_head=True) starts",
        ],
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
