"""Dropout, activations, normalisation and pooling by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import CASES, LABELS, random_tokens
from transformers.activations import ACT2FN

import jaxft.nn.attention
import jaxft.nn.encoder
from jaxft.models import Blueprint
from jaxft.nn.attention import Side, attention
from jaxft.nn.layers import ACTIVATIONS, LayerNorm, dropout
from jaxft.nn.tokens import first_token, last_token
from jaxft.nn.weights import unflatten

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")

ELEMENTS = 1_000_000


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    x = np.asarray(dropout(jnp.ones(ELEMENTS), rate, jax.random.key(0)))
    zeros = float((x == 0).mean())
    spread = np.sqrt(rate * (1 - rate) / ELEMENTS)
    assert abs(zeros - rate) < 5 * spread
    kept = np.unique(x[x != 0])
    np.testing.assert_allclose(kept, [1 / (1 - rate)], rtol=1e-3)
    assert abs(x.mean() - 1) < 5 * spread / (1 - rate)


def test_dropout_is_independent_between_elements_rows_and_keys():
    """The share of pairs that are dropped together is that of independent ones."""
    rate, shape = 0.3, (1000, 1000)
    mask, other = (
        np.asarray(dropout(jnp.ones(shape), rate, jax.random.key(k)) == 0) for k in (0, 1)
    )
    neighbours = {
        "columns": (mask[:, 1:], mask[:, :-1]),
        "rows": (mask[1:], mask[:-1]),
        "keys": (mask, other),
    }
    for name, (a, b) in neighbours.items():
        assert abs((a & b).mean() - rate**2) < 5 * rate / ELEMENTS**0.5, name
    spread = np.sqrt(rate * (1 - rate) / 1000)
    for axis in (0, 1):
        np.testing.assert_allclose(mask.mean(axis), rate, atol=5.5 * spread)


def test_dropout_without_a_key_or_a_rate_changes_nothing():
    x = jnp.arange(8.0)
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)


@pytest.mark.parametrize("family", CASES)
def test_every_dropout_has_its_config_rate_and_a_key_of_its_own(family, monkeypatch):
    calls = []

    def spy(x, rate, key):
        calls.append((rate, key))
        return x

    config = {"model_type": family, **CASES[family]}
    drawn = Blueprint.draw(config, output="classify", num_labels=LABELS)
    for module in (jaxft.nn.encoder, jaxft.nn.attention, drawn.module):
        monkeypatch.setattr(module, "dropout", spy)

    def run(params, tokens, body_key, head_key):
        model = drawn.merge(params)
        return model.classify(model(tokens, key=body_key), tokens, key=head_key)

    shapes = {path: jax.ShapeDtypeStruct(w.shape, np.float32) for path, w in drawn.weights.items()}
    jax.eval_shape(
        run, unflatten(shapes), random_tokens(64, 1), *jax.random.split(jax.random.key(0))
    )
    heads = [0.4, 0.4] if family == "roberta" else [0.4]
    # The layers' scan is traced once; `test_a_stack_equals_...` sees that each layer has a key.
    assert [rate for rate, _ in calls] == [0.2, 0.3, 0.2, 0.2, *heads]
    assert len({id(key) for _, key in calls}) == len(calls)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_equals_transformers(name):
    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    # Of 1 + erf(x) and 1 + tanh(x) a rounding of 1 stays, times x.
    atol = 8 * 2**-23
    np.testing.assert_allclose(ACTIVATIONS[name](x), ACT2FN[name](torch.tensor(x)), atol=atol)


def test_gelu_keeps_its_left_tail_in_bfloat16():
    x = jnp.linspace(-4, 0, 999).astype(jnp.bfloat16)
    # Rounding is 2^-9; in bfloat16 throughout, the tail would be wrong by 45 %.
    exact = ACT2FN["gelu"](torch.tensor(np.asarray(x, np.float64)))
    np.testing.assert_allclose(np.asarray(ACTIVATIONS["gelu"](x), np.float64), exact, rtol=2**-7)


def test_layer_norm_equals_torch_far_from_zero():
    """The variance of centred values, not a difference of squares."""
    x = np.random.default_rng(0).normal(300, 1, (16, 64)).astype(np.float32)
    expected = torch.nn.functional.layer_norm(torch.tensor(x).double(), (64,), eps=1e-12).numpy()
    ours = LayerNorm(64, hf="norm", eps=1e-12)(x)
    np.testing.assert_allclose(ours, expected, atol=3e-4)  # 300 has an ulp of 3e-5


def test_layer_norm_computes_in_float32_for_bfloat16():
    x = np.random.default_rng(0).normal(20, 1, (16, 64)).astype(np.float32)
    rounded = jnp.asarray(x, jnp.bfloat16)
    norm = LayerNorm(64, hf="norm", eps=1e-12)
    assert norm(rounded).dtype == jnp.bfloat16
    expected = norm(rounded.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(norm(rounded), expected)


def test_first_and_last_token_are_found_on_either_side_and_of_every_example():
    hidden_BLD = jnp.arange(3 * 5.0).reshape(3, 5, 1)
    segments_BL = jnp.array([[1, 1, 2, 0, 0], [0, 0, 1, 1, 1], [1, 2, 2, 3, 3]])
    first_BM = first_token(hidden_BLD, segments_BL, examples=3)[..., 0].tolist()
    last_BM = last_token(hidden_BLD, segments_BL, examples=3)[..., 0].tolist()
    # Of an example that is not there nothing is asked but that the place is inside its row.
    assert (first_BM[0][:2], last_BM[0][:2]) == ([0, 2], [1, 2])
    assert (first_BM[1][:1], last_BM[1][:1]) == ([7], [9])
    assert (first_BM[2], last_BM[2]) == ([10, 11, 13], [10, 12, 14])
    assert {*first_BM[0], *last_BM[0]} <= set(range(5))


def test_cudnn_attention_refuses_dropout_instead_of_falling_back():
    x = jnp.zeros((1, 4, 2, 8), jnp.bfloat16)
    side = Side(jnp.ones((1, 4), int), jnp.arange(4)[None])
    with pytest.raises(ValueError, match="no attention dropout"):
        attention(x, x, x, side, side, kernel="cudnn", rate=0.1, key=jax.random.key(0))
