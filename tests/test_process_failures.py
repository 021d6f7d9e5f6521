"""What goes wrong in one process of a job ends all of them, soon and with the reason."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import runs
from jobs import FASTER, KEYS, Said, finish, free_port, job

from jaxft.processes import HEARTBEAT_S

HEARTBEAT = "from jaxft import processes\nprocesses.HEARTBEAT_S = 10\n"
PROMISED_S = 60
SMALL = FASTER | {"JAX_NUM_CPU_DEVICES": "2"}
SOON_S = HEARTBEAT_S - 2
"""Between the first process's end and the last's, where nobody needs a heartbeat to notice; that
takes a few seconds, and more on a busy machine.
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory, tiny_bert_folder) -> dict[str, Any]:
    data = runs.tables(tmp_path_factory.mktemp("data"))
    return {"model.pretrained": tiny_bert_folder, **KEYS} | data


def assert_left_together(said: list[Said], code: int, message: str) -> None:
    assert [process.code for process in said] == [code] * len(said), said
    for process in said:
        assert message in process.err
    assert max(p.ended_s for p in said) - min(p.ended_s for p in said) < SOON_S


def test_processes_that_disagree_about_the_config_name_the_key(keys, tmp_path):
    own = [[], ["--config.optim.learning_rate=0.5", "--compilation_cache_dir=none"]]
    said = job(runs.argv(keys, tmp_path / "run"), own=own)
    assert_left_together(said, 2, "optim.learning_rate: 0.5, and 0.001 in process 0")
    assert "process 1 failed: Process 1 differs from process 0" in said[0].err
    assert "--compilation_cache_dir: None, and '/" in said[0].err
    assert "batch_size" not in said[0].err
    assert not (tmp_path / "run").exists()


def test_a_file_that_one_host_lacks_ends_all(keys, tmp_path):
    gone = f"""
from jaxft.data import sources
locate = sources.locate
def lacking(source, *more):
    return locate("{tmp_path}/not-here.csv" if "test" in str(source) else source, *more)
sources.locate = lacking
"""
    said = job(runs.argv(keys, tmp_path / "run"), ("", gone))
    assert_left_together(said, 2, "not-here.csv")
    assert "Traceback" not in said[0].err + said[1].err


def test_a_file_that_differs_on_one_host_ends_all(keys, tmp_path):
    other = runs.table(tmp_path / "other.csv", runs.rows(37, seed=9))
    swapped = f"""
from jaxft.data import cache, sources
locate = sources.locate
def other(source, *more):
    return locate("{other}" if "train.csv" in str(source) else source, *more)
cache.locate = sources.locate = other
"""
    said = job(runs.argv(keys, tmp_path / "run"), ("", swapped))
    assert_left_together(said, 2, "Process 1 differs from process 0:\n  train: ")


def test_a_workdir_without_room_which_process_0_alone_looks_for_ends_all(keys):
    said = job(runs.argv(keys, "/proc/jaxft/run"))
    assert_left_together(said, 2, "0 GB are free")
    assert "process 0 failed" in said[1].err


def test_a_workdir_that_the_hosts_do_not_share_ends_all(keys, tmp_path):
    elsewhere = """
from jaxft import workdir
locate = workdir.files.locate
workdir.files.locate = lambda path: locate(str(path).replace("here", "there"))
"""
    said = job(runs.argv(keys, tmp_path / "here"), ("", elsewhere))
    assert_left_together(said, 2, "is not the same folder in process 1 as in process 0")
    assert not list((tmp_path / "here").glob(".shared*"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_while_it_trains_ends_the_others(victim, keys, tmp_path):
    die = """
import os, signal
from jaxft.interrupts import Interrupts
Interrupts.stop = lambda self, step: step == 3 and os.kill(os.getpid(), signal.SIGKILL)
"""
    said = job(runs.argv(keys, tmp_path / "run"), ("", die) if victim else (die, ""))
    killed, left = said[victim], said[1 - victim]
    assert killed.code == -9
    assert left.code not in (0, 2), left.err
    assert "another process died" in left.err or "another task died" in left.err
    assert left.ended_s - killed.ended_s < SOON_S


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_falls_silent_ends_the_others_by_its_missing_heartbeat(
    victim, keys, tmp_path
):
    stop = """
import os, signal
train.wait_for_all = lambda name: os.kill(os.getpid(), signal.SIGSTOP)
"""
    address = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2"]
    words = [*runs.argv(keys, tmp_path / "run"), *address]
    started = [
        runs.start([*words, f"--process_id={i}"], HEARTBEAT + stop * (i == victim), **SMALL)
        for i in (0, 1)
    ]
    silent, left = started[victim], started[1 - victim]
    try:
        waited = os.waitid(os.P_PID, silent.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert waited.si_status == signal.SIGSTOP, "stopped, not ended"
        began_s = time.monotonic()
        said = finish(left)
        assert said.code != 0
        assert "another task died" in said.err
        assert said.ended_s - began_s < PROMISED_S
    finally:
        silent.kill()
        silent.communicate()


@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_never_meet_say_so(index, keys, tmp_path):
    address = f"localhost:{free_port()}"
    soon = "from jaxft import processes\nprocesses.MEET_S = 2\n"
    words = [f"--coordinator_address={address}", "--num_processes=2", f"--process_id={index}"]
    said = finish(runs.start([*runs.argv(keys, tmp_path / "run"), *words], soon))
    assert said.code == 2, said.err
    reason = ("not all of its processes have come", "no answer")[index]
    assert f"Process {index} waited for the coordinator at {address}: " in said.err
    assert f"{reason} within 2 s" in said.err
    assert "Traceback" not in said.err
    assert not Path(tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [["--process_id=0"], ["--coordinator_address=here", "--num_processes=2", "--process_id=0"]],
)
def test_flags_that_cannot_join_are_refused(words, capsys):
    message = runs.refused(capsys, "train", words)
    assert "give all three" in message or "HOST:PORT" in message
