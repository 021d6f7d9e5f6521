"""Rotary position embeddings and the ways to stretch them over longer texts.

Source: Su et al. 2021 (RoFormer), section 3.2; transformers 5.23 `modeling_rope_utils`. K is the
head width, B rows, L tokens, H heads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor, log, pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.errors import UserError

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines of every token's angles, each float32 [B, L, K / 2]."""


@dataclass(frozen=True)
class Rope:
    """Angles per position: frequencies that are fixed, or (`dynamic`) follow the longest text."""

    frequencies_K: tuple[float, ...]
    """Radians per position of each of the K / 2 planes."""
    scale: float = 1.0
    """Of the rotated vectors (YaRN's temperature)."""
    theta: float = 10000.0
    dynamic: tuple[float, int] | None = None
    """(factor, trained positions): beyond the latter, theta grows with the longest text."""

    def __call__(self, positions_BL: jax.Array) -> Rotation:
        frequencies_K = jnp.asarray(self.frequencies_K, jnp.float32)
        if self.dynamic is not None:
            factor, trained = self.dynamic
            longest = jnp.maximum(positions_BL.max() + 1, trained).astype(jnp.float32)
            width = 2 * len(self.frequencies_K)
            growth = (factor * longest / trained - (factor - 1)) ** (width / (width - 2))
            powers_K = jnp.asarray(np.arange(0, width, 2) / width, jnp.float32)
            frequencies_K = (self.theta * growth) ** -powers_K
        angles_BLK = positions_BL[..., None].astype(jnp.float32) * frequencies_K
        return jnp.cos(angles_BLK) * self.scale, jnp.sin(angles_BLK) * self.scale


def rotate(x_BLHK: jax.Array, rotation: Rotation) -> jax.Array:
    """Each head's vector turned by its token's angles; the planes are (i, i + K / 2)."""
    cos_BL1K, sin_BL1K = (part[:, :, None] for part in rotation)
    a, b = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos_BL1K - b * sin_BL1K, b * cos_BL1K + a * sin_BL1K], axis=-1)
    return turned.astype(x_BLHK.dtype)


def read_rope(
    width: int,
    max_positions: int,
    theta: float | None,
    scaling: Mapping[str, Any] | None,
    parameters: Mapping[str, Any] | None,
) -> Rope:
    """The `Rope` of a config's `rope_theta` and `rope_scaling`, or of `rope_parameters` (v5).

    Raises:
        UserError: a kind of scaling, or one of its options, that we do not know or that is missing.
    """
    if width % 2:
        raise UserError(f"config.json: heads of odd width {width} have no planes to rotate.")
    options = dict(scaling or parameters or {})
    old, new = options.pop("type", "default"), options.pop("rope_type", None)
    kind = new or old
    base = float(options.pop("rope_theta", None) or theta or 10000.0)
    if options.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("config.json: partial_rotary_factor other than 1 is not supported.")
    if kind not in _KINDS:
        raise UserError(
            f"config.json: rope scaling {kind!r} is not known; there is {', '.join(_KINDS)}."
        )
    make, needed, others = _KINDS[kind]
    known = (*needed, *others)
    strange = sorted(set(options) - set(known))
    if strange:
        raise UserError(
            f"config.json: rope scaling {kind!r} does not know {', '.join(strange)}; its options "
            f"are {', '.join(known) or 'none'}."
        )
    # A factor that is null is YaRN's way to say the ratio of the lengths.
    null = {"factor"} if kind == "yarn" else set()
    missing = [x for x in needed if x not in options or (options[x] is None and x not in null)]
    if missing:
        raise UserError(f"config.json: rope scaling {kind!r} needs {', '.join(missing)}.")
    options[_ORIGINAL] = options.get(_ORIGINAL) or max_positions
    return make(width, base, max_positions, options)


def _plain(width: int, theta: float) -> np.ndarray:
    powers = np.arange(0, width, 2).astype(np.float32) / np.float32(width)
    return (1.0 / np.float32(theta) ** powers).astype(np.float32)


def _frozen(frequencies: np.ndarray, theta: float, scale: float = 1.0) -> Rope:
    return Rope(tuple(float(f) for f in frequencies.astype(np.float32)), scale, theta)


def _default(width: int, theta: float, positions: int, options: Mapping[str, Any]) -> Rope:
    return _frozen(_plain(width, theta), theta)


def _linear(width: int, theta: float, positions: int, options: Mapping[str, Any]) -> Rope:
    """Positions divided by the factor. Source: Chen et al. 2023."""
    return _frozen(_plain(width, theta) / np.float32(options["factor"]), theta)


def _dynamic(width: int, theta: float, positions: int, options: Mapping[str, Any]) -> Rope:
    """A theta that grows with the text, beyond the trained positions."""
    frequencies = tuple(float(f) for f in _plain(width, theta))
    return Rope(frequencies, theta=theta, dynamic=(float(options["factor"]), positions))


def _yarn(width: int, theta: float, positions: int, options: Mapping[str, Any]) -> Rope:
    """Slow planes interpolated, fast ones kept, a ramp between. Source: Peng et al. 2023, 3.2."""
    original = options[_ORIGINAL]
    factor = options.get("factor") or positions / original
    fast, slow = options.get("beta_fast") or 32, options.get("beta_slow") or 1

    def plane(turns: float) -> float:
        return width * log(original / (turns * 2 * pi)) / (2 * log(theta))

    low, high = plane(fast), plane(slow)
    if options.get("truncate", True):
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(width // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    kept = _plain(width, theta)
    mixed = kept / np.float32(factor) * ramp + kept * (1 - ramp)
    return _frozen(mixed, theta, _temperature(factor, options))


def _temperature(factor: float, options: Mapping[str, Any]) -> float:
    if (given := options.get("attention_factor")) is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * log(factor) + 1.0

    one, other = options.get("mscale"), options.get("mscale_all_dim")
    return scale(one) / scale(other) if one and other else scale(1.0)


def _llama3(width: int, theta: float, positions: int, options: Mapping[str, Any]) -> Rope:
    """Long waves divided by the factor, short ones kept. Source: Llama 3.1's release."""
    plain, factor = _plain(width, theta), np.float32(options["factor"])
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    turns = np.float32(options[_ORIGINAL]) * plain / np.float32(2 * pi)
    mix = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    return _frozen((1 - mix) * plain / factor + mix * plain, theta)


_ORIGINAL = "original_max_position_embeddings"
_Make = Callable[[int, float, int, Mapping[str, Any]], Rope]
_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
_KINDS: dict[str, tuple[_Make, tuple[str, ...], tuple[str, ...]]] = {
    "default": (_default, (), ()),
    "linear": (_linear, ("factor",), ()),
    "dynamic": (_dynamic, ("factor",), (_ORIGINAL,)),
    "yarn": (_yarn, ("factor",), (_ORIGINAL, *_YARN)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
}
"""How each kind is made, the options it needs and those it can do without."""
