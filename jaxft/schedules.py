"""Learning rates as functions of the update, with the names and numbers that transformers has.

A shape maps the update (a float32 array of any shape) to a factor of `learning_rate`. Its
keyword-only arguments are its `lr_scheduler_kwargs`; there is no second list of them.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.config import steps
from jaxft.errors import UserError
from jaxft.sections import Optim


@dataclass(frozen=True)
class Run:
    """What a shape knows of the run; lengths in updates."""

    peak: float
    warmup: int
    total: int

    @property
    def after_warmup(self) -> int:
        return max(1, self.total - self.warmup)

    def past(self, now: jax.Array) -> jax.Array:
        """Updates since the warmup; stands still before it and after the run."""
        return jnp.clip(now - self.warmup, 0, self.after_warmup)

    def warm(self, now: jax.Array, factor: jax.Array) -> jax.Array:
        """A straight rise from 0 during the warmup, then `factor`."""
        return jnp.where(now < self.warmup, now / max(1, self.warmup), factor)

    def share(self, rate: float) -> float:
        """A learning rate as a factor of the peak; a peak of 0 stays 0 whatever this says."""
        return rate / (self.peak or 1.0)


Shape = Callable[..., jax.Array]


def constant(now: jax.Array, run: Run) -> jax.Array:
    return run.warm(now, jnp.ones_like(now))


def linear(now: jax.Array, run: Run) -> jax.Array:
    return run.warm(now, 1 - run.past(now) / run.after_warmup)


def polynomial(now: jax.Array, run: Run, *, lr_end: float = 1e-7, power: float = 1.0) -> jax.Array:
    if run.peak:
        _require(0 <= lr_end < run.peak, f"lr_end = {lr_end}", f"0 <= lr_end < {run.peak}")
    _require(power > 0, f"power = {power}", "power > 0")
    floor = run.share(lr_end)
    return run.warm(now, floor + (1 - floor) * (1 - run.past(now) / run.after_warmup) ** power)


def inverse_sqrt(now: jax.Array, run: Run, *, timescale: float | None = None) -> jax.Array:
    scale = (run.warmup or 10_000) if timescale is None else timescale
    _require(scale > 0, f"timescale = {scale}", "timescale > 0")
    return run.warm(now, jnp.sqrt(scale / (scale + run.past(now))))


def cosine(now: jax.Array, run: Run, *, num_cycles: float = 0.5) -> jax.Array:
    # (1 + cos 2x) / 2, without its cancellation where the rate nears 0
    return run.warm(now, jnp.cos(math.pi * num_cycles * run.past(now) / run.after_warmup) ** 2)


def cosine_with_min_lr(
    now: jax.Array,
    run: Run,
    *,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> jax.Array:
    given = f"min_lr = {min_lr}, min_lr_rate = {min_lr_rate}"
    _require((min_lr is None) != (min_lr_rate is None), given, "one of min_lr and min_lr_rate")
    floor = run.share(min_lr) if min_lr is not None else (min_lr_rate or 0.0)
    allowed = f"0 <= min_lr <= {run.peak}, or 0 <= min_lr_rate <= 1"
    _require(0 <= floor <= 1 or not run.peak, given, allowed)
    return run.warm(now, floor + (1 - floor) * cosine(now, run, num_cycles=num_cycles))


def cosine_with_restarts(now: jax.Array, run: Run, *, num_cycles: int = 1) -> jax.Array:
    _require(num_cycles >= 1, f"num_cycles = {num_cycles}", "num_cycles >= 1")
    # The remainder of whole numbers is exact; that of a share would miss restarts by rounding.
    phase = (num_cycles * run.past(now)) % run.after_warmup / run.after_warmup
    wave = jnp.cos(math.pi / 2 * phase) ** 2
    return run.warm(now, jnp.where(run.past(now) < run.after_warmup, wave, 0.0))


def slanted_triangular(
    now: jax.Array, run: Run, *, cut_frac: float = 0.1, ratio: float = 32.0
) -> jax.Array:
    """Source: Howard & Ruder 2018 (ULMFiT), eq. 3.

    Where `total * cut_frac` is no whole number the fall takes what is left of the run; by the
    letter of eq. 3 a short run would end below 0.
    """
    _require(0 < cut_frac < 1, f"cut_frac = {cut_frac}", "0 < cut_frac < 1")
    _require(ratio >= 1, f"ratio = {ratio}", "ratio >= 1")
    triangle = linear(now, dataclasses.replace(run, warmup=int(run.total * cut_frac)))
    return (1 + triangle * (ratio - 1)) / ratio


SHAPES: dict[str, Shape] = {
    shape.__name__: shape
    for shape in (
        cosine,
        linear,
        constant,
        polynomial,
        inverse_sqrt,
        cosine_with_min_lr,
        cosine_with_restarts,
        slanted_triangular,
    )
}
"""`lr_scheduler_type` -> its shape."""


def make_schedule(config: Optim, total_steps: int) -> optax.Schedule:
    """The learning rate of update k (the first is 0), float32, for an int or an int32 array k.

    Raises:
        UserError: a setting that the schedule does not have, or that contradicts the run.
    """
    shape, kwargs = SHAPES[config.lr_scheduler_type], dict(config.lr_scheduler_kwargs)
    _check_kwargs(config.lr_scheduler_type, shape, kwargs)
    run = Run(config.learning_rate, _warmup(config, total_steps), total_steps)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        return run.peak * shape(jnp.asarray(step).astype(jnp.float32), run, **kwargs)

    # A shape checks its own arguments: let it, before the first update is traced.
    jax.eval_shape(schedule, 0)
    return schedule


def _warmup(config: Optim, total_steps: int) -> int:
    """Updates of warmup."""
    given = config.warmup_steps
    if config.lr_scheduler_type == "slanted_triangular":
        default = {field.name: field.default for field in dataclasses.fields(config)}
        if given not in (0, default["warmup_steps"]):
            raise UserError(
                f"optim.warmup_steps = {given} contradicts optim.lr_scheduler_type = "
                '"slanted_triangular", which has a rise of its own. Set '
                'optim.lr_scheduler_kwargs = {"cut_frac": <share of the run>} and leave '
                "optim.warmup_steps out."
            )
        return 0
    updates = steps(given, total_steps)
    if updates > total_steps:
        raise UserError(
            f"optim.warmup_steps = {given} is longer than the run of {total_steps} updates. "
            "Give a share of the run (0.1), fewer updates, or train longer."
        )
    return updates


def _check_kwargs(name: str, shape: Shape, kwargs: dict[str, Any]) -> None:
    parameters = inspect.signature(shape).parameters.values()
    allowed = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = [key for key in kwargs if key not in allowed]
    if unknown:
        raise UserError(
            f'optim.lr_scheduler_type = "{name}" has no {", ".join(unknown)}. '
            f"optim.lr_scheduler_kwargs may hold: {', '.join(allowed) or 'nothing'}."
        )
    for key, value in kwargs.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(is_number and math.isfinite(value), f"{key} = {value!r}", "a finite number")


def _require(holds: bool, given: str, allowed: str) -> None:
    if not holds:
        raise UserError(f"optim.lr_scheduler_kwargs: {given}. Allowed: {allowed}.")
