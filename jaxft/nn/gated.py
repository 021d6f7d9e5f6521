"""The block of Llama and its relatives: grouped-query attention with a memory, gated feed-forward.

B rows, L tokens, S remembered tokens, D model width, H heads, G key-value heads, K head width, F
feed-forward width, E = H * K. Source: Touvron et al. 2023 (Llama), section 2.2; transformers 5.23
`LlamaDecoderLayer`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import jax
from flax import nnx

from jaxft.errors import UserError
from jaxft.nn.attention import Side, attention
from jaxft.nn.layers import ACTIVATIONS, Compute, Linear, RMSNorm, check_activation
from jaxft.nn.memory import Memory, Recall, remember
from jaxft.nn.remat import mark
from jaxft.nn.rope import Rope, Rotation, rotate


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
        check_activation(self.activation)
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
        q_BLHK, k_BLGK = rotate(q_BLHK, rotation), rotate(k_BLGK, rotation)
        v_BLGK = heads(self.value(x_BLD))
        return mark(q_BLHK, "qkv"), mark(k_BLGK, "qkv"), mark(v_BLGK, "qkv")

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
        mixed_BLE = mixed_BLHK.reshape(*mixed_BLHK.shape[:2], -1)
        return self.out(mixed_BLE)


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
        hidden_BLF = ACTIVATIONS[self.activation](self.gate(x_BLD)) * self.up(x_BLD)
        return self.down(mark(hidden_BLF, "mlp_hidden"))
