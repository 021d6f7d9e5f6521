import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import types
import uuid
from pathlib import Path

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from runs import events_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxft import files
from jaxft.errors import UserError
from jaxft.files import read_file, write_json
from jaxft.progress import Progress
from jaxft.report import RunLog, check_reporters, confusion_png, read_metrics


def lines_of(folder: Path) -> list[dict]:
    def strict(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=strict) for line in text.splitlines()]


def steps_of(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Scalars(tag)]


@pytest.fixture
def memory():
    """A folder in fsspec's memory://, a stand-in for an object store: objects are put whole."""
    fs = fsspec.filesystem("memory")
    url = f"memory://bucket-{uuid.uuid4().hex}/runs/a"
    yield url
    bucket = url.removeprefix("memory:/").removesuffix("/runs/a")
    if fs.exists(bucket):
        fs.rm(bucket, recursive=True)


def test_scalars_can_be_read_back_from_lines_and_events(tmp_path):
    with RunLog(tmp_path, {"seed": 1}, ["tensorboard"]) as log:
        log.scalars(10, {"train/loss": jnp.float32(0.5), "train/learning_rate": np.float64(1e-5)})
        log.scalars(20, {"train/loss": 0.25, "validation/accuracy": 1})
        # a line is on the disk at once, not at close
        assert [row["step"] for row in lines_of(tmp_path)] == [10, 20]
    first = lines_of(tmp_path)[0]
    assert first == {"step": 10, "time": first["time"], "train/loss": 0.5} | {
        "train/learning_rate": 1e-5
    }
    assert read_metrics(tmp_path) == lines_of(tmp_path)
    events = events_of(tmp_path)
    assert steps_of(events, "train/loss") == [10, 20]
    assert events.Scalars("train/loss")[1].value == 0.25
    assert events.Scalars("train/loss")[0].wall_time == pytest.approx(first["time"], abs=5)


def test_images_texts_and_the_config_can_be_read_back_from_events(tmp_path):
    png = confusion_png([[3, 1], [0, 2]], ["yes", "no"])
    with RunLog(tmp_path, {"optim": {"name": "adamw"}}, ["tensorboard"]) as log:
        log.image(7, "test/confusion", png)
        log.text(7, "note", "**hello** wörld")
    events = events_of(tmp_path)
    image = events.Images("test/confusion")[0]
    assert image.step == 7
    assert image.encoded_image_string == png
    assert (image.width, image.height) == struct.unpack(">II", png[16:24])
    assert events.Tensors("note")[0].tensor_proto.string_val[0].decode() == "**hello** wörld"
    assert b'"adamw"' in events.Tensors("config")[0].tensor_proto.string_val[0]
    assert events.SummaryMetadata("note").plugin_data.plugin_name == "text"


def test_pitfall_11_a_nan_is_logged_and_the_line_stays_strict_json(tmp_path):
    with RunLog(tmp_path, {}, ["tensorboard"]) as log:
        log.scalars(1, {"a": float("nan"), "b": jnp.float32("inf"), "c": -np.inf, "d": 1.0})
    row = lines_of(tmp_path)[0]
    assert [row[name] for name in "abcd"] == ["NaN", "Infinity", "-Infinity", 1.0]
    back = read_metrics(tmp_path)[0]
    assert np.isnan(back["a"])
    assert back["b"] == np.inf
    assert back["c"] == -np.inf
    assert np.isnan(events_of(tmp_path).Scalars("a")[0].value)


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_resumed_run_cuts_away_what_lies_beyond_its_step(tmp_path, memory, where):
    workdir = str(tmp_path / "run") if where == "disk" else memory
    for start, resume in ((0, None), (20, 20), (30, 30)):
        with RunLog(workdir, {}, ["tensorboard"], resume) as log:
            for step in range(start + 10, start + 40, 10):
                log.scalars(step, {"train/loss": start + step / 1000})
    expected = {10: 0.01, 20: 0.02, 30: 20.03, 40: 30.04, 50: 30.05, 60: 30.06}
    assert {row["step"]: row["train/loss"] for row in read_metrics(workdir)} == expected
    assert len(read_metrics(workdir)) == 6
    events = events_of(workdir)
    assert steps_of(events, "train/loss") == list(expected)
    values = [event.value for event in events.Scalars("train/loss")]
    assert values == pytest.approx(list(expected.values()))
    fs, path = fsspec.core.url_to_fs(workdir)
    assert len(fs.glob(f"{path}/*tfevents*")) == 1
    assert not fs.glob(f"{path}/.*aside")


def test_pitfall_15_a_full_disk_costs_log_lines_and_not_the_run(tmp_path, caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(tmp_path, {}, ["tensorboard"]) as log:
        log.scalars(10, {"train/loss": 1.0})
        size = (tmp_path / "metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))  # half a line has room
        try:
            log.scalars(20, {"train/loss": 0.5})
            log.image(20, "confusion", confusion_png([[1, 0], [0, 1]], ["a", "b"]))
            log.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log.scalars(30, {"train/loss": 0.25})
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.search("log cannot be written, the run goes on. .*File too large", said)
    assert [row["step"] for row in lines_of(tmp_path)] == [10, 30]
    assert steps_of(events_of(tmp_path), "train/loss") == [10, 30]


def test_a_run_that_starts_anew_starts_its_logs_anew(tmp_path):
    (tmp_path / "events.out.tfevents.1.somebody-else").write_bytes(b"not ours")
    for loss in (1.0, 2.0):
        with RunLog(tmp_path, {}, ["tensorboard"]) as log:
            log.scalars(5, {"train/loss": loss})
    assert [row["train/loss"] for row in read_metrics(tmp_path)] == [2.0]
    assert (tmp_path / "events.out.tfevents.1.somebody-else").read_bytes() == b"not ours"
    assert len(list(tmp_path.glob("*tfevents*"))) == 2


def test_a_kill_between_the_new_event_file_and_the_old_ones_end_doubles_nothing(tmp_path):
    with RunLog(tmp_path, {}, ["tensorboard"]) as log:
        log.scalars(1, {"x": 1.0})
    old = next(tmp_path.glob("*tfevents*"))
    content = old.read_bytes()
    RunLog(tmp_path, {}, ["tensorboard"], 1).close()
    old.write_bytes(content)  # as if the removal had not come to pass
    RunLog(tmp_path, {}, ["tensorboard"], 1).close()
    assert steps_of(events_of(tmp_path), "x") == [1]
    assert len(list(tmp_path.glob("*tfevents*"))) == 1


def test_torn_ends_are_left_out_and_told(tmp_path, caplog):
    with RunLog(tmp_path, {}, ["tensorboard"]) as log:
        log.scalars(1, {"x": 1.0})
        log.scalars(2, {"x": 2.0})
    for file in (tmp_path / "metrics.jsonl", next(tmp_path.glob("*tfevents*"))):
        with open(file, "r+b") as handle:
            handle.truncate(file.stat().st_size - 5)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert "the last line is torn" in caplog.text
    with RunLog(tmp_path, {}, ["tensorboard"], 2) as log:
        log.scalars(3, {"x": 3.0})
    assert "torn record" in caplog.text
    assert [row["step"] for row in lines_of(tmp_path)] == [1, 3]
    assert steps_of(events_of(tmp_path), "x") == [1, 3]


def test_a_hard_kill_loses_no_line_that_was_logged(tmp_path):
    code = f"""
        import os, signal
        from jaxft.report import RunLog
        log = RunLog({str(tmp_path)!r}, {{}}, ["tensorboard"])
        for step in range(1, 6):
            log.scalars(step, {{"x": step}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert steps_of(events_of(tmp_path), "x") == [1, 2, 3, 4, 5]


def test_an_object_store_gets_the_log_at_flush_and_once_in_a_while(memory, monkeypatch):
    log = RunLog(memory, {}, ["tensorboard"])
    log.scalars(1, {"x": 1.0})
    assert read_metrics(memory) == []
    log.flush()
    assert [row["step"] for row in read_metrics(memory)] == [1]
    monkeypatch.setattr(files, "REMOTE_FLUSH_S", -1.0)
    log.scalars(2, {"x": 2.0})
    assert [row["step"] for row in read_metrics(memory)] == [1, 2]
    log.close()
    assert steps_of(events_of(memory), "x") == [1, 2]


def test_a_disabled_log_accepts_everything_and_writes_nothing(tmp_path):
    with RunLog(tmp_path / "run", {}, ["tensorboard", "wandb"], enabled=False) as log:
        assert not log.shows_images
        log.scalars(1, {"x": 1.0})
        log.image(1, "picture", b"")
        log.text(1, "note", "hello")
        log.flush()
    assert not (tmp_path / "run").exists()
    assert read_metrics(tmp_path / "run") == []


def test_tensorboard_is_written_only_when_asked_for(tmp_path):
    with RunLog(tmp_path, {}, []) as log:
        log.scalars(1, {"x": 1.0})
        log.image(1, "picture", b"")
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl"]


def test_reporting_mistakes_are_the_users(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        check_reporters(["wandb"])
    check_reporters(["tensorboard"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the workdir"):
        RunLog(tmp_path / "file" / "run", {}, [])
    with pytest.raises(UserError, match="Protocol not known"):
        RunLog("nonesuch://a/b", {}, [])


def test_wandb_gets_the_same_numbers_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    calls: list[tuple] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append(("log", values, step)),
        finish=lambda: calls.append(("finish",)),
    )
    fake = types.ModuleType("wandb")
    fake.util = types.SimpleNamespace(generate_id=lambda: f"id{len(calls)}")
    fake.init = lambda **given: calls.append(("init", given)) or run
    fake.Image = lambda picture: picture.size
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with RunLog(tmp_path / "name", {"seed": 3}, ["wandb"]) as log:
        log.scalars(4, {"x": 1.5})
        log.image(4, "confusion", confusion_png([[1, 0], [0, 1]], ["a", "b"]))
    RunLog(tmp_path / "name", {"seed": 3}, ["wandb"], 4).close()
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first["id"] == second["id"] == "id0"
    assert first["name"] == "name"
    assert first["config"] == {"seed": 3}
    assert second["resume"] == "allow"
    assert calls[1] == ("log", {"x": 1.5}, 4)
    assert calls[2][1]["confusion"][0] > 100
    assert calls[3] == ("finish",)


def test_json_is_written_whole_and_strict(tmp_path, memory):
    target = tmp_path / "new" / "result.json"
    given = {"nan": np.nan, "score": np.float32(0.5), "rows": np.arange(2), 3: tmp_path, "n": None}
    for path in (str(target), target, f"{memory}/result.json"):
        write_json(path, given)
        back = json.loads(read_file(path))
        expected = {"nan": "NaN", "score": 0.5, "rows": [0, 1], "3": str(tmp_path), "n": None}
        assert back == expected
    with pytest.raises(TypeError):
        write_json(target, {"what": object()})
    assert json.loads(target.read_text()) == back  # the old one stands
    assert os.listdir(target.parent) == ["result.json"]


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    write_json(target, {"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(target, {"step": 2})
    assert json.loads(target.read_text()) == {"step": 1}


@pytest.mark.parametrize("size", [2, 12, 30, 77])
def test_a_confusion_picture_has_room_for_every_class(size):
    labels = [f"a rather long class name {index}" for index in range(size)]
    labels[:2] = [r"costs $\oddly$", "返品"]
    png = confusion_png(np.eye(size, dtype=int) * 9, labels)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width >= size * 20
    assert height >= size * 20
    assert max(width, height) < 3000
    if pyplot := sys.modules.get("matplotlib.pyplot"):  # another test's
        assert pyplot.get_fignums() == []


def test_pitfall_17_a_confusion_picture_of_many_classes_is_no_larger_than_one_of_few():
    """800 of them with a place for each took all the memory there was, at the first evaluation."""
    png = confusion_png(np.eye(800, dtype=int), [f"class {index}" for index in range(800)])
    assert max(struct.unpack(">II", png[16:24])) < 1500


def test_progress_off_a_terminal_is_plain_and_seldom(capsys):
    with Progress(1000, 400, enabled=True) as progress:
        for step in range(401, 1001):
            progress.update(step, loss=0.5, examples_per_s=70.0, tokens_per_s=2100.0)
        progress.say("validation [step 1000]: accuracy 0.9 [bold]")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err
    assert len(lines) == 3  # the first step, the last, and what was said
    assert lines[0].startswith("step 401/1000")
    assert lines[1].startswith("step 1000/1000")
    assert "loss 0.5000" in lines[1]
    assert "70.0 examples/s" in lines[1]
    assert "2,100 tokens/s" in lines[1]
    assert lines[2] == "validation [step 1000]: accuracy 0.9 [bold]"


def test_progress_says_how_long_the_rest_will_take(capsys, monkeypatch):
    now_s = [100.0]
    clock = types.SimpleNamespace(monotonic=lambda: now_s[0])
    monkeypatch.setattr("jaxft.progress.time", clock)
    with Progress(1000, 400, enabled=True) as progress:
        for step, at_s in {401: 160.0, 421: 240.0}.items():
            now_s[0] = at_s
            progress.update(step, loss=0.5, examples_per_s=70.0, tokens_per_s=2100.0)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("step 401/1000 · 1:00 ·"), "compilation says nothing of the rest"
    assert last.startswith("step 421/1000 · 2:20, 38:36 left ·"), "579 updates of 4 s"


def test_a_disabled_progress_says_nothing(capsys):
    with Progress(10, 0, enabled=False) as progress:
        progress.update(10, loss=0.5, examples_per_s=1.0, tokens_per_s=1.0)
        progress.say("hello")
    assert capsys.readouterr() == ("", "")


def test_progress_leaves_a_terminal_clean_on_ctrl_c():
    import pty

    code = """
        import os, signal, sys, time
        from jaxft.progress import Progress
        # A shell that starts the suite in the background has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Progress(50, 0, enabled=True) as progress:
            for step in range(1, 20):
                progress.update(step, loss=0.5, examples_per_s=70.0, tokens_per_s=2100.0)
                time.sleep(0.02)
            progress.say("validation [red]accuracy[/red] 0.9")
            print("a result")
            time.sleep(0.4)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=slave,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    results = process.communicate(timeout=10)[0]
    text = shown.decode()
    assert results == b"a result\n"
    assert "19/50" in text
    assert "KeyboardInterrupt" in text
    assert "validation [red]accuracy[/red] 0.9" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") >= 1  # the cursor is back
    assert text.count("19/50") < 12  # the bar is not drawn anew for every step
