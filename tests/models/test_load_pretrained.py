"""`load_pretrained` and `save_pretrained`, for a training loop of one's own."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jaxft import load_pretrained, save_pretrained
from jaxft.errors import UserError
from jaxft.nn.tokens import Tokens

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")

TEXTS = ["a good film", "a very very bad film", "this movie is great", "awful plot"]
LABELS = np.array([2, 0, 2, 1])


def test_a_notebook_can_train_save_and_serve_with_transformers(tiny_bert_folder, tmp_path):
    with pytest.warns(
        UserWarning, match=r"new, initialised at random: classifier\.bias, classifier"
    ):
        model = load_pretrained(tiny_bert_folder, output="classify", num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_folder)
    encoded = tokenizer(TEXTS, padding=True, return_tensors="np")
    mask = encoded["attention_mask"]
    positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    tokens = Tokens(encoded["input_ids"], mask, positions, encoded["token_type_ids"])

    def loss(model):
        logits_BC = model.classify(model(tokens), tokens)[:, 0]
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, LABELS)
        return losses_B.mean(), logits_BC

    @nnx.jit
    def update(model, optimizer):
        (value, logits_BC), grads = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(model, grads)
        return value, logits_BC

    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
    first, _ = update(model, optimizer)
    save_pretrained(model, tmp_path)
    second, logits_BC = update(model, optimizer)
    assert second < first

    back = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        served = back(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(served, logits_BC, atol=1e-5)
    assert back.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_a_loaded_head_keeps_its_labels_and_can_be_replaced(tiny_bert_folder, tmp_path):
    with pytest.warns(UserWarning, match="new, initialised"):
        save_pretrained(load_pretrained(tiny_bert_folder, output="classify"), tmp_path / "two")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    names = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    (tmp_path / "two" / "config.json").write_text(json.dumps(config | names))

    with warnings.catch_warnings(action="error"):
        model = load_pretrained(tmp_path / "two", output="classify")
    save_pretrained(model, tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key: kept[key] for key in names} == names

    with pytest.raises(UserError, match="in Python new_head=True"):
        load_pretrained(tmp_path / "two", output="classify", num_labels=4)
    with pytest.warns(UserWarning, match="new, initialised"):
        other = load_pretrained(tmp_path / "two", output="classify", num_labels=4, new_head=True)
    assert other.heads["classify"].kernel.shape == (32, 4)


def test_a_type_that_is_not_written_is_refused_before_anything_is(tiny_bert_folder, tmp_path):
    with pytest.raises(UserError, match="dtype='int8': weights are written as float32, bfloat16"):
        save_pretrained(load_pretrained(tiny_bert_folder), tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_a_fresh_head_depends_on_the_seed(tiny_bert_folder):
    def head(seed):
        with pytest.warns(UserWarning, match="new, initialised"):
            model = load_pretrained(tiny_bert_folder, output="classify", seed=seed)
        return np.asarray(model.heads["classify"].kernel[...])

    assert not np.array_equal(head(0), head(1))


def test_weights_are_not_bound_to_a_device(tiny_bert_folder):
    """Else the second update compiles again, and rows that are split over devices do not fit."""
    leaves = jax.tree.leaves(nnx.state(load_pretrained(tiny_bert_folder), nnx.Param))
    assert len(leaves) == 23
    assert not any(leaf.committed for leaf in leaves)


def test_nothing_half_written_stays_where_a_value_is_not_finite(tiny_bert_folder, tmp_path):
    model = load_pretrained(tiny_bert_folder)
    save_pretrained(model, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    bias = model.pooler.bias
    bias[...] = jnp.full_like(bias[...], jnp.nan)
    with pytest.raises(UserError, match=r"pooler\.dense\.bias has values that are not finite"):
        save_pretrained(model, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == whole
