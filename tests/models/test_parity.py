"""Every family equals transformers, however it is padded, packed, stacked, split or recomputed."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from parity import (
    CASES,
    LABELS,
    Outputs,
    Pair,
    assert_close,
    assert_same,
    assert_same_hidden,
    random_tokens,
    tiny,
)
from transformers import AutoModelForSequenceClassification

from jaxft.nn.attention import Side
from jaxft.nn.weights import flatten, unflatten
from jaxft.sharding import AXES, ROWS, Places, make_mesh


def draw(family: str) -> Pair:
    return Pair.of(tiny(family, **CASES[family]))


def tokens_of(pair: Pair, left: bool = False):
    encoder = pair.drawn.dims.encoder
    return random_tokens(encoder.vocab, encoder.types, left=left)


@pytest.fixture(scope="module", params=CASES)
def pair(request) -> Pair:
    return draw(request.param)


@pytest.fixture(scope="module")
def bert() -> Pair:
    return draw("bert")


def test_every_field_of_a_family_is_tried_away_from_its_default(pair):
    dims = pair.drawn.dims
    same = [f.name for f in dataclasses.fields(dims) if getattr(dims, f.name) == f.default]
    assert not same


def test_logits_hidden_states_and_gradients_equal_transformers(pair):
    tokens = tokens_of(pair)
    assert_same(pair.ours(tokens), pair.expected(tokens))


def test_pitfall_29_pooling_with_left_padding(pair):
    """Hidden states equal transformers' on the left too; the logits do not depend on the side."""
    left, right = tokens_of(pair, left=True), tokens_of(pair)
    ours = pair.ours(left)
    assert_same_hidden(ours, pair.expected(left, grads=False))
    assert_close(ours.logits, pair.expected(right, grads=False).logits, "logits")


def test_minilm_equals_transformers(minilm):
    theirs = AutoModelForSequenceClassification.from_pretrained(
        minilm, num_labels=LABELS, attn_implementation="eager"
    )
    pair = Pair.of(theirs.eval())
    tokens = tokens_of(pair)
    assert_same(pair.ours(tokens), pair.expected(tokens))


def test_two_texts_packed_in_one_row_do_not_see_each_other(pair):
    alone = tokens_of(pair)
    packed = jax.tree.map(np.zeros_like, alone)
    couples = [(1, 6), (4, 2), (7, 3)]  # rows whose lengths add up to LENGTH or less
    places = []
    for row, couple in enumerate(couples):
        start = 0
        for segment, source in enumerate(couple, start=1):
            length = int(alone.segments_BL[source].sum())
            place = slice(start, start + length)
            for mine, texts in zip(packed, alone, strict=True):
                mine[row, place] = texts[source, :length]
            packed.segments_BL[row, place] = segment
            places.append((row, place, source, length))
            start += length
    ours, expected = pair.ours(packed), pair.ours(alone)
    for mine, texts in zip(ours.hidden, expected.hidden, strict=True):
        for row, place, source, length in places:
            assert_close(mine[row, place], texts[source, :length], f"text {source}")
    # The rows that are left are padding alone: attention over nothing must not become NaN.
    assert all(np.isfinite(gradient).all() for gradient in ours.grads.values())


@pytest.fixture(scope="module")
def dropped(bert) -> Outputs:
    """BERT with dropout."""
    return bert.ours(tokens_of(bert), key=jax.random.key(3))


def test_a_stack_equals_its_layers_one_by_one(bert, dropped):
    tokens, key = tokens_of(bert), jax.random.key(3)

    @jax.jit
    def layer_by_layer(params):
        model = bert.drawn.merge(params)
        embed_key, layers_key = jax.random.split(key)
        hidden = [model.embeddings(tokens, key=embed_key)]
        graph, state = nnx.split(model.encoder.layers)
        stacked = nnx.to_pure_dict(state)
        for i, layer_key in enumerate(jax.random.split(layers_key, model.encoder.count)):
            layer = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
            hidden.append(layer(hidden[-1], Side.of(tokens), key=layer_key))
        return hidden

    real_BL1 = tokens.segments_BL[..., None] != 0
    for i, expected in enumerate(layer_by_layer(bert.params)):
        assert_close(dropped.hidden[i], np.where(real_BL1, expected, 0), f"hidden state {i}")


@pytest.mark.parametrize(
    "compute",
    [
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "dots"},
        {"unroll_layers": True},
    ],
    ids=str,
)
def test_recomputing_and_unrolling_change_nothing(bert, dropped, compute):
    """With dropout: what is recomputed drops the same elements again."""
    assert_same(bert.redrawn(**compute).ours(tokens_of(bert), key=jax.random.key(3)), dropped)


@pytest.mark.parametrize(
    ("family", "split"),
    [
        ("bert", (8, 1, 1, 1)),
        ("bert", (1, 8, 1, 1)),
        ("roberta", (2, 2, 1, 2)),
        ("distilbert", (2, 1, 2, 2)),
    ],
    ids=str,
)
def test_one_device_equals_eight(family, split, bert, dropped, capfd):
    """data x fsdp x context x tensor; BERT with dropout, whose mask depends on no split."""
    if family == "bert":
        assert_same(on_mesh(bert, split, jax.random.key(3)), dropped)
    else:
        other = draw(family)
        assert_same(on_mesh(other, split, None), other.ours(tokens_of(other)))
    # What XLA says when it copies an activation to all devices, for want of a better way.
    assert "full rematerialization" not in capfd.readouterr().err


def on_mesh(pair: Pair, split: tuple[int, int, int, int], key: jax.Array | None) -> Outputs:
    """Outputs of eight devices, the weights and rows split over them."""
    mesh = make_mesh(dict(zip(AXES, split, strict=True)))
    shardings = Places(pair.drawn.weights, mesh).params
    params = unflatten({p: jax.device_put(x, shardings[p]) for p, x in flatten(pair.params)})
    replicated = [p for p, x in flatten(params) if x.sharding.is_fully_replicated]
    assert (len(replicated) == len(shardings)) == (split == (8, 1, 1, 1))
    tokens = jax.device_put(tokens_of(pair), NamedSharding(mesh, ROWS))
    with jax.set_mesh(mesh):
        return dataclasses.replace(pair).ours(tokens, params, key=key)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(bert):
    tokens = tokens_of(bert)

    def run(params):
        model = bert.redrawn(dtype="bfloat16").drawn.merge(params)
        hidden_BLD = model(tokens)
        return hidden_BLD, model.classify(hidden_BLD, tokens)[:, 0]

    hidden_BLD, logits_BC = jax.jit(run)(bert.params)
    assert hidden_BLD.dtype == jax.numpy.bfloat16
    assert logits_BC.dtype == np.float32
    # 8 bits of mantissa through three layers with attention logits of some units.
    np.testing.assert_allclose(logits_BC, bert.ours(tokens).logits, atol=0.3)
