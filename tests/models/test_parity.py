"""Every family equals transformers, however it is padded, packed, stacked, split or recomputed."""

import dataclasses

import jax
import numpy as np
import pytest
from parity import (
    LABELS,
    Pair,
    assert_close,
    assert_same,
    assert_same_hidden,
    random_tokens,
    tiny,
)
from transformers import AutoModelForSequenceClassification

# Each field of each family's Dims away from its default (`test_every_field...` checks that).
BERT_LIKE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "classifier_dropout": 0.4,
    "max_position_embeddings": 20,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-3,
    "initializer_range": 0.5,
}
CASES = {
    "bert": BERT_LIKE,
    "roberta": BERT_LIKE | {"hidden_act": "silu", "pad_token_id": 2, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": 64,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 48,
        "activation": "relu",
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "seq_classif_dropout": 0.4,
        "max_position_embeddings": 20,
        "initializer_range": 0.5,
    },
}


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
    """Hidden states equal transformers' with left padding too; the logits do not depend on the side."""
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
