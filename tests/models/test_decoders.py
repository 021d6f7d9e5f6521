"""Every decoder equals transformers, however it is padded, packed, remembered, stacked or split.

Without jit where configs are many: an operation is compiled once, a config would be each time.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import TINY, tiny_config
from jax.sharding import NamedSharding
from parity import assert_close
from twins import (
    FAMILIES,
    KINDS,
    LENGTHS,
    Outputs,
    Twins,
    assert_same,
    of_label,
    packed,
    padded,
    texts,
    unpacked,
)

import jaxft.models.gpt2
import jaxft.nn.attention
from jaxft.models import Blueprint, family
from jaxft.nn.attention import Side
from jaxft.nn.fields import read_dims
from jaxft.nn.layers import Compute
from jaxft.nn.memory import Recall
from jaxft.nn.tokens import Tokens
from jaxft.nn.weights import flatten, unflatten
from jaxft.sharding import AXES, ROWS, Places, make_mesh

# Of a rope's three spellings one: test_decoder_configs.py shows that they are the same model.
ALL = [
    (name, label)
    for name in TINY
    for label in TINY[name]
    if not label.endswith(("/type", "/rope_type"))
]
GRADIENTS = [
    ("llama", "plain"),
    ("llama", "tied"),
    ("llama", "attention_bias"),
    ("llama", "mlp_bias"),
    ("llama", "dynamic_grown/parameters"),
    ("llama", "every_field"),
    ("mistral", "window"),
    ("mistral", "every_field"),
    ("qwen2", "plain"),
    ("qwen2", "layer_types"),
    ("qwen2", "every_field"),
    ("qwen3", "plain"),
    ("qwen3", "every_field"),
    ("gpt2", "plain"),
    ("gpt2", "untied"),
    ("gpt2", "every_field"),
]
# Three texts, two, one or none in a row.
ROWS_OF_TEXTS = ((3, 6, 2), (1, 7), (0,), (4,), (5,), (), (), ())


@pytest.fixture(scope="module", params=KINDS, ids="/".join)
def twins(request) -> Twins:
    return of_label(*request.param)


@pytest.fixture(scope="module", params=KINDS, ids="/".join)
def classifiers(request) -> Twins:
    return of_label(*request.param, output="classify")


def pack(rows: Any = ROWS_OF_TEXTS, *, left: bool = False) -> Tokens:
    members = texts()
    return packed([[members[i] for i in row] for row in rows], left=left)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_is_tried_away_from_its_default(name):
    module = family({"model_type": name})
    tried = [
        read_dims(module.Dims, tiny_config(name, label), module.HARMLESS_FIELDS)
        for label in TINY[name]
    ]
    same = [
        field.name
        for field in dataclasses.fields(module.Dims)
        if all(getattr(dims, field.name) == field.default for dims in tried)
    ]
    assert not same


@pytest.mark.parametrize(("name", "label"), ALL, ids=str)
def test_logits_and_hidden_states_equal_transformers(name, label):
    twins, tokens = of_label(name, label), padded(texts())
    assert_same(twins.ours(tokens, grads=False), twins.expected(tokens, grads=False))


@pytest.mark.parametrize(("name", "label"), GRADIENTS, ids=str)
def test_gradients_equal_transformers(name, label):
    twins, tokens = of_label(name, label), padded(texts())
    assert_same(twins.ours(tokens), twins.expected(tokens))


def test_padding_may_be_on_either_side(twins):
    right, left = padded(texts()), padded(texts(), left=True)
    ours = twins.ours(left, grads=False)
    assert_same(ours, twins.expected(left, grads=False))
    alone = twins.ours(right, grads=False)
    for mine, other in zip(ours.hidden, alone.hidden, strict=True):
        for i, pair in enumerate(zip(unpacked(mine, left), unpacked(other, right), strict=True)):
            assert_close(*pair, f"text {i}")


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_pitfall_9_packed_texts_are_as_if_alone(twins, left):
    tokens, single = pack(left=left), padded(texts())
    ours, alone = twins.ours(tokens, grads=not left), twins.ours(single, grads=False)
    order = [i for row in ROWS_OF_TEXTS for i in row]
    assert sorted(order) == list(range(len(LENGTHS)))
    for mine, other in zip([ours.logits, *ours.hidden], [alone.logits, *alone.hidden], strict=True):
        apart = unpacked(other, single)
        for i, states in zip(order, unpacked(mine, tokens), strict=True):
            assert_close(states, apart[i], f"text {i}")
    # The rows that are left are padding alone: attention over nothing must not become NaN.
    assert all(np.isfinite(gradient).all() for gradient in ours.grads.values())


def test_pitfall_9_a_neighbour_changes_no_bit(twins):
    """Neither does what comes later in the text itself."""
    before, after = pack(), pack()
    first = len(texts()[3])
    changed = np.zeros(before.ids_BL.shape, bool)
    changed[0] = before.segments_BL[0] == 2
    changed[1] = (before.segments_BL[1] == 1) & (before.positions_BL[1] >= 3)
    assert changed[0, first:].any()
    after.ids_BL[changed] = 1 + after.ids_BL[changed] % 98
    states = [twins.ours(tokens, grads=False).hidden[-1] for tokens in (before, after)]
    differ = (states[0] != states[1]).any(-1)
    np.testing.assert_array_equal(differ, changed)


@pytest.mark.parametrize(
    ("name", "label", "reach"), [("mistral", "window", 14), ("gpt2", "plain", 99)]
)
def test_pitfall_9_gradients_reach_exactly_what_a_token_sees(name, label, reach):
    """`reach`: of two layers, each with a window of 8 tokens."""
    twins, tokens = of_label(name, label), pack()
    # Each token of the first row has an id of its own.
    tokens.ids_BL[:] = 98
    tokens.ids_BL[0] = np.arange(16)
    (path,) = [
        p for p, w in twins.drawn.weights.items() if w.hf in ("embed_tokens.weight", "wte.weight")
    ]

    def state(table: jax.Array, place: int) -> jax.Array:
        params = unflatten(dict(flatten(twins.params)) | {path: table})
        model: Any = twins.drawn.merge(params)
        return model(tokens)[0, place].sum()

    table = dict(flatten(twins.params))[path]
    with jax.disable_jit():
        for place in (8, 11, 12):
            reached = np.abs(jax.grad(state)(table, place)).max(-1)[:16] > 0
            same = tokens.segments_BL[0] == tokens.segments_BL[0, place]
            behind = place - np.arange(16)
            np.testing.assert_array_equal(reached, same & (behind >= 0) & (behind <= reach))


def test_classifier_equals_transformers(classifiers):
    tokens = padded(texts())
    assert_same(classifiers.ours(tokens), classifiers.expected(tokens))


def test_pitfall_29_the_last_token_is_found_on_either_side(classifiers):
    left, right = padded(texts(), left=True), padded(texts())
    ours = classifiers.ours(left, grads=False)
    assert_same(ours, classifiers.expected(left, grads=False))
    assert_close(ours.logits, classifiers.expected(right, grads=False).logits, "logits")


def test_pitfall_29_a_last_token_with_the_id_of_padding_counts(classifiers):
    """transformers would take the token before it: it looks for ids."""
    members = texts()
    for text in members:
        text[-1] = 0
    tokens = padded(members)
    ours = classifiers.ours(tokens, grads=False)
    last_BD = ours.hidden[-1][np.arange(len(members)), [len(text) - 1 for text in members]]
    score_CD = classifiers.named(classifiers.params)["score.weight"]
    assert_close(ours.logits, last_BD @ score_CD.T, "logits")


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_classifier_of_packed_rows(classifiers, left):
    tokens = pack(left=left)
    expected = classifiers.expected(padded(texts()), grads=False).logits
    with jax.disable_jit():
        model: Any = classifiers.drawn.merge(classifiers.params)
        logits_BMC = np.asarray(model.classify(model(tokens), tokens, examples=3))
    assert logits_BMC.shape == (8, 3, 3)
    for row, members in enumerate(ROWS_OF_TEXTS):
        for m, i in enumerate(members):
            assert_close(logits_BMC[row, m], expected[i], f"text {i}")
    assert np.isfinite(logits_BMC).all()


def test_remembering_equals_reading_everything_at_once(twins):
    """Prompts of unequal length, padded on the left or on the right, some tokens, single ones.

    With padding on the right the places of a text have a gap: windows measure positions.
    """
    prompts, steps = (6, 3, 5, 1), (6, 6, 1, 1, 1)
    columns, more = steps[0], sum(steps[1:])
    whole = padded(texts([n + more for n in prompts * 2]))
    rows = [row[:n] for row, n in zip(whole.ids_BL, prompts * 2, strict=True)]
    sides = padded(rows[:4], left=True, length=columns), padded(rows[4:], length=columns)
    prompt = jax.tree.map(lambda *x: np.concatenate(x), *sides)
    later = [
        np.stack([row[n : n + more] for row, n in zip(x, prompts * 2, strict=True)]) for x in whole
    ]
    everything = Tokens(*(np.concatenate(x, 1) for x in zip(prompt, later, strict=True)))

    @jax.jit
    def extend(params, tokens, memory, recall):
        return twins.drawn.merge(params).extend(tokens, memory, recall)

    model: Any = twins.drawn.merge(twins.params)
    memory, start, states = model.empty_memory(8, columns + more), 0, []
    for length in steps:
        new = slice(start, start + length)
        known = np.arange(columns + more) < new.stop
        keys = Side(np.where(known, everything.segments_BL, 0), everything.positions_BL)
        tokens = Tokens(*(x[:, new] for x in everything))
        state, memory = extend(twins.params, tokens, memory, Recall(jnp.int32(start), keys))
        states.append(np.asarray(state))
        start = new.stop
    mine = unpacked(np.concatenate(states, 1), everything)
    expected = unpacked(twins.expected(whole, grads=False).hidden[-1], whole)
    for i, pair in enumerate(zip(mine, expected, strict=True)):
        assert_close(*pair, f"text {i}")


@pytest.fixture(scope="module")
def gpt2() -> Twins:
    return of_label("gpt2", "plain")


@pytest.fixture(scope="module")
def dropped(gpt2) -> Outputs:
    """GPT-2 with dropout, layer by layer."""
    return gpt2.ours(padded(texts()), key=jax.random.key(3))


@pytest.mark.parametrize(
    "compute",
    [
        {"unroll_layers": True, "activation_checkpointing": "full"},
        {"activation_checkpointing": "dots"},
    ],
    ids=str,
)
def test_scan_unrolling_and_recomputing_equal_layer_by_layer(gpt2, dropped, compute):
    """With dropout: what is recomputed drops the same elements again."""
    assert_same(gpt2.compiled(**compute).ours(padded(texts()), key=jax.random.key(3)), dropped)


@pytest.fixture(scope="module")
def llama() -> Twins:
    return of_label("llama", "attention_bias")


@pytest.fixture(scope="module")
def one_device(llama) -> Outputs:
    """With attention dropout, layer by layer."""
    return llama.ours(padded(texts()), key=jax.random.key(3))


@pytest.mark.parametrize("split", [(1, 8, 1, 1), (2, 1, 2, 2)], ids=str)
def test_one_device_equals_eight(llama, one_device, split, capfd):
    """data x fsdp x context x tensor; the mask of dropout must not depend on the split."""
    tokens, key = padded(texts()), jax.random.key(3)
    mesh = make_mesh(dict(zip(AXES, split, strict=True)))
    shardings = Places(llama.drawn.weights, mesh).params
    params = unflatten({p: jax.device_put(x, shardings[p]) for p, x in flatten(llama.params)})
    with jax.set_mesh(mesh):
        rows = jax.device_put(tokens, NamedSharding(mesh, ROWS))
        ours = llama.compiled().ours(rows, params=params, key=key)
    assert_same(ours, one_device)
    # What XLA says when it copies an activation to all devices, for want of a better way.
    assert "full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "rates"), [("qwen3", [0.2]), ("gpt2", [0.3, 0.4, 0.2, 0.2])], ids=str
)
def test_every_dropout_has_its_config_rate_and_a_key_of_its_own(name, rates, monkeypatch):
    calls = []

    def spy(x, rate, key):
        calls.append((rate, key))
        return x

    for module in (jaxft.nn.attention, jaxft.models.gpt2):
        monkeypatch.setattr(module, "dropout", spy)
    drawn = Blueprint.draw(tiny_config(name, "plain"))
    shapes = {path: jax.ShapeDtypeStruct(w.shape, np.float32) for path, w in drawn.weights.items()}
    jax.eval_shape(
        lambda params, key: drawn.merge(params)(padded(texts()), key=key),
        unflatten(shapes),
        jax.random.key(0),
    )
    assert [rate for rate, _ in calls] == rates
    assert len({id(key) for _, key in calls}) == len(calls)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(twins):
    tokens, drawn = padded(texts()), twins.drawn.redraw(Compute("bfloat16"))

    def run(params):
        model: Any = drawn.merge(params)
        hidden_BLD = model(tokens)
        return hidden_BLD, model.logits(hidden_BLD)

    hidden_BLD, logits_BLV = jax.eval_shape(run, twins.params)
    assert hidden_BLD.dtype == jnp.bfloat16
    assert logits_BLV.dtype == np.float32
    if drawn.config["model_type"] == "llama":
        expected = twins.expected(tokens, grads=False).logits
        errors = (jax.jit(run)(twins.params)[1] - expected)[tokens.segments_BL != 0]
        # 8 bits of mantissa through two layers with attention logits of some units.
        assert np.sqrt(np.square(errors).mean()) < 0.05 * expected.std()
