"""The loop hands out update k + 1 before it reads what update k gave."""

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from jaxft import config as configs
from jaxft import recorder, summary, tasks
from jaxft.experiment import assemble
from jaxft.recorder import Recorder, Work
from jaxft.train import Run
from jaxft.workdir import Workdir

STEPS = 6
Events = list[tuple[str, int]]


class Watched:
    """A number on the device, as far as the loop can tell; `on_read` when the host asks for it."""

    def __init__(self, value: Any, on_read: Callable[[], None]):
        self.value, self.on_read = value, on_read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.on_read()
        return np.asarray(self.value, dtype)


@pytest.fixture
def run(tmp_path, tiny_bert_folder) -> Run:
    """Six updates of a tiny BERT with one evaluation, at the end."""
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for word in ("film", "movie", "plot", "red", "blue", "two", "one", "it"):
            writer.writerows([(f"a good {word}", "yes"), (f"a bad {word}", "no")])
    data = {"train": str(tmp_path / "rows.csv"), "validation": str(tmp_path / "rows.csv")}
    config = {
        "model": {"pretrained": str(tiny_bert_folder)},
        "data": {**data, "max_length": 8, "cache_dir": str(tmp_path / "tokens")},
        "train": {"max_steps": STEPS, "batch_size": 8, "eval_steps": STEPS, "logging_steps": 2},
    }
    made = assemble(configs.from_dict(config, tasks.options), lambda text: None)
    run = Run(*made[:2], Workdir(str(tmp_path / "run")), lambda text: None)
    run.workdir.prepare()
    return run


def watch(update: Callable, events: Events) -> Callable:
    """The same update; notes when it is handed out and when its loss is read."""

    def watched(state: Any, batch: Any, k: np.int32) -> tuple[Any, Mapping[str, Any]]:
        step = int(k) + 1
        state, metrics = update(state, batch, k)
        events.append(("handed out", step))
        loss = Watched(metrics["loss"], lambda: events.append(("read", step)))
        return state, {**metrics, "loss": loss}

    return watched


def test_pitfall_31_metrics_are_read_after_the_next_update_was_handed_out(run):
    events: Events = []
    steps = {length: watch(update, events) for length, update in run.compile().items()}
    run.loop(steps, run.experiment.initial_state(run.optimizer, None), 0)
    run.checkpoints.close()
    late = [(("handed out", k + 1), ("read", k)) for k in range(1, STEPS)]
    in_turn = [event for pair in late for event in pair]
    assert events == [("handed out", 1), *in_turn, ("read", STEPS)]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recorder, "time", clock)
    return clock


@pytest.fixture
def notes(run, clock) -> Iterator[Recorder]:
    """That of a run which writes no line between."""
    with ExitStack() as stack:
        made = run.recorder(0, stack)
        made.every = STEPS + 1
        yield made


def push(notes: Recorder, step: int, clock: Clock) -> None:
    """An update of 8 examples and 64 tokens."""
    clock.advance(0.002)  # the host fetches a batch and hands the update out
    late = Watched(1.0, lambda: clock.advance(0.5))  # the device computes it
    metrics = {"accepted": True, "grad_norm": 1.0, "loss": late}
    notes.push(step, metrics, Work(8, 64, 1e6))


def test_pitfall_31_host_time_is_what_the_loop_adds_and_not_its_waiting(run, clock, notes):
    for step in range(1, STEPS + 1):
        push(notes, step, clock)
    notes.drain()
    assert run.history.host_ms_per_step == pytest.approx(2)
    assert run.history.train_s == pytest.approx(clock.now_s)


def test_steady_rates_are_those_of_updates_without_a_break_beside_them(run, clock, notes):
    for step in range(1, STEPS + 1):
        push(notes, step, clock)
        if step == 3:
            notes.drain()
            clock.advance(3)  # a save
            notes.restart_clock(counting=True)
            clock.advance(4)  # an evaluation
            notes.restart_clock()
    notes.drain()
    run.history.compile_s = 5.0
    result = summary.result(run.experiment, run.history, STEPS, STEPS, {})
    assert result["train_s"] == pytest.approx(STEPS * 0.502 + 3)
    busy_s = result["train_s"] + 5
    # The first after a start waits for its own handing out too; the last before a break for none.
    steady_s = 2 * (0.502 + 0.5)
    for name, count in {"examples": 8, "tokens": 64}.items():
        assert result[f"{name}_per_s"] == pytest.approx(STEPS * count / busy_s)
        assert result[f"steady_{name}_per_s"] == pytest.approx(4 * count / steady_s)
