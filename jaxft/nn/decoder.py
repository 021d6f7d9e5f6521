"""What every decoder has: stacks of blocks, a last norm, heads, and a memory for generation.

B rows, L tokens, D model width, C classes, V vocabulary, N layers, M examples a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.nn.attention import Side
from jaxft.nn.gated import DecoderDims, GatedBlock
from jaxft.nn.layers import Compute, Embed, Linear, RMSNorm, split
from jaxft.nn.memory import Memory, Recall
from jaxft.nn.partition import constrain_tokens
from jaxft.nn.products import multiply
from jaxft.nn.rope import read_rope
from jaxft.nn.stack import Stack
from jaxft.nn.tokens import Tokens, last_token

HEAD = "lm_head"
"""What checkpoints call the language-model head, tied or not."""


class Decoder(nnx.Module):
    """Embeddings, stacks of blocks, a last norm, heads; a family says what each is made of.

    A family sets `dims`, `compute`, `embeddings`, `stacks`, `norm` and `heads`, and says in
    `embed` and `shared` what enters the first block and what all blocks get beside it.
    """

    OUTPUTS = ("classify", "causal_lm")
    dims: DecoderDims
    compute: Compute
    stacks: nnx.Dict
    heads: nnx.Dict
    norm: nnx.Module

    def embed(self, tokens: Tokens, *, key: jax.Array | None) -> jax.Array:
        """What enters the first block, [B, L, D]."""
        raise NotImplementedError

    def shared(self, tokens: Tokens) -> tuple:
        """What every block gets beside its input."""
        raise NotImplementedError

    @property
    def table_VD(self) -> jax.Array:
        """The word vectors."""
        raise NotImplementedError

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None) -> jax.Array:
        """Hidden states after the last norm, [B, L, D]."""
        return self.hidden_states(tokens, key=key)[-1]

    def hidden_states(self, tokens: Tokens, *, key: jax.Array | None = None) -> list[jax.Array]:
        """What leaves the embeddings and each layer, every one [B, L, D]; the last is normed."""
        embed_key, *keys = split(key, 1 + len(self.stacks))
        x_BLD = constrain_tokens(self.embed(tokens, key=embed_key))
        shared, states = self.shared(tokens), [x_BLD]
        for stack, stack_key in zip(self.stacks.values(), keys, strict=True):
            x_BLD, all_NBLD = stack(x_BLD, *shared, key=stack_key)
            states.extend(all_NBLD)
        return [*states[:-1], self.norm(x_BLD)]

    def classify(
        self,
        hidden_BLD: jax.Array,
        tokens: Tokens,
        *,
        examples: int = 1,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, M, C] of each example's last token, in float32."""
        last_BMD = last_token(hidden_BLD, tokens.segments_BL, examples)
        return self.heads["classify"](last_BMD.astype(jnp.float32))

    @property
    def vocabulary_DV(self) -> jax.Array:
        """The matrix that gives logits over the vocabulary: its own, or the word vectors'."""
        if self.dims.tied:
            return self.table_VD.T
        return self.heads["causal_lm"].kernel[...]

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """Logits over the vocabulary, [B, L, V], in float32."""
        return multiply(hidden_BLD, self.vocabulary_DV).astype(jnp.float32)

    def empty_memory(self, rows: int, length: int) -> list[Memory]:
        """Room for `length` tokens a row, one memory per stack."""
        dims = self.dims
        dtype = jnp.dtype(self.compute.dtype)

        def room(layers: int) -> jax.Array:
            return jnp.zeros((layers, rows, length, dims.kv_heads, dims.head_width), dtype)

        return [Memory(room(stack.count), room(stack.count)) for stack in self.stacks.values()]

    def extend(
        self, tokens: Tokens, memory: Sequence[Memory], recall: Recall
    ) -> tuple[jax.Array, list[Memory]]:
        """Hidden states of new tokens, [B, L, D], and the memory that then holds them too."""
        x_BLD = constrain_tokens(self.embed(tokens, key=None))
        shared, renewed = self.shared(tokens), []
        for stack, part in zip(self.stacks.values(), memory, strict=True):
            x_BLD, part = stack.extend(x_BLD, *shared, recall, memory=part)
            renewed.append(part)
        return self.norm(x_BLD), renewed


@dataclass(frozen=True)
class RotaryDims:
    """The fields of `config.json` that Llama and its relatives share, with transformers' names and
    Llama's defaults; a family adds its own, and says in `differences` what they mean.
    """

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
    attention_dropout: float = 0.0

    @property
    def differences(self) -> dict[str, Any]:
        """Fields of `DecoderDims` that only some families have, or have otherwise."""
        return {}

    @property
    def decoder(self) -> DecoderDims:
        head_width = self.head_dim or self.hidden_size // self.num_attention_heads
        shared: dict[str, Any] = {
            "vocab": self.vocab_size,
            "layers": self.num_hidden_layers,
            "width": self.hidden_size,
            "heads": self.num_attention_heads,
            "kv_heads": self.num_key_value_heads or self.num_attention_heads,
            "head_width": head_width,
            "mlp": self.intermediate_size,
            "activation": self.hidden_act,
            "eps": self.rms_norm_eps,
            "std": self.initializer_range,
            "tied": self.tie_word_embeddings,
            "rope": read_rope(
                head_width,
                self.max_position_embeddings,
                self.rope_theta,
                self.rope_scaling,
                self.rope_parameters,
            ),
            "attention_dropout": self.attention_dropout,
        }
        return DecoderDims(**shared | self.differences)

    @property
    def heads(self) -> int:
        """What `mesh.tensor` must divide."""
        return self.decoder.kv_heads

    @property
    def head_width(self) -> int:
        return self.decoder.head_width

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings


class RotaryDecoder(Decoder):
    """A decoder with rotary positions and gated blocks: Llama and its relatives.

    `config` is a family's `Dims`.
    """

    def __init__(
        self,
        config: RotaryDims,
        *,
        output: str | None = None,
        num_labels: int = 0,
        compute: Compute = Compute(),
        rngs: nnx.Rngs,
    ):
        self.dims, self.compute = config.decoder, compute
        dims = self.dims
        self.embeddings = Embed(
            dims.vocab,
            dims.width,
            axis="vocab",
            hf="embed_tokens",
            std=dims.std,
            rngs=rngs,
            tied=HEAD + ".weight" if dims.tied else None,
        )
        self.stacks = stacks(
            dims, lambda window, rngs: GatedBlock(dims, window, compute, rngs=rngs), compute, rngs
        )
        self.norm = RMSNorm(dims.width, hf="norm", eps=dims.eps)
        self.heads = heads(dims, output, num_labels, rngs)

    def embed(self, tokens: Tokens, *, key: jax.Array | None) -> jax.Array:
        return self.embeddings(tokens.ids_BL).astype(self.compute.dtype)

    def shared(self, tokens: Tokens) -> tuple:
        assert self.dims.rope is not None
        return Side.of(tokens), self.dims.rope(tokens.positions_BL)

    @property
    def table_VD(self) -> jax.Array:
        return self.embeddings.table[...]


def stacks(
    dims: DecoderDims,
    block: Callable[[int | None, nnx.Rngs], nnx.Module],
    compute: Compute,
    rngs: nnx.Rngs,
    facts: Sequence[Callable[[int], float]] = (),
) -> nnx.Dict:
    """A stack per run of layers with the same window, by the number of its first layer."""

    def stack(first: int, count: int, window: int | None) -> Stack:
        return Stack(
            lambda rngs: block(window, rngs),
            count,
            compute=compute,
            rngs=rngs,
            start=first,
            facts=facts,
        )

    return nnx.Dict({f"from_{run[0]}": stack(*run) for run in dims.runs()})


def heads(dims: DecoderDims, output: str | None, num_labels: int, rngs: nnx.Rngs) -> nnx.Dict:
    """The head that `output` names; a tied language-model head has no weights of its own."""
    made: dict[str, Linear] = {}
    if output == "classify":
        axes: tuple[str | None, str | None] = ("embed", None)
        made["classify"] = Linear(
            dims.width, num_labels, axes=axes, hf="score", std=dims.std, bias=False, rngs=rngs
        )
    elif output == "causal_lm" and not dims.tied:
        axes = ("embed", "vocab")
        made["causal_lm"] = Linear(
            dims.width, dims.vocab, axes=axes, hf=HEAD, std=dims.std, bias=False, rngs=rngs
        )
    return nnx.Dict(made)
