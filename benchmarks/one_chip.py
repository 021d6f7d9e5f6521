"""Does full fine-tuning of Llama-3-8B at length 4096 fit? Compiles the update for TPUs that need
not be there, and prints what the compiler says of memory; nothing is allocated.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python benchmarks/one_chip.py

needs `pip install 'jax[tpu]'`. One JSON line a case: bytes on each device (arguments and
temporaries; what of them lives at once is the peak, which counts host bytes too where there are
any), bytes in the host's memory, seconds of compilation.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from jaxft import config as configs
from jaxft import tasks
from jaxft.experiment import Experiment
from jaxft.models import Blueprint
from jaxft.nn.layers import Compute
from jaxft.nn.tokens import Batch, Tokens
from jaxft.sharding import make_mesh

LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
"""The fields of meta-llama/Meta-Llama-3-8B's config.json that shape the model."""
ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
REMAT = {"model.activation_checkpointing": "full"}
INPUTS = REMAT | {"model.kept_activations": {"block_input": "host"}}
FSDP = {"mesh.data": 1, "mesh.fsdp": -1}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("v5p:1x1x1", INPUTS | {"optim.offload": True, "train.batch_size": 4}),
    ("v5e:4x4", REMAT | FSDP | {"train.batch_size": 16}),
]


def sketch(topology: str, hf_config: Mapping[str, Any], keys: Mapping[str, Any]) -> Experiment:
    """An experiment on described devices: without data, tokenizer and weights."""
    one = ONE_CHIP if topology.endswith((":1x1", ":1x1x1")) else {}
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one)
    nested: dict[str, dict[str, Any]] = {
        "model": {"config": dict(hf_config)},
        "task": {"name": "causal_lm"},
        "data": {"train": "none of it is read", "max_length": 4096},
    }
    for name, value in keys.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    config = configs.from_dict(nested, tasks.options)
    module = tasks.named("causal_lm")
    compute = Compute(
        "bfloat16",
        "splash",
        config.model.activation_checkpointing,
        tuple(sorted(config.model.kept_activations.items())),
    )
    drawn = Blueprint.draw(hf_config, output=module.OUTPUT, compute=compute)
    mesh = make_mesh(vars(config.mesh), described.devices)
    return Experiment(config, module, module.Task(), drawn, None, mesh)


def sizes(experiment: Experiment) -> dict[str, Any]:
    """What compiling the update says."""
    optimizer = experiment.optimizer(1000)
    rows, length = experiment.config.train.batch_size, experiment.config.data.max_length

    def array(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=experiment.rows)

    batch = Batch(
        Tokens(*[array(rows, length)] * 4),
        {"next_BL": array(rows, length), "learnt_BL": array(rows, length, dtype=np.float32)},
        array(rows, 1, dtype=np.float32),
        array(rows, 1),
    )
    began_s = time.perf_counter()
    with jax.set_mesh(experiment.mesh):
        state = experiment.abstract_state(optimizer)
        compiled = experiment.train_step(optimizer).lower(state, batch, np.int32(0)).compile()
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes + found.host_output_size_in_bytes
    return {
        "device_bytes": found.argument_size_in_bytes + found.temp_size_in_bytes,
        "host_bytes": found.host_argument_size_in_bytes + found.host_temp_size_in_bytes,
        "device_peak_bytes": found.peak_memory_in_bytes,
        "device_arguments": found.argument_size_in_bytes,
        "device_temporaries": found.temp_size_in_bytes,
        "host_arguments": found.host_argument_size_in_bytes,
        "host_temporaries": found.host_temp_size_in_bytes,
        "copied_outputs": outputs - found.alias_size_in_bytes - found.host_alias_size_in_bytes,
        "compile_s": round(time.perf_counter() - began_s, 1),
    }


def main(topologies: list[str]) -> None:
    for topology, keys in CASES:
        if not topologies or topology in topologies:
            found = sizes(sketch(topology, LLAMA_3_8B, keys))
            print(json.dumps({"topology": topology, **keys, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
