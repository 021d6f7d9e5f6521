"""What the TPU compiler says each way of saving memory saves; nothing runs on a TPU."""

import json
from typing import Any

import pytest
import tpu

pytestmark = tpu.needs_libtpu
LAYERS, WIDTH, MLP, VOCAB, ROWS, LENGTH = 32, 256, 1024, 512, 4, 512
TINY = {
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
FULL = {"model.activation_checkpointing": "full"}
CASES: dict[str, dict[str, Any]] = {
    "none": {},
    # What takes arguments and what takes temporaries are told apart, so one program shows both.
    "dots, adafactor": {"model.activation_checkpointing": "dots", "optim.name": "adafactor"},
    "full": FULL,
    "full, attention kept, bfloat16 moments": FULL
    | {"model.kept_activations": {"attention_out": "device"}, "optim.moments_dtype": "bfloat16"},
    "full, inputs on the host": FULL | {"model.kept_activations": {"block_input": "host"}},
    "offload": FULL | {"optim.offload": True},
}
WIDE = TINY | {"hidden_size": 512, "intermediate_size": 32768, "num_hidden_layers": 2}
"""Of weights that do not fit in a core's 128 MB."""
COMPILE = """
import json, sys
from dataclasses import asdict
from jaxft import config as configs, tasks
from jaxft.planning import places
from jaxft.planning.compiling import compile_update
from jaxft.planning.sketch import sketch
place = places.find(sys.argv[2])
for name, raw in json.loads(sys.argv[1]).items():
    made = sketch(configs.from_dict(raw, tasks.options), place.devices, print, examples=1000)
    print(json.dumps([name, asdict(compile_update(made))]), flush=True)
"""
TOKENS = ROWS * LENGTH
LAYER = 4 * WIDTH**2 + 3 * WIDTH * MLP
"""Numbers in the matrices of a layer."""
WEIGHTS = LAYERS * LAYER + 2 * VOCAB * WIDTH
BFLOAT16, FLOAT32 = 2, 4


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, int]]:
    """Of each case the compiler's figures, for a small Llama on one chip."""
    return compiled({name: {"model.config": TINY} | keys for name, keys in CASES.items()})


def compiled(
    cases: dict[str, dict[str, Any]], topology: str = "v5p:1x1x1"
) -> dict[str, dict[str, int]]:
    """The compiler's figures by the case's name."""
    raw: dict[str, dict[str, Any]] = {}
    for name, keys in cases.items():
        raw[name] = {
            "task": {"name": "causal_lm"},
            "data": {"train": "none of it is read", "max_length": LENGTH},
            "train": {"batch_size": ROWS},
        }
        for key, value in keys.items():
            section, _, field = key.partition(".")
            raw[name].setdefault(section, {})[field] = value
    printed = tpu.compiled(COMPILE, json.dumps(raw), topology)
    return dict(json.loads(line) for line in printed.splitlines())


def test_arguments_are_what_weights_and_moments_take(found):
    for name, each in {
        "full": 3 * FLOAT32,
        "full, attention kept, bfloat16 moments": FLOAT32 + 2 * BFLOAT16,
        "dots, adafactor": FLOAT32,
    }.items():
        # Norms, batch, counts and adafactor's rows and columns beside them.
        assert found[name]["arguments_bytes"] == pytest.approx(each * WEIGHTS, rel=0.02), name


def test_weights_and_moments_in_host_memory_leave_a_bfloat16_copy_and_gradients(found):
    offloaded, full = found["offload"], found["full"]
    assert offloaded["host_arguments_bytes"] == pytest.approx(3 * FLOAT32 * WEIGHTS, rel=0.02)
    assert offloaded["arguments_bytes"] < 0.001 * full["arguments_bytes"]
    assert offloaded["host_temporaries_bytes"] == 0, "a second copy in the host's memory"
    assert offloaded["copied_bytes"] < 1e5, "donation must hold in the host's memory too"
    saved = sum(full[k] - offloaded[k] for k in ("arguments_bytes", "temporaries_bytes"))
    assert saved > 2 * FLOAT32 * WEIGHTS
    # The copy and gradients, both bfloat16; what the host holds is no part of the device's peak.
    assert 2 * BFLOAT16 * WEIGHTS < offloaded["peak_bytes"] < full["peak_bytes"] - saved / 2


def test_checkpointing_saves_activations(found):
    full, dots, none = (
        found[name]["temporaries_bytes"] for name in ("full", "dots, adafactor", "none")
    )
    matmuls = TOKENS * (3 * WIDTH + WIDTH + 2 * MLP) * BFLOAT16 * LAYERS
    assert dots - full > 0.8 * matmuls
    assert none > dots


def test_a_kept_activation_takes_its_place_where_it_is_kept(found):
    full, kept, host = (
        found[name]
        for name in (
            "full",
            "full, attention kept, bfloat16 moments",
            "full, inputs on the host",
        )
    )
    stack = TOKENS * WIDTH * BFLOAT16 * LAYERS
    assert kept["temporaries_bytes"] - full["temporaries_bytes"] > 0.6 * stack
    assert full["temporaries_bytes"] - host["temporaries_bytes"] > 0.6 * stack
    assert host["host_temporaries_bytes"] == pytest.approx(stack, rel=0.01)
    assert full["host_temporaries_bytes"] == 0


def test_weights_that_stay_whole_are_not_copied_to_be_updated():
    keys = FULL | {"model.config": WIDE, "mesh.fsdp": 4, "mesh.zero_stage": 2}
    found = compiled({"whole": keys}, "v5e:2x2")["whole"]
    matrix = WIDE["num_hidden_layers"] * WIDE["hidden_size"] * WIDE["intermediate_size"]
    weights = 3 * matrix
    # The computation's copy and the parts of gradients; then each gathered change by itself.
    expected = BFLOAT16 * weights + FLOAT32 * weights / 4
    assert found["temporaries_bytes"] < expected + 1.5 * FLOAT32 * matrix
    assert found["copied_bytes"] < 1e5
