"""What checkpointing keeps of a layer changes memory, never numbers."""

from collections.abc import Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import Blueprint
from jaxft.nn.layers import Compute
from jaxft.nn.remat import Activation
from jaxft.nn.tokens import Tokens
from jaxft.nn.weights import unflatten

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
    "qwen3": LLAMA | {"head_dim": 8},
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
"""Relative to the largest: recomputed sums are fused, and so rounded, otherwise."""


def gradients(family: str, compute: Compute) -> tuple[Any, Any]:
    """A function of weights that gives a loss and its gradients, and weights."""
    drawn = Blueprint.draw({"model_type": family} | COMMON | FAMILIES[family], compute=compute)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = drawn.initialise(set(drawn.weights), dict.fromkeys(drawn.weights, here), seed=1)
    ids_BL = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
    places_BL = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32), (2, 8))
    tokens = Tokens(ids_BL, jnp.ones_like(ids_BL), places_BL, jnp.zeros_like(ids_BL))

    def loss(params: Any) -> jax.Array:
        hidden_BLD: Any = drawn.merge(params)(tokens)  # type: ignore[operator]
        return jnp.sin(3 * hidden_BLD).sum()

    return jax.value_and_grad(loss), unflatten(params)


def marked(jaxpr: Any) -> Iterator[str]:
    """The names in a program and in those inside of it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name":
            yield equation.params["name"]
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from marked(inner)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_marks_every_name(family):
    function, params = gradients(family, Compute())
    assert set(marked(jax.make_jaxpr(function)(params).jaxpr)) == set(NAMES)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_is_kept_or_recomputed_changes_no_gradient(family):
    function, params = gradients(family, Compute())
    plain = jax.jit(function)(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain))
    for way in WAYS.values():
        function, _ = gradients(family, Compute(**way))
        for one, other in zip(
            jax.tree.leaves(jax.jit(function)(params)), jax.tree.leaves(plain), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=REORDERED * np.abs(other).max())
