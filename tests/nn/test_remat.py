"""What checkpointing keeps of a layer changes memory, never numbers."""

from collections.abc import Callable, Iterator
from typing import Any, get_args

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_bert import random_tree

from jaxft.models import Blueprint
from jaxft.nn.layers import Compute
from jaxft.nn.remat import Activation
from jaxft.nn.tokens import Tokens
from jaxft.nn.weights import Tree, map_weights

NAMES = get_args(Activation)
COMMON = {"vocab_size": 32, "initializer_range": 0.2}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = BERT | {"intermediate_size": 32, "max_position_embeddings": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": BERT | {"intermediate_size": 32},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "roberta": BERT | {"intermediate_size": 32, "pad_token_id": 1},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "llama": LLAMA,
    "qwen3": LLAMA | {"head_dim": 8, "num_key_value_heads": 1},
}
WAYS: dict[str, dict[str, Any]] = {
    "dots": {"activation_checkpointing": "dots"},
    "full": {"activation_checkpointing": "full"},
    "all named ones on the device": {
        "activation_checkpointing": "full",
        "kept_activations": tuple((name, "device") for name in NAMES),
    },
    "all named ones on the host": {
        "activation_checkpointing": "full",
        "kept_activations": tuple((name, "host") for name in NAMES),
    },
}
REORDERED = 2e-6
"""Relative to the largest gradient: recomputed sums are fused, and so rounded, otherwise."""


def draw(family: str, **compute: Any) -> Blueprint:
    config = {"model_type": family} | COMMON | FAMILIES[family]
    return Blueprint.draw(config, compute=Compute(**compute))


def gradients(drawn: Blueprint) -> Callable[[Tree], tuple[jax.Array, Tree]]:
    """A function of the weights that gives a loss and its gradients."""
    ids_BL = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
    places_BL = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32), (2, 8))
    tokens = Tokens(ids_BL, jnp.ones_like(ids_BL), places_BL, jnp.zeros_like(ids_BL))

    def loss(params: Any) -> jax.Array:
        hidden_BLD: Any = drawn.merge(params)(tokens)  # type: ignore[operator]
        return jnp.sin(3 * hidden_BLD).sum()

    return jax.value_and_grad(loss)


def marked(jaxpr: Any) -> Iterator[str]:
    """The names in a program and in those inside of it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name":
            yield equation.params["name"]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from marked(inner)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_marks_every_name(family):
    drawn = draw(family)
    params = map_weights(lambda w: jax.ShapeDtypeStruct(w.shape, np.float32), drawn.weights)
    assert set(marked(jax.make_jaxpr(gradients(drawn))(params).jaxpr)) == set(NAMES)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_is_kept_or_recomputed_changes_no_gradient(family):
    drawn = draw(family)
    params = random_tree(drawn.weights, 0)
    plain = jax.tree.leaves(jax.jit(gradients(drawn))(params))
    largest = max(np.abs(leaf).max() for leaf in plain)
    for way in WAYS.values():
        found = jax.tree.leaves(jax.jit(gradients(draw(family, **way)))(params))
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=REORDERED * largest)
