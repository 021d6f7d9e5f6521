"""Attention against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.nn.attention import Side, attention

B, L, H, K = 2, 12, 6, 8


def reference(q_LHK, k_SGK, v_SGK, queries, keys, causal, window):
    """One row, one query and one head at a time, in float64."""
    mixed_LHK = np.zeros(q_LHK.shape)
    group = q_LHK.shape[1] // k_SGK.shape[1]
    for i, (segment, position) in enumerate(zip(*queries, strict=True)):
        seen = [
            j
            for j, (other, place) in enumerate(zip(*keys, strict=True))
            if other == segment
            and not (causal and place > position)
            and not (window is not None and abs(position - place) >= window)
        ]
        for h in range(q_LHK.shape[1]):
            logits_S = k_SGK[seen, h // group] @ q_LHK[i, h] / np.sqrt(q_LHK.shape[2])
            weights_S = np.exp(logits_S - logits_S.max())
            mixed_LHK[i, h] = weights_S / weights_S.sum() @ v_SGK[seen, h // group]
    return mixed_LHK


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 3)])
def test_attention_equals_numpy(kv_heads, causal, window):
    """Queries are the last tokens of the keys, which are packed, padded and have a gap."""
    random = np.random.default_rng(0)
    q, k, v = (
        random.normal(size=(B, L, heads, K)).astype(np.float32) for heads in (H, kv_heads, kv_heads)
    )
    segments = np.array([[0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2], [1] * 5 + [0] * 2 + [1] * 5])
    positions = np.array(
        [[0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 0, 0, 5, 6, 7, 8, 9]]
    )
    keys = Side(jnp.asarray(segments, jnp.int32), jnp.asarray(positions, jnp.int32))
    last = slice(5, None)
    queries = Side(keys.segments_BL[:, last], keys.positions_BL[:, last])
    ours = attention(q[:, last], k, v, queries, keys, kernel="xla", causal=causal, window=window)
    for b in range(B):
        sides = [(np.asarray(side[0][b]), np.asarray(side[1][b])) for side in (queries, keys)]
        expected = reference(q[b, last], k[b], v[b], *sides, causal, window)
        real = np.asarray(queries.segments_BL[b]) != 0
        np.testing.assert_allclose(ours[b][real], expected[real], atol=2e-6)


def test_a_scale_replaces_that_of_the_head_width():
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(1, 4, 2, K)).astype(np.float32) for _ in range(3))
    side = Side(jnp.ones((1, 4), jnp.int32), jnp.arange(4, dtype=jnp.int32)[None])
    unscaled = attention(q, k, v, side, side, kernel="xla", scale=1.0)
    np.testing.assert_allclose(
        unscaled, attention(q * K**0.5, k, v, side, side, kernel="xla"), rtol=1e-5
    )
