"""What a family takes from transformers and gives back to it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from parity import (
    BERT_LIKE,
    CASES,
    LABELS,
    assert_close,
    random_tokens,
    tiny,
)
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from jaxft.models import Blueprint, family, load_pretrained, save_pretrained
from jaxft.nn.fields import read_dims

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")

ALL = {**CASES, "xlm-roberta": BERT_LIKE}


@pytest.mark.parametrize("model_type", ALL)
def test_config_that_transformers_writes_is_understood(model_type):
    config = AutoConfig.for_model(model_type)
    for written in (config.to_dict(), config.to_diff_dict()):
        module = family(written)
        dims = read_dims(module.Dims, written, module.HARMLESS_FIELDS)
        assert dims == module.Dims()


@pytest.mark.parametrize("model_type", ALL)
def test_defaults_are_those_of_transformers(model_type):
    config = AutoConfig.for_model(model_type)
    for field in dataclasses.fields(family({"model_type": model_type}).Dims):
        assert field.default == getattr(config, field.name), field.name


@pytest.mark.parametrize("model_type", ALL)
def test_import_and_export_change_no_bit_and_transformers_loads_it(model_type, tmp_path):
    theirs = tiny(model_type, **ALL[model_type])
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_pretrained(tmp_path / "theirs", output="classify")
    save_pretrained(model, tmp_path / "ours")

    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name].view(np.uint32), tensor.view(np.uint32), name)

    configs = [json.loads((tmp_path / of / "config.json").read_text()) for of in ("theirs", "ours")]
    assert configs[0] == configs[1]

    back, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(back) is type(theirs)
    assert not any(report.values())
    assert back.config.num_labels == LABELS
    encoder = model.dims.encoder
    tokens = random_tokens(encoder.vocab, encoder.types)
    inputs = {"input_ids": tokens.ids_BL, "attention_mask": tokens.segments_BL}
    inputs["position_ids"] = tokens.positions_BL + encoder.first_position
    if encoder.types:
        inputs["token_type_ids"] = tokens.types_BL
    with torch.no_grad():
        expected = back(**{k: torch.tensor(v).long() for k, v in inputs.items()}).logits.numpy()
    ours = jax.jit(lambda: model.classify(model(tokens), tokens)[:, 0])()
    assert_close(np.asarray(ours), expected, "logits")


@pytest.mark.parametrize("model_type", ALL)
def test_a_bare_model_is_exported_without_prefix_and_transformers_loads_it(model_type, tmp_path):
    theirs = tiny(model_type, **ALL[model_type]).base_model
    theirs.save_pretrained(tmp_path / "theirs")
    save_pretrained(load_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    back, report = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is type(theirs)
    missing = {name for name in report["missing_keys"] if "pooler" not in name}
    assert not missing | set(report["unexpected_keys"])


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_fresh_weights_are_drawn_as_the_config_says(model_type):
    config = {"model_type": model_type, **ALL[model_type]}
    drawn = Blueprint.draw(config, output="classify", num_labels=8)
    values = drawn.initialise(set(drawn.weights))
    for path, weight in drawn.weights.items():
        value = np.asarray(values[path])
        if weight.kind in ("kernel", "embedding"):
            # initializer_range is 0.5; of n draws the spread itself spreads by 1 / sqrt(2 n).
            np.testing.assert_allclose(value.std(), 0.5, rtol=4 / np.sqrt(2 * value.size))
            if weight.stacked:
                assert not np.array_equal(value[0], value[1])
        else:
            assert (value == (1 if weight.kind == "norm" else 0)).all()
