"""Suggestions as the compiler sees them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import pytest
from plans import TINY_LLAMA, sketched

from jaxft.planning import places, trials
from jaxft.planning.compiling import Program, compile_evaluation, compile_update
from jaxft.planning.estimate import Estimator
from jaxft.planning.trials import TRIED, WANTED, Tried, try_out

SMALL, LARGE = Program(1, 1, 0, 2.0), Program(10**12, 1, 0, 2.0)
REFUSED = Program(0, 0, 0, 2.0, refused="RESOURCE_EXHAUSTED")


@pytest.fixture(scope="module")
def whole():
    """A run whose weights are most of what it needs, and whole on each device."""
    wide = TINY_LLAMA | {"hidden_size": 256, "intermediate_size": 512}
    keys = {"data__max_length": 64, "train__batch_size": 8}
    made = sketched(model__config=wide, mesh__data=8, mesh__fsdp=1, **keys)
    return made, Estimator(made)


def tried(whole: Any, **known: Any) -> tuple[tuple[Tried, ...], list[str], int]:
    """What fits in a part of the room that the run needs, what is said, and the room."""
    made, estimate = whole
    room, said = int(0.8 * estimate(made).peak), []
    place = replace(places.find(None), hbm_bytes=room, **known)
    return try_out(made, place, estimate, said.append), said, room


def test_update_and_evaluation_of_a_suggestion_are_compiled(whole, monkeypatch, hurry):
    monkeypatch.setattr(trials, "WANTED", 1)
    (one,), said, room = tried(whole)
    compiled = compile_update(one.suggestion.sketch), compile_evaluation(one.suggestion.sketch)
    assert [p.peak_bytes for p in one.programs] == [p.peak_bytes for p in compiled]
    shown = one.to_json()
    assert shown["compiled"]
    assert shown["peak_bytes_per_device"] == max(p.peak_bytes for p in compiled) <= room
    assert shown["compile_s"] == sum(p.compile_s for p in one.programs) > 0
    assert said[0] == f"Compiling with {' '.join(one.suggestion.flags)}"
    (without, *_), said, _ = tried(whole, compiles=False)
    assert without.suggestion.changes == one.suggestion.changes
    assert not without.to_json()["compiled"]
    assert said == []


@pytest.mark.parametrize(
    ("updates", "evaluations", "fit", "compiled"),
    [
        (repeat(SMALL), repeat(SMALL), WANTED, 2 * WANTED),
        (repeat(LARGE), repeat(SMALL), 0, TRIED),
        (repeat(REFUSED), repeat(SMALL), 0, TRIED),
        (repeat(SMALL), repeat(LARGE), 0, 2 * TRIED),
        (chain([LARGE], repeat(SMALL)), chain([REFUSED], repeat(SMALL)), WANTED, 4 + 2 * 2 + 1),
    ],
)
def test_what_the_compiler_says_does_not_fit_is_left_out(
    whole, monkeypatch, updates, evaluations, fit, compiled
):
    asked: list[str] = []

    def answer(name: str, programs: Iterator[Program]) -> None:
        monkeypatch.setattr(trials, name, lambda sketch: (asked.append(name), next(programs))[1])

    answer("compile_update", updates)
    answer("compile_evaluation", evaluations)
    found, said, _ = tried(whole)
    assert len(found) == fit
    assert len(asked) == compiled
    assert len([line for line in said if "does not fit either" in line]) == len(said) / 2 - fit
