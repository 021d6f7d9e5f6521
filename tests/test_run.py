"""What a run does besides training: compile first, score, stop in time, refuse NaN, write itself down."""

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import fsspec
import jax
import numpy as np
import pytest
import runs
from etils import epath

from jaxft import evaluate, files, train
from jaxft.errors import UserError
from jaxft.train import Run
from jaxft.workdir import Workdir

BFLOAT16 = 2e-2
"""Difference of losses near 0.7 when products are rounded to 8 bits."""
RECOMPUTED = 1e-6
"""Relative difference of losses: what is computed twice is not fused as it was."""


@pytest.fixture(scope="module")
def finished(tiny_bert_folder) -> runs.Finished:
    return runs.finished(tiny_bert_folder)


def rows_with(name: str, workdir: Path) -> dict[int, float]:
    return {row["step"]: row[name] for row in runs.metrics(workdir) if name in row}


def test_the_workdir_is_the_whole_record(finished):
    there = {path.name for path in finished.workdir.iterdir()}
    (events,) = [name for name in there if name.startswith("events.out.tfevents.")]
    assert there - {events} == {
        *(
            "checkpoints",
            "config.json",
            "inputs.json",
            "metrics.jsonl",
            "model",
            "report.html",
            "result.json",
        )
    }
    config = json.loads((finished.workdir / "config.json").read_text())
    assert config["optim"]["learning_rate"] == 0.01
    assert json.loads((finished.workdir / "model" / "config.json").read_text())["id2label"] == {
        "0": "bad",
        "1": "good",
    }


def test_the_result_says_what_was_reached_and_how_fast(finished):
    result = finished.result
    assert result["step"] == 12
    assert result["validation"] == {
        name.removeprefix("validation/"): value
        for row in runs.metrics(finished.workdir)
        if row["step"] == result["best_step"]
        for name, value in row.items()
        if name.startswith("validation/")
    }
    busy_s = result["compile_s"] + result["train_s"]
    assert result["examples_per_s"] == pytest.approx(
        (37 * 2 + 2 * 8) / busy_s
    )  # two epochs and two batches
    assert result["wall_s"] > busy_s
    assert result["peak_memory_bytes"] > 1e6
    assert result["versions"].keys() >= {"jax", "flax", "jaxft"}
    assert result["baseline"]["test"]["accuracy"] == pytest.approx(10 / 19)


def test_it_says_what_it_does_and_what_to_type_next(finished):
    said = finished.said
    assert said.startswith("jaxft on 8 x cpu")
    expected = [
        "Model: ",
        "Task: classify, single label classification, 2 labels: bad, good",
        "Weights: 23 of 25",
    ]
    expected += [
        "NEW, initialised at random: classifier.weight [2, 32]",
        "Compute: float32, attention xla",
    ]
    expected += [
        "Mesh data=8, fsdp=1, tensor=1; per device",
        "MB of optimizer state",
        "Compiled the update for rows of 16",
    ]
    expected += [
        "step 4: validation loss",
        "Done: 12 steps",
        f"predict --workdir={finished.workdir}",
    ]
    places = [said.find(text) for text in expected]
    assert -1 not in places, expected[places.index(-1)]
    assert said.index("Compiled") < said.index("step 1/12")


def test_bytes_per_device_are_those_that_devices_hold(finished):
    said = re.search(
        r"per device ([\d.]+) MB of parameters, as much of gradients, ([\d.]+) MB", finished.said
    )
    arrays = runs.arrays(finished.workdir, 12)
    params = sum(array.nbytes for name, array in arrays.items() if name.startswith("['params']"))
    moments = sum(array.nbytes for name, array in arrays.items() if "moments" in name)
    assert [float(size) for size in said.groups()] == [
        round(params / 1e6, 1),
        round(moments / 1e6, 1),
    ]


@pytest.fixture
def keys(finished):
    return finished.keys


def test_pitfall_17_all_programs_are_compiled_before_the_first_update(keys, tmp_path, monkeypatch):
    short = runs.table(tmp_path / "short.csv", [("good film", "good"), ("bad film", "bad")] * 3)
    compiled: list[str] = []
    compile_, loop = jax.stages.Lowered.compile, Run.loop

    def compile_and_note(self: Any, *args: Any) -> Any:
        compiled.append(self.as_text()[:60].split()[1])
        return compile_(self, *args)

    def loop_and_note(*args: Any) -> Any:
        compiled.append("loop")
        return loop(*args)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_note)
    monkeypatch.setattr(Run, "loop", loop_and_note)
    runs.run(tmp_path / "run", keys | {"data.test": short})
    assert compiled[-1] == "loop"
    assert compiled.count("@jit_train_step") == 1
    assert compiled.count("@jit_eval_step") == 2, "for validation's length and for test's"


@pytest.fixture(scope="module")
def creeping(tmp_path_factory, finished) -> runs.Finished:
    """A run whose rate is far below what bfloat16 weights could follow."""
    workdir, err = tmp_path_factory.mktemp("creeping"), io.StringIO()
    keys = finished.keys | {
        "optim.learning_rate": 1e-7,
        "optim.warmup_steps": 0,
        "model.dtype": "bfloat16",
    }
    with contextlib.redirect_stderr(err):
        result = runs.run(workdir, keys)
    return runs.Finished(workdir, keys, result, err.getvalue())


def test_pitfall_10_a_tiny_rate_in_bfloat16_still_changes_the_float32_weights(creeping, finished):
    workdir = creeping.workdir
    changed = rows_with("train/changed_weights", workdir)
    assert list(changed) == list(range(1, 13))
    assert changed[1] > 0.5
    assert {array.dtype.name for array in runs.arrays(workdir, 12).values()} == {"float32", "int32"}
    first = rows_with("train/loss", workdir)[1]
    exact = rows_with("train/loss", finished.workdir)[1]
    assert first != exact, "bfloat16 must have been used"
    assert first == pytest.approx(exact, abs=BFLOAT16)


def test_pitfall_23_a_run_that_answers_one_class_says_so(creeping):
    assert "WARNING: The model answers 'good' for all 21 rows" in creeping.said


@pytest.mark.parametrize("mode", ["full"])  # and "dots" in tests/models
def test_recomputed_activations_change_no_loss(mode, keys, finished, tmp_path):
    runs.run(tmp_path, keys | {"model.activation_checkpointing": mode})
    assert rows_with("train/loss", tmp_path) == pytest.approx(
        rows_with("train/loss", finished.workdir), rel=RECOMPUTED
    )


@pytest.fixture
def wild(keys, tmp_path, capsys) -> tuple[Path, str]:
    """A run whose second update is not finite, and what it said."""
    steep = {
        "optim.learning_rate": 1e38,
        "optim.max_grad_norm": "none",
        "optim.warmup_steps": 0,
        "train.eval_steps": 1,
    }
    return tmp_path, runs.refused(capsys, "train", runs.argv(keys | steep, tmp_path))


def test_pitfall_11_a_loss_that_is_not_finite_stops_before_the_update_and_dumps_the_batch(wild):
    workdir, message = wild
    assert message.startswith(
        "Update 2 was refused: loss nan, gradient norm nan. The weights before it are saved"
    )
    assert "a lower optim.learning_rate" in message
    assert not (workdir / "result.json").exists()
    kept = runs.arrays(workdir, 1)
    assert all(np.isfinite(array).all() for name, array in kept.items() if "params" in name)
    assert int(kept["['optimizer']['step']"]) == 1
    assert list(rows_with("train/loss", workdir)) == [1]

    dumped = np.load(workdir / "bad_batch" / "step-2" / "batch.npz")
    assert dumped["ids_BL"].shape == (8, 16)
    lines = (workdir / "bad_batch" / "step-2" / "rows.jsonl").read_text().splitlines()
    known = [text for text, _ in runs.rows(37, seed=0)]
    assert [json.loads(line)["text"] for line in lines] == [
        known[row] for row in dumped["rows_B"] if row >= 0
    ]


def test_pitfall_11_a_refused_update_does_not_cost_the_checkpoint_before_it_its_score(wild):
    workdir, _ = wild
    assert (workdir / "checkpoints" / "1" / "metrics").exists()


@pytest.fixture(scope="module")
def worsening(tmp_path_factory, tiny_bert_folder) -> tuple[Path, dict[str, Any]]:
    """A run that learns the opposite of what validation asks, and stops early."""
    folder = tmp_path_factory.mktemp("worsening")
    keys = {"model.pretrained": tiny_bert_folder} | runs.tables(folder)
    runs.table(
        folder / "train.csv", [(text, "good") for text, _ in runs.rows(30, 0)] + runs.rows(2, 1)
    )
    runs.table(
        folder / "validation.csv",
        [(text, "bad") for text, _ in runs.rows(20, 2)] + [("fine", "good")],
    )
    keys |= {
        "train.max_steps": 40,
        "train.eval_steps": 2,
        "optim.learning_rate": 1e-2,
        "data.test": "none",
    }
    keys |= {
        "train.early_stopping_patience": 3,
        "checkpoint.metric_for_best_model": "loss",
        "checkpoint.keep_last": 1,
    }
    runs.run(folder / "run", keys)
    return folder / "run", keys


def test_early_stopping_goes_back_to_the_best_for_the_final_scores(worsening):
    workdir, _ = worsening
    result = json.loads((workdir / "result.json").read_text())
    losses = rows_with("validation/loss", workdir)
    best = min(losses, key=losses.__getitem__)
    assert (result["step"], result["best_step"]) == (best + 6, best)
    assert result["step"] < 40
    assert result["validation"]["loss"] == losses[best]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == sorted(
        [str(best), str(best + 6)]
    )


def test_a_run_that_stopped_early_and_died_before_its_result_trains_no_further(
    worsening, monkeypatch, capsys
):
    workdir, keys = worsening
    before = json.loads((workdir / "result.json").read_text())
    (workdir / "result.json").unlink()
    monkeypatch.setattr(Run, "compile", lambda self: pytest.fail("nothing is left to train"))
    after = runs.run(workdir, keys)
    assert "Early stopping: loss has not improved for 3 evaluations" in capsys.readouterr().err
    for part in ("step", "best_step", "validation"):
        assert after[part] == before[part]


def test_without_a_workdir_a_run_goes_to_runs_in_the_current_folder(
    keys, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train.main(runs.argv(keys))
    (workdir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"bert_cls-\d{8}-\d{6}", workdir.name)
    assert f"--workdir=runs/{workdir.name}" in capsys.readouterr().err


def test_a_missing_validation_split_is_cut_from_training_the_same_way_each_time(
    keys, tmp_path, capsys
):
    cut = keys | {"data.validation": "none", "data.validation_size": 0.2}
    first = runs.run(tmp_path / "first", cut)
    assert "No validation split given: 7 rows are cut from" in capsys.readouterr().err
    assert runs.run(tmp_path / "second", cut)["validation"] == first["validation"]
    digests = [
        json.loads((tmp_path / name / "inputs.json").read_text()) for name in ("first", "second")
    ]
    assert digests[0] == digests[1]


def test_a_workdir_in_an_object_store(keys, tmp_path, monkeypatch, capsys):
    """memory:// stands in for gs://: all but the arrays goes through fsspec, which orbax does not use.

    orbax needs a real disk or a bucket, so that its folder is a local one here.
    """
    monkeypatch.setattr(
        Workdir, "checkpoints", property(lambda self: epath.Path(tmp_path / "checkpoints"))
    )
    workdir = "memory://bucket/run"
    train.main(runs.argv(keys, workdir))
    memory = fsspec.filesystem("memory")
    there = {path.removeprefix("/bucket/run/") for path in memory.find("/bucket/run")}
    assert there >= {
        "config.json",
        "inputs.json",
        "result.json",
        "metrics.jsonl",
        "report.html",
        "model/tokenizer.json",
    }
    assert sum(name.startswith("events.out.tfevents.") for name in there) == 1
    assert len(memory.cat("/bucket/run/metrics.jsonl").splitlines()) == 12 + 3
    result = json.loads(files.read_file(f"{workdir}/result.json"))
    capsys.readouterr()
    evaluate.main([f"--workdir={workdir}"])
    scored = json.loads(capsys.readouterr().out)
    assert {name: scored[name] for name in result["test"]} == result["test"]
    assert os.listdir(tmp_path) == ["checkpoints"]


def test_where_checkpoints_go():
    assert str(Workdir("gs://bucket/run").checkpoints) == "gs://bucket/run/checkpoints"
    assert str(Workdir("runs/x").checkpoints) == f"{Path.cwd()}/runs/x/checkpoints"
    assert str(Workdir("~/x").checkpoints) == str(Path.home() / "x" / "checkpoints")
    with pytest.raises(
        UserError, match="--workdir=memory://x: checkpoints can lie on a disk, gs:// or s3://"
    ):
        _ = Workdir("memory://x").checkpoints
