"""The built-in shapes have the parameters that their publishers count."""

import pytest

from jaxft.models import Blueprint
from jaxft.shapes import SHAPES, fields_of, hub_id

PARAMETERS = {
    "minilm": 22_713_216,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "distilbert": 66_362_880,
    "roberta-base": 124_055_040,
    "roberta-large": 354_310_144,
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama3-1b": 1_235_814_400,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
}
"""Of the base model, decoders with their head. Source: the hub's model cards (RoBERTa's without its
pooler).
"""
DECODERS = ("llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_can_be_drawn_and_has_as_many_parameters_as_published(name):
    fields = fields_of(name)
    output = "causal_lm" if fields["model_type"] in DECODERS else None
    drawn = Blueprint.draw(fields, output=output)
    found = sum(weight.size for weight in drawn.weights.values())
    assert found == PARAMETERS.get(name, found)


def test_short_names_hub_ids_and_folders():
    assert hub_id("llama3-8b") == "meta-llama/Llama-3.1-8B"
    assert hub_id("me/mine") == "me/mine"
    assert fields_of("Qwen/Qwen3-8B") == fields_of("qwen3-8b")
    assert fields_of("me/mine") is None
    assert hub_id("bert-base-cased") == "bert-base-cased", "an id of the hub's first days"


def test_a_folder_goes_before_a_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("gpt2") == "openai-community/gpt2"
    (tmp_path / "gpt2").mkdir()
    assert hub_id("gpt2") == "gpt2"
