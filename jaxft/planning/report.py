"""Everything a plan knows, as one object: worked out here, shown by `rendering`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft import tasks
from jaxft.config import Config
from jaxft.errors import UserError
from jaxft.planning.advice import Advice, Case, Objective, advise
from jaxft.planning.collectives import by_kind
from jaxft.planning.compiling import Program, compile_evaluation, compile_update
from jaxft.planning.estimate import Estimator, Footprint
from jaxft.planning.places import Place
from jaxft.planning.roofline import Roofline, flops_per_step, roofline, sent_bytes
from jaxft.planning.sketch import Sketch, sketch
from jaxft.planning.suggestions import FILLED
from jaxft.planning.trials import Tried, try_out
from jaxft.schedules import make_schedule
from jaxft.stderr import Say

CURVE = 48
"""Points of the learning rate's curve."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a plan is asked beside the config."""

    rows: int | None = None
    """Examples of the training set, in place of what the data hold."""
    price: float | None = None
    """Of a chip for an hour."""
    budget: float | None = None
    variants: int = 1
    objective: Objective | None = None
    mfu: float = 0.4
    """Share of the peak that the run is expected to reach."""


@dataclass(frozen=True)
class Report:
    """A plan."""

    name: str
    place: Place
    sketch: Sketch
    questions: Questions
    estimate: Footprint
    estimated_evaluation_bytes: int
    update: Program | None
    """None: not compiled."""
    evaluation: Program | None
    tried: tuple[Tried, ...] = ()
    advice: Advice | None = field(default=None)

    @property
    def config(self) -> Config:
        return self.sketch.config

    @property
    def hbm_bytes(self) -> int:
        assert self.place.hbm_bytes is not None
        return self.place.hbm_bytes

    @property
    def update_bytes(self) -> int:
        return self.update.peak_bytes if self.update else self.estimate.peak

    @property
    def evaluation_bytes(self) -> int:
        return self.evaluation.peak_bytes if self.evaluation else self.estimated_evaluation_bytes

    @property
    def peak_bytes(self) -> int:
        """Of update or evaluation, on one device."""
        return max(self.update_bytes, self.evaluation_bytes)

    @property
    def fits(self) -> bool:
        programs = [p for p in (self.update, self.evaluation) if p is not None]
        if programs:
            return all(program.fits(self.hbm_bytes) for program in programs)
        return self.peak_bytes <= self.hbm_bytes * FILLED

    @property
    def compile_s(self) -> float | None:
        programs = [p for p in (self.update, self.evaluation) if p is not None]
        return sum(program.compile_s for program in programs) if programs else None

    @property
    def sent(self) -> dict[str, dict[str, float]] | None:
        """Collectives of the compiled update, by kind."""
        if self.update is None or self.update.collectives is None:
            return None
        return by_kind(self.update.collectives)

    @property
    def sent_bytes(self) -> float:
        """By one device in an update."""
        if self.sent is None:
            return sent_bytes(self.sketch)
        return sum(row["bytes"] for row in self.sent.values())

    @property
    def roofline(self) -> Roofline | None:
        if self.place.chip is None:
            return None
        return roofline(self.sketch, self.estimate, self.place.chip, self.sent_bytes)

    @property
    def step_s(self) -> float | None:
        """Expected, at the share of the peak that was asked for or that is possible."""
        roof = self.roofline
        if roof is None:
            return None
        return roof.flops / (min(self.questions.mfu, roof.mfu) * roof.peak_flops)

    @property
    def run_hours(self) -> float | None:
        """Of the updates alone."""
        steps, step_s = self.sketch.steps, self.step_s
        return steps * step_s / 3600 if steps is not None and step_s is not None else None

    @property
    def bill(self) -> float | None:
        price, hours = self.questions.price, self.run_hours
        return hours * price * self.place.chips if price is not None and hours is not None else None

    @property
    def parameters(self) -> dict[str, int]:
        """By part of the model, with their sum."""
        parts = {"embeddings": 0, "layers": 0, "heads": 0, "rest": 0}
        for weight in self.sketch.experiment.drawn.weights.values():
            part = "layers" if weight.stacked else weight.path[0]
            parts[part if part in parts else "rest"] += weight.size
        return {**parts, "total": sum(parts.values())}

    @property
    def checkpoint_bytes(self) -> int:
        """Of one, over all hosts."""
        experiment = self.sketch.experiment
        state = experiment.abstract_state(experiment.optimizer(self.sketch.steps or 1000))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    @property
    def checkpoints(self) -> int:
        """On disk at once, the one being written included."""
        return self.config.checkpoint.keep_last + self.config.checkpoint.keep_best + 1

    @property
    def learning_rates(self) -> list[float]:
        """Over the run; of one of 1000 updates where nobody knows its length."""
        total = self.sketch.steps or 1000
        steps = np.linspace(0, total - 1, min(CURVE, total)).round().astype(np.int32)
        rates = make_schedule(self.config.optim, total)(jnp.asarray(steps))
        return np.asarray(rates).tolist()

    @property
    def data(self) -> dict[str, Any]:
        """What the batches hold."""
        made, plan = self.sketch, self.sketch.plan
        facts: dict[str, Any] = {
            "examples": made.examples,
            "rows": made.rows,
            "width": made.width,
            "tokens_per_step": made.rows * made.width,
        }
        if plan is not None:
            whole = np.asarray(made.split.features["full_length"][:])
            facts |= {
                "tokens": int(plan.lengths.sum()),
                "truncated": int((whole > plan.lengths).sum()),
                "full": plan.full,
            }
        return facts

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        roof, mesh = self.roofline, self.sketch.experiment.mesh
        return {
            "fits": self.fits,
            "peak_bytes_per_device": self.peak_bytes,
            "hbm_bytes_per_device": self.hbm_bytes,
            "compile_s": self.compile_s,
            "flops_per_step": flops_per_step(self.sketch),
            "suggestions": [one.to_json() for one in self.tried],
            "model": self.name,
            "topology": self.place.name,
            "device_kind": self.place.kind,
            "devices": mesh.size,
            "mesh": dict(mesh.shape),
            "parameters": self.parameters,
            "estimate": self.estimate.to_json(),
            "estimated_evaluation_bytes": self.estimated_evaluation_bytes,
            "update": _program(self.update),
            "evaluation": _program(self.evaluation),
            "sent_bytes_per_device": self.sent_bytes,
            "collectives": self.sent,
            "step_s_at_best": roof and roof.step_s,
            "limited_by": roof and roof.limit,
            "mfu_at_best": roof and roof.mfu,
            "step_s": self.step_s,
            "steps": self.sketch.steps,
            "run_hours": self.run_hours,
            "bill": self.bill,
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoints": self.checkpoints,
            "learning_rates": self.learning_rates,
            "data": self.data,
            "advice": self.advice.to_json() if self.advice else None,
        }


def _program(program: Program | None) -> dict[str, Any] | None:
    if program is None:
        return None
    return {
        "peak_bytes": program.peak_bytes,
        "arguments_and_temporaries_bytes": program.arguments_bytes + program.temporaries_bytes,
        "host_bytes": program.host_bytes,
        "compile_s": program.compile_s,
        "refused": program.refused or None,
    }


def make(config: Config, place: Place, say: Say, questions: Questions = Questions()) -> Report:
    """The plan of a config on a place.

    Raises:
        UserError: what `train` would refuse, or devices of unknown memory.
    """
    if place.hbm_bytes is None:
        raise UserError(f"The memory of a {place.kind} is not known; give a --topology.")
    drawn = sketch(config, place.devices, say, questions.rows)
    estimate = Estimator(drawn)
    footprint, scoring = estimate(drawn), estimate.evaluation(drawn)
    update = evaluation = None
    if place.compiles:
        say(f"Compiling the update for {place.name}")
        update = compile_update(drawn)
        say(f"  {update.compile_s:.0f} s. Compiling the evaluation")
        evaluation = compile_evaluation(drawn)
        say(f"  {evaluation.compile_s:.0f} s")
    name = config.model.pretrained or str(config.model.config)
    if isinstance(config.model.config, Mapping):
        name = f"a {config.model.config['model_type']} from scratch"
    plain = Report(name, place, drawn, questions, footprint, scoring, update, evaluation)
    tried = () if plain.fits else try_out(drawn, place, estimate, say)
    made = replace(plain, tried=tried)
    return replace(made, advice=advise(_case(made)))


def _case(report: Report) -> Case:
    """What the advice depends on."""
    config, weights = report.config, report.sketch.experiment.drawn.weights.values()
    tokens, examples = report.data.get("tokens"), report.sketch.examples
    counted = tokens is not None
    if not counted and examples is not None:
        tokens = examples * config.data.max_length
    kernels = [w.shape for w in weights if w.stacked and w.kind == "kernel" and len(w.shape) == 3]
    return Case(
        objective=report.questions.objective
        or tasks.named(config.task.name).objective(config.data),
        parameters=report.parameters["total"],
        linear_sizes=tuple((n, d_in, d_out) for n, d_in, d_out in kernels),
        variants=report.questions.variants,
        fits=report.fits or bool(report.tried),
        learnt_tokens=tokens,
        tokens_are_counted=counted,
        bill=report.bill,
        budget=report.questions.budget,
    )
