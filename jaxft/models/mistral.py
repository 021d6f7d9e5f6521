"""Mistral: Llama with a sliding window. Source: Jiang et al. 2023; transformers 5.23
`models/mistral`.
"""

from dataclasses import dataclass
from typing import Any

from jaxft.models import llama
from jaxft.nn.decoder import RotaryDecoder, RotaryDims

PREFIX = "model"
ARCHITECTURES = {
    None: "MistralModel",
    "classify": "MistralForSequenceClassification",
    "causal_lm": "MistralForCausalLM",
}
HARMLESS_FIELDS = llama.HARMLESS_FIELDS
UNUSED_TENSORS = llama.UNUSED_TENSORS
NEW_TENSORS: dict[str, str] = {}
DROPOUT_FIELDS = llama.DROPOUT_FIELDS


@dataclass(frozen=True)
class Dims(RotaryDims):
    """The shared fields of `config.json`, and Mistral's own or other defaults."""

    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    @property
    def differences(self) -> dict[str, Any]:
        windows = (self.sliding_window,) * self.num_hidden_layers
        return {"kv_heads": self.num_key_value_heads, "windows": windows}


class Model(RotaryDecoder):
    """Mistral with the head that `output` names (None: the bare decoder)."""
