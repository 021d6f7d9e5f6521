"""Weights and moments in host memory: trained as on the device, and never elsewhere than said."""

import json
import os
import signal
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import runs

from jaxft import evaluate, hardware
from jaxft import train as verb
from jaxft.data.batches import BatchSource, put, rows_here
from jaxft.data.plan import Plan
from jaxft.interrupts import Interrupts, Stopped
from jaxft.nn.remat import HOST
from jaxft.sharding import make_mesh
from jaxft.step import TrainState

UPDATES = 3
SAME = {"rtol": 1e-6, "atol": 1e-7}
"""XLA fuses, and so rounds, a layer's update otherwise than a stack's."""
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"layer_decay": 0.5, "max_grad_norm": 0.1, "lr_multipliers": {".*bias": 3.0}},
    "adamw with bfloat16 moments": {"moments_dtype": "bfloat16", "max_grad_norm": 0.1},
    "adafactor": {"name": "adafactor", "layer_decay": 0.5},
    "lion": {"name": "lion", "layer_decay": 0.5},
    "sgd": {"name": "sgd", "max_grad_norm": None},
}


class Trained(NamedTuple):
    states: list[TrainState]
    """Before the first update and after each."""
    metrics: list[dict[str, Any]]
    refused: TrainState
    """After one more update with a loss that is no number."""


@pytest.fixture(scope="module")
def assembled(tmp_path_factory, tiny_bert_folder):
    keys = {"model.pretrained": tiny_bert_folder, "optim.warmup_steps": 0}
    return runs.assembled(keys | runs.tables(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def train(assembled, hurry):
    """A few updates with dropout; the case's name, then where weights and moments are."""

    @cache
    def run(
        case: str,
        offload: bool,
        micro_batches: int = 1,
        zero_stage: int = 3,
        undoes: bool = False,
        **mesh: int,
    ) -> Trained:
        experiment, splits, matched = assembled
        experiment = replace(experiment, drawn=experiment.rolled)
        optim = replace(experiment.config.optim, offload=offload, **CASES[case])
        train = replace(experiment.config.train, gradient_accumulation_steps=micro_batches)
        given = replace(experiment.config.mesh, zero_stage=zero_stage)
        config = replace(experiment.config, optim=optim, train=train, mesh=given)
        devices = jax.devices()[: mesh.get("fsdp", 1) * mesh.get("tensor", 1)]
        experiment = replace(experiment, config=config, mesh=make_mesh({"data": 1} | mesh, devices))
        if undoes:
            vars(experiment)["store"] = replace(experiment.store, branches=False)
        optimizer = experiment.optimizer(UPDATES)
        state = experiment.initial_state(optimizer, matched)
        plan = Plan(splits["train"].lengths, runs.BATCH, runs.LENGTH, 0, row_unit=2)
        mine = rows_here(plan.shape[0], experiment.rows)
        collate = experiment.task.collate
        source = BatchSource(plan, splits["train"].features, collate, UPDATES, mine)
        states, metrics = [jax.tree.map(np.asarray, state)], []
        with jax.set_mesh(experiment.mesh):
            step = experiment.train_step(optimizer)
            for k in range(UPDATES):
                state, seen = step(state, put(source[k], experiment.rows), np.int32(k))
                states.append(jax.tree.map(np.asarray, state))
                metrics.append(jax.device_get(seen))
            assert homes(state.params) == {HOST if offload else "device"}
            assert homes(moments(state)) == {HOST if offload else "device"}
            spoilt = source[0]._replace(weights_BM=np.full_like(source[0].weights_BM, np.nan))
            state, seen = step(state, put(spoilt, experiment.rows), np.int32(UPDATES))
            assert not seen["accepted"]
            assert homes(state.params) == {HOST if offload else "device"}
        return Trained(states, metrics, jax.tree.map(np.asarray, state))

    return run


def homes(tree: Any) -> set[str]:
    """The memories that the leaves lie in."""
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def moments(state: TrainState) -> list[jax.Array]:
    """All that the optimizer keeps of a weight."""
    return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


def assert_same(one: Any, other: Any, **tolerance: float) -> None:
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        name = jax.tree_util.keystr(path)
        if "['key']['bias']" in name:
            continue  # softmax cancels it: its gradient is rounding noise, which rules blow up
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, **tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("case", "how"),
    [
        ("adamw", {"micro_batches": 2}),
        ("adamw", {"fsdp": 2, "tensor": 2}),
        ("adamw with bfloat16 moments", {}),
        ("adafactor", {}),
        ("lion", {}),
        ("sgd", {}),
    ],
    ids=str,
)
def test_weights_and_moments_in_host_memory_are_trained_as_on_the_device(
    train, assembled, case, how
):
    rate = assembled[0].config.optim.learning_rate
    device, host = train(case, False, **how), train(case, True, **how)
    for here, there in zip(device.metrics, host.metrics, strict=True):
        np.testing.assert_allclose(there["loss"], here["loss"], rtol=1e-6)
        np.testing.assert_allclose(there["grad_norm"], here["grad_norm"], rtol=1e-6)
        assert here["accepted"]
        assert there["accepted"]
    for there, here in zip(host.states, device.states, strict=True):
        if "bfloat16" in case:
            # What is rounded a last bit apart may be rounded the other way: so far apart are then
            # the moment, and the update that it makes.
            assert_same(there.opt_state, here.opt_state, rtol=2**-7, atol=1e-7)
            assert_same(there.params, here.params, rtol=1e-6, atol=2**-7 * rate)
        else:
            assert_same(there, here, **SAME)
    assert_same(host.refused, host.states[-1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "how",
    [{}, {"fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2, "zero_stage": 2}],
    ids=str,
)
def test_an_update_that_is_undone_is_one_that_was_left_out(train, how):
    """As on TPUs and GPUs, and as on CPUs."""
    left_out, undone = (train("adamw", False, undoes=undoes, **how) for undoes in (False, True))
    for one, other in zip(undone.states, left_out.states, strict=True):
        assert_same(one, other, **SAME)
    for trained in (left_out, undone):
        assert_same(trained.refused, trained.states[-1], rtol=0, atol=0)


def test_a_run_in_host_memory_stops_and_goes_on_bit_by_bit_and_equals_the_device_s(
    tmp_path, tiny_bert_folder, monkeypatch, capsys
):
    device = runs.finished(tiny_bert_folder)
    keys = device.keys | {"optim.offload": "true"}
    runs.run(tmp_path / "whole", keys)
    stop = Interrupts.stop

    def stop_at_7(self: Interrupts, step: int) -> bool:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return stop(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "stop", stop_at_7)
        with pytest.raises(Stopped):
            verb.main(runs.argv(keys, tmp_path / "halved"))
    runs.run(tmp_path / "halved", keys)
    said = capsys.readouterr().err
    assert "MB of parameters, in host memory" in said
    assert "Resuming after step 7 of 12" in said
    assert runs.same(runs.arrays(tmp_path / "halved", 12), runs.arrays(tmp_path / "whole", 12))
    for mine, theirs in zip(
        runs.metrics(tmp_path / "whole"), runs.metrics(device.workdir), strict=True
    ):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    evaluate.main([f"--workdir={tmp_path}/whole"])
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(result["test"]["loss"])


@pytest.mark.parametrize(
    "changed",
    [
        {"optim.offload": "true"},
        {
            "model.activation_checkpointing": "full",
            "model.kept_activations": '{"block_input": "host"}',
        },
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_backend_without_host_memory_is_refused(
    changed, tmp_path, tiny_bert_folder, monkeypatch, capsys
):
    monkeypatch.setattr(hardware, "HOST", "distant")
    keys = runs.finished(tiny_bert_folder).keys | changed
    said = runs.refused(capsys, "train", runs.argv(keys, tmp_path / "run"))
    name = "optim.offload=true" if len(changed) == 1 else "model.kept_activations.block_input=host"
    assert said.startswith(f"{name}: a cpu device has no distant memory (it has device, ")
