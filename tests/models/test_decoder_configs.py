"""config.json of decoders: understood as transformers does, or refused by name."""

import json
from importlib import import_module

import numpy as np
import pytest
import runs
from decoders import (
    ELEMENTS,
    HUB_CONFIGS,
    ROPES,
    TINY,
    count,
    hub_config,
    spellings,
    tensor_names,
    tensor_shapes,
    tiny_config,
)
from parity import MemoryCheckpoint
from transformers import AutoConfig
from twins import FAMILIES

from jaxft.errors import UserError
from jaxft.models import Blueprint, family
from jaxft.nn.fields import read_dims
from jaxft.schema import Model
from jaxft.source import byte_tokenizer, open_source

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")

ROTATED = [(name, label) for name in FAMILIES if name != "gpt2" for label in TINY[name]]
SPELT = [(name, rope) for name in FAMILIES for rope in ROPES if f"{rope}/type" in TINY[name]]


def decoder_of(config):
    module = family(config)
    return read_dims(module.Dims, config, module.HARMLESS_FIELDS).decoder


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_transformers(name):
    config = AutoConfig.for_model(name)
    assert decoder_of(config.to_dict()) == decoder_of(config.to_diff_dict() | {"model_type": name})
    assert decoder_of(config.to_dict()) == decoder_of({"model_type": name})


@pytest.mark.parametrize(
    ("name", "label"),
    [(name, label) for name in TINY for label in TINY[name]],
    ids=str,
)
def test_config_that_transformers_writes_is_the_same_model(name, label):
    """It has defaults filled in, `rope_parameters` for older spellings and `layer_types`."""
    config = tiny_config(name, label)
    written = AutoConfig.for_model(**tiny_config(name, label)).to_dict()
    assert decoder_of(written) == decoder_of(config)


@pytest.mark.parametrize(("name", "rope"), SPELT, ids=str)
def test_spellings_of_a_rope_are_the_same_model(name, rope):
    made = [decoder_of(tiny_config(name, label)) for label in spellings(rope)]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize(("name", "label"), ROTATED, ids=str)
@pytest.mark.parametrize("length", [8, 64])
def test_angles_of_positions_equal_transformers(name, label, length):
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    config = AutoConfig.for_model(**tiny_config(name, label))
    rotary = getattr(module, f"{name.capitalize()}RotaryEmbedding")(config)
    positions_BL = np.arange(length)[None]
    with torch.no_grad():
        expected = rotary(torch.zeros(1), torch.tensor(positions_BL))
    ours = decoder_of(tiny_config(name, label)).rope(positions_BL)
    for mine, other in zip(ours, expected, strict=True):
        planes_BLK, again_BLK = np.split(other.numpy(), 2, axis=-1)
        np.testing.assert_array_equal(planes_BLK, again_BLK)
        # An angle of 64 has an ulp of 8e-6.
        np.testing.assert_allclose(mine, planes_BLK, atol=1e-5)


@pytest.mark.parametrize("hub_id", HUB_CONFIGS)
def test_tensors_of_the_hub_all_have_a_place_or_a_reason(hub_id):
    config, shapes = hub_config(hub_id), tensor_shapes(hub_id)
    assert count(shapes) == ELEMENTS[hub_id]
    # Names and shapes alone: every array is one zero, seen many times.
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    drawn = Blueprint.draw(config, output="causal_lm")
    matched = drawn.match(MemoryCheckpoint(config, arrays))
    assert matched.new == ()
    harmless = {name for name in tensor_names(hub_id) if name.endswith((".attn.bias", "inv_freq"))}
    if config.get("tie_word_embeddings"):
        harmless |= tensor_names(hub_id) & {"lm_head.weight"}
    assert set(matched.unused) == {name.removeprefix("model.") for name in harmless}
    assert all(matched.unused.values())
    used = {name for places in matched.tensors.values() for _, name in places}
    assert used == tensor_names(hub_id) - harmless
    wanted = {name for weight in drawn.weights.values() for name in weight.hf_names}
    assert len(wanted) == len(used)
    assert Blueprint.draw(config).match(MemoryCheckpoint(config, arrays)).new == ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a tokenizer; each test writes the config.json."""
    made = tmp_path_factory.mktemp("model")
    byte_tokenizer().save_pretrained(made)
    return made


def rope(kind, **options):
    return {"rope_scaling": {"rope_type": kind, **options}}


YARN = {"factor": 2.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (
            "llama",
            rope("longrope", factor=2.0),
            "'longrope' is not known; there is default, linear",
        ),
        ("llama", {"rope_scaling": {"type": "su", "factor": 2.0}}, "'su' is not known"),
        ("llama", rope("linear", factor=2.0, short_factor=[1.0]), "does not know short_factor"),
        ("llama", rope("default", factor=2.0), "'default' does not know factor"),
        ("qwen3", {"rope_parameters": {"full_attention": {}}}, "does not know full_attention"),
        ("llama", rope("linear"), "'linear' needs factor"),
        ("llama", rope("dynamic", factor=None), "'dynamic' needs factor"),
        ("llama", rope("yarn"), "'yarn' needs factor"),
        ("llama", rope("llama3", factor=8.0), "'llama3' needs low_freq_factor, high_freq_factor"),
        ("llama", rope("llama3", **LLAMA3 | {"high_freq_factor": None}), "needs high_freq_factor"),
        ("llama", rope("linear", factor=2.0, partial_rotary_factor=0.5), "partial_rotary_factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        (
            "llama",
            rope("yarn", **YARN) | {"original_max_position_embeddings": 16},
            "original_max_position_embeddings = 16",
        ),
        ("llama", {"head_dim": 7}, "heads of odd width 7"),
        ("llama", {"rope_interleaved": True}, r"rope_interleaved = True \(understood is False\)"),
        ("llama", {"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        ("llama", {"hidden_act": "gelu_fast"}, "'gelu_fast' is not one of gelu"),
        ("llama", {"sliding_window": 8}, "sliding_window = 8"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ("mistral", {"num_key_value_heads": None}, "num_key_value_heads = None: must be a whole"),
        ("mistral", {"sliding_window": 0}, "a sliding_window below 1"),
        ("mistral", {"attention_bias": True}, "attention_bias = True"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types names 1 layers of 2"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
            "use_sliding_window is false",
        ),
        ("qwen3", {"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6': must be a number"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"n_special": 2}, "n_special = 2"),
        ("qwen2", {"use_mrope": True}, "use_mrope = True"),
        ("qwen3", {"use_mrope": True}, "use_mrope = True"),
        # An alias in transformers, where it beats n_embd.
        ("gpt2", {"hidden_size": 64}, "hidden_size = 64"),
        ("gpt2", {"n_embd": 34}, "n_embd 34 does not split into 4 heads"),
        *(
            (name, {key: value}, f"{key} = ")
            for name in FAMILIES
            for key, value in {
                "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"},
                "is_causal": False,
                "per_layer_config": {"0": {}},
                "tie_last_hidden_states": False,
                "some_new_field": 1,
            }.items()
        ),
    ],
    ids=str,
)
def test_pitfall_26_what_could_change_the_model_is_refused_by_name(folder, name, fields, said):
    """As a run opens it: with a tokenizer, for which transformers reads the config too."""
    model = Model(pretrained=str(folder))
    (folder / "config.json").write_text(json.dumps(tiny_config(name, "plain")))
    open_source(model, say=lambda text: None)
    (folder / "config.json").write_text(json.dumps(tiny_config(name, "plain") | fields))
    with pytest.raises(UserError, match=said):
        open_source(model, say=lambda text: None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"head_dim": 7}, "heads of odd width 7"),
        (rope("yarn"), "rope scaling 'yarn' needs factor"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6': must be a number"),
    ],
    ids=str,
)
def test_a_run_ends_with_what_is_wrong_with_the_config(folder, fields, said, capsys, tmp_path):
    (folder / "config.json").write_text(json.dumps(tiny_config("llama", "plain") | fields))
    words = ["--config=configs/llama_sft.py", f"--config.model.pretrained={folder}"]
    assert said in runs.refused(capsys, "train", [*words, f"--workdir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


def test_a_config_beside_a_tokenizer_that_transformers_refuses_is_one_message(folder):
    (folder / "config.json").write_text(json.dumps(tiny_config("llama", "plain") | {"head_dim": 7}))
    model = Model(config=tiny_config("llama", "plain"), tokenizer=str(folder))
    with pytest.raises(UserError, match=r"transformers, .* refuses it: .*\n.*even rotary"):
        open_source(model, say=lambda text: None)


RECORDS = {
    "_attn_implementation_autoset": True,
    "_num_labels": 1,
    "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
    "transformers.js_config": {"dtype": "q4"},
    "unsloth_fixed": True,
    "unsloth_version": "2026.3.3",
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, RECORDS) for name in FAMILIES),
        ("qwen2", {"use_mrope": False}),
        ("qwen3", {"use_mrope": False}),
        # As openai-community/gpt2-medium has them.
        ("gpt2", {"n_special": 0, "predict_special_tokens": True}),
    ],
    ids=str,
)
def test_what_tools_note_in_a_config_changes_nothing(name, fields):
    config = tiny_config(name, "plain")
    assert decoder_of(config | fields) == decoder_of(config)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_fresh_weights_are_drawn_as_transformers_does(name):
    drawn = Blueprint.draw(tiny_config(name, "plain"), output="classify", num_labels=8)
    values = drawn.initialise(set(drawn.weights))
    for path, weight in drawn.weights.items():
        value = np.asarray(values[path])
        if weight.kind in ("kernel", "embedding"):
            # GPT-2's projections back to the residual stream, of which there are two a layer.
            small = 6**-0.5 if "c_proj" in weight.hf else 1.0
            # Of n draws the spread itself spreads by 1 / sqrt(2 n).
            rtol = 4 / np.sqrt(2 * value.size)
            np.testing.assert_allclose(value.std(), 0.5 * small, rtol=rtol)
            if weight.stacked:
                assert not np.array_equal(value[0], value[1])
        else:
            assert (value == (1 if weight.kind == "norm" else 0)).all()
