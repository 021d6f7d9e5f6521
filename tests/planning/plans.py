"""Sketches of tiny runs for the tests of planning."""

from typing import Any

from jaxft import config as configs
from jaxft import tasks
from jaxft.config import Config
from jaxft.planning import places
from jaxft.planning.sketch import Sketch, sketch

TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def config(**keys: Any) -> Config:
    """Of a tiny Llama, where nothing else is said; `train__batch_size` is `train.batch_size`."""
    raw: dict[str, dict[str, Any]] = {
        "model": {"config": TINY_LLAMA, "activation_checkpointing": "full"},
        "task": {"name": "causal_lm"},
        "data": {"max_length": 128},
        "train": {"batch_size": 16, "max_steps": 100},
        "mesh": {"data": 1, "fsdp": -1},
    }
    for name, value in keys.items():
        home, _, key = name.partition("__")
        raw.setdefault(home, {})[key] = value
    if "pretrained" in raw["model"]:
        del raw["model"]["config"]
    return configs._resolve(raw, {}, tasks.options, "the test", needs_data=False)


def sketched(topology: str | None = None, **keys: Any) -> Sketch:
    """On a topology that nothing compiles for, or on this machine's devices."""
    place = places.find(topology, compiling=False)
    return sketch(config(**keys), place.devices, lambda text: None)
