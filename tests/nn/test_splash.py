"""Splash attention equals the reference in Pallas' interpreter, and compiles for a TPU slice."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu

from jaxft.nn.attention import Side, attention
from jaxft.nn.splash import splash_attention
from jaxft.sharding import make_mesh

SAME = 2e-6
"""Largest difference relative to the largest value, in float32."""
WIDTH = 128
SPLIT = {"context": 2, "tensor": 2}


def row(width: int, heads: int, lengths: tuple[int, ...]) -> tuple[tuple, Side]:
    """Queries, keys and values of a row of examples, padding last; two queries to a key."""
    random = np.random.default_rng(0)
    shapes = (1, width, 2 * heads, 64), (1, width, heads, 64), (1, width, heads, 64)
    q, k, v = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)
    lengths = (*lengths, width - sum(lengths))
    segments = np.repeat([*range(1, len(lengths)), 0], lengths).astype(np.int32)[None]
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)[None]
    return (q / 8, k, v), Side(jnp.asarray(segments), jnp.asarray(positions))


@pytest.mark.parametrize(
    ("causal", "window", "sizes"),
    [(True, None, {}), (True, 16, {}), (False, None, {}), (True, None, SPLIT), (True, 16, SPLIT)],
    ids=str,
)
def test_pitfall_22_it_equals_the_reference_forward_and_backward(causal, window, sizes):
    """On devices that split the heads and the row, in the midst of an example, too."""
    if sizes:
        arrays, side = row(2 * WIDTH, 2, (60, 41, 90, 30))
    else:
        arrays, side = row(WIDTH, 1, (60, 41, 20))
    mesh = make_mesh(sizes, jax.devices()[: prod(sizes.values())])
    real = np.asarray(side.segments_BL != 0)[..., None, None]
    mix = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32) * real

    def ours(*qkv):
        kept = splash_attention(
            *qkv, side.segments_BL, causal=causal, window=window, interpret=True
        )
        return (kept * mix).sum(), kept

    def reference(*qkv):
        kept = attention(*qkv, side, side, kernel="xla", causal=causal, window=window, scale=1.0)
        return (kept * mix).sum(), kept

    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(*arrays)
    expected = jax.jit(jax.value_and_grad(reference, (0, 1, 2), has_aux=True))(*arrays)
    for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        shown = real if mine.shape == real.shape[:2] + mine.shape[2:] else 1.0
        gap = np.abs((np.asarray(mine) - np.asarray(theirs)) * shown).max()
        assert gap <= SAME * np.abs(theirs).max() + SAME


def test_a_width_that_it_cannot_cut_is_refused():
    (q, k, v), side = row(WIDTH, 1, (60,))
    with pytest.raises(ValueError, match="a multiple of 128 tokens, not 100"):
        splash_attention(
            q[:, :100], k[:, :100], v[:, :100], side.segments_BL[:, :100], causal=True, window=None
        )


COMPILE = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxft.nn.splash import splash_attention
from jaxft.sharding import make_mesh
slices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2)
mesh = make_mesh({"data": 2, "fsdp": 2, "context": 2, "tensor": 2}, slices.devices)
for along_data in (0, 1):
    assert {device.slice_index for device in mesh.devices[along_data].flat} == {along_data}
def array(*shape, dtype=jnp.bfloat16, spec=P(("data", "fsdp"), "context", "tensor")):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
def loss(q, k, v, segments):
    return splash_attention(q, k, v, segments, causal=True, window=None).astype(jnp.float32).sum()
with jax.set_mesh(mesh):
    segments = array(8, 1024, dtype=jnp.int32, spec=P(("data", "fsdp"), "context"))
    heads = array(8, 1024, 8, 64), array(8, 1024, 4, 64), array(8, 1024, 4, 64)
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*heads, segments).compile().as_text()
assert "splash" in text
print("compiled")
"""


@tpu.needs_libtpu
def test_it_compiles_for_two_tpu_slices_that_split_rows_tokens_and_heads():
    assert tpu.compiled(COMPILE).strip() == "compiled"
