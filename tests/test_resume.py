"""A run that was killed, stopped or damaged goes on, bit by bit, as the run that never was."""

import gc
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest
import runs
from etils import epath

from jaxft import flags, summary, train
from jaxft.checkpoint import Checkpoints
from jaxft.interrupts import Interrupts
from jaxft.train import Run

# Saved after 3, 4, 6, 8, 9 and 12, in the middle of epochs and of the means that are logged.
SAVES = {"train.eval_steps": 4, "checkpoint.save_steps": 3, "train.logging_steps": 5}
OTHER_MESH = 1e-4
"""Relative difference of losses: another mesh adds in another order; Adam makes it more."""
DIE = "import os, signal\ndef die():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
TORN = "when step 8 is written but for its last rename"
LATE = "between the last save and the result"
KILLS = {
    "between two saves, in the second epoch": DIE
    + """
from jaxft.interrupts import Interrupts
Interrupts.stop = lambda self, step: step == 7 and die()
""",
    "while step 8 is being written": DIE
    + """
from jaxft.checkpoint import Checkpoints
save = Checkpoints.save
def save_and_die(self, step, **parts):
    save(self, step, **parts)
    step == 8 and die()
Checkpoints.save = save_and_die
""",
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory, tiny_bert_folder):
    folder = tmp_path_factory.mktemp("data")
    return {"model.pretrained": tiny_bert_folder} | SAVES | runs.tables(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def never_killed(folder, keys) -> Path:
    """A finished run's folder; what it looked like just before step 8 was committed lies beside
    it.
    """
    workdir, rename = folder / "never_killed", os.rename

    def rename_and_look(src: Any, dst: Any, **options: Any) -> None:
        if str(dst).endswith("/8"):
            shutil.copytree(workdir, folder / TORN)
        rename(src, dst, **options)

    with mock.patch.object(os, "rename", rename_and_look):
        runs.run(workdir, keys)
    shutil.copytree(
        workdir, folder / LATE, ignore=shutil.ignore_patterns("result.json", "report.html")
    )
    return workdir


@pytest.fixture(scope="module")
def killed(folder, keys, never_killed) -> dict[str, Path]:
    """What is left of runs that got a SIGKILL, by when they got it."""
    workdirs = {what: folder / what for what in (*KILLS, TORN, LATE)}
    processes = [runs.start(runs.argv(keys, workdirs[what]), KILLS[what]) for what in KILLS]
    said = [process.communicate(timeout=120) for process in processes]
    for process, (_, err) in zip(processes, said, strict=True):
        assert process.returncode == -signal.SIGKILL, err
    return workdirs


@pytest.fixture
def copy(tmp_path):
    """A copy of a workdir that may be changed."""

    def make(workdir: Path) -> Path:
        return Path(shutil.copytree(workdir, tmp_path / "copy"))

    return make


@pytest.fixture
def unfinished(copy, folder, never_killed) -> Path:
    """The finished run's folder without its result."""
    return copy(folder / LATE)


def logged_events(workdir: Path) -> list[int]:
    """The steps of the training loss in TensorBoard, in the order of the file."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = workdir.glob("events.out.tfevents.*")
    events = list(EventFileLoader(str(path)).Load())
    return [
        event.step for event in events for value in event.summary.value if value.tag == "train/loss"
    ]


def assert_as_never_stopped(workdir: Path, never_killed: Path) -> None:
    result, expected = (
        json.loads((w / "result.json").read_text()) for w in (workdir, never_killed)
    )
    for part in ("step", "best_step", "validation", "test"):
        assert result[part] == expected[part]
    assert runs.same(runs.arrays(workdir, 12), runs.arrays(never_killed, 12))
    assert runs.metrics(workdir) == runs.metrics(never_killed)
    assert logged_events(workdir) == [5, 10]
    assert runs.content(workdir / "checkpoints").keys() >= {"12/_CHECKPOINT_METADATA"}


@pytest.mark.parametrize("what", [*KILLS, TORN, LATE])
def test_pitfall_12_killed_and_restarted_equals_never_killed(
    what, killed, copy, keys, never_killed
):
    workdir = copy(killed[what])
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    runs.run(workdir, keys)
    assert ("12" in before) == (what == LATE)
    assert not any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
    assert_as_never_stopped(workdir, never_killed)


def test_pitfall_14_a_torn_save_is_never_picked_up(killed):
    folder = killed[TORN] / "checkpoints"
    assert any(path.name.startswith("8.") for path in folder.iterdir())
    reader = Checkpoints(epath.Path(folder), writes=False)
    assert reader.steps == [4, 6]
    reader.close()
    logged = [row["step"] for row in runs.metrics(killed[TORN])]
    assert max(logged) >= 8, "there is something to cut away"


def test_pitfall_18_any_mesh_restores_any_checkpoint(killed, copy, keys, never_killed):
    workdir = copy(killed["between two saves, in the second epoch"])
    free = {"mesh.data": 1, "mesh.fsdp": 8, "checkpoint.keep_last": 4, "train.report_to": "[]"}
    runs.run(workdir, keys | free)
    for mine, theirs in zip(runs.metrics(workdir), runs.metrics(never_killed), strict=True):
        for name in {"train/loss", "validation/loss"} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=OTHER_MESH)
    assert json.loads((workdir / "config.json").read_text())["mesh"]["fsdp"] == 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_going_on_equals_never_stopped(
    number, tmp_path, keys, never_killed, capsys, monkeypatch
):
    workdir, stop = tmp_path / "run", Interrupts.stop

    def stop_at_7(self: Interrupts, step: int) -> bool:
        if step == 7:
            os.kill(os.getpid(), number)
        return stop(self, step)

    monkeypatch.setattr(Interrupts, "stop", stop_at_7)
    monkeypatch.setattr(sys, "argv", ["train", *runs.argv(keys, workdir)])
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        flags.run(train.main)
    assert left.value.code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert signal.getsignal(number) is before
    out, err = capsys.readouterr()
    assert out == ""
    assert f"Stopped by {number.name} after step 7, which is saved" in err
    assert f"--workdir={workdir} goes on" in err
    assert not (workdir / "result.json").exists()

    monkeypatch.setattr(Interrupts, "stop", stop)
    runs.run(workdir, keys)
    assert "Resuming after step 7 of 12" in capsys.readouterr().err
    assert_as_never_stopped(workdir, never_killed)


def test_ctrl_c_in_one_process_of_several_is_handed_on_as_the_signal_that_stops_all(monkeypatch):
    """What SIGTERM does there, tests/test_processes.py shows."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
            assert (interrupts.received, heard) == (signal.SIGINT, [signal.SIGTERM])
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_during_the_last_save_leaves_once_that_is_committed(
    tmp_path, keys, never_killed, capsys, monkeypatch
):
    workdir, is_over = tmp_path / "run", Run.is_over

    def is_over_and_signal(self: Run, step: int) -> bool:
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return is_over(self, step)

    monkeypatch.setattr(Run, "is_over", is_over_and_signal)
    monkeypatch.setattr(Run, "finish", lambda *parts: pytest.fail("the time is up"))
    with pytest.raises(SystemExit) as left:
        train.main(runs.argv(keys, workdir))
    assert left.value.code == 143
    assert "Stopped by SIGTERM after step 12, which is saved" in capsys.readouterr().err
    monkeypatch.undo()
    runs.run(workdir, keys)
    assert_as_never_stopped(workdir, never_killed)


def largest(folder: Path) -> Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


DAMAGE = {
    "arrays cut short": lambda folder: largest(folder).write_bytes(
        largest(folder).read_bytes()[:100]
    ),
    "no moments": lambda folder: shutil.rmtree(folder / "optimizer"),
    "flipped bits": lambda folder: largest(folder).write_bytes(
        bytes(255 - byte for byte in largest(folder).read_bytes())
    ),
}


@pytest.fixture
def damaged(unfinished):
    """orbax leaves the readers of the other arrays unawaited when one fails: now they may warn."""
    yield unfinished
    gc.collect()


UNAWAITED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@UNAWAITED
@pytest.mark.parametrize("what", DAMAGE)
def test_a_corrupt_newest_checkpoint_falls_back_and_says_so(
    what, damaged, keys, never_killed, capsys
):
    DAMAGE[what](damaged / "checkpoints" / "12")
    runs.run(damaged, keys)
    err = capsys.readouterr().err
    assert "WARNING: checkpoint 12 cannot be read" in err
    assert "Falling back to checkpoint 9" in err
    assert "Resuming after step 9 of 12" in err
    assert (damaged / "damaged_checkpoints" / "12-0").is_dir(), "nothing is deleted"
    assert_as_never_stopped(damaged, never_killed)


@UNAWAITED
def test_when_no_checkpoint_can_be_read_all_of_them_stay_and_nothing_starts_anew(
    damaged, keys, capsys
):
    for step in (damaged / "checkpoints").iterdir():
        DAMAGE["arrays cut short"](step)
    before = runs.content(damaged / "checkpoints")
    message = runs.refused(capsys, "train", runs.argv(keys, damaged))
    assert "None of the checkpoints under" in message
    assert runs.content(damaged / "checkpoints") == before


def test_pitfall_15_a_disk_that_fills_during_a_save_keeps_the_checkpoint_before(
    tmp_path, keys, never_killed, capsys, monkeypatch
):
    save, kept = Checkpoints.save, []

    def save_on_a_full_disk(self: Checkpoints, step: int, **parts: Any) -> None:
        if step != 8:
            return save(self, step, **parts)
        self.wait()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            save(self, step, **parts)
            self.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return kept.append(self.steps)

    monkeypatch.setattr(Checkpoints, "save", save_on_a_full_disk)
    runs.run(tmp_path / "run", keys)
    err = capsys.readouterr().err
    assert "WARNING: a checkpoint could not be saved, the run goes on." in err
    assert "Those before it are untouched: 4, 6" in err
    assert "File too large" in err
    assert "Traceback" not in err
    assert kept == [[4, 6]]
    assert runs.same(runs.arrays(tmp_path / "run", 12), runs.arrays(never_killed, 12))


def test_pitfall_15_a_disk_without_room_for_the_result_is_told_and_the_run_can_be_ended(
    unfinished, keys, capsys, monkeypatch
):
    write = summary.write

    def on_a_full_disk(*parts: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            write(*parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as full:
        full.setattr(summary, "write", on_a_full_disk)
        message = runs.refused(capsys, "train", runs.argv(keys, unfinished))
    assert f"The result cannot be written to {unfinished}: " in message
    assert "File too large. Make room" in message
    assert not (unfinished / "result.json").exists()
    assert runs.run(unfinished, keys)["step"] == 12


def test_a_run_may_go_on_with_another_metric_for_its_best_checkpoint(killed, copy, keys):
    workdir = copy(killed["between two saves, in the second epoch"])
    result = runs.run(
        workdir, keys | {"checkpoint.metric_for_best_model": "loss", "checkpoint.keep_last": 1}
    )
    losses = {
        row["step"]: row["validation/loss"]
        for row in runs.metrics(workdir)
        if "validation/loss" in row
    }
    assert result["best_step"] == min(losses, key=losses.__getitem__)
    assert result["validation"]["loss"] == losses[result["best_step"]]
