"""Moments in bfloat16: what float32 ones would be, on average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_bert import bert, random_tree

from jaxft.moments import in_bfloat16, rounded

STEPS = 400


def test_rounding_hits_both_neighbours_and_the_mean():
    x = jnp.full((100_000,), 1 + 0.25 * 2**-7, jnp.float32)
    found, counts = np.unique(
        np.asarray(rounded(x, jax.random.key(0)), np.float32), return_counts=True
    )
    assert found.tolist() == [1.0, 1 + 2**-7]
    np.testing.assert_allclose(counts / x.size, [0.75, 0.25], atol=0.01)  # 7 standard deviations


def test_rounding_keeps_what_bfloat16_holds_and_what_is_no_number():
    x = jnp.array([0.0, -1.5, 3.0e38, np.inf, -np.inf, np.nan, 1e-30], jnp.float32)
    exact = np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))[[0, 1, 3, 4]]
    for seed in range(8):
        after = np.asarray(rounded(x, jax.random.key(seed)), np.float32)
        np.testing.assert_array_equal(after[[0, 1, 3, 4]], exact)
        assert np.isnan(after[5])
        np.testing.assert_allclose(after[[2, 6]], np.asarray(x)[[2, 6]], rtol=2**-7)


@pytest.fixture
def as_optax_needs():
    """Its rules mix ints and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("as_optax_needs")
def test_a_second_moment_that_nothing_feeds_decays():
    weights = {path: w for path, w in bert(2, width=32).items() if path[-1] == "kernel"}
    rule = in_bfloat16(optax.scale_by_adam(0.9, 0.999, 1e-8), weights)
    zeros = jax.tree.map(np.zeros_like, random_tree(weights, 0))
    ones = jax.tree.map(np.ones_like, zeros)

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(0, STEPS, lambda _, state: rule.update(zeros, state)[1], state)

    start = jax.jit(lambda: rule.update(ones, rule.init(ones))[1])()
    end = run(start)
    moments = jax.tree.leaves((end.rule.mu, end.rule.nu))
    assert {leaf.dtype for leaf in moments} == {np.dtype(jnp.bfloat16)}
    for before, after in zip(
        jax.tree.leaves(start.rule.nu), jax.tree.leaves(end.rule.nu), strict=True
    ):
        # Each number walks at random: of a hundred and more, 0.01 is 5 standard deviations.
        share = np.asarray(after, np.float32).mean() / np.asarray(before, np.float32).mean()
        assert share == pytest.approx(0.999**STEPS, rel=0.05)


@pytest.mark.usefixtures("as_optax_needs")
def test_of_a_stack_each_layer_is_rounded_alone_as_in_the_whole():
    weights = {path: w for path, w in bert(3).items() if w.stacked}
    rule = in_bfloat16(optax.scale_by_adam(0.9, 0.999, 1e-8), weights)
    grads = jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), random_tree(weights, 1))
    _, whole = jax.jit(rule.update)(grads, rule.init(grads))
    one = jax.tree.map(lambda x: x[:1], grads)
    alone = jax.jit(lambda i: rule.update(one, rule.init(one), layer=i)[1])
    layers = [jax.tree.leaves(alone(jnp.int32(i)).rule.mu) for i in range(3)]
    for stacked, *cut in zip(jax.tree.leaves(whole.rule.mu), *layers, strict=True):
        np.testing.assert_array_equal(stacked, np.concatenate(cut))
        assert (stacked[0] != stacked[1]).any(), "equal layers are rounded otherwise"
