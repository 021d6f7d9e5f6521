"""Qwen 2 and 2.5: Llama with biases on queries, keys and values. Source: Yang et al. 2024;
transformers 5.23 `models/qwen2`.
"""

from dataclasses import dataclass
from typing import Any

from jaxft.errors import UserError
from jaxft.models import llama
from jaxft.nn.decoder import RotaryDecoder, RotaryDims
from jaxft.nn.fields import Harmless

PREFIX = "model"
ARCHITECTURES = {
    None: "Qwen2Model",
    "classify": "Qwen2ForSequenceClassification",
    "causal_lm": "Qwen2ForCausalLM",
}
HARMLESS_FIELDS = llama.HARMLESS_FIELDS | {
    "use_mrope": Harmless("a token has one position, not three", only=(False,))
}
UNUSED_TENSORS = llama.UNUSED_TENSORS
NEW_TENSORS: dict[str, str] = {}
DROPOUT_FIELDS = llama.DROPOUT_FIELDS


@dataclass(frozen=True)
class Dims(RotaryDims):
    """The shared fields of `config.json`, and Qwen's own or other defaults."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None

    @property
    def differences(self) -> dict[str, Any]:
        return {"windows": self.windows, "attention_bias": True}

    @property
    def windows(self) -> tuple[int | None, ...]:
        """A sliding window for the layers that `layer_types` names, or those from
        `max_window_layers` on.

        Raises:
            UserError: a kind of layer we do not know, or a sliding one without a window.
        """
        window = self.sliding_window if self.use_sliding_window else None
        if self.layer_types is None:
            full = min(self.max_window_layers, self.num_hidden_layers)
            return (None,) * full + (window,) * (self.num_hidden_layers - full)
        kinds = {"full_attention": None, "sliding_attention": window}
        unknown = sorted(set(self.layer_types) - set(kinds))
        if unknown:
            raise UserError(f"config.json: layer_types has {', '.join(unknown)}, which is unknown.")
        if window is None and "sliding_attention" in self.layer_types:
            raise UserError(
                "config.json: layer_types has sliding_attention, but use_sliding_window is false "
                "or sliding_window is null."
            )
        return tuple(kinds[kind] for kind in self.layer_types)


class Model(RotaryDecoder):
    """Qwen 2 with the head that `output` names (None: the bare decoder)."""
