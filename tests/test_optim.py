"""The optimizer chain against torch and transformers, layer-wise rates, and what it refuses."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import get_scheduler
from transformers.optimization import Adafactor

from jaxft.errors import UserError
from jaxft.nn.weights import Weight, flatten, unflatten
from jaxft.optim import decay_mask, learning_rates_by_depth, lr_multipliers, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    name: str = "adamw"
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine"
    lr_scheduler_kwargs: dict = dataclasses.field(default_factory=dict)
    warmup_steps: int | float = 0.1
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    momentum: float = 0.9
    max_grad_norm: float | None = 1.0
    layer_decay: float = 1.0
    head_lr_multiplier: float = 1.0
    lr_multipliers: dict = dataclasses.field(default_factory=dict)


STEPS = 50
RULES = ("adamw", "adafactor", "lion", "sgd")

# Both sides are float32 and differ in the order of additions and products: one rounding (6e-8 of
# the values, all below 4) an update, which 50 updates add up.
TRAJECTORY = {"rtol": 1e-5, "atol": 2e-6}


def weight(name: str, shape: tuple[int, ...], kind: str, depth: int, layers: int = 0) -> Weight:
    """A weight at `depth`, or a stack of `layers` from depth 1 on."""
    return Weight(
        path=tuple(name.split("/")),
        shape=(layers, *shape) if layers else shape,
        axes=(None,) * (len(shape) + bool(layers)),
        hf=name,
        kind=kind,
        transposed=False,
        layers=tuple(range(layers)),
        depth=tuple(range(1, layers + 1)) if layers else (depth,),
    )


def bert(layers: int, width: int = 4) -> dict[tuple[str, ...], Weight]:
    top = layers + 1
    declared = [
        weight("embeddings/word/embedding", (6, width), "embedding", 0),
        weight("embeddings/norm/scale", (width,), "norm", 0),
        weight("encoder/query/kernel", (width, width), "kernel", 0, layers),
        weight("encoder/query/bias", (width,), "bias", 0, layers),
        weight("encoder/norm/scale", (width,), "norm", 0, layers),
        weight("pooler/kernel", (width, width), "kernel", layers),
        weight("heads/classify/kernel", (width, 3), "kernel", top),
        weight("heads/classify/bias", (3,), "bias", top),
    ]
    return {weight.path: weight for weight in declared}


def unstack(tree: dict) -> dict:
    """`encoder/...` leaves become one leaf per layer."""
    leaves = {}
    for path, leaf in flatten(tree):
        if path[0] == "encoder":
            leaves |= {("encoder", str(i), *path[1:]): row for i, row in enumerate(leaf)}
        else:
            leaves[path] = leaf
    return unflatten(leaves)


def unstacked(weights: dict) -> dict:
    """The same weights, each layer on its own."""
    single = {}
    for path, w in weights.items():
        if not w.stacked:
            single[path] = w
        for i, depth in zip(w.layers, w.depth, strict=True) if w.stacked else ():
            name = "/".join(("encoder", str(i), *path[1:]))
            single[tuple(name.split("/"))] = weight(name, w.shape[1:], w.kind, depth)
    return single


def random_tree(weights: dict, seed: int, *lead: int) -> dict:
    rng = np.random.default_rng(seed)
    return unflatten(
        {path: rng.normal(size=(*lead, *w.shape)).astype(np.float32) for path, w in weights.items()}
    )


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

    with jax.numpy_dtype_promotion("strict"):
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=["nan", "inf", "norm overflows"])
def test_clipping_never_hides_a_norm_that_is_not_finite(bad):
    weights = bert(3)
    params = random_tree(weights, 0)
    grads = random_tree(weights, 1)
    grads["heads"]["classify"]["bias"][0] = bad
    optimizer = make_optimizer(Optim(warmup_steps=0), weights, STEPS)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(updates))


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


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"query": 2.0}, '"query" matches the whole name of no weight(.|\n)*encoder/query/kernel'),
        ({"(": 2.0}, "no regular expression"),
        ({".*": -1.0}, "factor -1.0. Allowed: 0 or more"),
    ],
)
def test_a_named_multiplier_that_cannot_be_meant_is_refused(named, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(Optim(lr_multipliers=named), bert(3), STEPS)


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
        ({"name": "sgd", "adam_epsilon": 1e-6}, r"\(it reads: momentum\)"),
        ({"name": "adafactor", "adam_beta1": 0.8}, "it reads: none of these"),
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
        lr_multipliers={"embeddings/norm/.*": 2.0},
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
