"""Llama 2 and 3. Source: Touvron et al. 2023; transformers 5.23 `models/llama`."""

from dataclasses import dataclass
from typing import Any

from jaxft.nn.decoder import RotaryDecoder
from jaxft.nn.fields import Harmless
from jaxft.nn.gated import DecoderDims
from jaxft.nn.rope import read_rope

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
class Dims:
    """The fields of `config.json` that shape the model, with transformers' names and defaults."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False

    @property
    def decoder(self) -> DecoderDims:
        head_width = self.head_dim or self.hidden_size // self.num_attention_heads
        return DecoderDims(
            vocab=self.vocab_size,
            layers=self.num_hidden_layers,
            width=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads or self.num_attention_heads,
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
            attention_bias=self.attention_bias,
            output_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
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
    """Llama with the head that `output` names (None: the bare decoder)."""
