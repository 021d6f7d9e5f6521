"""Suggestions put before the compiler."""

from dataclasses import dataclass
from typing import Any

from jaxft.planning.compiling import Program, compile_update
from jaxft.planning.estimate import Estimator
from jaxft.planning.places import Place
from jaxft.planning.sketch import Sketch
from jaxft.planning.suggestions import Suggestion, suggest
from jaxft.stderr import Say

WANTED = 3
"""Suggestions."""
TRIED = 6
"""Suggestions that are compiled at most, to find that many that fit."""


@dataclass(frozen=True)
class Tried:
    """A suggestion and what the compiler says of it."""

    suggestion: Suggestion
    program: Program | None

    def to_json(self) -> dict[str, Any]:
        one, program = self.suggestion, self.program
        return {
            "flags": one.flags,
            "changes": one.changes,
            "estimated_peak_bytes_per_device": one.footprint.peak,
            "peak_bytes_per_device": program.peak_bytes if program else one.footprint.peak,
            "compiled": program is not None,
            "compile_s": program.compile_s if program else None,
            "step_s_at_best": one.step_s,
        }


def try_out(sketch: Sketch, place: Place, estimate: Estimator, say: Say) -> tuple[Tried, ...]:
    """The nearest changes that fit; by the compiler too, where there is one."""
    assert place.hbm_bytes is not None
    found: list[Tried] = []
    for count, one in enumerate(suggest(sketch, place, estimate), 1):
        program = None
        if place.compiles:
            say(f"Compiling with {' '.join(one.flags)}")
            program = compile_update(one.sketch)
            say(f"  {program.compile_s:.0f} s{': does not fit either' if program.refused else ''}")
        if program is None or (not program.refused and program.peak_bytes <= place.hbm_bytes):
            found.append(Tried(one, program))
        if len(found) == WANTED or count == TRIED:
            break
    return tuple(found)
