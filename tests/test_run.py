"""What a run does besides training: compile first, score, stop in time, refuse NaN, write itself
down.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import fsspec
import jax
import pytest
import runs
from etils import epath

from jaxft import evaluate, files, flags, train
from jaxft.errors import UserError
from jaxft.train import Run
from jaxft.workdir import Workdir

pytestmark = pytest.mark.usefixtures("hurry")
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
            ".lock",
            "checkpoints",
            "task.json",
            "config.json",
            "inputs.json",
            "metrics.jsonl",
            "model",
            "origin.json",
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
    parts = Run(*runs.assembled(finished.keys)[:2], Workdir("never written"), print)
    tokens = sum(parts.plan.tokens(k) for k in range(12))
    assert result["tokens_per_s"] == pytest.approx(tokens / busy_s)
    assert result["wall_s"] > busy_s
    assert result["peak_memory_bytes"] > 1e6
    assert result["versions"].keys() >= {"jax", "flax", "jaxft"}
    assert result["baseline"]["test"]["accuracy"] == pytest.approx(10 / 19)


def test_it_says_what_it_does_and_what_to_type_next(finished):
    said = finished.said
    assert said.startswith("jaxft on 8 x cpu")
    expected = ["Model: ", "Task: classify, single label classification, 2 labels: bad, good"]
    expected += ["Weights: 23 from the checkpoint, 2 new", "Compute: float32, attention blocked"]
    expected += ["NEW, initialised at random: classifier.weight [2, 32]", "MB of optimizer state"]
    expected += [
        "Mesh data=8, fsdp=1, context=1, tensor=1; per device",
        "Compiled the update for 8 rows of",
    ]
    expected += [
        "step 4: validation loss",
        "Done: 12 steps",
        f"predict --workdir={finished.workdir}",
    ]
    places = [said.find(text) for text in expected]
    assert -1 not in places, expected[places.index(-1)]
    before = ["Compiled", "always answering the commonest label on test: accuracy 0.526"]
    before += ["validation rows that stand in train: ", "advice 37 train rows are few", "truncated"]
    for text in before:
        assert 0 <= said.find(text) < said.index("step 1/12"), text


def test_bytes_per_device_are_those_that_devices_hold(finished):
    said = re.search(
        r"per device ([\d.]+) MB of parameters, \1 MB of gradients, ([\d.]+) MB", finished.said
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


@pytest.mark.parametrize(("packing", "programs"), [("batch", 1), ("none", 2)])
def test_pitfall_17_all_programs_are_compiled_before_the_first_update(
    keys, tmp_path, monkeypatch, packing, programs
):
    short = runs.table(tmp_path / "short.csv", [("good film", "good"), ("bad film", "bad")] * 3)
    compiled: list[str] = []
    compile_, begin, loop = jax.stages.Lowered.compile, Run.begin, Run.loop

    def compile_and_note(self: Any, *args: Any) -> Any:
        compiled.append(self.as_text()[:60].split()[1])
        return compile_(self, *args)

    def begin_and_note(*args: Any) -> Any:
        compiled.append("begin")
        return begin(*args)

    def loop_and_note(*args: Any) -> Any:
        compiled.append("loop")
        return loop(*args)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_note)
    monkeypatch.setattr(Run, "begin", begin_and_note)
    monkeypatch.setattr(Run, "loop", loop_and_note)
    runs.run(tmp_path / "run", keys | {"data.test": short, "data.packing": packing})
    # Before a weight is read, which takes minutes where there are 70 billion.
    assert compiled[-2:] == ["begin", "loop"]
    assert compiled.count("@jit_train_step") == 1
    # Rows of one example are as wide as validation or test needs them; shared rows fit both.
    assert compiled.count("@jit_eval_step") == programs


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
    assert all(changed[step] > 0.5 for step in range(2, 10)), "the first may be a mere rounding"
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


def test_a_finished_run_prints_its_result_again_and_changes_nothing(
    finished, keys, capsys, monkeypatch
):
    before = runs.content(finished.workdir)
    monkeypatch.setattr(sys, "argv", ["train", *runs.argv(keys, finished.workdir)])
    flags.run(train.main)  # exit code 0
    assert json.loads(capsys.readouterr().out) == json.loads(before["result.json"])
    assert runs.content(finished.workdir) == before


@pytest.fixture
def unfinished(finished, tmp_path) -> Path:
    """The run's folder without its result."""
    ignore = shutil.ignore_patterns("result.json")
    return Path(shutil.copytree(finished.workdir, tmp_path / "unfinished", ignore=ignore))


def test_resuming_with_another_config_is_refused_by_name_and_loses_nothing(
    unfinished, keys, capsys
):
    before = runs.content(unfinished)
    free = {"mesh.fsdp": 8, "mesh.data": 1, "train.logging_steps": 2}
    changed = {"optim.learning_rate": 0.5, "seed": 3} | free
    message = runs.refused(capsys, "train", runs.argv(keys | changed, unfinished))
    assert "optim.learning_rate: the run has 0.01, given is 0.5" in message
    assert "seed: the run has 0, given is 3" in message
    assert "mesh.fsdp:" not in message
    assert "train.logging_steps:" not in message
    assert runs.content(unfinished) == before


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_resuming_with_other_rows_under_the_same_path_is_refused(split, unfinished, keys, capsys):
    path = Path(keys[f"data.{split}"])
    original, before = path.read_bytes(), runs.content(unfinished)
    try:
        runs.table(path, runs.rows(40, seed=9))
        message = runs.refused(capsys, "train", runs.argv(keys, unfinished))
    finally:
        path.write_bytes(original)
    assert f"read something else: {split} changed since it began, under the same path" in message
    assert runs.content(unfinished) == before


def test_a_run_that_saved_nothing_blocks_no_other(finished, keys, tmp_path):
    workdir = tmp_path / "run"
    ignore = shutil.ignore_patterns("result.json", "checkpoints")
    shutil.copytree(finished.workdir, workdir, ignore=ignore)
    (workdir / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    (workdir / "model" / "vocab.txt").write_text("of another tokenizer")
    rows = runs.table(tmp_path / "other.csv", runs.rows(40, seed=9))
    other = {"optim.learning_rate": 0.5, "data.train": rows, "train.max_steps": 2}
    runs.run(workdir, keys | other)
    assert json.loads((workdir / "config.json").read_text())["optim"]["learning_rate"] == 0.5
    assert [row["step"] for row in runs.metrics(workdir)][-1] == 2
    assert not (workdir / "model" / "vocab.txt").exists()


def test_a_run_that_dies_while_it_is_written_down_leaves_a_folder_that_is_its_own(
    keys, tmp_path, monkeypatch
):
    save_model = Workdir.save_model

    def save_and_die(self: Workdir, *parts: Any) -> None:
        save_model(self, *parts)
        raise RuntimeError("killed")

    monkeypatch.setattr(Workdir, "save_model", save_and_die)
    for _ in ("at first", "when it is started again, which is not refused"):
        with pytest.raises(RuntimeError, match="killed"):
            train.main(runs.argv(keys, tmp_path / "run"))


def test_a_second_run_in_a_folder_where_one_is_training_is_refused(keys, tmp_path, capsys):
    workdir = Workdir(str(tmp_path / "run"))
    workdir.prepare()
    with workdir.locked(print):
        before = runs.content(tmp_path)
        message = runs.refused(capsys, "train", runs.argv(keys, workdir.path))
        assert message.startswith(f"--workdir={workdir}: another process is training in it.")
        assert runs.content(tmp_path) == before
    with workdir.locked(print):
        pass
    with Workdir("memory://bucket/unlocked").locked(print):
        pass


def test_a_run_that_another_one_overtook_does_not_go_on_with_its_weights(
    finished, keys, tmp_path, capsys, monkeypatch
):
    prepare = Workdir.prepare

    def prepare_and_be_late(self: Workdir) -> None:
        prepare(self)
        shutil.copytree(finished.workdir, self.path, dirs_exist_ok=True)

    monkeypatch.setattr(Workdir, "prepare", prepare_and_be_late)
    other = keys | {"optim.learning_rate": 0.5}
    message = runs.refused(capsys, "train", runs.argv(other, tmp_path / "run"))
    assert "holds a run with another config" in message
    assert runs.content(tmp_path / "run") == runs.content(finished.workdir)


def test_runs_that_start_in_one_second_go_to_folders_of_their_own():
    assert len({Workdir.new("configs/bert_cls.py").path for _ in range(2)}) == 2


def test_without_a_workdir_a_run_goes_to_runs_in_the_current_folder(
    keys, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train.main(runs.argv(keys))
    (workdir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"bert_cls-\d{8}-\d{6}-[0-9a-f]{4}", workdir.name)
    assert f"--workdir=runs/{workdir.name}" in capsys.readouterr().err


def test_a_missing_validation_split_is_cut_from_training_the_same_way_each_time(
    keys, tmp_path, capsys
):
    cut = keys | {"data.validation": "none", "data.validation_size": 0.2, "data.test": "none"}
    first = runs.run(tmp_path / "first", cut)
    said = capsys.readouterr().err
    assert "No validation split given: 7 rows are cut from" in said
    assert "Flattening the indices" not in said
    assert runs.run(tmp_path / "second", cut)["validation"] == first["validation"]
    digests = [
        json.loads((tmp_path / name / "inputs.json").read_text()) for name in ("first", "second")
    ]
    assert digests[0] == digests[1]
    _, splits, _ = runs.assembled(cut | {"seed": 1})
    assert splits["validation"].rows.digest == digests[0]["validation"], "for every seed"
    capsys.readouterr()
    evaluate.main([f"--workdir={tmp_path / 'first'}"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["rows"] == 7
    assert {name: scores[name] for name in first["validation"]} == pytest.approx(
        first["validation"], rel=1e-5
    )


def test_a_workdir_in_an_object_store(keys, tmp_path, monkeypatch, capsys):
    """memory:// stands in for gs://: all but the arrays goes through fsspec, which orbax does not
    use.

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
