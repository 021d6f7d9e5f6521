"""What BERT and its relatives are made of: embeddings, post-norm blocks, the first token.

Source: Devlin et al. 2018, section 3; transformers 5.23 `BertEmbeddings`, `BertLayer`.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from jaxft.errors import UserError
from jaxft.nn.attention import Side, attention
from jaxft.nn.layers import (
    ACTIVATIONS,
    Compute,
    Embed,
    LayerNorm,
    Linear,
    check_activation,
    dropout,
    split,
)
from jaxft.nn.partition import constrain_tokens
from jaxft.nn.remat import mark
from jaxft.nn.stack import Stack
from jaxft.nn.tokens import Tokens


@dataclass(frozen=True)
class BlockNames:
    """What the checkpoint calls the parts of a block, without `.weight` and `.bias`."""

    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


@dataclass(frozen=True)
class EncoderDims:
    """Sizes and rates of an encoder, whatever the family's config calls them.

    Raises:
        UserError: sizes that do not fit each other, or an activation we do not have.
    """

    vocab: int
    positions: int
    types: int
    """Rows of the token type table; 0 for families without one."""
    first_position: int
    """Row of the position table that the first token of a text uses."""
    layers: int
    width: int
    heads: int
    mlp: int
    activation: str
    eps: float
    dropout: float
    attention_dropout: float
    std: float

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise UserError(
                f"config.json: hidden size {self.width} does not split into {self.heads} heads."
            )
        check_activation(self.activation)


class Embeddings(nnx.Module):
    """Word + position (+ token type) vectors, normalised, with dropout."""

    def __init__(self, dims: EncoderDims, compute: Compute, *, rngs: nnx.Rngs):
        self.dims, self.dtype = dims, compute.dtype

        def table(rows: int, axis: str | None, name: str) -> Embed:
            hf = f"embeddings.{name}_embeddings"
            return Embed(rows, dims.width, axis=axis, hf=hf, std=dims.std, rngs=rngs)

        self.word = table(dims.vocab, "vocab", "word")
        self.position = table(dims.positions, None, "position")
        self.type = table(dims.types, None, "token_type") if dims.types else None
        self.norm = LayerNorm(dims.width, hf="embeddings.LayerNorm", eps=dims.eps)

    def __call__(self, tokens: Tokens, *, key: jax.Array | None) -> jax.Array:
        x_BLD = self.word(tokens.ids_BL)
        x_BLD = x_BLD + self.position(tokens.positions_BL + self.dims.first_position)
        if self.type is not None:
            x_BLD = x_BLD + self.type(tokens.types_BL)
        x_BLD = dropout(self.norm(x_BLD).astype(self.dtype), self.dims.dropout, key)
        return constrain_tokens(x_BLD)


class PostNormBlock(nnx.Module):
    """x -> norm(x + attention(x)) -> norm(x + mlp(x)), with dropout before each sum."""

    def __init__(self, dims: EncoderDims, names: BlockNames, compute: Compute, *, rngs: nnx.Rngs):
        self.dims, self.kernel = dims, compute.attention

        def linear(d_in: int, d_out: int, axes: tuple[str, str], hf: str) -> Linear:
            return Linear(d_in, d_out, axes=axes, hf=hf, std=dims.std, rngs=rngs)

        self.query = linear(dims.width, dims.width, ("embed", "heads"), names.query)
        self.key = linear(dims.width, dims.width, ("embed", "heads"), names.key)
        self.value = linear(dims.width, dims.width, ("embed", "heads"), names.value)
        self.out = linear(dims.width, dims.width, ("heads", "embed"), names.out)
        self.attention_norm = LayerNorm(dims.width, hf=names.attention_norm, eps=dims.eps)
        self.up = linear(dims.width, dims.mlp, ("embed", "mlp"), names.up)
        self.down = linear(dims.mlp, dims.width, ("mlp", "embed"), names.down)
        self.output_norm = LayerNorm(dims.width, hf=names.output_norm, eps=dims.eps)

    def __call__(self, x_BLD: jax.Array, side: Side, *, key: jax.Array | None) -> jax.Array:
        dims = self.dims
        weights_key, attention_key, mlp_key = split(key, 3)

        def heads(project: Linear) -> jax.Array:
            return mark(project(x_BLD).reshape(*x_BLD.shape[:2], dims.heads, -1), "qkv")

        mixed_BLHK = attention(
            heads(self.query),
            heads(self.key),
            heads(self.value),
            side,
            side,
            kernel=self.kernel,
            rate=dims.attention_dropout,
            key=weights_key,
        )
        mixed_BLD = self.out(mixed_BLHK.reshape(x_BLD.shape))
        x_BLD = self.attention_norm(x_BLD + dropout(mixed_BLD, dims.dropout, attention_key))
        hidden_BLF = mark(ACTIVATIONS[dims.activation](self.up(x_BLD)), "mlp_hidden")
        return self.output_norm(x_BLD + dropout(self.down(hidden_BLF), dims.dropout, mlp_key))


class PostNormEncoder(nnx.Module):
    """Embeddings and a stack of blocks; a family adds its heads."""

    def __init__(self, dims: EncoderDims, names: BlockNames, compute: Compute, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(dims, compute, rngs=rngs)
        self.encoder = Stack(
            lambda rngs: PostNormBlock(dims, names, compute, rngs=rngs),
            dims.layers,
            compute=compute,
            rngs=rngs,
        )

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None) -> jax.Array:
        """Hidden states of the last layer, [B, L, D]."""
        return self.hidden_states(tokens, key=key)[-1]

    def hidden_states(self, tokens: Tokens, *, key: jax.Array | None = None) -> list[jax.Array]:
        """What leaves the embeddings and each layer, every one [B, L, D]."""
        embed_key, layers_key = split(key, 2)
        x_BLD = self.embeddings(tokens, key=embed_key)
        last_BLD, all_NBLD = self.encoder(x_BLD, Side.of(tokens), key=layers_key)
        return [x_BLD, *all_NBLD[:-1], last_BLD]
