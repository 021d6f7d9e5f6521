"""GPT-2. Source: Radford et al. 2019; transformers 5.23 `models/gpt2`.

B rows, L tokens, S remembered tokens, D model width, H heads, K head width, F
feed-forward width, V vocabulary.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from jaxft.errors import UserError
from jaxft.nn.attention import Side, attention
from jaxft.nn.decoder import HEAD, Decoder, heads, stacks
from jaxft.nn.fields import Harmless
from jaxft.nn.gated import DecoderDims
from jaxft.nn.layers import ACTIVATIONS, Compute, Embed, LayerNorm, Linear, dropout, split
from jaxft.nn.memory import Memory, Recall, remember
from jaxft.nn.remat import mark
from jaxft.nn.tokens import Tokens

PREFIX = "transformer"
ARCHITECTURES = {
    None: "GPT2Model",
    "classify": "GPT2ForSequenceClassification",
    "causal_lm": "GPT2LMHeadModel",
}
_SUMMARY = Harmless("of the double-heads model")
HARMLESS_FIELDS = {
    "n_ctx": Harmless("an old name of n_positions"),
    "n_special": Harmless("rows that GPT-1 added to the embedding", only=(0,)),
    "predict_special_tokens": Harmless("of GPT-1, whose n_special tokens it is about"),
    "summary_type": _SUMMARY,
    "summary_use_proj": _SUMMARY,
    "summary_activation": _SUMMARY,
    "summary_proj_to_labels": _SUMMARY,
    "summary_first_dropout": _SUMMARY,
    "reorder_and_upcast_attn": Harmless("attention is in float32 either way"),
}
UNUSED_TENSORS = {
    r"lm_head\.weight": "the language-model head",
    r"score\.weight": "a classification head",
    r"h\.\d+\.attn\.(bias|masked_bias)": "the causal mask, a constant that old versions saved",
}
NEW_TENSORS: dict[str, str] = {}
DROPOUT_FIELDS = {
    "dropout": ("resid_pdrop", "embd_pdrop"),
    "attention_dropout": ("attn_pdrop",),
}


@dataclass(frozen=True)
class Dims:
    """The fields of `config.json` that shape the model, with transformers' names and defaults."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    @property
    def decoder(self) -> DecoderDims:
        if self.n_embd % self.n_head:
            raise UserError(
                f"config.json: n_embd {self.n_embd} does not split into {self.n_head} heads."
            )
        return DecoderDims(
            vocab=self.vocab_size,
            layers=self.n_layer,
            width=self.n_embd,
            heads=self.n_head,
            kv_heads=self.n_head,
            head_width=self.n_embd // self.n_head,
            mlp=self.n_inner or 4 * self.n_embd,
            activation=self.activation_function,
            eps=self.layer_norm_epsilon,
            std=self.initializer_range,
            tied=self.tie_word_embeddings,
            attention_dropout=self.attn_pdrop,
            dropout=self.resid_pdrop,
        )

    def scale(self, layer: int) -> float:
        """Of attention's logits in a layer, counted from 0."""
        width = self.decoder.head_width if self.scale_attn_weights else 1
        return width**-0.5 / (layer + 1 if self.scale_attn_by_inverse_layer_idx else 1)

    @property
    def heads(self) -> int:
        """What `mesh.tensor` must divide."""
        return self.n_head

    @property
    def head_width(self) -> int:
        return self.decoder.head_width

    @property
    def max_length(self) -> int:
        return self.n_positions


class Block(nnx.Module):
    """x + attention(norm(x)), then x + down(act(up(norm(x)))), with dropout before each sum."""

    def __init__(self, dims: Dims, compute: Compute, *, rngs: nnx.Rngs):
        self.dims, self.kernel = dims.decoder, compute.attention
        width, mlp, std = self.dims.width, self.dims.mlp, self.dims.std
        small = std * (2 * dims.n_layer) ** -0.5

        def linear(
            d_in: int,
            d_out: int,
            axes: tuple[str, str],
            name: str,
            std: float,
            part: tuple[int, int] | None = None,
        ) -> Linear:
            hf = f"h.{{layer}}.{name}"
            return Linear(
                d_in, d_out, axes=axes, hf=hf, std=std, rngs=rngs, transposed=False, part=part
            )

        inwards, outwards = ("embed", "heads"), ("heads", "embed")
        self.attention_norm = LayerNorm(width, hf="h.{layer}.ln_1", eps=self.dims.eps)
        self.query = linear(width, width, inwards, "attn.c_attn", std, (0, 3))
        self.key = linear(width, width, inwards, "attn.c_attn", std, (1, 3))
        self.value = linear(width, width, inwards, "attn.c_attn", std, (2, 3))
        self.out = linear(width, width, outwards, "attn.c_proj", small)
        self.mlp_norm = LayerNorm(width, hf="h.{layer}.ln_2", eps=self.dims.eps)
        self.up = linear(width, mlp, ("embed", "mlp"), "mlp.c_fc", std)
        self.down = linear(mlp, width, ("mlp", "embed"), "mlp.c_proj", small)

    def __call__(
        self, x_BLD: jax.Array, scale: jax.Array, side: Side, *, key: jax.Array | None
    ) -> jax.Array:
        weights_key, attention_key, mlp_key = split(key, 3)
        q_BLHK, k_BLHK, v_BLHK = self._project(x_BLD)
        mixed_BLHK = attention(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            side,
            side,
            kernel=self.kernel,
            causal=True,
            scale=scale,
            rate=self.dims.attention_dropout,
            key=weights_key,
        )
        mixed_BLD = self.out(mixed_BLHK.reshape(x_BLD.shape))
        x_BLD += dropout(mixed_BLD, self.dims.dropout, attention_key)
        return x_BLD + dropout(self._mlp(x_BLD), self.dims.dropout, mlp_key)

    def extend(
        self, x_BLD: jax.Array, scale: jax.Array, side: Side, recall: Recall, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        """New tokens at `recall.start` of the memory, which they see with all before them."""
        q_BLHK, k_BLHK, v_BLHK = self._project(x_BLD)
        memory = remember(memory, k_BLHK, v_BLHK, recall)
        mixed_BLHK = attention(
            q_BLHK,
            memory.k,
            memory.v,
            side,
            recall.keys,
            kernel="xla",
            causal=True,
            scale=scale,
        )
        x_BLD += self.out(mixed_BLHK.reshape(x_BLD.shape))
        return x_BLD + self._mlp(x_BLD), memory

    def _project(self, x_BLD: jax.Array) -> tuple[jax.Array, ...]:
        x_BLD = self.attention_norm(x_BLD)
        heads = (*x_BLD.shape[:2], self.dims.heads, self.dims.head_width)
        parts = self.query, self.key, self.value
        return tuple(mark(part(x_BLD).reshape(heads), "qkv") for part in parts)

    def _mlp(self, x_BLD: jax.Array) -> jax.Array:
        hidden_BLF = ACTIVATIONS[self.dims.activation](self.up(self.mlp_norm(x_BLD)))
        return self.down(mark(hidden_BLF, "mlp_hidden"))


class Embeddings(nnx.Module):
    """Word + position vectors, with dropout."""

    def __init__(self, dims: Dims, *, rngs: nnx.Rngs):
        self.rate = dims.embd_pdrop
        width, std = dims.n_embd, dims.initializer_range
        tied = HEAD + ".weight" if dims.tie_word_embeddings else None
        self.word = Embed(
            dims.vocab_size, width, axis="vocab", hf="wte", std=std, rngs=rngs, tied=tied
        )
        self.position = Embed(dims.n_positions, width, axis=None, hf="wpe", std=std, rngs=rngs)

    def __call__(self, tokens: Tokens, *, key: jax.Array | None) -> jax.Array:
        x_BLD = self.word(tokens.ids_BL) + self.position(tokens.positions_BL)
        return dropout(x_BLD, self.rate, key)


class Model(Decoder):
    """GPT-2 with the head that `output` names (None: the bare decoder)."""

    def __init__(
        self,
        dims: Dims,
        *,
        output: str | None = None,
        num_labels: int = 0,
        compute: Compute = Compute(),
        rngs: nnx.Rngs,
    ):
        self.dims, self.compute = dims.decoder, compute
        self.embeddings = Embeddings(dims, rngs=rngs)
        self.stacks = stacks(
            self.dims,
            lambda window, rngs: Block(dims, compute, rngs=rngs),
            compute,
            rngs,
            facts=[dims.scale],
        )
        self.norm = LayerNorm(dims.n_embd, hf="ln_f", eps=dims.layer_norm_epsilon)
        self.heads = heads(self.dims, output, num_labels, rngs)

    def embed(self, tokens: Tokens, *, key: jax.Array | None) -> jax.Array:
        return self.embeddings(tokens, key=key).astype(self.compute.dtype)

    def shared(self, tokens: Tokens) -> tuple:
        return (Side.of(tokens),)

    @property
    def table_VD(self) -> jax.Array:
        return self.embeddings.word.table[...]
