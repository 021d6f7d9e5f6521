"""Supervised fine-tuning of a decoder (Llama, Qwen, Mistral, GPT-2) on chats or prompts.

    python -m jaxft.train --config=configs/llama_sft.py \
        --config.model.pretrained=Qwen/Qwen2.5-0.5B-Instruct --config.data.train=chats.jsonl
    python -m jaxft.plan  --config=configs/llama_sft.py:llama3-8b --topology=v5e:4x4

As it is: a smoke run. A Llama of 0.2 M random weights that reads bytes, on 48 bundled chats: a
minute or two on 2 CPU cores, and nothing worth talking to. Rows are `messages`, `prompt` and
`completion`, or `instruction`, `input` and `output`; see the README.
"""

from pathlib import Path

from ml_collections import ConfigDict

DATA = Path(__file__).parent / "data" / "assistant_chats"
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
        "train": str(DATA / "train.jsonl"),
        "validation": str(DATA / "validation.jsonl"),
        "max_length": 4096,
    }
    config.optim = {"learning_rate": 2e-3, "warmup_steps": 0.1, "weight_decay": 0.0}
    config.train = {"num_train_epochs": 10.0, "batch_size": 8, "eval_steps": 0.2}
    config.checkpoint = {"keep_last": 1, "keep_best": 1}
    if arg:
        config.model = {"pretrained": arg, "activation_checkpointing": "full"}
        config.mesh = {"data": 1, "fsdp": -1}
        config.optim.learning_rate = 1e-5
        config.train.update({"num_train_epochs": 2.0, "batch_size": 16})
    return config
