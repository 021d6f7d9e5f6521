"""Continued pretraining of a decoder on plain texts.

    python -m jaxft.train --config=configs/clm.py \
        --config.model.pretrained=Qwen/Qwen2.5-0.5B --config.data.train=corpus.txt
    python -m jaxft.plan  --config=configs/clm.py:qwen3-8b --topology=v6e:4x4

As it is: a smoke run. A Llama of 0.2 M random weights that reads bytes, on 39 kB of bundled text:
about a minute on 2 CPU cores. Files are .txt (each one document) or tables with a text column.
"""

from pathlib import Path

from ml_collections import ConfigDict

DATA = Path(__file__).parent / "data" / "open_meadow"
TINY = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: a model (short name, hub id or folder), in place of the smoke run's."""
    config = ConfigDict()
    config.model = {"config": TINY}
    config.task = {"name": "causal_lm"}
    config.data = {
        "train": str(DATA / "train.txt"),
        "validation": str(DATA / "validation.txt"),
        "max_length": 512,
        "packing": "rows",
    }
    config.optim = {"learning_rate": 2e-3, "warmup_steps": 0.1, "weight_decay": 0.0}
    config.train = {"num_train_epochs": 20.0, "batch_size": 8, "eval_steps": 0.2}
    config.checkpoint = {"keep_last": 1, "keep_best": 1}
    if arg:
        config.model = {"pretrained": arg, "activation_checkpointing": "full"}
        config.mesh = {"data": 1, "fsdp": -1}
        config.data.max_length = 2048
        config.optim.learning_rate = 1e-5
        config.train.update({"num_train_epochs": 1.0, "batch_size": 32})
    return config
