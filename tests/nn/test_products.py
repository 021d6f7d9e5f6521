"""Products with weights: float32 unless asked otherwise, then of bfloat16 factors.

B rows, L tokens, D width in, F width out, V vocabulary.
"""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft.nn.losses import vocabulary_loss
from jaxft.nn.products import multiply
from jaxft.sharding import ROWS, make_mesh

SAME = 2e-6
"""Largest error over the largest magnitude: float32 sums in another order."""
D, F = 24, 40
SHAPES = {"rows of tokens": (4, 6), "an odd number of tokens": (3, 5), "rows alone": (8,)}
MESHES = {
    "fsdp": {"fsdp": 4},
    "context": {"data": 2, "context": 2},
    "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}
draw = np.random.default_rng(0)
KERNEL = draw.normal(size=(D, F)).astype(np.float32)


def activations(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """What goes in, and the gradient that comes back."""
    return tuple(draw.normal(size=(*shape, width)).astype(np.float32) for width in (D, F))


def all_three(x: jax.Array, kernel: jax.Array, d: jax.Array) -> list[np.ndarray]:
    """The product and both gradients."""
    product, pull = jax.vjp(multiply, x, kernel)
    return [product, *pull(d)]


def meant(x: np.ndarray, kernel: np.ndarray, d: np.ndarray) -> list[np.ndarray]:
    """The same of rounded factors, summed in float64."""
    x, kernel, d = (a.astype(jnp.bfloat16).astype(np.float64) for a in (x, kernel, d))
    return [x @ kernel, d @ kernel.T, np.einsum("td,tf->df", x.reshape(-1, D), d.reshape(-1, F))]


def assert_same(ours: list, theirs: list) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.float32
        assert np.abs(np.asarray(mine) - other).max() <= SAME * np.abs(other).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_rounded_and_sums_are_not(shape):
    x, d = activations(*SHAPES[shape])
    with jax.default_matmul_precision("bfloat16"):
        assert_same(jax.jit(all_three)(x, KERNEL, d), meant(x, KERNEL, d))


@pytest.mark.parametrize("mesh", MESHES)
def test_devices_change_nothing(mesh):
    sizes, (x, d) = MESHES[mesh], activations(4, 6)
    made = make_mesh(sizes, jax.devices()[: prod(sizes.values())])
    split = NamedSharding(made, P(*ROWS, "context"))
    kernel = NamedSharding(made, P(None, "tensor"))
    with jax.set_mesh(made), jax.default_matmul_precision("bfloat16"):
        placed = jax.device_put((x, KERNEL, d), (split, kernel, split))
        assert_same(jax.jit(all_three)(*placed), meant(x, KERNEL, d))


@pytest.mark.parametrize("precision", [None, "float32", "highest"])
def test_nothing_is_rounded_unless_asked_for(precision):
    x, d = activations(4, 6)
    with jax.default_matmul_precision(precision):
        ours = jax.jit(all_three)(x, KERNEL, d)
    flat = np.einsum("td,tf->df", x.reshape(-1, D), d.reshape(-1, F))
    assert_same(ours, [x @ KERNEL, d @ KERNEL.T, flat])


def test_other_dtypes_stay_what_they_are():
    x, _ = activations(4, 6)
    with jax.default_matmul_precision("bfloat16"):
        assert multiply(jnp.asarray(x, jnp.bfloat16), KERNEL).dtype == jnp.bfloat16


def test_the_vocabularys_loss_rounds_its_factors_too():
    hidden, targets = activations(4, 6)[0], draw.integers(0, F, (4, 6))
    arrays = hidden, KERNEL, targets.astype(np.int32), np.ones((4, 6), np.float32)
    step = jax.jit(jax.value_and_grad(vocabulary_loss, (0, 1)))
    exact = step(*arrays)
    with jax.default_matmul_precision("bfloat16"):
        ours = step(*arrays)
        rounded = (np.asarray(a, jnp.bfloat16).astype(np.float32) for a in arrays[:2])
    logits = np.matmul(*rounded).astype(np.float64)
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    assert np.isclose(ours[0], (np.log(np.exp(logits).sum(-1)) - picked).sum(), rtol=SAME)
    for mine, other in zip(ours[1], exact[1], strict=True):
        assert mine.dtype == jnp.float32
        error = np.abs(mine - other).max() / np.abs(other).max()
        assert 1e-4 < error < 2**-6
