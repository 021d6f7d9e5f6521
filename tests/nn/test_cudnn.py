"""cuDNN's attention: what it is asked for, with JAX's own in its place; on a GPU what it gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels import with_gradients

from jaxft.nn.attention import Side, attention

B, L, H, K = 3, 64, 6, 64
LENGTHS = (64, 23, 0)
"""A full row, a padded one, and a filler of the last batch."""
REAL_BL = np.arange(L) < np.array(LENGTHS)[:, None]
SIDE = Side(jnp.asarray(REAL_BL, jnp.int32), jnp.asarray(np.arange(L) * REAL_BL, jnp.int32))
RULES = [(False, None), (True, None), (True, 5), (True, 1)]
HALF = 2e-2
"""Largest difference in bfloat16 relative to the largest value: 5 units in its last place."""
INSTEAD = jax.nn.dot_product_attention


def drawn(kv_heads: int, dtype: Any) -> list[jax.Array]:
    random = np.random.default_rng(0)
    heads = (H, kv_heads, kv_heads)
    return [jnp.asarray(random.normal(size=(B, L, n, K)), dtype) for n in heads]


def by(kernel: str, causal: bool, window: int | None) -> Any:
    """A function of queries, keys and values that gives [B, L, H, K], 0 at padding."""

    def mix(*qkv: jax.Array) -> jax.Array:
        mixed = attention(*qkv, SIDE, SIDE, kernel=kernel, causal=causal, window=window)
        return jnp.where(REAL_BL[..., None, None], mixed, 0)

    return mix


@pytest.mark.parametrize("kv_heads", [H, 2])
@pytest.mark.parametrize(("causal", "window"), RULES)
def test_pitfall_22_it_is_asked_for_what_the_reference_gives(causal, window, kv_heads, monkeypatch):
    def instead(*qkv: jax.Array, implementation: str, **asked: Any) -> jax.Array:
        assert implementation == "cudnn"
        assert not {"mask", "bias"} & asked.keys(), "lengths, not masks"
        return INSTEAD(*qkv, implementation="xla", **asked)

    qkv = drawn(kv_heads, jnp.float32)
    expected = with_gradients(by("xla", causal, window), qkv)
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    for ours, theirs in zip(
        with_gradients(by("cudnn", causal, window), qkv), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_no_row_is_empty_for_it(monkeypatch):
    asked: dict[str, Any] = {}

    def instead(q: jax.Array, k: jax.Array, v: jax.Array, **given: Any) -> jax.Array:
        asked.update(given)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    attention(*drawn(H, jnp.float32), SIDE, SIDE, kernel="cudnn")
    for side in "query", "key_value":
        assert asked[f"{side}_seq_lengths"].tolist() == [64, 23, 1]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU, which cuDNN's kernel needs")
@pytest.mark.parametrize("kv_heads", [H, 2])
@pytest.mark.parametrize(("causal", "window"), RULES)
def test_pitfall_22_the_kernel_equals_the_reference_on_a_gpu(causal, window, kv_heads):
    """Against float32 products of the same numbers."""
    qkv = drawn(kv_heads, jnp.bfloat16)
    with jax.default_matmul_precision("float32"):
        whole = [x.astype(jnp.float32) for x in qkv]
        expected = with_gradients(by("xla", causal, window), whole)
    for ours, theirs in zip(
        with_gradients(by("cudnn", causal, window), qkv), expected, strict=True
    ):
        assert ours.dtype == jnp.bfloat16
        gap = np.abs(np.asarray(ours, np.float32) - np.asarray(theirs)).max()
        assert gap <= HALF * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("keys", "more", "said"),
    [
        (SIDE, {"window": 5}, "windows of causal attention only"),
        (SIDE, {"rate": 0.1, "key": jax.random.key(0)}, "no attention dropout"),
        (Side(*SIDE), {}, "keys and queries of the same tokens"),
    ],
    ids=["window", "dropout", "memory"],
)
def test_what_it_cannot_do_is_refused(keys, more, said):
    with pytest.raises(ValueError, match=said):
        attention(*drawn(H, jnp.float32), SIDE, keys, kernel="cudnn", **more)
