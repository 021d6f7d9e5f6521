"""Cross-entropy in chunks: what optax computes from all logits at once, in a part of the memory.

B rows, L tokens, D model width, V vocabulary.
"""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft.nn import losses
from jaxft.planning.collectives import collectives
from jaxft.sharding import ROWS, make_mesh

SAME = 2e-6
"""Largest error over the largest magnitude of the same array: float32 sums in another order. Seen
is 5e-7.
"""
HALF = 2**-7
"""The same where factors of gradients are rounded to bfloat16, of 8 bits. Seen is 6e-3."""
B, L, D, V = 8, 12, 16, 50
MESHES = {
    "1 device": {"data": 1},
    "fsdp": {"data": 1, "fsdp": 8},
    "all three": {"data": 2, "fsdp": 2, "tensor": 2},
    "context": {"fsdp": 2, "context": 2, "tensor": 2},
}
CHUNKS = {1: (2**28, 1), 4: (B * L * V, 1), 32: (B * L * V // 8, 256)}
"""Chunks on one device -> `LOGITS_BYTES` and `LEAST_TOKENS` that make them."""
FEW = pytest.mark.parametrize("chunks", [1, 32], indirect=True)
PARTS = ("loss", "gradient of the hidden states", "gradient of the head")

Loss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
draw = np.random.default_rng(0)
HIDDEN = draw.normal(size=(B, L, D)).astype(np.float32)
HEAD = draw.normal(size=(D, V)).astype(np.float32)
TARGETS = draw.integers(0, V, (B, L)).astype(np.int32)
WEIGHTS = {
    "0 and 1": draw.integers(0, 2, (B, L)).astype(np.float32),
    "fractions": draw.random((B, L)).astype(np.float32),
}
ROW, TOKEN = np.indices((B, L))
PATTERNS = {
    "all": TOKEN >= 0,
    "none": TOKEN < 0,
    "one token": (ROW == 5) & (TOKEN == 7),
    "the last token": (ROW == B - 1) & (TOKEN == L - 1),
    "answers": TOKEN > L // 2,
    "one row of a device": ROW == 2,
    "every third": (L * ROW + TOKEN) % 3 == 0,
}
"""Whether a token is learnt: whole devices and rows without any, chunks that end anywhere."""


def plain(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """All logits at once, in float32."""
    logits = jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return (optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights).sum()


def slopes(loss: Loss, *arrays: np.ndarray | jax.Array) -> list[np.ndarray]:
    """Value and both gradients, of a loss that is scaled: what comes back is not always 1."""
    step = jax.value_and_grad(lambda *given: loss(*given) / 3, (0, 1))
    value, gradients = jax.jit(step)(*arrays)
    return [np.asarray(x, np.float32) for x in (value, *gradients)]


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float = SAME) -> None:
    for name, mine, other in zip(PARTS, ours, theirs, strict=True):
        assert np.abs(mine - other).max() <= tolerance * np.abs(other).max(), name


@pytest.fixture(params=CHUNKS)
def chunks(request, monkeypatch) -> int:
    for name, value in zip(("LOGITS_BYTES", "LEAST_TOKENS"), CHUNKS[request.param], strict=True):
        monkeypatch.setattr(losses, name, value)
    return request.param


@pytest.mark.parametrize("weights", WEIGHTS)
def test_it_is_optaxs_loss_in_any_number_of_chunks(chunks, weights):
    arrays = HIDDEN, HEAD, TARGETS, WEIGHTS[weights]
    assert losses._chunks(B * L, V)[0] == chunks
    assert_same(slopes(losses.vocabulary_loss, *arrays), slopes(plain, *arrays))


@FEW
@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "1 device"])
def test_devices_change_nothing(chunks, mesh):
    """Rows over `data` and `fsdp`, the head as `sharding.spec` lays a head."""
    sizes = MESHES[mesh]
    arrays = HIDDEN, HEAD, TARGETS, WEIGHTS["fractions"]
    made = make_mesh(sizes, jax.devices()[: prod(sizes.values())])
    heads = P("fsdp", "tensor" if "tensor" in sizes else None)
    with jax.set_mesh(made):
        placed = [
            jax.device_put(x, NamedSharding(made, heads if x is HEAD else ROWS)) for x in arrays
        ]
        ours = slopes(losses.vocabulary_loss, *placed)
    assert_same(ours, slopes(plain, *arrays))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("chunks", [4], indirect=True)
def test_whatever_is_learnt(chunks, mesh):
    sizes = MESHES[mesh]
    made = make_mesh(sizes, jax.devices()[: prod(sizes.values())])
    step = jax.jit(jax.value_and_grad(losses.vocabulary_loss, (0, 1)))
    with jax.set_mesh(made):
        for name, pattern in PATTERNS.items():
            weights = pattern * WEIGHTS["fractions"]
            places = [jax.device_put(x, NamedSharding(made, ROWS)) for x in (HIDDEN, TARGETS)]
            placed = jax.device_put(weights, NamedSharding(made, ROWS))
            loss, gradients = step(places[0], HEAD, places[1], placed)
            ours = [np.asarray(x) for x in (loss, *gradients)]
            theirs = jax.value_and_grad(plain, (0, 1))(HIDDEN, HEAD, TARGETS, weights)
            assert_same(ours, [np.asarray(x) for x in (theirs[0], *theirs[1])])
            assert (ours[1][weights == 0] == 0).all(), name


@pytest.mark.parametrize("chunks", CHUNKS, indirect=True)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_chunks_behind_the_learnt_tokens_are_not_computed(chunks, pattern, monkeypatch):
    """As many tokens meet the head as are learnt, rounded up to a piece of a chunk."""
    seen = []

    def logits(hidden_CD: jax.Array, head_DV: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: seen.append(len(hidden_CD)), hidden_CD[0, 0])
        return hidden_CD @ head_DV

    monkeypatch.setattr(losses, "_logits", logits)
    weights = np.asarray(PATTERNS[pattern], np.float32)
    jax.block_until_ready(slopes(losses.vocabulary_loss, HIDDEN, HEAD, TARGETS, weights))
    jax.effects_barrier()
    _, pieces, piece = losses._chunks(B * L, V)
    learnt = int(weights.sum())
    assert sum(seen) == -(-learnt // piece) * piece
    assert len(seen) == -(-learnt // piece) // pieces + -(-learnt // piece) % pieces


@FEW
@pytest.mark.parametrize("mesh", MESHES)
def test_micro_batches_of_a_scan_add_up(chunks, mesh):
    """Gradients within the scan, as `step.train_step` has them."""
    sizes = MESHES[mesh]
    made = make_mesh(sizes, jax.devices()[: prod(sizes.values())])

    def summed(hidden_NBLD: jax.Array, head_DV: jax.Array, *more: jax.Array) -> tuple:
        def add(sums: tuple, part: tuple) -> tuple:
            hidden, targets, weights = part
            step = jax.value_and_grad(losses.vocabulary_loss, (0, 1))
            loss, (d_hidden, d_head) = step(hidden, head_DV, targets, weights)
            return (sums[0] + loss, sums[1] + d_head), d_hidden

        zeros = jnp.float32(0), jnp.zeros_like(head_DV)
        (loss, d_head), d_hidden = lax.scan(add, zeros, (hidden_NBLD, *more))
        return loss, d_hidden, d_head

    rows = NamedSharding(made, P(None, *ROWS))
    hidden, targets, weights = (
        np.stack([x, x[::-1]]) for x in (HIDDEN, TARGETS, WEIGHTS["0 and 1"])
    )
    with jax.set_mesh(made):
        placed = [jax.device_put(x, rows) for x in (hidden, targets, weights)]
        head = jax.device_put(HEAD, NamedSharding(made, P("fsdp")))
        loss, d_hidden, d_head = map(np.asarray, jax.jit(summed)(placed[0], head, *placed[1:]))
    expected = slopes(plain, HIDDEN, HEAD, TARGETS, WEIGHTS["0 and 1"])
    whole = [2 * expected[0], np.stack([expected[1], expected[1][::-1]]), 2 * expected[2]]
    assert_same([loss / 3, d_hidden / 3, d_head / 3], whole)


@FEW
@pytest.mark.parametrize("mesh", MESHES)
def test_half_precision_loses_what_bfloat16_loses_and_no_more(chunks, mesh):
    """The loss is in float32 all the same."""
    sizes = MESHES[mesh]
    made = make_mesh(sizes, jax.devices()[: prod(sizes.values())])
    hidden = jnp.asarray(HIDDEN, jnp.bfloat16)
    rest = HEAD, TARGETS, WEIGHTS["0 and 1"]
    head = np.asarray(jnp.asarray(HEAD, jnp.bfloat16), np.float32)
    exact = slopes(plain, np.asarray(hidden, np.float32), head, *rest[1:])
    with jax.set_mesh(made):
        placed = jax.device_put(hidden, NamedSharding(made, ROWS))
        ours = slopes(losses.vocabulary_loss, placed, *rest)
        types = jax.eval_shape(jax.grad(losses.vocabulary_loss, (0, 1)), hidden, *rest)
    assert [x.dtype for x in types] == [jnp.bfloat16, jnp.float32]
    assert abs(ours[0] / exact[0] - 1) < SAME
    assert_same(ours, exact, HALF)


def test_a_token_of_weight_0_counts_for_nothing():
    """Whatever its target is, and however large its logits are."""
    weights = WEIGHTS["0 and 1"]
    off = weights == 0
    other = np.where(off[..., None], 1e3 * HIDDEN, HIDDEN), HEAD, np.where(off, 0, TARGETS), weights
    before = slopes(losses.vocabulary_loss, HIDDEN, HEAD, TARGETS, weights)
    for mine, theirs in zip(slopes(losses.vocabulary_loss, *other), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (before[1][off] == 0).all()


def test_large_logits_overflow_nowhere():
    arrays = 1e3 * HIDDEN, HEAD, TARGETS, WEIGHTS["fractions"]
    ours = slopes(losses.vocabulary_loss, *arrays)
    assert all(np.isfinite(part).all() for part in ours)
    assert_same(ours, slopes(plain, *arrays))


@FEW
@pytest.mark.parametrize("mesh", MESHES)
def test_scores_are_each_tokens_loss_and_whether_it_is_the_likeliest(chunks, mesh):
    sizes = MESHES[mesh]
    made = make_mesh(sizes, jax.devices()[: prod(sizes.values())])
    logits, weights = HIDDEN @ HEAD, WEIGHTS["fractions"] * WEIGHTS["0 and 1"]
    likely = np.where(draw.random((B, L)) < 0.5, logits.argmax(-1), TARGETS).astype(np.int32)
    with jax.set_mesh(made):
        placed = [jax.device_put(x, NamedSharding(made, ROWS)) for x in (HIDDEN, likely, weights)]
        nll_BL, hit_BL = jax.jit(losses.token_scores)(placed[0], HEAD, *placed[1:])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, likely) * weights
    np.testing.assert_allclose(nll_BL, expected, atol=SAME * float(expected.max()))
    np.testing.assert_array_equal(hit_BL, (logits.argmax(-1) == likely) * weights)
    assert 0 < np.sum(hit_BL) < weights.sum()


def test_the_heads_gradient_is_split_over_fsdp_without_being_gathered_over_tensor():
    """As the compiler plans it; left to it, the scatter would take the whole vocabulary."""
    width, vocabulary = 64, 1024
    made = make_mesh({"data": 1, "fsdp": 4, "tensor": 2}, jax.devices()[:8])
    split = P("fsdp", "tensor")
    shapes = [((B, L, width), "float32"), ((width, vocabulary), "float32")]
    shapes += [((B, L), "int32"), ((B, L), "float32")]
    given = [
        jax.ShapeDtypeStruct(*shape, sharding=NamedSharding(made, place))
        for shape, place in zip(shapes, [ROWS, split, ROWS, ROWS], strict=True)
    ]

    def gradient(*arrays: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(jax.grad(losses.vocabulary_loss, 1)(*arrays), split)

    with jax.set_mesh(made):
        found = collectives(jax.jit(gradient).lower(*given).compile().as_text())
    gathered = [one for one in found if one.kind == "all-gather"]
    # The head goes forward: from fsdp's four parts, in the two of tensor.
    assert [(one.devices, one.bytes) for one in gathered if one.bytes >= 4 * width * 128] == [
        (4, 4 * width * vocabulary // 2)
    ]


@pytest.mark.parametrize("rows", [1, 8], ids=["one row", "eight rows on eight devices"])
def test_pitfall_17_the_gradient_never_holds_all_logits(rows):
    """As the compiler plans it, nothing is run; optax's loss does hold them."""
    length, width, vocabulary = 4096, 8, 128_256
    made = make_mesh({"data": rows}, jax.devices()[:rows])
    shapes = [((rows, length, width), "float32"), ((width, vocabulary), "float32")]
    shapes += [((rows, length), "int32"), ((rows, length), "float32")]
    places = [ROWS, P(), ROWS, ROWS]
    given = [
        jax.ShapeDtypeStruct(*shape, sharding=NamedSharding(made, place))
        for shape, place in zip(shapes, places, strict=True)
    ]
    all_logits = 4 * length * vocabulary

    def needed(loss: Loss) -> int:
        """Bytes on one device."""
        with jax.set_mesh(made):
            compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(losses.vocabulary_loss) < 3 * losses.LOGITS_BYTES < all_logits / 2
    assert needed(plain) > all_logits
    with jax.set_mesh(made):
        compiled = jax.jit(losses.token_scores).lower(*given).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * losses.LOGITS_BYTES
