"""Estimated bytes against the compiler's, on eight CPU devices and for a TPU slice."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from plans import TINY_LLAMA, config, sketched
from tpu import needs_libtpu

from jaxft import plan
from jaxft.planning import compiling, places
from jaxft.planning.compiling import Program, compile_evaluation, compile_update
from jaxft.planning.estimate import Estimator
from jaxft.planning.roofline import sent_bytes
from jaxft.planning.sketch import Sketch, sketch
from jaxft.sharding import make_mesh

WAYS: dict[str, dict[str, Any]] = {
    "whole": {"mesh__data": 8, "mesh__fsdp": 1},
    "split": {"mesh__fsdp": 8},
    "on all axes": {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
    "tokens": {"mesh__fsdp": 2, "mesh__context": 4},
    "zero 2": {"mesh__fsdp": 8, "mesh__zero_stage": 2},
    "offload": {"mesh__fsdp": 8, "optim__offload": True, "model__dtype": "bfloat16"},
}
ON_TPU = 0.15
"""By how much an estimate may miss the TPU compiler's peak."""
SENT = 0.5
"""How much less, or more the other way round, an estimate of what is sent may be."""
EVALUATION = 0.2
"""By how much that of an evaluation may miss a compiler's."""
WIDE = TINY_LLAMA | {"hidden_size": 256, "intermediate_size": 1024}
WORDY = TINY_LLAMA | {"vocab_size": 16384}
EVALUATIONS: dict[str, dict[str, Any]] = {
    **{way: WAYS[way] for way in ("whole", "split", "on all axes", "offload")},
    "wide layers": {"model__config": WIDE},
    "large vocabulary": {"model__config": WORDY},
    "vocabulary over tensor": {"model__config": WORDY, "mesh__fsdp": 4, "mesh__tensor": 2},
    "classes": {"model__config": WIDE, "task__name": "classify"},
}
"""What takes the most: attention scores, the feed-forward layer, logits. Not `mesh.context`: for a
CPU its compiler gathers the tokens instead of the weights, which a TPU's does not. Nor rows longer
than a block of attention: the estimate is twice as high there.
"""


@cache
def update_on_cpu(way: str) -> tuple[Sketch, Program]:
    made = sketched(**WAYS[way])
    return made, compile_update(made)


@pytest.mark.parametrize("way", WAYS)
def test_parameters_and_optimizer_state_are_the_programs_arguments(way, hurry):
    made, program = update_on_cpu(way)
    footprint = Estimator(made)(made)
    # ids, segments, positions, answers and which are learnt; Llama reads nothing else of a batch,
    # whose tokens are split when it is there.
    batch = 5 * 4 * made.rows // made.experiment.row_shards * made.width
    counters = 4 + 4  # of the state and of the call
    # A CPU's program does not tell the host's memory from its own.
    kept = footprint.host or footprint.parameters
    assert kept + footprint.optimizer + batch + counters == program.arguments_bytes


@pytest.mark.parametrize("way", WAYS)
def test_what_is_sent_is_about_what_the_compiler_sends(way, hurry):
    made, program = update_on_cpu(way)
    assert SENT < sent_bytes(made) / sum(c.moved_bytes for c in program.collectives) < 1 / SENT


def test_what_is_sent_follows_the_mesh():
    one_copy = sketched(mesh__data=8, mesh__fsdp=1)
    halves = sketched(mesh__data=8, mesh__fsdp=1, train__gradient_accumulation_steps=2)
    assert sent_bytes(halves) == 2 * sent_bytes(one_copy), "gradients are summed each time"
    tokens = sketched(mesh__data=1, mesh__fsdp=1, mesh__context=8)
    pairs = 2 * TINY_LLAMA["num_key_value_heads"] * 16 * TINY_LLAMA["num_hidden_layers"]
    gathered = 4 * tokens.rows * tokens.width * pairs * 7 / 8
    # To go forward and to recompute, and their gradients' sum, which is sent twice.
    assert sent_bytes(tokens) == sent_bytes(one_copy) + 4 * gathered
    wide = sketched(mesh__fsdp=8, mesh__zero_stage=2)
    assert sent_bytes(wide) == sent_bytes(one_copy), "gradients are split, then weights gathered"


def test_gradients_lie_as_they_are_split_and_the_working_copy_is_rounded():
    split, zero_2, offload = (
        Estimator(made)(made)
        for made in (sketched(**WAYS[k]) for k in ("split", "zero 2", "offload"))
    )
    assert split.gradients == split.parameters == zero_2.gradients
    assert zero_2.parameters > 7 * split.parameters
    assert offload.gradients == offload.parameters < 0.7 * split.parameters
    assert offload.host == pytest.approx(3 * split.parameters, rel=1e-3)


def test_the_heads_whole_gradient_stays_while_those_of_the_layers_are_worked_out():
    deep: dict[str, Any] = TINY_LLAMA | {"intermediate_size": 2048}  # so that layers take the most

    def peak(**more: Any) -> int:
        made = sketched(model__config=deep | more)
        return Estimator(made)(made).peak

    # Of 64 more words: weights and their moments, an eighth of each, and the gradient, whole.
    added = 64 * TINY_LLAMA["hidden_size"] * 4
    table = added * 4 / 8  # of the embedding, whose gradient is split
    head = added * 3 / 8 + added
    assert peak(vocab_size=576) - peak() == pytest.approx(table + head, rel=0.02)


def test_an_evaluation_of_offloaded_weights_takes_their_working_copy(hurry):
    made = sketched(**WAYS["offload"])
    program, footprint = compile_evaluation(made), Estimator(made)(made)
    batch = 5 * 4 * made.evaluation_rows // made.experiment.row_shards * made.width
    assert program.arguments_bytes == pytest.approx(footprint.parameters + batch, abs=8)


@pytest.mark.parametrize("way", EVALUATIONS)
def test_the_estimate_of_an_evaluation_is_near_the_compilers_peak(way, hurry):
    made = sketched(**EVALUATIONS[way])
    program, estimated = compile_evaluation(made), Estimator(made).evaluation(made)
    assert estimated == pytest.approx(program.peak_bytes, rel=EVALUATION)


def test_activations_kept_on_the_host_are_not_on_the_device():
    near = sketched()
    far = sketched(model__kept_activations={"block_input": "host"})
    near, far = Estimator(near)(near), Estimator(far)(far)
    moved = 2 * 128 * 4 * TINY_LLAMA["hidden_size"] * TINY_LLAMA["num_hidden_layers"]
    assert far.host == near.activations - far.activations == near.peak - far.peak == moved
    assert near.host == 0


def test_the_optimizers_state_is_what_the_optimizer_keeps():
    whole = {}
    for name in ("adamw", "lion", "sgd", "adafactor"):
        wide = TINY_LLAMA | {"hidden_size": 256, "intermediate_size": 512}
        made = sketched(mesh__data=8, mesh__fsdp=1, optim__name=name, model__config=wide)
        whole[name] = Estimator(made)(made)
    parameters = whole["adamw"].parameters
    assert whole["adamw"].optimizer == pytest.approx(2 * parameters, rel=1e-3)
    assert whole["lion"].optimizer == pytest.approx(parameters, rel=1e-3)
    assert whole["sgd"].optimizer == pytest.approx(parameters, rel=1e-3)
    assert whole["adafactor"].optimizer < 0.2 * parameters


def test_what_the_backward_pass_keeps_is_exact_where_all_is_recomputed():
    made = sketched(mesh__data=1, mesh__fsdp=8)
    rows = made.rows // 8
    estimate = Estimator(made)
    inputs = rows * made.width * 4 * TINY_LLAMA["hidden_size"]
    # Each layer's input, what leaves the last one, its norm's, and the loss's gradient of it.
    layers = TINY_LLAMA["num_hidden_layers"]
    assert layers * inputs <= estimate(made).activations <= (layers + 7) * inputs


def test_checkpointing_accumulation_and_rows_change_the_estimate_as_they_should():
    def footprint(**keys):
        made = sketched(**keys)
        return Estimator(made)(made)

    full, dots, none = (
        footprint(model__activation_checkpointing=mode) for mode in ("full", "dots", "none")
    )
    assert full.activations < dots.activations < none.activations
    halves = footprint(train__gradient_accumulation_steps=2)
    assert halves.activations == full.activations // 2
    assert halves.gradients == 2 * full.gradients
    assert footprint(train__batch_size=32).activations == 2 * full.activations
    split = footprint(model__activation_checkpointing="none", mesh__fsdp=4, mesh__tensor=2)
    assert split.activations < 2 * none.activations, "rows double, heads halve"
    assert split.parameters == pytest.approx(full.parameters, rel=0.05)


MIDDLE = TINY_LLAMA | {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="module")
def compiled():
    """The plan of a small Llama on four TPU chips."""
    made = config(model__config=MIDDLE, data__max_length=1024)
    return plan.compile_for(made, "v5e:2x2")


@needs_libtpu
def test_the_estimate_is_near_the_tpu_compilers_peak(compiled):
    assert compiled.fits
    assert compiled.hbm_bytes == int(15.75 * 2**30)
    assert compiled.estimate.peak == pytest.approx(compiled.update.peak_bytes, rel=ON_TPU)
    args = compiled.estimate.parameters + compiled.estimate.optimizer
    assert args == pytest.approx(compiled.update.arguments_bytes, rel=0.01)
    evaluated = compiled.evaluation.peak_bytes
    assert compiled.estimated_evaluation_bytes == pytest.approx(evaluated, rel=EVALUATION)


@needs_libtpu
def test_micro_batches_of_split_weights_compile_for_a_tpu():
    # Its compiler once failed over bfloat16 gradients that fsdp splits in a loop.
    place = places.find("v5e:2x2")
    keys: dict[str, Any] = {"train__gradient_accumulation_steps": 2, "model__dtype": "bfloat16"}
    made = sketch(config(**keys), place.devices, lambda text: None)
    program = compile_update(made)
    assert program.arguments_bytes < program.peak_bytes < place.hbm_bytes


@needs_libtpu
def test_without_logits_a_layer_is_what_an_evaluation_on_a_tpu_takes():
    # What is smaller stays in the 128 MB beside the TPU's core, which its compiler's peak counts.
    large = MIDDLE | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6}
    keys: dict[str, Any] = {"model__config": large, "data__max_length": 512}
    keys |= {"task__name": "classify", "train__batch_size": 64}
    made = sketch(config(**keys), places.find("v5e:2x2").devices, lambda text: None)
    program, estimated = compile_evaluation(made), Estimator(made).evaluation(made)
    assert estimated == pytest.approx(program.peak_bytes, rel=EVALUATION)


@needs_libtpu
def test_an_update_on_a_tpu_sends_the_layers_in_loops_and_only_words_all_to_all(compiled):
    sent = compiled.sent
    exchanged = [c for c in compiled.update.collectives if "all-to-all" in c.kind]
    # Devices exchange word vectors of the batch's tokens, not weights.
    tokens = compiled.sketch.rows * compiled.sketch.width
    assert sum(c.bytes * c.count for c in exchanged) <= 2 * 4 * tokens * MIDDLE["hidden_size"] / 4
    assert not any(c.in_loop for c in exchanged)
    weights = compiled.sketch.experiment.drawn.weights.values()
    layers = 2 * sum(w.size for w in weights if w.stacked)
    in_loops = sum(row["bytes"] - row["outside_loops_bytes"] for row in sent.values())
    assert SENT < sent_bytes(compiled.sketch) / compiled.sent_bytes < 1 / SENT
    # Gathered to go forward, to recompute and to go backward; gradients are split once.
    assert 2 * layers * 3 / 4 < in_loops < 5 * layers * 3 / 4
    # The head, and of one layer what is gathered ahead of the loop; no stack beside them.
    outside = (c for c in compiled.update.collectives if c.kind == "all-gather" and not c.in_loop)
    head = 2 * MIDDLE["vocab_size"] * MIDDLE["hidden_size"]
    one_layer = layers / MIDDLE["num_hidden_layers"]
    assert sum(c.bytes * c.count for c in outside) <= head + one_layer


@pytest.fixture
def eager_cache():
    """JAX's compilation cache takes every program."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, 0)
    yield
    jax.config.update(name, before)


@needs_libtpu
def test_a_program_that_the_compiler_refuses_says_how_much_it_would_need(eager_cache):
    place = places.find("v5e:2x2")
    mesh = make_mesh({"data": -1}, place.devices)
    made: Any = SimpleNamespace(experiment=SimpleNamespace(mesh=mesh))
    whole = NamedSharding(mesh, PartitionSpec())
    large = jax.ShapeDtypeStruct((20, 2**30), jnp.uint8, sharding=whole)
    refused = compiling._compile(made, jax.jit(lambda x: x + 1), large)
    assert refused.refused.startswith("RESOURCE_EXHAUSTED")
    assert refused.peak_bytes >= 20 * 2**30 > place.hbm_bytes
    small = jax.ShapeDtypeStruct((1, 2**30), jnp.uint8, sharding=whole)
    for _ in range(2):  # the second time, JAX's cache would hold what it cannot read
        fits = compiling._compile(made, jax.jit(lambda x: x + 1), small)
        assert not fits.refused
        assert 2**30 <= fits.peak_bytes < place.hbm_bytes
