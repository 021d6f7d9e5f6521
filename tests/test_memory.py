"""What the TPU compiler says each way of saving memory saves; nothing runs on a TPU."""

import json
from typing import Any

import pytest
import tpu

pytestmark = tpu.needs_libtpu
LAYERS, WIDTH, MLP, VOCAB, ROWS, LENGTH = 32, 256, 1024, 512, 4, 512
TINY = {
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
COMPILE = """
import json, sys
sys.path.insert(0, "benchmarks")
import one_chip
tiny, cases, shared = json.loads(sys.argv[1])
for name, keys in cases.items():
    sketch = one_chip.sketch("v5p:1x1x1", one_chip.LLAMA_3_8B | tiny, shared | keys)
    print(json.dumps([name, one_chip.sizes(sketch)]), flush=True)
"""
TOKENS = ROWS * LENGTH
LAYER = 4 * WIDTH**2 + 3 * WIDTH * MLP
"""Numbers in the matrices of a layer."""
WEIGHTS = LAYERS * LAYER + 2 * VOCAB * WIDTH
BFLOAT16, FLOAT32 = 2, 4


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, int]]:
    """Of each case the compiler's figures, for a small Llama on one chip."""
    shared = {"train.batch_size": ROWS, "data.max_length": LENGTH}
    printed = tpu.compiled(COMPILE, json.dumps([TINY, CASES, shared]))
    return dict(json.loads(line) for line in printed.splitlines())


def test_arguments_are_what_weights_and_moments_take(found):
    for name, each in {
        "full": 3 * FLOAT32,
        "full, attention kept, bfloat16 moments": FLOAT32 + 2 * BFLOAT16,
        "dots, adafactor": FLOAT32,
    }.items():
        # Norms, batch, counts and adafactor's rows and columns beside them.
        assert found[name]["device_arguments"] == pytest.approx(each * WEIGHTS, rel=0.02), name


def test_weights_and_moments_in_host_memory_leave_a_bfloat16_copy_and_gradients(found):
    offloaded, full = found["offload"], found["full"]
    assert offloaded["host_arguments"] == pytest.approx(3 * FLOAT32 * WEIGHTS, rel=0.02)
    assert offloaded["device_arguments"] < 0.001 * full["device_arguments"]
    assert offloaded["host_temporaries"] == 0, "a second copy in the host's memory"
    assert offloaded["copied_outputs"] < 1e5, "donation must hold in the host's memory too"
    assert full["device_bytes"] - offloaded["device_bytes"] > 2 * FLOAT32 * WEIGHTS


def test_checkpointing_saves_activations(found):
    full, dots, none = (
        found[name]["device_temporaries"] for name in ("full", "dots, adafactor", "none")
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
    assert kept["device_temporaries"] - full["device_temporaries"] > 0.6 * stack
    assert full["device_temporaries"] - host["device_temporaries"] > 0.6 * stack
    assert host["host_temporaries"] == pytest.approx(stack, rel=0.01)
    assert full["host_temporaries"] == 0
