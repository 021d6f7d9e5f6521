"""Config fields and tensor names of the best-known checkpoints, as the hub has them."""

import json

import numpy as np
import pytest
from parity import MemoryCheckpoint
from safetensors.numpy import load_file

from jaxft.models import Blueprint
from jaxft.pretrained import Checkpoint, read
from jaxft.saving import to_tensors

# Size fields that BERT and RoBERTa share.
BASE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
BERT_BASE = BASE | {
    "architectures": ["BertForMaskedLM"],
    "gradient_checkpointing": False,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
ROBERTA_BASE = BASE | {
    "architectures": ["RobertaForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
DISTILBERT_BASE = {
    "activation": "gelu",
    "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "transformers_version": "4.10.0.dev0",
    "vocab_size": 30522,
}
MINILM = BERT_BASE | {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "architectures": ["BertModel"],
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "transformers_version": "4.8.2",
}
POOLER_SIZES = ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head")
CONFIGS = {
    "google-bert/bert-base-uncased": BERT_BASE,
    "google-bert/bert-base-multilingual-cased": BERT_BASE
    | {"directionality": "bidi", "pooler_type": "first_token_transform", "vocab_size": 119547}
    | {f"pooler_{name}": 128 for name in POOLER_SIZES},
    "FacebookAI/roberta-base": ROBERTA_BASE,
    "FacebookAI/xlm-roberta-base": ROBERTA_BASE
    | {"model_type": "xlm-roberta", "output_past": True, "vocab_size": 250002},
    "distilbert/distilbert-base-uncased": DISTILBERT_BASE,
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": DISTILBERT_BASE
    | {
        "finetuning_task": "sst-2",
        "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
        "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
        "output_past": True,
    },
    "sentence-transformers/all-MiniLM-L6-v2": MINILM,
}


def dense(name: str, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (d_out, d_in), f"{name}.bias": (d_out,)}


def norm(name: str, width: int, weight: str = "weight", bias: str = "bias") -> dict:
    return {f"{name}.{weight}": (width,), f"{name}.{bias}": (width,)}


def bert_tensors(config: dict, *norms: str) -> dict[str, tuple[int, ...]]:
    """The body of BERT or RoBERTa, without a prefix."""
    width, mlp = config["hidden_size"], config["intermediate_size"]
    tensors = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        **norm("embeddings.LayerNorm", width, *norms),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= dense(f"{layer}.attention.{part}", width, width)
        tensors |= norm(f"{layer}.attention.output.LayerNorm", width, *norms)
        tensors |= dense(f"{layer}.intermediate.dense", width, mlp)
        tensors |= dense(f"{layer}.output.dense", mlp, width)
        tensors |= norm(f"{layer}.output.LayerNorm", width, *norms)
    return tensors


def prefixed(prefix: str, tensors: dict) -> dict:
    return {f"{prefix}.{name}": shape for name, shape in tensors.items()}


def bert_base() -> dict:
    """Old names of the norms, and the decoder's weight left to the word table."""
    old = ("gamma", "beta")
    return {
        **prefixed("bert", bert_tensors(BERT_BASE, *old) | dense("pooler.dense", 768, 768)),
        "cls.predictions.bias": (30522,),
        **dense("cls.predictions.transform.dense", 768, 768),
        **norm("cls.predictions.transform.LayerNorm", 768, *old),
        **dense("cls.seq_relationship", 768, 2),
    }


def roberta_base() -> dict:
    return {
        **prefixed("roberta", bert_tensors(ROBERTA_BASE)),
        "roberta.embeddings.position_ids": (1, 514),
        "lm_head.bias": (50265,),
        **dense("lm_head.dense", 768, 768),
        **norm("lm_head.layer_norm", 768),
    }


def distilbert_base() -> dict:
    tensors = {
        "embeddings.word_embeddings.weight": (30522, 768),
        "embeddings.position_embeddings.weight": (512, 768),
        **norm("embeddings.LayerNorm", 768),
    }
    for i in range(6):
        layer = f"transformer.layer.{i}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            tensors |= dense(f"{layer}.attention.{part}", 768, 768)
        tensors |= norm(f"{layer}.sa_layer_norm", 768)
        tensors |= dense(f"{layer}.ffn.lin1", 768, 3072) | dense(f"{layer}.ffn.lin2", 3072, 768)
        tensors |= norm(f"{layer}.output_layer_norm", 768)
    return {
        **prefixed("distilbert", tensors),
        **dense("vocab_transform", 768, 768),
        **norm("vocab_layer_norm", 768),
        "vocab_projector.bias": (30522,),
    }


def minilm_tensors() -> dict:
    tensors = bert_tensors(MINILM) | dense("pooler.dense", 384, 384)
    return tensors | {"embeddings.position_ids": (1, 512)}


# hub id -> tensors, elements (as its page counts them), fresh weights, unused tensors
CHECKPOINTS = {
    "google-bert/bert-base-uncased": (
        bert_base(),
        110_106_428,
        {"classifier.weight", "classifier.bias"},
        {n.replace("gamma", "weight").replace("beta", "bias") for n in bert_base() if "cls" in n},
    ),
    "FacebookAI/roberta-base": (
        roberta_base(),
        124_697_433 + 514,
        {f"classifier.{part}.{x}" for part in ("dense", "out_proj") for x in ("weight", "bias")},
        {n for n in roberta_base() if "lm_head" in n} | {"embeddings.position_ids"},
    ),
    "distilbert/distilbert-base-uncased": (
        distilbert_base(),
        66_985_530,
        {f"{part}.{x}" for part in ("pre_classifier", "classifier") for x in ("weight", "bias")},
        {n for n in distilbert_base() if "vocab_" in n},
    ),
    "sentence-transformers/all-MiniLM-L6-v2": (
        minilm_tensors(),
        22_713_216 + 512,
        {"classifier.weight", "classifier.bias"},
        {"embeddings.position_ids"},
    ),
}


@pytest.mark.parametrize("hub_id", CONFIGS)
def test_config_of_the_hub_is_understood(hub_id):
    dims = Blueprint.draw(CONFIGS[hub_id]).dims
    assert dims.max_length == 512
    assert dims.heads == 12
    assert dims.vocab_size == CONFIGS[hub_id]["vocab_size"]


@pytest.mark.parametrize("hub_id", CHECKPOINTS)
def test_tensors_of_the_hub_all_have_a_place_or_a_reason(hub_id):
    tensors, elements, fresh, unused = CHECKPOINTS[hub_id]
    assert sum(int(np.prod(shape)) for shape in tensors.values()) == elements
    # Names and shapes alone: every array is one zero, seen many times.
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in tensors.items()}
    checkpoint = MemoryCheckpoint(CONFIGS[hub_id], arrays)
    drawn = Blueprint.draw(CONFIGS[hub_id], output="classify", num_labels=2)
    matched = drawn.match(checkpoint)
    assert {weight.hf for weight in matched.new} == fresh
    assert set(matched.unused) == unused
    assert all(matched.unused.values())
    used = sum(len(places) for places in matched.tensors.values())
    assert used + len(unused) == len(tensors)
    assert Blueprint.draw(CONFIGS[hub_id]).match(checkpoint).new == ()


def test_minilm_on_disk_is_what_its_list_says(minilm):
    found = load_file(minilm / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == minilm_tensors()
    assert json.loads((minilm / "config.json").read_text()) == MINILM


def test_every_tensor_of_minilm_is_given_back_bit_by_bit(minilm):
    checkpoint = Checkpoint(minilm)
    drawn = Blueprint.draw(checkpoint.config)
    params = read(drawn.match(checkpoint), drawn.weights)
    given = {one.name: one.values for one in to_tensors(params, drawn.weights, prefix="")}
    found = load_file(minilm / "model.safetensors")
    assert given.keys() == found.keys() - {"embeddings.position_ids"}
    for name, tensor in given.items():
        np.testing.assert_array_equal(tensor.view(np.uint32), found[name].view(np.uint32), name)


def test_bert_without_a_pooler_gets_a_fresh_one():
    """Checkpoints of BertForMaskedLM that transformers 4 and 5 write have none."""
    arrays = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in bert_base().items()
        if "pooler" not in name
    }
    matched = Blueprint.draw(BERT_BASE).match(MemoryCheckpoint(BERT_BASE, arrays))
    assert {weight.hf for weight in matched.new} == {"pooler.dense.weight", "pooler.dense.bias"}
