"""Llama 2 and 3. Source: Touvron et al. 2023; transformers 5.23 `models/llama`."""

from dataclasses import dataclass
from typing import Any

from jaxft.nn.decoder import RotaryDecoder, RotaryDims
from jaxft.nn.fields import Harmless

PREFIX = "model"
ARCHITECTURES = {
    None: "LlamaModel",
    "classify": "LlamaForSequenceClassification",
    "causal_lm": "LlamaForCausalLM",
}
HARMLESS_FIELDS = {
    "pretraining_tp": Harmless("how the original was split while it was trained"),
    "rope_interleaved": Harmless("planes are (i, i + K / 2)", only=(False,)),
    "is_llama_config": Harmless("a record, not a setting"),
}
UNUSED_TENSORS = {
    r"lm_head\.weight": "the language-model head",
    r"score\.weight": "a classification head",
    r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "a constant that old versions saved",
}
NEW_TENSORS: dict[str, str] = {}
DROPOUT_FIELDS = {"attention_dropout": ("attention_dropout",)}


@dataclass(frozen=True)
class Dims(RotaryDims):
    """The shared fields of `config.json`, and Llama's own."""

    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def differences(self) -> dict[str, Any]:
        return {
            "attention_bias": self.attention_bias,
            "output_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
        }


class Model(RotaryDecoder):
    """Llama with the head that `output` names (None: the bare decoder)."""
