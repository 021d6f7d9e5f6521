"""Qwen 2 and 2.5: Llama with biases on queries, keys and values. Source: Yang et al. 2024;
transformers 5.23 `models/qwen2`.
"""

from dataclasses import dataclass
from typing import Any

from jaxft.errors import UserError
from jaxft.models import llama
from jaxft.nn.decoder import RotaryDecoder
from jaxft.nn.gated import DecoderDims
from jaxft.nn.rope import read_rope

PREFIX = "model"
ARCHITECTURES = {
    None: "Qwen2Model",
    "classify": "Qwen2ForSequenceClassification",
    "causal_lm": "Qwen2ForCausalLM",
}
HARMLESS_FIELDS = llama.HARMLESS_FIELDS
UNUSED_TENSORS = llama.UNUSED_TENSORS
NEW_TENSORS: dict[str, str] = {}
DROPOUT_FIELDS = llama.DROPOUT_FIELDS


@dataclass(frozen=True)
class Dims:
    """The fields of `config.json` that shape the model, with transformers' names and defaults."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    attention_dropout: float = 0.0

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
            windows=self.windows,
            attention_bias=self.attention_biases,
            output_bias=self.output_bias,
            qk_norm=self.qk_norm,
            attention_dropout=self.attention_dropout,
        )

    attention_biases = True
    output_bias = False
    qk_norm = False

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

    @property
    def heads(self) -> int:
        """What `mesh.tensor` must divide."""
        return self.decoder.kv_heads

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings


class Model(RotaryDecoder):
    """Qwen 2 with the head that `output` names (None: the bare decoder)."""
