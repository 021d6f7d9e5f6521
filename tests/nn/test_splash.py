"""Splash attention equals the reference in Pallas' interpreter, and compiles for a TPU slice."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.nn.attention import Side, attention
from jaxft.nn.splash import splash_attention

SAME = 2e-6
"""Largest difference relative to the largest value, in float32."""
LENGTHS = (60, 41, 20)
"""Of the examples that share the row; the rest of it is padding."""
WIDTH = 128


@pytest.fixture(scope="module")
def row():
    random = np.random.default_rng(0)
    shapes = (1, WIDTH, 2, 64), (1, WIDTH, 1, 64), (1, WIDTH, 1, 64)
    q, k, v = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)
    lengths = (*LENGTHS, WIDTH - sum(LENGTHS))
    segments = np.repeat([1, 2, 3, 0], lengths).astype(np.int32)[None]
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)[None]
    return (q / 8, k, v), Side(jnp.asarray(segments), jnp.asarray(positions))


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 16), (False, None)])
def test_pitfall_22_it_equals_the_reference_forward_and_backward(row, causal, window):
    arrays, side = row
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

    both = [
        jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(*arrays) for f in (ours, reference)
    ]
    for mine, theirs in zip(*map(jax.tree.leaves, both), strict=True):
        shown = real if mine.shape == real.shape[:2] + mine.shape[2:] else 1.0
        gap = np.abs((np.asarray(mine) - np.asarray(theirs)) * shown).max()
        assert gap <= SAME * np.abs(theirs).max() + SAME


def test_a_width_that_it_cannot_cut_is_refused(row):
    (q, k, v), side = row
    with pytest.raises(ValueError, match="a multiple of 128 tokens, not 100"):
        splash_attention(
            q[:, :100], k[:, :100], v[:, :100], side.segments_BL[:, :100], causal=True, window=None
        )


COMPILE = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jaxft.nn.splash import splash_attention
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
axes = ("data", "fsdp", "tensor")
mesh = Mesh(np.array(devices).reshape(1, 4, 2), axes, axis_types=(AxisType.Auto,) * 3)
def array(*shape, dtype=jnp.bfloat16, spec=P(("data", "fsdp"), None, "tensor")):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
def loss(q, k, v, segments):
    return splash_attention(q, k, v, segments, causal=True, window=None).astype(jnp.float32).sum()
with jax.set_mesh(mesh):
    segments = array(8, 1024, dtype=jnp.int32, spec=P(("data", "fsdp")))
    heads = array(8, 1024, 8, 64), array(8, 1024, 4, 64), array(8, 1024, 4, 64)
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*heads, segments).compile().as_text()
assert "splash" in text
print("compiled")
"""


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is missing")
def test_it_compiles_for_a_tpu_slice_that_splits_rows_and_heads():
    environment = {
        **os.environ,
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]
