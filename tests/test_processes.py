"""A run of two processes that is stopped and goes on as four equals the run of one process."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import runs
from jobs import KEYS, Said, job

from jaxft.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("hurry")
OTHER_COLLECTIVES = 2e-6
"""Relative difference of losses: gloo sums between processes in another order than one process
does.
"""
WEIGHTS = 1e-5
"""Difference of weights after 12 updates of up to 1e-3."""
STOP = """
import os, signal, time
from jax._src.distributed import global_state
from jaxft.interrupts import Interrupts
stop = Interrupts.stop
def stop_at_5(self, step):
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
        # JAX asks all processes how far they are, to find a step to stop at.
        while len(global_state.client.key_value_dir_get("PREEMPTION_CURRENT_COUNTER/")) < 2:
            time.sleep(0.1)
    return stop(self, step)
Interrupts.stop = stop_at_5
"""
SLOW_TO_TOKENISE = """
import time
from jaxft import experiment
tokenise = experiment.tokenise_splits
def slow(*given):
    time.sleep(3)
    made = tokenise(*given)
    print("tokenised at", time.monotonic(), file=sys.stderr)
    return made
experiment.tokenise_splits = slow
"""
SAYS_WHEN_IT_BEGINS = """
import time
begin = train.Run.begin
def begin_and_say(self, matched):
    print("began at", time.monotonic(), file=sys.stderr)
    return begin(self, matched)
train.Run.begin = begin_and_say
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory, tiny_bert_folder) -> dict[str, Any]:
    data = runs.tables(tmp_path_factory.mktemp("data"))
    return {"model.pretrained": tiny_bert_folder} | KEYS | data


@pytest.fixture(scope="module")
def one(tmp_path_factory, keys) -> Path:
    """The same mesh in this process, on four of its devices."""
    workdir = tmp_path_factory.mktemp("one")
    four = jax.devices()[:4]
    with mock.patch("jaxft.experiment.make_mesh", lambda sizes, _: make_mesh(sizes, four)):
        runs.run(workdir, keys)
    return workdir


@pytest.fixture(scope="module")
def several(tmp_path_factory, keys, one) -> tuple[Path, list[list[Said]]]:
    """A run of two processes whose second one gets a SIGTERM; then it goes on as four."""
    workdir = tmp_path_factory.mktemp("several")
    slow = SLOW_TO_TOKENISE + STOP
    stopped = job(runs.argv(keys, workdir), (SAYS_WHEN_IT_BEGINS, slow))
    assert not (workdir / "result.json").exists()
    return workdir, [stopped, job(runs.argv(keys, workdir), [""] * 4, devices=1)]


def errors(said: list[Said]) -> str:
    return "\n".join(f"--- process {i}\n{one.err}" for i, one in enumerate(said))


def test_a_signal_to_one_process_saves_and_leaves_in_all(several):
    _, [stopped, _] = several
    assert [process.code for process in stopped] == [143, 143], errors(stopped)
    assert "Stopped by SIGTERM after step" in stopped[0].err


def test_collectives_start_when_the_slowest_has_tokenised(several):
    _, [(first, second), _] = several
    tokenised = float(second.err.partition("tokenised at")[2].split()[0])
    assert float(first.err.partition("began at")[2].split()[0]) > tokenised


def test_two_processes_that_go_on_as_four_equal_one(several, one):
    workdir, [_, went_on] = several
    assert [process.code for process in went_on] == [0] * 4, errors(went_on)
    assert "Resuming after step" in went_on[0].err
    ours, theirs = runs.metrics(workdir), runs.metrics(one)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in {"train/loss", "train/grad_norm", "validation/loss"} & mine.keys():
            assert mine[name] == pytest.approx(other[name], rel=OTHER_COLLECTIVES)
    result, expected = (json.loads((w / "result.json").read_text()) for w in (workdir, one))
    assert result["processes"] == 4
    assert expected["processes"] == 1
    for split in ("validation", "test"):
        assert result[split] == pytest.approx(expected[split], rel=OTHER_COLLECTIVES)
    ours, theirs = runs.arrays(workdir, 12), runs.arrays(one, 12)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=WEIGHTS, err_msg=name)


def test_only_the_first_process_speaks_and_writes(several):
    workdir, [stopped, went_on] = several
    for first, *others in (stopped, went_on):
        assert "Mesh data=2, fsdp=2, context=1, tensor=1" in first.err
        for other in others:
            assert other.out == ""
            for ours in ("jaxft", "step", "validation", "WARNING"):
                assert ours not in other.err  # gloo and the catcher of signals do speak
    assert json.loads(went_on[0].out) == json.loads((workdir / "result.json").read_text())
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1


def test_one_process_scores_what_several_trained(several, capsys):
    workdir, _ = several
    runs.VERBS["evaluate"].main([f"--workdir={workdir}"])
    out, err = capsys.readouterr()
    assert "Compilation cache: /" in err
    scores = json.loads(out)
    test = json.loads((workdir / "result.json").read_text())["test"]
    assert {name: scores[name] for name in test} == pytest.approx(test, rel=OTHER_COLLECTIVES)


def test_two_processes_predict_what_one_does(one, keys, tmp_path):
    words = [f"--workdir={one}", f"--input={keys['data.test']}", f"--output={tmp_path}/two"]
    first, second = job(words, ("from jaxft import predict as train",) * 2)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert (first.out, second.out) == ("", "")
    assert "rows written" in first.err
    assert "rows written" not in second.err
    runs.VERBS["predict"].main([*words[:2], f"--output={tmp_path}/one"])
    ours, theirs = ([*map(json.loads, (tmp_path / n).open())] for n in ("two", "one"))
    for mine, alone in zip(ours, theirs, strict=True):
        assert mine["prediction"] == alone["prediction"]
        assert mine["scores"] == pytest.approx(alone["scores"], rel=OTHER_COLLECTIVES)


def test_pitfall_20_two_processes_export_what_one_does(one, tmp_path):
    """Each block is gathered by both, and the first one writes."""
    verb = "from jaxft import export as train"
    small = f"{verb}; from jaxft.nn import weights; weights.BLOCK_BYTES = 3000"
    words = [f"--workdir={one}", "--dtype=bfloat16", f"--output={tmp_path}/two"]
    first, second = job(words, (small,) * 2)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "weights read back equal" in first.err
    assert (first.out, second.out) == (f"{tmp_path}/two\n", "")
    runs.VERBS["export"].main([*words[:2], f"--output={tmp_path}/one"])
    assert runs.content(tmp_path / "two") == runs.content(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
