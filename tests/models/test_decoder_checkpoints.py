"""What decoders take from a transformers folder and give back to it."""

import json
from contextlib import nullcontext
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from decoders import tiny_config
from folders import edit_config, rewrite, tensors_of
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from twins import AUTO, LABELS, padded, texts, torch_inputs, torch_model

from jaxft import pretrained
from jaxft.errors import UserError
from jaxft.models import Blueprint, load_pretrained, save_pretrained
from jaxft.nn.weights import Path as WeightPath
from jaxft.sharding import AXES, Places, make_mesh

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")

# Heads tied and not, all biases, norms of heads, layers in two stacks, fused tensors.
CASES = [
    ("llama", "plain"),
    ("llama", "every_field"),
    ("mistral", "every_field"),
    ("qwen2", "layer_types"),
    ("qwen3", "every_field"),
    ("gpt2", "by_inverse_layer_idx"),
    ("gpt2", "untied"),
]
TIED, UNTIED = ("llama", "tied"), ("llama", "plain")


def write(folder: Path, name: str, label: str, output: str = "causal_lm") -> torch.nn.Module:
    """A folder as transformers writes it, and its model."""
    theirs = torch_model(tiny_config(name, label), output)
    theirs.save_pretrained(folder)
    return theirs


def read(
    folder: Path, output: str | None = "causal_lm", split: tuple[int, int, int, int] | None = None
) -> dict[WeightPath, np.ndarray]:
    """The parameters that a folder gives, through a mesh where there is a split."""
    checkpoint = pretrained.Checkpoint(folder)
    drawn = Blueprint.draw(checkpoint.config, output=output, num_labels=LABELS)
    shardings = None
    if split is not None:
        mesh = make_mesh(dict(zip(AXES, split, strict=True)))
        shardings = Places(drawn.weights, mesh).params
    return pretrained.read(drawn.match(checkpoint), drawn.weights, shardings)


def assert_same_bits(mine: dict, other: dict) -> None:
    assert mine.keys() == other.keys()
    for name, tensor in other.items():
        assert mine[name].dtype == tensor.dtype
        np.testing.assert_array_equal(
            np.asarray(mine[name]).view(np.uint8), np.asarray(tensor).view(np.uint8), str(name)
        )


def logits_of(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(**torch_inputs(padded(texts())), use_cache=False).logits.numpy()


@pytest.mark.parametrize("output", ["causal_lm", "classify"])
@pytest.mark.parametrize(("name", "label"), CASES, ids=str)
def test_pitfall_19_export_changes_no_bit_and_transformers_loads_it(name, label, output, tmp_path):
    theirs = write(tmp_path / "theirs", name, label, output)
    save_pretrained(load_pretrained(tmp_path / "theirs", output=output), tmp_path / "ours")

    before, after = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
    assert_same_bits(after, before)
    configs = [json.loads((tmp_path / of / "config.json").read_text()) for of in ("theirs", "ours")]
    assert configs[0] == configs[1]

    back, report = AUTO[output].from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert type(back) is type(theirs)
    assert not any(report.values())
    np.testing.assert_array_equal(logits_of(back), logits_of(theirs))
    if output == "causal_lm":
        tied = tiny_config(name, label).get("tie_word_embeddings", name == "gpt2")
        assert back.config.tie_word_embeddings is tied
        assert (back.get_output_embeddings().weight is back.get_input_embeddings().weight) == tied
        assert ("lm_head.weight" in after) != tied
        assert back.config.vocab_size == len(back.get_output_embeddings().weight)


@pytest.mark.parametrize(("name", "label"), CASES, ids=str)
def test_bare_model_is_found_without_prefix_and_exported_without(name, label, tmp_path):
    theirs = write(tmp_path / "whole", name, label)
    theirs.base_model.save_pretrained(tmp_path / "bare")
    assert_same_bits(read(tmp_path / "whole", None), read(tmp_path / "bare", None))
    save_pretrained(load_pretrained(tmp_path / "bare"), tmp_path / "ours")
    assert_same_bits(tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "bare"))
    back, report = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is type(theirs.base_model)
    assert not any(report.values())


def test_pitfall_19_tied_head_that_the_file_holds_too_must_be_the_table(tmp_path):
    write(tmp_path, *TIED)
    expected = read(tmp_path)
    tensors = tensors_of(tmp_path)
    assert "lm_head.weight" not in tensors
    table = tensors["model.embed_tokens.weight"]
    rewrite(tmp_path, tensors | {"lm_head.weight": table.copy()})
    assert_same_bits(read(tmp_path), expected)
    save_pretrained(load_pretrained(tmp_path, output="causal_lm"), tmp_path / "ours")
    assert_same_bits(tensors_of(tmp_path / "ours"), tensors)

    table = table.copy()
    table[98, 31] += 1
    rewrite(tmp_path, tensors | {"lm_head.weight": table})
    for output in ("causal_lm", None):
        with pytest.raises(UserError, match=r"lm_head\.weight differs from embed_tokens\.weight"):
            read(tmp_path, output)
    rewrite(tmp_path, tensors | {"lm_head.weight": table[:50]})
    with pytest.raises(UserError, match=r"lm_head\.weight differs from embed_tokens\.weight"):
        read(tmp_path)


def test_each_process_compares_its_share_of_a_tied_head(tmp_path, monkeypatch):
    """Of 99 rows, ten at once: where one process finds a difference, all of them leave."""
    write(tmp_path, *TIED)
    tensors = tensors_of(tmp_path)
    monkeypatch.setattr(pretrained, "COMPARED_ROWS", 10)
    monkeypatch.setattr(pretrained, "process_count", lambda: 3)
    for row, owner in {0: 0, 19: 1, 29: 2, 30: 0, 98: 0}.items():
        head = tensors["model.embed_tokens.weight"].copy()
        head[row, 31] += 1
        rewrite(tmp_path, tensors | {"lm_head.weight": head})
        for process in range(3):
            monkeypatch.setattr(pretrained, "process_index", lambda process=process: process)
            found = pytest.raises(UserError, match="differs") if process == owner else nullcontext()
            with found:
                read(tmp_path)


@pytest.mark.parametrize("output", ["causal_lm", "classify", None])
def test_tied_head_that_the_file_holds_alone_is_the_table(output, tmp_path):
    write(tmp_path, *TIED)
    expected, tensors = read(tmp_path, output), tensors_of(tmp_path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    rewrite(tmp_path, tensors)
    assert_same_bits(read(tmp_path, output), expected)
    edit_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"missing    embed_tokens\.weight"):
        read(tmp_path, output)


def test_untied_head_that_the_file_lacks_is_refused(tmp_path):
    write(tmp_path, *UNTIED)
    tensors = tensors_of(tmp_path)
    del tensors["lm_head.weight"]
    rewrite(tmp_path, tensors)
    with pytest.raises(UserError, match=r"missing    lm_head\.weight \[99, 32\]"):
        load_pretrained(tmp_path, output="causal_lm")
    load_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    load_pretrained(tmp_path, output="causal_lm")


def test_classifier_of_a_language_model_gets_a_fresh_head(tmp_path):
    write(tmp_path / "lm", *UNTIED)
    with pytest.warns(UserWarning, match=r"new, initialised at random: score\.weight$"):
        model = load_pretrained(tmp_path / "lm", output="classify", num_labels=4)
    save_pretrained(model, tmp_path / "ours")
    back, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values())
    assert back.score.weight.shape == (4, 32)


@pytest.mark.parametrize(("name", "label"), [("qwen2", "layer_types"), ("gpt2", "plain")], ids=str)
def test_bfloat16_checkpoint_is_read_exactly_and_given_back(name, label, tmp_path):
    theirs = torch_model(tiny_config(name, label)).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    theirs.float().save_pretrained(tmp_path / "wide")
    before = tensors_of(tmp_path / "theirs")
    assert {tensor.dtype for tensor in before.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert_same_bits(read(tmp_path / "theirs"), read(tmp_path / "wide"))
    model = load_pretrained(tmp_path / "theirs", output="causal_lm")
    save_pretrained(model, tmp_path / "ours", dtype="bfloat16")
    assert_same_bits(tensors_of(tmp_path / "ours"), before)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert back.dtype == torch.bfloat16


def test_fused_tensor_is_queries_keys_and_values_side_by_side(tmp_path):
    write(tmp_path, "gpt2", "plain")
    tensors, values = tensors_of(tmp_path), read(tmp_path)
    for part, end in (("kernel", "weight"), ("bias", "bias")):
        ours = [values["stacks", "from_0", "layers", of, part] for of in ("query", "key", "value")]
        fused = [tensors[f"transformer.h.{i}.attn.c_attn.{end}"] for i in range(3)]
        np.testing.assert_array_equal(np.concatenate(ours, axis=-1), np.stack(fused))


@pytest.mark.parametrize("split", [(1, 8, 1, 1), (1, 2, 1, 4)], ids=str)
@pytest.mark.parametrize(("name", "label"), [("gpt2", "plain"), ("llama", "every_field")], ids=str)
def test_devices_read_their_own_parts(name, label, split, tmp_path):
    """`tensor` splits each part of a fused tensor by itself, `fsdp` its rows."""
    write(tmp_path, name, label)
    expected, shared = read(tmp_path), read(tmp_path, split=split)
    assert not all(value.sharding.is_fully_replicated for value in shared.values())
    for path, value in shared.items():
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[path][shard.index], str(path))
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("prefix", ["transformer.", ""], ids=["prefix", "bare"])
def test_masks_that_old_versions_saved_are_left_over(prefix, tmp_path):
    """The layer's real biases end in `attn.bias` too."""
    write(tmp_path, "gpt2", "plain")
    expected, tensors = read(tmp_path), tensors_of(tmp_path)
    tensors = {prefix + name.removeprefix("transformer."): x for name, x in tensors.items()}
    mask = np.tril(np.ones((1, 1, 64, 64), np.float32))
    for i in range(3):
        tensors[f"{prefix}h.{i}.attn.bias"] = mask
        tensors[f"{prefix}h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    rewrite(tmp_path, tensors)
    assert_same_bits(read(tmp_path), expected)
    rewrite(tmp_path, tensors | {f"{prefix}h.0.attn.c_attn.lora": mask})
    with pytest.raises(UserError, match=r"extra      h\.0\.attn\.c_attn\.lora"):
        read(tmp_path)
    del tensors[f"{prefix}h.1.attn.c_attn.bias"]
    rewrite(tmp_path, tensors)
    with pytest.raises(UserError, match=r"missing    h\.1\.attn\.c_attn\.bias \[96\]"):
        read(tmp_path)


def test_misshaped_fused_tensor_is_refused(tmp_path):
    write(tmp_path, "gpt2", "plain")
    tensors, name = tensors_of(tmp_path), "transformer.h.2.attn.c_attn.weight"
    rewrite(tmp_path, tensors | {name: np.ascontiguousarray(tensors[name].T)})
    with pytest.raises(UserError, match=r"h\.2\.attn\.c_attn\.weight is \[96, 32\], expected"):
        read(tmp_path)
