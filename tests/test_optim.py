"""The optimizer chain against torch and transformers, update by update."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import REPOSITORY
from tiny_bert import bert, random_tree, unstack, unstacked
from transformers import get_scheduler

from jaxft.config import Optim
from jaxft.nn.weights import flatten, unflatten
from jaxft.optim import _RULE_KEYS, make_optimizer

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
from transformers.optimization import Adafactor  # noqa: E402 - it wants torch

STEPS = 50
RULES = ("adamw", "adafactor", "lion", "sgd")

# Both sides are float32 and differ in the order of additions and products: one rounding (6e-8 of
# the values, all below 4) an update, which 50 updates add up.
TRAJECTORY = {"rtol": 1e-5, "atol": 2e-6}


def noise(weights: dict, steps: int = STEPS) -> dict:
    """Random gradients whose global norm goes from 0.1 to 10 and back, [steps, ...]."""
    size = sum(w.size for w in weights.values())
    norm = 10 ** np.cos(np.linspace(-np.pi, np.pi, steps)) / np.sqrt(size)
    scale = norm.astype(np.float32)
    return jax.tree.map(
        lambda n: n * scale.reshape(-1, *(1 for _ in n.shape[1:])), random_tree(weights, 1, steps)
    )


def train(config: Optim, weights: dict, params: dict, noise: dict) -> dict:
    """The parameters after one update per row of `noise`; gradients depend on both."""
    optimizer = make_optimizer(config, weights, STEPS)

    @jax.jit
    def run(params, noise):
        def step(carry, noise):
            params, state = carry
            grads = jax.tree.map(lambda p, n: 0.02 * p + n, params, noise)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), noise)[0][0]

    return run(params, noise)


def torch_train(
    make: Callable[[list], torch.optim.Optimizer],
    config: Optim,
    params: dict,
    noise: dict,
    multiplier: Callable[[str], float] = lambda name: 1.0,
) -> dict:
    """The same in torch, one layer a parameter and one parameter a group, with HF's schedule."""
    leaves = {p: torch.tensor(np.array(v), requires_grad=True) for p, v in flatten(unstack(params))}
    rows = dict(flatten(unstack(jax.tree.map(lambda n: np.moveaxis(n, 0, -1), noise))))
    groups = []
    for path, leaf in leaves.items():
        name = "/".join(path)
        decay = 0.0 if "bias" in name or "norm" in name else config.weight_decay
        rate = config.learning_rate * multiplier(name)
        groups.append({"params": [leaf], "lr": rate, "weight_decay": decay})
    optimizer = make(groups)
    warmup = int(np.ceil(config.warmup_steps * STEPS))
    scheduler = get_scheduler(
        config.lr_scheduler_type, optimizer, warmup, STEPS, dict(config.lr_scheduler_kwargs)
    )
    for k in range(next(iter(rows.values())).shape[-1]):
        for path, leaf in leaves.items():
            leaf.grad = 0.02 * leaf.detach() + torch.tensor(rows[path][..., k])
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves.values(), config.max_grad_norm)
        optimizer.step()
        scheduler.step()
    return unflatten({path: leaf.detach().numpy() for path, leaf in leaves.items()})


def torch_adamw(config: Optim) -> Callable[[list], torch.optim.Optimizer]:
    betas = (config.adam_beta1, config.adam_beta2)
    return lambda groups: torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon
    )


def assert_close(ours: dict, theirs: dict, **tolerance: float) -> None:
    for (path, a), (other, b) in zip(
        sorted(flatten(unstack(ours))), sorted(flatten(theirs)), strict=True
    ):
        assert path == other
        np.testing.assert_allclose(a, b, **tolerance, err_msg="/".join(path))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("cosine", {}),
        ("linear", {}),
        ("polynomial", {"power": 2.0}),
        ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_with_restarts", {"num_cycles": 3}),
    ],
)
def test_adamw_equals_torch_with_clipping_decay_and_schedule_over_50_updates(name, kwargs):
    config = Optim(
        learning_rate=1e-2, weight_decay=0.1, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs
    )
    weights = bert(3)
    start, grads = random_tree(weights, 0), noise(weights)
    theirs = torch_train(torch_adamw(config), config, start, grads)
    assert_close(train(config, weights, start, grads), theirs, **TRAJECTORY)


def test_multipliers_scale_update_and_decay_like_torch_parameter_groups():
    config = Optim(
        learning_rate=1e-2,
        weight_decay=0.5,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-3,
        layer_decay=0.5,
        head_lr_multiplier=10,
        lr_multipliers={".*bias": 3.0},
    )
    weights = bert(3)
    by_part = {"embeddings": 1 / 16, "encoder/0": 1 / 8, "encoder/1": 1 / 4, "encoder/2": 1 / 2,
               "pooler": 1 / 2, "heads": 10}  # fmt: skip

    def multiplier(name: str) -> float:
        factor = next(value for part, value in by_part.items() if name.startswith(part))
        return factor * (3 if name.endswith("bias") else 1)

    start, grads = random_tree(weights, 0), noise(weights)
    theirs = torch_train(torch_adamw(config), config, start, grads, multiplier)
    assert_close(train(config, weights, start, grads), theirs, **TRAJECTORY)


def test_sgd_equals_torch_with_decoupled_decay():
    config = Optim(name="sgd", learning_rate=0.1, weight_decay=0.1, momentum=0.8)

    class DecoupledSGD(torch.optim.SGD):
        def step(self):
            decays = [group["weight_decay"] for group in self.param_groups]
            for group in self.param_groups:
                with torch.no_grad():
                    group["params"][0].mul_(1 - group["lr"] * group["weight_decay"])
                group["weight_decay"] = 0.0
            super().step()
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    weights = bert(3)
    start, grads = random_tree(weights, 0), noise(weights)
    theirs = torch_train(
        lambda groups: DecoupledSGD(groups, lr=0.1, momentum=0.8), config, start, grads
    )
    assert_close(train(config, weights, start, grads), theirs, **TRAJECTORY)


def test_adafactor_equals_transformers():
    # 128 wide, so that optax factors as transformers does
    config = Optim(
        name="adafactor",
        learning_rate=1e-2,
        weight_decay=0.1,
        max_grad_norm=None,
        lr_scheduler_type="linear",
    )
    weights = {p: w for p, w in bert(2, width=128).items() if p[0] == "encoder"}
    start, grads = random_tree(weights, 0), noise(weights, steps=20)
    theirs = torch_train(
        lambda groups: Adafactor(groups, lr=1e-2, scale_parameter=False, relative_step=False),
        config,
        start,
        grads,
    )
    assert_close(train(config, weights, start, grads), theirs, **TRAJECTORY)


def test_lion_equals_its_paper():
    # Chen et al. 2023, algorithm 2, on weights that all decay
    config = Optim(
        name="lion",
        learning_rate=1e-2,
        adam_beta2=0.99,
        weight_decay=0.1,
        max_grad_norm=None,
        lr_scheduler_type="constant",
        warmup_steps=0,
    )
    weights = {p: w for p, w in bert(3).items() if p[-1] == "kernel"}
    start, grads = random_tree(weights, 0), noise(weights)

    def lion(p: np.ndarray, noise: np.ndarray) -> np.ndarray:
        p, m = p.astype(np.float64), 0.0
        for row in noise:
            g = 0.02 * p + row
            p = p - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * p)
            m = 0.99 * m + 0.01 * g
        return p

    theirs = unstack(jax.tree.map(lion, start, grads))
    assert_close(train(config, weights, start, grads), theirs, **TRAJECTORY)


@pytest.mark.parametrize("rule", RULES)
def test_a_stack_is_trained_exactly_as_its_layers_alone(rule):
    config = Optim(name=rule, learning_rate=1e-2, max_grad_norm=None, layer_decay=0.8)
    weights = {p: w for p, w in bert(2, width=128).items() if p[0] == "encoder"}
    start = random_tree(weights, 0)
    # one layer has much larger gradients: a rule that mixed layers would show
    scale = np.array([1, 100], np.float32)
    grads = jax.tree.map(
        lambda n: n * scale.reshape(1, 2, *(1 for _ in n.shape[2:])), noise(weights, steps=5)
    )
    alone = jax.tree.map(lambda n: np.moveaxis(n, 0, -1), grads)
    alone = jax.tree.map(lambda n: np.moveaxis(n, -1, 0), unstack(alone))
    with jax.disable_jit():  # XLA rounds differently where it fuses differently
        stacked = train(config, weights, start, grads)
        single = train(config, unstacked(weights), unstack(start), alone)
    assert_close(stacked, single, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_learning_rate_of_0_leaves_every_weight_as_it_was(rule):
    weights = bert(3)
    start = random_tree(weights, 0)
    end = train(Optim(name=rule, learning_rate=0.0), weights, start, noise(weights, steps=3))
    jax.tree.map(np.testing.assert_array_equal, start, end)


@pytest.mark.parametrize("rule", RULES)
def test_moments_and_updates_are_float32_for_bfloat16_gradients(rule):
    weights = bert(3, width=128)
    optimizer = make_optimizer(Optim(name=rule), weights, STEPS)
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), random_tree(weights, 0))
    grads = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), params)
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, grads, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {
        np.dtype("float32"),
        np.dtype("int32"),
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {np.dtype("float32")}
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_gradients_are_clipped_and_squared_in_float32(rule):
    weights = bert(3)
    params = random_tree(weights, 0)
    optimizer = make_optimizer(Optim(name=rule, warmup_steps=0), weights, STEPS)
    update = jax.jit(lambda grads: optimizer.update(grads, optimizer.init(params), params)[0])
    low = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), random_tree(weights, 1))
    high = jax.tree.map(lambda g: g.astype(jnp.float32), low)
    # at most a rounding of float32, from another fusion; one of bfloat16 would be 4e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), update(low), update(high)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=["nan", "inf", "norm overflows"])
def test_clipping_never_hides_a_norm_that_is_not_finite(bad):
    weights = bert(3)
    params = random_tree(weights, 0)
    grads = random_tree(weights, 1)
    grads["heads"]["classify"]["bias"][0] = bad
    optimizer = make_optimizer(Optim(warmup_steps=0), weights, STEPS)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(updates))


def test_the_docs_say_what_each_rule_reads():
    text = (REPOSITORY / "docs" / "schedules.md").read_text().partition("## Optimizers")[2]
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|", text, re.MULTILINE)
    assert {rule: set(re.findall(r"`(\w+)`", reads)) for rule, reads in rows} == _RULE_KEYS
