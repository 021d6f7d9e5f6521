"""What decoders are made of: causal attention with a memory, gated pre-norm blocks, heads.

B rows, L tokens, S remembered tokens, D model width, H heads, G key-value heads, K head width, F
feed-forward width, V vocabulary, N layers, M examples a row. Source: Touvron et al. 2023 (Llama),
section 2.2; transformers 5.23 `LlamaDecoderLayer`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxft.errors import UserError
from jaxft.nn.attention import Side, attention
from jaxft.nn.layers import (
    ACTIVATIONS,
    Compute,
    Embed,
    Linear,
    RMSNorm,
    constrain_rows,
    split,
)
from jaxft.nn.rope import Rope, Rotation, rotate
from jaxft.nn.stack import Stack
from jaxft.nn.tokens import Tokens, last_token

HEAD = "lm_head"
"""What checkpoints call the language-model head, tied or not."""


class Memory(NamedTuple):
    """Keys and values of the tokens so far, each [B, S, G, K]; [N, B, S, G, K] for a stack."""

    k: jax.Array
    v: jax.Array


class Recall(NamedTuple):
    """Where new tokens go in a memory, and what is in it."""

    start: jax.Array
    """int32: the place of the first new token, the same in all rows."""
    keys: Side
    """Of everything remembered, the new tokens included; empty places have segment 0."""


@dataclass(frozen=True)
class DecoderDims:
    """Sizes and rates of a decoder, whatever the family's config calls them.

    Raises:
        UserError: sizes that do not fit each other, or an activation we do not have.
    """

    vocab: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int
    activation: str
    eps: float
    std: float
    tied: bool
    rope: Rope | None = None
    windows: tuple[int | None, ...] = ()
    """A sliding window per layer; empty: none anywhere."""
    attention_bias: bool = False
    """On queries, keys and values."""
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    attention_dropout: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise UserError(
                f"config.json: {self.heads} attention heads cannot share {self.kv_heads} key-value "
                "heads evenly."
            )
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(f"config.json: activation {self.activation!r} is not one of {known}.")
        if len(self.windows) not in (0, self.layers):
            raise UserError(
                f"config.json: layer_types names {len(self.windows)} layers of {self.layers}."
            )
        if any(window is not None and window < 1 for window in self.windows):
            raise UserError("config.json: a sliding_window below 1 hides a token from itself.")

    def runs(self) -> Iterator[tuple[int, int, int | None]]:
        """(first layer, layers, window) of the neighbouring layers with equal windows."""
        windows = self.windows or (None,) * self.layers
        for window, members in groupby(range(self.layers), lambda i: windows[i]):
            first, *others = members
            yield first, 1 + len(others), window


class Attention(nnx.Module):
    """Causal self-attention of a Llama-like block."""

    def __init__(self, dims: DecoderDims, window: int | None, compute: Compute, *, rngs: nnx.Rngs):
        self.dims, self.window, self.kernel = dims, window, compute.attention
        q_width, kv_width = dims.heads * dims.head_width, dims.kv_heads * dims.head_width
        hf = "layers.{layer}.self_attn"

        def linear(d_in: int, d_out: int, axes: tuple[str, str], name: str, bias: bool) -> Linear:
            return Linear(
                d_in, d_out, axes=axes, hf=f"{hf}.{name}", std=dims.std, bias=bias, rngs=rngs
            )

        inwards = ("embed", "heads")
        self.query = linear(dims.width, q_width, inwards, "q_proj", dims.attention_bias)
        self.key = linear(dims.width, kv_width, inwards, "k_proj", dims.attention_bias)
        self.value = linear(dims.width, kv_width, inwards, "v_proj", dims.attention_bias)
        self.out = linear(q_width, dims.width, ("heads", "embed"), "o_proj", dims.output_bias)
        if dims.qk_norm:
            width, eps = dims.head_width, dims.eps
            self.query_norm = RMSNorm(width, hf=f"{hf}.q_norm", eps=eps, axis=None)
            self.key_norm = RMSNorm(width, hf=f"{hf}.k_norm", eps=eps, axis=None)

    def __call__(
        self, x_BLD: jax.Array, side: Side, rotation: Rotation, *, key: jax.Array | None
    ) -> jax.Array:
        q_BLHK, k_BLGK, v_BLGK = self._project(x_BLD, rotation)
        return self._mix(q_BLHK, k_BLGK, v_BLGK, side, side, self.kernel, key)

    def extend(
        self, x_BLD: jax.Array, side: Side, rotation: Rotation, recall: Recall, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        """New tokens at `recall.start` of the memory, which they see with all before them."""
        q_BLHK, k_BLGK, v_BLGK = self._project(x_BLD, rotation)
        memory = remember(memory, k_BLGK, v_BLGK, recall)
        mixed_BLD = self._mix(q_BLHK, memory.k, memory.v, side, recall.keys, "xla", None)
        return mixed_BLD, memory

    def _project(
        self, x_BLD: jax.Array, rotation: Rotation
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def heads(x_BLD: jax.Array) -> jax.Array:
            return x_BLD.reshape(*x_BLD.shape[:2], -1, self.dims.head_width)

        q_BLHK, k_BLGK = heads(self.query(x_BLD)), heads(self.key(x_BLD))
        if self.dims.qk_norm:
            q_BLHK, k_BLGK = self.query_norm(q_BLHK), self.key_norm(k_BLGK)
        return rotate(q_BLHK, rotation), rotate(k_BLGK, rotation), heads(self.value(x_BLD))

    def _mix(
        self,
        q_BLHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        queries: Side,
        keys: Side,
        kernel: str,
        key: jax.Array | None,
    ) -> jax.Array:
        mixed_BLHK = attention(
            q_BLHK,
            k_BSGK,
            v_BSGK,
            queries,
            keys,
            kernel=kernel,
            causal=True,
            window=self.window,
            rate=self.dims.attention_dropout,
            key=key,
        )
        return self.out(mixed_BLHK.reshape(*mixed_BLHK.shape[:2], -1))


def remember(memory: Memory, k_BLGK: jax.Array, v_BLGK: jax.Array, recall: Recall) -> Memory:
    """The memory with new keys and values from `recall.start` on."""
    at = (0, recall.start, 0, 0)
    k = lax.dynamic_update_slice(memory.k, k_BLGK.astype(memory.k.dtype), at)
    v = lax.dynamic_update_slice(memory.v, v_BLGK.astype(memory.v.dtype), at)
    return Memory(k, v)


class GatedBlock(nnx.Module):
    """x + attention(norm(x)), then x + down(act(gate(norm(x))) * up(norm(x)))."""

    def __init__(self, dims: DecoderDims, window: int | None, compute: Compute, *, rngs: nnx.Rngs):
        self.activation = dims.activation
        hf = "layers.{layer}"

        def linear(d_in: int, d_out: int, axes: tuple[str, str], name: str) -> Linear:
            return Linear(
                d_in,
                d_out,
                axes=axes,
                hf=f"{hf}.mlp.{name}",
                std=dims.std,
                bias=dims.mlp_bias,
                rngs=rngs,
            )

        self.attention_norm = RMSNorm(dims.width, hf=f"{hf}.input_layernorm", eps=dims.eps)
        self.attention = Attention(dims, window, compute, rngs=rngs)
        self.mlp_norm = RMSNorm(dims.width, hf=f"{hf}.post_attention_layernorm", eps=dims.eps)
        self.gate = linear(dims.width, dims.mlp, ("embed", "mlp"), "gate_proj")
        self.up = linear(dims.width, dims.mlp, ("embed", "mlp"), "up_proj")
        self.down = linear(dims.mlp, dims.width, ("mlp", "embed"), "down_proj")

    def __call__(
        self, x_BLD: jax.Array, side: Side, rotation: Rotation, *, key: jax.Array | None
    ) -> jax.Array:
        x_BLD += self.attention(self.attention_norm(x_BLD), side, rotation, key=key)
        return x_BLD + self._mlp(x_BLD)

    def extend(
        self, x_BLD: jax.Array, side: Side, rotation: Rotation, recall: Recall, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        mixed_BLD, memory = self.attention.extend(
            self.attention_norm(x_BLD), side, rotation, recall, memory
        )
        x_BLD += mixed_BLD
        return x_BLD + self._mlp(x_BLD), memory

    def _mlp(self, x_BLD: jax.Array) -> jax.Array:
        x_BLD = self.mlp_norm(x_BLD)
        return self.down(ACTIVATIONS[self.activation](self.gate(x_BLD)) * self.up(x_BLD))


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
        x_BLD = constrain_rows(self.embed(tokens, key=embed_key))
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
        with jax.numpy_dtype_promotion("standard"):
            logits_BLV = hidden_BLD @ self.vocabulary_DV.astype(hidden_BLD.dtype)
        return logits_BLV.astype(jnp.float32)

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
        x_BLD = constrain_rows(self.embed(tokens, key=None))
        shared, renewed = self.shared(tokens), []
        for stack, part in zip(self.stacks.values(), memory, strict=True):
            x_BLD, part = stack.extend(x_BLD, *shared, recall, memory=part)
            renewed.append(part)
        return self.norm(x_BLD), renewed


class RotaryDecoder(Decoder):
    """A decoder with rotary positions and gated blocks: Llama and its relatives.

    `config` is a family's `Dims`.
    """

    def __init__(
        self,
        config: Any,
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
) -> nnx.Dict:
    """A stack per run of layers with the same window, by the number of its first layer."""

    def stack(first: int, count: int, window: int | None) -> Stack:
        return Stack(
            lambda rngs: block(window, rngs), count, compute=compute, rngs=rngs, start=first
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
