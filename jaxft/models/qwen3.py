"""Qwen 3 (dense): Qwen 2 with normed queries and keys. Source: Yang et al. 2025; transformers 5.23
`models/qwen3`.
"""

from dataclasses import dataclass
from typing import Any

from jaxft.models import llama, qwen2
from jaxft.nn.decoder import RotaryDecoder

PREFIX = "model"
ARCHITECTURES = {
    None: "Qwen3Model",
    "classify": "Qwen3ForSequenceClassification",
    "causal_lm": "Qwen3ForCausalLM",
}
HARMLESS_FIELDS = qwen2.HARMLESS_FIELDS
UNUSED_TENSORS = llama.UNUSED_TENSORS
NEW_TENSORS: dict[str, str] = {}
DROPOUT_FIELDS = llama.DROPOUT_FIELDS


@dataclass(frozen=True)
class Dims(qwen2.Dims):
    """Qwen 2's fields, and those that differ."""

    head_dim: int | None = 128
    attention_bias: bool = False

    @property
    def differences(self) -> dict[str, Any]:
        bias = {"attention_bias": self.attention_bias, "output_bias": self.attention_bias}
        return super().differences | bias | {"qk_norm": True}


class Model(RotaryDecoder):
    """Qwen 3 with the head that `output` names (None: the bare decoder)."""
