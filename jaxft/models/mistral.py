"""Mistral: Llama with a sliding window. Source: Jiang et al. 2023; transformers 5.23
`models/mistral`.
"""

from dataclasses import dataclass
from typing import Any

from jaxft.models import llama
from jaxft.nn.decoder import RotaryDecoder
from jaxft.nn.gated import DecoderDims
from jaxft.nn.rope import read_rope

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
class Dims:
    """The fields of `config.json` that shape the model, with transformers' names and defaults."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    sliding_window: int | None = 4096
    attention_dropout: float = 0.0

    @property
    def decoder(self) -> DecoderDims:
        head_width = self.head_dim or self.hidden_size // self.num_attention_heads
        return DecoderDims(
            vocab=self.vocab_size,
            layers=self.num_hidden_layers,
            width=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_width=head_width,
            mlp=self.intermediate_size,
            activation=self.hidden_act,
            eps=self.rms_norm_eps,
            std=self.initializer_range,
            tied=self.tie_word_embeddings,
            rope=read_rope(
                head_width,
                self.max_position_embeddings,
                self.rope_theta,
                self.rope_scaling,
                self.rope_parameters,
            ),
            windows=(self.sliding_window,) * self.num_hidden_layers,
            attention_dropout=self.attention_dropout,
        )

    @property
    def heads(self) -> int:
        """What `mesh.tensor` must divide."""
        return self.decoder.kv_heads

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings


class Model(RotaryDecoder):
    """Mistral with the head that `output` names (None: the bare decoder)."""
