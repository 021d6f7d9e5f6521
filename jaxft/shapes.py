"""Well-known models by short names: hub id and the `config.json` fields that give their shape.

Source: the `config.json` of each hub repository. What their parameters add up to is tested.
"""

from pathlib import Path
from typing import Any

_BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}
_ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}

_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)


def _decoder(family: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Sizes are layers, width, feed-forward width, heads and key-value heads."""
    return {"model_type": family, **dict(zip(_SIZES, sizes, strict=True)), **more}


def _llama3(*sizes: int, factor: float, **more: Any) -> dict[str, Any]:
    scaling = {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    shared: dict[str, Any] = {
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
    }
    rope: dict[str, Any] = {"rope_theta": 500000.0, "rope_scaling": scaling}
    return _decoder("llama", sizes, **shared, **rope, **more)


def _qwen2(*sizes: int, vocab: int = 151936, tied: bool = True) -> dict[str, Any]:
    shared: dict[str, Any] = {"max_position_embeddings": 32768, "rope_theta": 1e6}
    return _decoder("qwen2", sizes, vocab_size=vocab, tie_word_embeddings=tied, **shared)


def _qwen3(*sizes: int, tied: bool = True) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
    }
    return _decoder("qwen3", sizes, head_dim=128, tie_word_embeddings=tied, **shared)


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": heads}


_LLAMA2: dict[str, Any] = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
_MISTRAL: dict[str, Any] = {
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": (
        "sentence-transformers/all-MiniLM-L6-v2",
        {
            **_BERT,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    "bert-base": ("google-bert/bert-base-uncased", _BERT | _BASE),
    "bert-large": ("google-bert/bert-large-uncased", _BERT | _LARGE),
    "distilbert": ("distilbert/distilbert-base-uncased", {"model_type": "distilbert"}),
    "roberta-base": ("FacebookAI/roberta-base", _ROBERTA | _BASE),
    "roberta-large": ("FacebookAI/roberta-large", _ROBERTA | _LARGE),
    "xlm-roberta-base": (
        "FacebookAI/xlm-roberta-base",
        {**_ROBERTA, **_BASE, "model_type": "xlm-roberta", "vocab_size": 250002},
    ),
    "xlm-roberta-large": (
        "FacebookAI/xlm-roberta-large",
        {**_ROBERTA, **_LARGE, "model_type": "xlm-roberta", "vocab_size": 250002},
    ),
    "gpt2": ("openai-community/gpt2", _gpt2(12, 768, 12)),
    "gpt2-medium": ("openai-community/gpt2-medium", _gpt2(24, 1024, 16)),
    "gpt2-large": ("openai-community/gpt2-large", _gpt2(36, 1280, 20)),
    "gpt2-xl": ("openai-community/gpt2-xl", _gpt2(48, 1600, 25)),
    "llama2-7b": (
        "meta-llama/Llama-2-7b-hf",
        _decoder("llama", (32, 4096, 11008, 32, 32), **_LLAMA2),
    ),
    "llama2-13b": (
        "meta-llama/Llama-2-13b-hf",
        _decoder("llama", (40, 5120, 13824, 40, 40), **_LLAMA2),
    ),
    "llama3-1b": (
        "meta-llama/Llama-3.2-1B",
        _llama3(16, 2048, 8192, 32, 8, factor=32.0, head_dim=64, tie_word_embeddings=True),
    ),
    "llama3-3b": (
        "meta-llama/Llama-3.2-3B",
        _llama3(28, 3072, 8192, 24, 8, factor=32.0, head_dim=128, tie_word_embeddings=True),
    ),
    "llama3-8b": ("meta-llama/Llama-3.1-8B", _llama3(32, 4096, 14336, 32, 8, factor=8.0)),
    "llama3-70b": ("meta-llama/Llama-3.1-70B", _llama3(80, 8192, 28672, 64, 8, factor=8.0)),
    "mistral-7b": (
        "mistralai/Mistral-7B-v0.3",
        _decoder("mistral", (32, 4096, 14336, 32, 8), sliding_window=None, **_MISTRAL),
    ),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B", _qwen2(24, 896, 4864, 14, 2)),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B", _qwen2(28, 1536, 8960, 12, 2)),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B", _qwen2(28, 3584, 18944, 28, 4, vocab=152064, tied=False)),
    "qwen3-0.6b": ("Qwen/Qwen3-0.6B", _qwen3(28, 1024, 3072, 16, 8)),
    "qwen3-1.7b": ("Qwen/Qwen3-1.7B", _qwen3(28, 2048, 6144, 16, 8)),
    "qwen3-4b": ("Qwen/Qwen3-4B", _qwen3(36, 2560, 9728, 32, 8)),
    "qwen3-8b": ("Qwen/Qwen3-8B", _qwen3(36, 4096, 12288, 32, 8, tied=False)),
    "qwen3-14b": ("Qwen/Qwen3-14B", _qwen3(40, 5120, 17408, 40, 8, tied=False)),
    "qwen3-32b": ("Qwen/Qwen3-32B", _qwen3(64, 5120, 25600, 64, 8, tied=False)),
}
"""Short name -> (hub id, fields)."""


def hub_id(name: str) -> str:
    """The hub id of a short name; a folder, which goes before it, or a hub id stays what it is."""
    return SHAPES[name][0] if name in SHAPES and not Path(name).is_dir() else name


def fields_of(name: str) -> dict[str, Any] | None:
    """The `config.json` fields of a short name or a hub id, None where it is not listed."""
    return next((dict(f) for short, (hub, f) in SHAPES.items() if name in (short, hub)), None)
