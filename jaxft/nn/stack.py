"""Layers of one kind, stacked along a leading axis and run by one scan, whatever the depth."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxft.nn.layers import Compute
from jaxft.nn.partition import constrain_tokens
from jaxft.nn.remat import mark, recomputed


class Stack(nnx.Module):
    """`count` layers built by `layer(rngs)`, whose checkpoint names hold `{layer}`.

    The i-th is layer `start + stride * i` of the checkpoint. A fact that differs from layer to
    layer is a function of that number, and each layer gets its own, float32, after its input.
    """

    def __init__(
        self,
        layer: Callable[[nnx.Rngs], nnx.Module],
        count: int,
        *,
        compute: Compute,
        rngs: nnx.Rngs,
        start: int = 0,
        stride: int = 1,
        facts: Sequence[Callable[[int], float]] = (),
    ):
        self.count, self.compute = count, compute
        self.layers = nnx.vmap(layer)(rngs.split(count))
        indices = tuple(range(start, start + stride * count, stride))
        self.facts = tuple(tuple(map(fact, indices)) for fact in facts)
        for _, param in nnx.to_flat_state(nnx.state(self.layers, nnx.Param)):
            param.set_metadata("layers", indices)

    def __call__(
        self, x_BLD: jax.Array, *args: Any, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the last layer's output and every layer's output, [count, B, L, D].

        The latter costs nothing when the caller drops it. Each layer gets `x`, its facts, `args`
        and `key`.
        """
        graph, layers = self._split()
        keys = None if key is None else jax.random.split(key, self.count)

        def body(x_BLD: jax.Array, layer: tuple) -> tuple[jax.Array, jax.Array]:
            (weights, facts), key = layer
            x_BLD = mark(x_BLD, "block_input")
            x_BLD = constrain_tokens(nnx.merge(graph, weights)(x_BLD, *facts, *args, key=key))
            return x_BLD, x_BLD

        compute = self.compute
        kept = dict(compute.kept_activations)
        body = recomputed(body, compute.activation_checkpointing, kept)
        return lax.scan(body, x_BLD, (layers, keys), unroll=compute.unroll_layers)

    def extend(self, x_BLD: jax.Array, *args: Any, memory: Any) -> tuple[jax.Array, Any]:
        """Through layers that remember: each gets its slice of `memory` (leaves [count, ...]) and
        returns it renewed beside its output.
        """
        graph, layers = self._split()

        def body(x_BLD: jax.Array, one: tuple) -> tuple[jax.Array, Any]:
            (weights, facts), memory = one
            layer: Any = nnx.merge(graph, weights)
            return layer.extend(x_BLD, *facts, *args, memory=memory)

        return lax.scan(body, x_BLD, (layers, memory))

    def _split(self) -> tuple[Any, tuple]:
        """What all layers are, and what each has: its weights and its facts."""
        graph, state = nnx.split(self.layers)
        return graph, (nnx.to_pure_dict(state), [jnp.float32(fact) for fact in self.facts])
