"""Layer-wise rates, what decays, and the settings that are refused."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_bert import bert, random_tree

from jaxft.config import Optim
from jaxft.errors import UserError
from jaxft.nn.weights import flatten
from jaxft.optim import decay_mask, learning_rates_by_depth, lr_multipliers, make_optimizer

STEPS = 50


def test_kernels_and_embeddings_decay_and_nothing_else():
    decaying = {"/".join(path) for path, decays in flatten(decay_mask(bert(3))) if decays}
    assert decaying == {
        "embeddings/word/embedding",
        "encoder/query/kernel",
        "pooler/kernel",
        "heads/classify/kernel",
    }


def test_pitfall_24_layer_wise_rates_are_one_config_line():
    plain = Optim(name="sgd", learning_rate=1.0, lr_scheduler_type="constant", warmup_steps=0,
                  weight_decay=0.0, max_grad_norm=None)  # fmt: skip
    weights = bert(12)
    ones = jax.tree.map(np.ones_like, random_tree(weights, 0))
    steps = {}
    for config in (plain, dataclasses.replace(plain, layer_decay=0.8)):
        optimizer = make_optimizer(config, weights, STEPS)
        updates, _ = jax.jit(optimizer.update)(ones, optimizer.init(ones), ones)
        steps[config.layer_decay] = updates
    assert all((leaf == -1).all() for leaf in jax.tree.leaves(steps[1.0]))
    kernel = steps[0.8]["encoder"]["query"]["kernel"]
    np.testing.assert_allclose(kernel[:, 0, 0], [-(0.8 ** (12 - i)) for i in range(12)], rtol=1e-6)
    np.testing.assert_allclose(steps[0.8]["embeddings"]["norm"]["scale"], -(0.8**13), rtol=1e-6)
    np.testing.assert_array_equal(steps[0.8]["heads"]["classify"]["bias"], -1)


def test_bert_recipe_gives_the_documented_multipliers():
    # docs/schedules.md: 12 layers, 0.8 a layer, head x10
    factors = lr_multipliers(Optim(layer_decay=0.8, head_lr_multiplier=10), bert(12))
    assert factors["heads"]["classify"]["kernel"] == 10
    assert factors["pooler"]["kernel"] == 0.8
    assert factors["embeddings"]["word"]["embedding"] == pytest.approx(0.0550, abs=5e-5)
    stack = factors["encoder"]["query"]["kernel"]
    assert stack.shape == (12, 1, 1)
    assert stack.dtype == np.float32
    np.testing.assert_allclose(stack[[0, 5, 11], 0, 0], [0.0687, 0.2097, 0.8], atol=5e-5)
    assert factors["encoder"]["query"]["bias"].shape == (12, 1)


def test_ulmfit_recipe_gives_each_layer_the_rate_above_it_over_2_6():
    factors = lr_multipliers(Optim(layer_decay=1 / 2.6), bert(3))
    assert factors["heads"]["classify"]["kernel"] == 1
    stack = factors["encoder"]["query"]["bias"]
    np.testing.assert_allclose(stack[:, 0], [2.6**-3, 2.6**-2, 2.6**-1], rtol=1e-6)
    assert factors["embeddings"]["norm"]["scale"] == pytest.approx(2.6**-4)


def test_named_multipliers_match_whole_names_and_multiply():
    named = {".*bias": 2.0, "encoder/.*": 3.0, "pooler/kernel": 0}
    factors = lr_multipliers(Optim(lr_multipliers=named), bert(3))
    np.testing.assert_array_equal(factors["encoder"]["query"]["bias"], np.full((3, 1), 6))
    np.testing.assert_array_equal(factors["encoder"]["query"]["kernel"], np.full((3, 1, 1), 3))
    assert factors["heads"]["classify"]["bias"] == 2
    assert factors["pooler"]["kernel"] == 0
    assert factors["embeddings"]["word"]["embedding"] == 1


def test_a_named_multiplier_that_nothing_has_is_refused():
    message = '"query" matches the whole name of no weight(.|\n)*encoder/query/kernel'
    with pytest.raises(UserError, match=message):
        make_optimizer(Optim(lr_multipliers={"query": 2.0}), bert(3), STEPS)


def test_without_layer_wise_rates_there_is_no_multiplier_stage():
    weights = bert(3)
    assert set(jax.tree.leaves(lr_multipliers(Optim(), weights))) == {1.0}
    params = random_tree(weights, 0)
    plain = make_optimizer(Optim(), weights, STEPS).init(params)
    scaled = make_optimizer(Optim(layer_decay=0.9), weights, STEPS).init(params)
    assert len(plain) == len(scaled) - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 0.5}, 'optim.momentum = 0.5: optim.name = "adamw" does not read it'),
        ({"name": "sgd", "adam_epsilon": 1e-6}, r"\(it reads: moments_dtype, momentum\)"),
        ({"name": "adafactor", "adam_beta1": 0.8}, "it reads: none of these"),
        ({"name": "adafactor", "moments_dtype": "bfloat16"}, "it reads: none of these"),
        ({"name": "sgd", "momentum": 0.0, "moments_dtype": "bfloat16"}, "there are no moments"),
        ({"name": "lion", "adam_epsilon": 1e-6}, "it reads: adam_beta1, adam_beta2"),
    ],
)
def test_a_setting_of_another_optimizer_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(Optim(**settings), bert(3), STEPS)


def test_learning_rates_by_depth_are_the_schedule_times_the_highest_multiplier():
    config = Optim(
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        warmup_steps=0,
        layer_decay=0.5,
        head_lr_multiplier=4,
        lr_multipliers={"embeddings/word/.*": 2.0},
    )
    rates = learning_rates_by_depth(config, bert(2), STEPS)
    expected = np.array([2 / 8, 1 / 4, 1 / 2, 4]) * 1e-3
    for step in (0, 10, STEPS):
        assert isinstance(rates(step), np.ndarray)
        np.testing.assert_allclose(rates(step), expected * (1 - step / STEPS), rtol=1e-6)


def test_a_depth_without_trained_weights_has_rate_0():
    weights = {p: w for p, w in bert(2).items() if p[0] in ("encoder", "heads")}
    rates = learning_rates_by_depth(Optim(learning_rate=1e-3, warmup_steps=0), weights, STEPS)
    np.testing.assert_allclose(rates(0), [0, 1e-3, 1e-3, 1e-3])
