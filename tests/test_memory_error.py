"""Out of memory, whenever XLA says it, is one message with its causes and the next step."""

import jax
import pytest
import runs

from jaxft.memory_error import memory_by_cause
from jaxft.parts import Parts
from jaxft.train import Run

pytestmark = pytest.mark.usefixtures("hurry")
EXHAUSTED = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes.\nmore\nlines"
)
EVALUATION = "activations and logits of an evaluation"
CAUSES = {
    "parameters",
    "gradients",
    "optimizer state",
    "activations kept for the backward pass",
    EVALUATION,
}


@pytest.fixture
def keys(tiny_bert_folder):
    return runs.finished(tiny_bert_folder).keys


@pytest.mark.parametrize("method", ["compile", "loop", "finish"])
def test_out_of_memory_names_three_causes_and_the_plan(method, keys, tmp_path, capsys, monkeypatch):
    def exhausted(*given):
        raise EXHAUSTED

    if method != "compile":
        monkeypatch.setattr(Run, "compile", lambda self, step: {})
        monkeypatch.setattr(Run, "loop", lambda self, steps, state, step: (state, 12))
    monkeypatch.setattr(Run, method, exhausted)
    words = runs.argv(keys | {"train.gradient_accumulation_steps": 1}, tmp_path)
    first, *rest = runs.refused(capsys, "train", words).splitlines()
    assert first == "Out of memory: " + str(EXHAUSTED).splitlines()[0]
    listed = [line.partition(" GB of ") for line in rest if " GB of " in line]
    assert len(listed) == 3
    assert {cause for _, _, cause in listed} <= CAUSES
    sizes = [float(size) for size, _, _ in listed]
    assert sizes == sorted(sizes, reverse=True)
    assert rest[-1].strip().startswith("python -m jaxft.plan --config=")
    assert f"--config.train.batch_size={runs.BATCH}" in rest[-1]


def test_other_errors_of_xla_are_not_taken_for_it(keys, tmp_path, monkeypatch):
    def broken(self, step):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Run, "compile", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        runs.run(tmp_path, keys)


def parts(keys, **more) -> Parts:
    experiment, splits, _ = runs.assembled(keys | more)
    return Parts(experiment, splits, None, print)


def test_causes_are_what_one_device_holds(keys):
    whole = memory_by_cause(parts(keys, **{"mesh.data": 8}))
    weights = sum(weight.size for weight in jax.tree.leaves(parts(keys).abstract.params))
    assert whole["parameters"] == whole["gradients"] == 4 * weights
    assert whole["optimizer state"] == pytest.approx(8 * weights, rel=1e-3)

    split = memory_by_cause(parts(keys, **{"mesh.data": 1, "mesh.fsdp": 8}))
    assert split["parameters"] < whole["parameters"] / 6
    twice = {"train.batch_size": 2 * runs.BATCH}
    halves = {**twice, "train.gradient_accumulation_steps": 2}
    kept = "activations kept for the backward pass"
    assert memory_by_cause(parts(keys, **twice))[kept] > 1.25 * whole[kept]
    assert memory_by_cause(parts(keys, **halves))[kept] == pytest.approx(whole[kept], rel=0.5)
    far = memory_by_cause(parts(keys, **{"train.eval_batch_size": 64 * runs.BATCH}))
    assert max(far, key=lambda cause: far[cause]) == EVALUATION
    assert far[EVALUATION] > 32 * whole[EVALUATION]
    full = memory_by_cause(parts(keys, **{"model.activation_checkpointing": "full"}))
    assert full[kept] < whole[kept] / 4
