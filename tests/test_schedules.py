"""Schedules: the numbers of transformers, the formula of ULMFiT, errors that say what to do."""

from types import SimpleNamespace
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import TrainingArguments, get_scheduler

from jaxft.config import Optim, steps
from jaxft.errors import UserError
from jaxft.schedules import SHAPES, make_schedule

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")

STEPS, PEAK = 50, 3e-4

# transformers computes in Python's float64, we in float32: a few roundings of 6e-8 each, and near 0
# the rounding of the cosine's argument, which is absolute.
FLOAT32 = {"rtol": 1e-6, "atol": 1e-7 * PEAK}


def rates(total: int = STEPS, **settings) -> np.ndarray:
    """Our rates of updates 0 to `total`, traced."""
    schedule = make_schedule(Optim(**{"learning_rate": PEAK, **settings}), total)
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(total + 1, dtype=jnp.int32))
    assert traced.dtype == jnp.float32
    return np.asarray(traced)


def transformers_rates(name: str, kwargs: dict, warmup: int | float) -> np.ndarray:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    # Their "constant" drops the warmup silently.
    name = "constant_with_warmup" if name == "constant" else name
    updates = TrainingArguments.get_warmup_steps(SimpleNamespace(warmup_steps=warmup), STEPS)
    scheduler = get_scheduler(name, optimizer, updates, STEPS, kwargs)
    rates = []
    for _ in range(STEPS + 1):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return np.array(rates)


@pytest.mark.parametrize("warmup", [0, 7, 0.13])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("constant", {}),
        ("linear", {}),
        ("cosine", {}),
        ("cosine", {"num_cycles": 1.5}),
        ("polynomial", {}),
        ("polynomial", {"power": 2.0, "lr_end": 1e-5}),
        ("inverse_sqrt", {}),
        ("inverse_sqrt", {"timescale": 20}),
        ("cosine_with_min_lr", {"min_lr": 1e-5}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 0.7}),
        ("cosine_with_restarts", {}),
        ("cosine_with_restarts", {"num_cycles": 3}),
    ],
)
def test_every_update_has_the_rate_that_transformers_gives_it(name, kwargs, warmup):
    ours = rates(lr_scheduler_type=name, lr_scheduler_kwargs=kwargs, warmup_steps=warmup)
    np.testing.assert_allclose(ours, transformers_rates(name, kwargs, warmup), **FLOAT32)


@pytest.mark.parametrize(("cut_frac", "ratio"), [(0.1, 32), (0.3, 10)])
def test_slanted_triangular_is_equation_3_of_ulmfit(cut_frac, ratio):
    cut = int(STEPS * cut_frac)
    p = [t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1)) for t in range(STEPS)]
    expected = [PEAK * (1 + share * (ratio - 1)) / ratio for share in p]
    kwargs = {"cut_frac": cut_frac, "ratio": ratio}
    ours = rates(lr_scheduler_type="slanted_triangular", lr_scheduler_kwargs=kwargs)
    np.testing.assert_allclose(ours[:STEPS], expected, **FLOAT32)
    assert ours.argmax() == cut


@pytest.mark.parametrize("total", [1, 9, 19, 55])
def test_slanted_triangular_of_an_odd_length_never_falls_below_its_floor(total):
    ours = rates(total, lr_scheduler_type="slanted_triangular")
    extremes = [ours.max(), ours.min(), ours[-1]]
    np.testing.assert_allclose(extremes, [PEAK, PEAK / 32, PEAK / 32], **FLOAT32)


def test_restarts_come_exactly_on_time_however_many():
    ours = rates(lr_scheduler_type="cosine_with_restarts", warmup_steps=0, total=41 * 2,
                 lr_scheduler_kwargs={"num_cycles": 41})  # fmt: skip
    np.testing.assert_allclose(ours[:-1:2], PEAK, **FLOAT32)
    np.testing.assert_allclose(ours[1::2], PEAK / 2, **FLOAT32)


def test_the_config_offers_exactly_these_schedules():
    assert get_args(get_type_hints(Optim)["lr_scheduler_type"]) == tuple(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_schedule_of_rate_0_is_0_everywhere(name):
    kwargs = {"min_lr": 1e-6} if name == "cosine_with_min_lr" else {}
    ours = rates(learning_rate=0.0, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)
    np.testing.assert_array_equal(ours, 0)


@pytest.mark.parametrize("name", SHAPES)
def test_after_the_run_the_rate_stays_where_it_ended(name):
    kwargs = {"min_lr": 1e-6} if name == "cosine_with_min_lr" else {}
    config = Optim(learning_rate=PEAK, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)
    schedule = make_schedule(config, STEPS)
    assert schedule(2 * STEPS) == schedule(STEPS)


@pytest.mark.parametrize("name", SHAPES)
def test_an_unknown_kwarg_is_refused_with_the_allowed_ones(name):
    allowed = {
        "constant": "nothing",
        "linear": "nothing",
        "cosine": "num_cycles",
        "polynomial": "lr_end, power",
        "inverse_sqrt": "timescale",
        "cosine_with_min_lr": "num_cycles, min_lr, min_lr_rate",
        "cosine_with_restarts": "num_cycles",
        "slanted_triangular": "cut_frac, ratio",
    }
    config = Optim(lr_scheduler_type=name, lr_scheduler_kwargs={"wiggle": 1})
    with pytest.raises(UserError, match=f"no wiggle.* may hold: {allowed[name]}\\.$"):
        make_schedule(config, STEPS)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cosine", {"num_cycles": "2"}, "num_cycles = '2'. Allowed: a finite number"),
        ("cosine", {"num_cycles": True}, "a finite number"),
        ("cosine", {"num_cycles": float("nan")}, "a finite number"),
        ("polynomial", {"lr_end": 1e-3}, "lr_end = 0.001. Allowed: 0 <= lr_end < 0.0003"),
        ("polynomial", {"power": 0}, "power > 0"),
        ("inverse_sqrt", {"timescale": 0}, "timescale > 0"),
        ("cosine_with_min_lr", {}, "one of min_lr and min_lr_rate"),
        ("cosine_with_min_lr", {"min_lr": 0, "min_lr_rate": 0}, "one of min_lr and min_lr_rate"),
        ("cosine_with_min_lr", {"min_lr": 1e-3}, "min_lr <= 0.0003"),
        ("cosine_with_restarts", {"num_cycles": 0}, "num_cycles >= 1"),
        ("slanted_triangular", {"cut_frac": 1}, "0 < cut_frac < 1"),
        ("slanted_triangular", {"ratio": 0.5}, "ratio >= 1"),
    ],
)
def test_a_bad_value_is_refused_before_the_run_with_what_is_allowed(name, kwargs, message):
    config = Optim(learning_rate=PEAK, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)
    with pytest.raises(UserError, match=message):
        make_schedule(config, STEPS)


@pytest.mark.parametrize("share", [0, 1e-9, 0.07, 0.1, 0.28, 0.999])
@pytest.mark.parametrize("total", [10, 25, 100, 101])
def test_a_share_of_the_run_is_rounded_as_transformers_rounds_it(share, total):
    theirs = TrainingArguments.get_warmup_steps(SimpleNamespace(warmup_steps=share), total)
    assert steps(share, total) == theirs
    schedule = make_schedule(Optim(warmup_steps=share, lr_scheduler_type="constant"), total)
    assert np.argmax(schedule(np.arange(total + 1))) == theirs


def test_a_warmup_longer_than_the_run_is_refused_and_one_as_long_is_not():
    with pytest.raises(UserError, match="warmup_steps = 51 is longer than the run of 50 updates"):
        rates(warmup_steps=51)
    np.testing.assert_allclose(rates(warmup_steps=50), PEAK * np.arange(51) / 50, **FLOAT32)


def test_slanted_triangular_refuses_a_second_rise():
    with pytest.raises(UserError, match="cut_frac"):
        rates(lr_scheduler_type="slanted_triangular", warmup_steps=5)
    np.testing.assert_array_equal(
        rates(lr_scheduler_type="slanted_triangular", warmup_steps=0),
        rates(lr_scheduler_type="slanted_triangular"),
    )
