"""Attention in blocks against XLA's: the same numbers and gradients, and no logits kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxft.nn import blocked
from jaxft.nn.attention import Side, attention

B, L, H, K = 2, 20, 6, 8
SEGMENTS = np.array([[1] * 7 + [2] * 9 + [0] * 4, [1] * 20])
POSITIONS = np.array([[*range(7), *range(9), *range(4)], [*range(20)]])
SIDE = Side(jnp.asarray(SEGMENTS, jnp.int32), jnp.asarray(POSITIONS, jnp.int32))
RULES = [(False, None), (True, None), (True, 5), (False, 5)]


def drawn(kv_heads: int, dtype: Any = jnp.float32, length: int = L) -> list[jax.Array]:
    random = np.random.default_rng(0)
    heads = (H, kv_heads, kv_heads)
    return [jnp.asarray(random.normal(size=(B, length, n, K)), dtype) for n in heads]


def by(kernel: str, causal: bool, window: int | None, **more: Any) -> Any:
    """A function of queries, keys and values that gives [B, L, H, K]."""

    def mix(*qkv: jax.Array) -> jax.Array:
        return attention(*qkv, SIDE, SIDE, kernel=kernel, causal=causal, window=window, **more)

    return mix


def with_gradients(mix: Any, qkv: list[jax.Array]) -> tuple:
    """What it gives, and the gradients of a sum that weighs every element otherwise."""

    def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = mix(*qkv)
        factors = jnp.sin(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
        return (mixed.astype(jnp.float32) * factors).sum(), mixed

    grads, mixed = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
    return mixed, *grads


@pytest.mark.parametrize("kv_heads", [H, 2])
@pytest.mark.parametrize(("causal", "window"), RULES)
def test_blocks_give_the_numbers_and_gradients_of_the_whole(causal, window, kv_heads, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 8)  # the last of three has four queries
    qkv = drawn(kv_heads)
    ours = with_gradients(by("blocked", causal, window), qkv)
    theirs = with_gradients(by("xla", causal, window), qkv)
    for kept, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(kept[SEGMENTS != 0], expected[SEGMENTS != 0], atol=3e-6)


def test_gradients_are_those_of_what_dropout_left(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 8)
    key = jax.random.key(0)
    dropping = by("blocked", True, None, rate=0.5, key=key)
    qkv = drawn(2)
    assert not np.allclose(dropping(*qkv), by("blocked", True, None)(*qkv), atol=0.1)
    check_grads(jax.jit(dropping), qkv, order=1, modes=["rev"], atol=0.02, rtol=0.02)
    q, k, v = qkv
    sums = jax.jit(dropping)(q, k, jnp.ones_like(v))  # of the weights that are left, each scaled up
    assert abs(sums.mean() - 1) < 0.1 < sums.std()


def test_it_computes_in_the_type_of_its_arguments():
    qkv = drawn(2, jnp.bfloat16)
    ours = with_gradients(by("blocked", True, None), qkv)
    theirs = with_gradients(by("xla", True, None), qkv)
    for kept, expected in zip(ours, theirs, strict=True):
        assert kept.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            *(np.asarray(x, np.float32)[SEGMENTS != 0] for x in (kept, expected)), atol=0.06
        )


def test_no_logits_wait_for_the_backward_pass():
    kept = {}
    for kernel in "blocked", "xla":
        _, backward = jax.vjp(by(kernel, True, None), *drawn(H))
        kept[kernel] = max(leaf.size for leaf in jax.tree.leaves(backward))
    assert kept["xla"] == B * H * L * L
    assert kept["blocked"] == B * L * H * K


def test_it_is_for_queries_that_are_the_keys():
    other = Side(*SIDE)
    with pytest.raises(ValueError, match="blocked"):
        attention(*drawn(H), SIDE, other, kernel="blocked")
