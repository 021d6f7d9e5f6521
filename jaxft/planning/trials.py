"""Suggestions put before the compiler."""

from dataclasses import dataclass
from typing import Any

from jaxft.planning.compiling import Program, compile_evaluation, compile_update
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
    programs: tuple[Program, ...]
    """Of update and evaluation; none where there is no compiler."""

    @property
    def peak_bytes(self) -> int:
        if not self.programs:
            return self.suggestion.peak_bytes
        return max(program.peak_bytes for program in self.programs)

    def to_json(self) -> dict[str, Any]:
        one, programs = self.suggestion, self.programs
        return {
            "flags": one.flags,
            "changes": one.changes,
            "estimated_peak_bytes_per_device": one.peak_bytes,
            "peak_bytes_per_device": self.peak_bytes,
            "compiled": bool(programs),
            "compile_s": sum(program.compile_s for program in programs) if programs else None,
            "step_s_at_best": one.step_s,
        }


def try_out(sketch: Sketch, place: Place, estimate: Estimator, say: Say) -> tuple[Tried, ...]:
    """The nearest changes that fit, each another way; by the compiler too, where there is one."""
    room = place.hbm_bytes
    assert room is not None
    found: list[Tried] = []
    fitting: list[Suggestion] = []
    for count, one in enumerate(suggest(sketch, place, estimate, fitting), 1):
        programs = _compiled(one, room, say) if place.compiles else ()
        if all(program.fits(room) for program in programs):
            found.append(Tried(one, programs))
            fitting.append(one)
        if len(found) == WANTED or count == TRIED:
            break
    return tuple(found)


def _compiled(one: Suggestion, room: int, say: Say) -> tuple[Program, ...]:
    """Update and evaluation; the update alone where that does not fit."""
    say(f"Compiling with {' '.join(one.flags)}")
    programs: tuple[Program, ...] = (compile_update(one.sketch),)
    if programs[0].fits(room):
        programs += (compile_evaluation(one.sketch),)
    took_s = sum(program.compile_s for program in programs)
    say(f"  {took_s:.0f} s{'' if programs[-1].fits(room) else ': does not fit either'}")
    return programs
