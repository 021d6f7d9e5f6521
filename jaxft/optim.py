"""One optax chain from config and weights: clip, rule, decay, per-layer multipliers, schedule.

Everything is derived from the `Weight`s: what decays, how deep it sits, what is a stack of layers.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxft.errors import UserError
from jaxft.moments import in_bfloat16
from jaxft.nn.weights import Path, Tree, Weight, flatten, map_weights, part
from jaxft.schedules import make_schedule
from jaxft.sections import Optim

_RULE_KEYS = {
    "adamw": {"adam_beta1", "adam_beta2", "adam_epsilon", "moments_dtype"},
    "adafactor": set(),
    "lion": {"adam_beta1", "adam_beta2", "moments_dtype"},
    "sgd": {"momentum", "moments_dtype"},
}


def make_optimizer(
    config: Optim, weights: Mapping[Path, Weight], total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The whole update of the parameters that `weights` describes (float32, a plain nested dict).

    Gradients may have any float dtype. Weight decay is decoupled for every rule. It updates any
    part of the tree as it does the whole: some paths, and of stacks one layer, with a leading axis
    of 1. What a part cannot know is then given to `update`: `grad_norm`, of the whole gradient, and
    `layer`, the index in the stack.

    Raises:
        UserError: a setting that contradicts another, or that nothing would read.
    """
    multipliers = lr_multipliers(config, weights)
    stages = [_as_float32()]
    if config.max_grad_norm is not None:
        stages.append(_clip_by_global_norm(config.max_grad_norm))
    stages.append(_rule(config, weights))
    stages.append(_decay(config.weight_decay, decay_mask(weights)))
    if any(np.any(leaf != 1) for leaf in jax.tree.leaves(multipliers)):
        stages.append(_scale_by(multipliers))
    stages.append(optax.scale_by_learning_rate(make_schedule(config, total_steps)))
    return _with_standard_promotion(optax.with_extra_args_support(optax.chain(*stages)))


def decay_mask(weights: Mapping[Path, Weight]) -> Tree:
    """True where weight decay applies: kernels and embeddings."""
    return map_weights(lambda weight: weight.kind in ("kernel", "embedding"), weights)


def lr_multipliers(config: Optim, weights: Mapping[Path, Weight]) -> Tree:
    """Factor of the learning rate for each weight; for a stack float32 of shape [layers, 1, ...].

    The product of `layer_decay ** n` for a weight that sits n below the deepest one,
    `head_lr_multiplier` in a head, and the factor of every pattern of `lr_multipliers` that
    matches the whole of its name. Where nothing is set every leaf is 1.0.

    Raises:
        UserError: a pattern that matches nothing.
    """
    named = _named_factors(config.lr_multipliers, weights)
    if config.layer_decay == config.head_lr_multiplier == 1 and all(f == 1 for f in named.values()):
        return map_weights(lambda weight: 1.0, weights)
    top = max(max(weight.depth) for weight in weights.values())

    def multiplier(weight: Weight) -> float | np.ndarray:
        factor = named[weight.path] * (config.head_lr_multiplier if weight.in_head else 1.0)
        factors = [factor * config.layer_decay ** (top - depth) for depth in weight.depth]
        if not weight.stacked:
            return factors[0]
        return np.array(factors, np.float32).reshape(-1, *(1 for _ in weight.shape[1:]))

    return map_weights(multiplier, weights)


def learning_rates_by_depth(
    config: Optim, weights: Mapping[Path, Weight], total_steps: int
) -> Callable[[int], np.ndarray]:
    """The highest learning rate at each depth, [depths], of an update; on the host, for logs.

    A depth without weights (frozen ones) has 0.
    """
    multipliers = dict(flatten(lr_multipliers(config, weights)))
    highest = np.zeros(1 + max(max(weight.depth) for weight in weights.values()), np.float32)
    for path, weight in weights.items():
        factors = np.broadcast_to(np.ravel(multipliers[path]), len(weight.depth))
        np.maximum.at(highest, list(weight.depth), factors)
    # One table at the start: a log line then costs no dispatch and shows what the optimizer used.
    rates = np.asarray(make_schedule(config, total_steps)(jnp.arange(total_steps + 1)))
    return lambda step: rates[min(step, total_steps)] * highest


def _rule(config: Optim, weights: Mapping[Path, Weight]) -> optax.GradientTransformation:
    """The direction of the update, before decay and learning rate."""
    _refuse_unread(config)
    rule = _float32_rule(config, weights)
    return rule if config.moments_dtype == "float32" else in_bfloat16(rule, weights)


def _float32_rule(config: Optim, weights: Mapping[Path, Weight]) -> optax.GradientTransformation:
    match config.name:
        case "adamw":
            return optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon)
        case "lion":
            return optax.scale_by_lion(config.adam_beta1, config.adam_beta2)
        case "sgd":
            return optax.trace(config.momentum) if config.momentum else optax.identity()
        case "adafactor":
            # Not scaled by the size of the weights: the schedule gives the rate, as in HF's Trainer
            whole_tensor = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
            return _per_layer(whole_tensor, weights)


def _per_layer(
    rule: optax.GradientTransformation, weights: Mapping[Path, Weight]
) -> optax.GradientTransformation:
    """A rule that looks at whole tensors, shown each layer of a stack by itself.

    Its state is a tree like the parameters', with one state of `rule` for each weight; a stack's
    has a leading `layers` axis.
    """
    stacked = map_weights(lambda weight: weight.stacked, weights)

    def init(params: optax.Params) -> optax.OptState:
        def one(param: jax.Array, stacked: bool) -> optax.OptState:
            return (jax.vmap(rule.init) if stacked else rule.init)(param)

        return jax.tree.map(one, params, stacked)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        def one(update: jax.Array, stacked: bool, state: Any, param: jax.Array) -> tuple:
            return (jax.vmap(rule.update) if stacked else rule.update)(update, state, param)

        pairs = jax.tree.map(one, updates, _of(updates, stacked), state, params)
        first, second = (
            jax.tree.map(lambda pair, i=i: pair[i], pairs, is_leaf=lambda x: isinstance(x, tuple))
            for i in (0, 1)
        )
        return first, second

    return optax.GradientTransformation(init, update)


def _as_float32() -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: optax.tree.cast(updates, jnp.float32))


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """torch's `clip_grad_norm_`, except that a norm that is not finite makes every update NaN.

    Where finite gradients overflow their norm, scaling by 1/inf would turn them into silent zeros.
    """

    def clip(updates: optax.Updates, *, grad_norm: jax.Array | None, **_: Any) -> optax.Updates:
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        scale = jnp.where(jnp.isfinite(norm), scale, jnp.nan)
        return jax.tree.map(lambda update: update * scale, updates)

    return _stateless(clip)


def _decay(rate: float, mask: Tree) -> optax.GradientTransformation:
    return optax.add_decayed_weights(rate, mask=lambda updates: _of(updates, mask))


def _scale_by(multipliers: Tree) -> optax.GradientTransformationExtraArgs:
    def scale(updates: optax.Updates, *, layer: jax.Array | None, **_: Any) -> optax.Updates:
        def factor(multiplier: float | np.ndarray) -> Any:
            if layer is None or np.ndim(multiplier) == 0:
                return multiplier
            return lax.dynamic_slice_in_dim(jnp.asarray(multiplier), layer, 1)

        factors = jax.tree.map(factor, _of(updates, multipliers))
        return jax.tree.map(jnp.multiply, updates, factors)

    return _stateless(scale)


def _of(updates: optax.Updates, facts: Tree) -> Tree:
    """The facts of the weights that are being updated."""
    return part(facts, dict(flatten(updates)))


def _stateless(function: Callable[..., optax.Updates]) -> optax.GradientTransformationExtraArgs:
    """A stage that is told of the whole what a part cannot know."""

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_norm: jax.Array | None = None,
        layer: jax.Array | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        return function(updates, grad_norm=grad_norm, layer=layer), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _with_standard_promotion(
    transformation: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """optax mixes ints and floats, which JAX's strict dtype promotion refuses."""

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **whole: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params, **whole)

    return optax.GradientTransformationExtraArgs(transformation.init, update)


def _named_factors(
    patterns: Mapping[str, float], weights: Mapping[Path, Weight]
) -> dict[Path, float]:
    """The product of the factors whose pattern matches the whole of a weight's name."""
    factors = dict.fromkeys(weights, 1.0)
    for pattern, factor in patterns.items():
        matched = [path for path, weight in weights.items() if re.fullmatch(pattern, weight.name)]
        if not matched:
            names = [weight.name for weight in weights.values()]
            some = "\n  ".join(names[:: max(1, len(names) // 8)])
            raise UserError(
                f'optim.lr_multipliers: "{pattern}" matches the whole name of no weight. Some '
                f"of the {len(names)} names are:\n  {some}\nA part of a name needs .* around it."
            )
        for path in matched:
            factors[path] *= factor
    return factors


def _refuse_unread(config: Optim) -> None:
    """A setting of another rule would be accepted and ignored."""
    foreign = set().union(*_RULE_KEYS.values()) - _RULE_KEYS[config.name]
    unread = [
        f"optim.{field.name} = {getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name in foreign and getattr(config, field.name) != field.default
    ]
    if unread:
        allowed = ", ".join(sorted(_RULE_KEYS[config.name])) or "none of these"
        raise UserError(
            f'{", ".join(unread)}: optim.name = "{config.name}" does not read it (it reads: '
            f"{allowed}). Leave it out or choose another optimizer."
        )
    if config.name == "sgd" and config.momentum == 0 and config.moments_dtype != "float32":
        raise UserError(
            f"optim.moments_dtype = {config.moments_dtype}: there are no moments without "
            "optim.momentum. Leave it out."
        )
