"""A plan as text for people: the answer first, then what it rests on."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from jaxft.planning.report import Report
from jaxft.planning.roofline import flops_per_step
from jaxft.planning.trials import Tried

LEVELS = "▁▂▃▄▅▆▇█"
LABEL = 13
"""Columns of what stands left."""
WIDEST = 100
COMPARED = {
    "tpu": "0.9 to 1.1 of the TPU compiler's figure for models of 22 M to 8 B weights",
    "cpu": "0.8 to 1.7 of the CPU compiler's figure for small models",
    "gpu": "never compared with a GPU's compiler, only with those of TPUs and CPUs",
}
"""What is known of estimates; docs/LOG.md has the comparisons."""
NEAR = (0.9, 1.1)
"""Shares of the memory between which an estimate cannot tell whether a run fits."""


def show(report: Report, console: Console | None = None) -> None:
    """Prints the plan."""
    width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    console = console or Console(width=width, highlight=False, soft_wrap=True)
    for line in lines(report, width):
        console.print(line, markup=False)


def lines(report: Report, width: int = WIDEST) -> Iterator[Text]:
    """The plan, line by line."""
    yield from _answer(report, width)
    for title, facts in (
        ("Model", _model(report)),
        ("Memory of a device", _memory(report)),
        ("An update", _update(report)),
        ("The run", _run(report)),
    ):
        yield Text()
        yield Text(title, style="bold")
        for label, text in facts:
            yield from _fact(label, text, width)
    if report.advice is not None:
        yield Text()
        yield Text("Full fine-tuning, or an adapter?", style="bold")
        yield from _wrapped(report.advice.sentence, width, 2)
        for reason in report.advice.reasons:
            yield from _fact(reason.side, f"{reason.text}. {reason.source}", width)


def _answer(report: Report, width: int) -> Iterator[Text]:
    share = report.peak_bytes / report.hbm_bytes
    counted = "by the compiler" if report.update is not None else _surety(report, share)
    verdict = Text("FITS" if report.fits else "DOES NOT FIT", style="bold reverse")
    where = f"{len(report.place.devices)} x {report.place.kind}"
    on = where if report.place.name == "this machine" else f"{report.place.name} ({where})"
    needs = f"{_gb(report.peak_bytes)} of {_gb(report.hbm_bytes)} GB a device ({share:.0%})"
    yield Text.assemble(verdict, f" {report.name} on {on}")
    yield from _wrapped(f"{needs}, {counted}", width, 0)
    if not report.fits:
        yield from _wrapped(_why(report), width, 0)
        yield from _suggestions(report.tried, width)


def _surety(report: Report, share: float) -> str:
    """How far to trust a plan that no compiler has seen."""
    said = f"by estimate, which is {COMPARED[report.place.devices[0].platform]}"
    near = NEAR[0] <= share <= NEAR[1]
    return f"{said}. That is too near the limit to be sure." if near else said


def _why(report: Report) -> str:
    programs = {"update": report.update, "evaluation": report.evaluation}
    refused = [name for name, program in programs.items() if program and program.refused]
    said = f"The compiler refuses the {' and the '.join(refused)}. " if refused else ""
    if report.evaluation_bytes > report.update_bytes:
        return (
            f"{said}The evaluation takes the most, with {report.sketch.evaluation_rows:,} rows at "
            f"once (train.eval_batch_size); the update takes {_gb(report.update_bytes)} GB."
        )
    footprint = report.estimate
    causes = {
        "parameters, gradients and optimizer state": footprint.parameters
        + footprint.gradients
        + footprint.optimizer,
        "activations": footprint.activations,
        "logits and vocabulary": footprint.vocabulary,
    }
    worst = max(causes, key=lambda cause: causes[cause])
    return f"{said}Most of it: {worst}, {_gb(causes[worst])} GB."


def _suggestions(tried: Sequence[Tried], width: int) -> Iterator[Text]:
    if not tried:
        yield from _wrapped(
            "No change of mesh, accumulation, checkpointing or batch was found that would: take "
            "more or larger devices, a smaller model, or an adapter.",
            width,
            0,
        )
        return
    yield Text()
    yield Text("What fits instead", style="bold")
    for i, one in enumerate(tried, 1):
        yield Text(f"  {i}. {' '.join(one.suggestion.flags)}")
        counted = "compiled" if one.programs else "estimated"
        notes = [f"{_gb(one.peak_bytes)} GB a device {counted}"]
        if step_s := one.suggestion.step_s:
            notes.append(f"{_seconds(step_s)} an update at best")
        if any(flag.startswith("--config.train.batch_size") for flag in one.suggestion.flags):
            notes.append("another batch size: the result changes")
        yield Text(f"     {', '.join(notes)}", style="dim")


def _model(report: Report) -> Iterator[tuple[str, str]]:
    parameters = report.parameters
    parts = ", ".join(f"{k} {_count(n)}" for k, n in parameters.items() if n and k != "total")
    compute = report.sketch.experiment.drawn.compute
    mesh = report.sketch.experiment.mesh
    held = report.estimate.parameters // 4
    split = ", ".join(f"{axis}={n}" for axis, n in mesh.shape.items() if n > 1)
    split += f": a device holds {_count(held)} parameters ({held / parameters['total']:.1%})"
    mode = report.config.model.activation_checkpointing
    yield "parameters", f"{_count(parameters['total'])} ({parts})"
    yield "mesh", split if mesh.size > 1 else "one device holds everything"
    yield "computation", f"{compute.dtype}, attention {compute.attention}, checkpointing {mode}"


def _memory(report: Report) -> Iterator[tuple[str, str]]:
    footprint = report.estimate
    yield "parameters", f"{_gb(footprint.parameters):>7} GB  float32"
    yield "gradients", f"{_gb(footprint.gradients):>7} GB"
    yield "optimizer", f"{_gb(footprint.optimizer):>7} GB  {report.config.optim.name}"
    yield "activations", f"{_gb(footprint.activations):>7} GB"
    if footprint.vocabulary:
        yield "logits", f"{_gb(footprint.vocabulary):>7} GB  with the whole head"
    if footprint.workspace:
        yield "workspace", f"{_gb(footprint.workspace):>7} GB  copies of weights, recomputed layers"
    if footprint.host:
        yield "host", f"{_gb(footprint.host):>7} GB  in the host's memory"
    scoring = f"evaluation {_gb(report.estimated_evaluation_bytes)} GB"
    yield "estimate", f"{_gb(footprint.peak):>7} GB  at the worst moment; {scoring}"
    for name, program in (("update", report.update), ("evaluation", report.evaluation)):
        if program is not None and program.refused:
            yield name, f"{_gb(program.peak_bytes):>7} GB  refused by the compiler"
        elif program is not None:
            both = program.arguments_bytes + program.temporaries_bytes
            said = f"the compiler's peak; arguments + temporaries are {_gb(both)} GB"
            if report.place.devices[0].platform != "tpu":
                said = "the compiler's arguments, temporaries and results"
            if program.host_bytes:
                said += f"; {_gb(program.host_bytes)} GB in the host's memory"
            yield name, f"{_gb(program.peak_bytes):>7} GB  {said}"
    if getattr(report.config.task, "exact_match", "none") != "none":
        yield "left out", "the answers that task.exact_match has the model write"


def _update(report: Report) -> Iterator[tuple[str, str]]:
    data, train = report.data, report.config.train
    micro = train.gradient_accumulation_steps
    again = f" in {micro} micro-batches" if micro > 1 else ""
    full = f", {data['full']:.0%} full" if "full" in data else ""
    yield "batch", f"{data['rows']} rows of {data['width']} tokens{again}{full}"
    yield "operations", f"{flops_per_step(report.sketch):.3g}"
    if report.sketch.experiment.mesh.size > 1:
        yield "sent", _sent(report)
    roof = report.roofline
    if roof is None:
        yield "at best", f"no peak rate is known for a {report.place.kind}"
    else:
        limits = ", ".join(f"{name} {_seconds(s)}" for name, s in roof.times.items())
        if roof.host_s is None:
            limits += "; not the way to the host, whose rate is not published"
        yield "at best", f"{_seconds(roof.step_s)}, limited by {roof.limit} ({limits})"
        yield (
            "MFU",
            f"at most {roof.mfu:.0%}; {min(report.questions.mfu, roof.mfu):.0%} is expected",
        )
    if report.compile_s is not None:
        yield "compilation", f"{_seconds(report.compile_s)} on this machine"


def _sent(report: Report) -> str:
    total = f"{_gb(report.sent_bytes)} GB by a device"
    if report.sent is None:
        return f"about {total}, estimated"
    kinds = ", ".join(
        f"{kind} {_gb(row['bytes'])}"
        for kind, row in sorted(report.sent.items(), key=lambda item: -item[1]["bytes"])
    )
    once = sum(row["outside_loops_bytes"] for row in report.sent.values())
    return f"{total}: {kinds}; {_gb(once)} of it outside of the loop over layers"


def _run(report: Report) -> Iterator[tuple[str, str]]:
    data, steps, optim = report.data, report.sketch.steps, report.config.optim
    if data["examples"] is None:
        yield "data", "not at hand: rows are taken to be full; --rows says how many examples"
    elif "tokens" not in data:
        yield "data", f"{data['examples']:,} examples; no tokenizer here, so rows count as full"
    else:
        cut, examples = data["truncated"], data["examples"]
        share = f"{cut:,} ({cut / examples:.1%})" if cut else "none"
        yield (
            "data",
            (
                f"{examples:,} examples, {data['tokens']:,} tokens; {share} cut to "
                f"data.max_length={report.config.data.max_length}"
            ),
        )
    yield "updates", f"{steps:,}" if steps is not None else "unknown; the rest is for 1000"
    curve = sparkline(report.learning_rates)
    yield "rate", f"{curve}  {optim.lr_scheduler_type}, peak {optim.learning_rate:g}"
    disk = f"{report.checkpoints} checkpoints of {_gb(report.checkpoint_bytes)} GB"
    yield "disk", f"{_gb(report.checkpoints * report.checkpoint_bytes)} GB: {disk}"
    yield "time", _time(report)


def _time(report: Report) -> str:
    step_s, roof = report.step_s, report.roofline
    if step_s is None or roof is None:
        return "a few updates of a run will tell (train.max_steps=20)"
    steps = report.sketch.steps or 1000
    hours = report.run_hours or steps * step_s / 3600
    said = (
        f"{_seconds(3600 * hours)} for {steps:,} updates of {_seconds(step_s)}, "
        f"{_seconds(steps * roof.step_s)} at best; evaluations and saves come on top"
    )
    if report.questions.price is None:
        return said
    bill = hours * report.questions.price * report.place.chips
    return f"{said}; {bill:,.2f} at {report.questions.price:g} per chip and hour"


def sparkline(values: Sequence[float]) -> str:
    """A curve in one line."""
    top = max(values, default=0) or 1
    return "".join(LEVELS[min(int(v / top * len(LEVELS)), len(LEVELS) - 1)] for v in values)


def _fact(label: str, text: str, width: int) -> Iterator[Text]:
    first, *others = textwrap.wrap(text, width - LABEL - 2, break_on_hyphens=False) or [""]
    yield Text.assemble("  ", (f"{label:<{LABEL}}", "cyan"), first)
    for line in others:
        yield Text(" " * (LABEL + 2) + line)


def _wrapped(text: str, width: int, indent: int) -> Iterator[Text]:
    for line in textwrap.wrap(text, width - indent):
        yield Text(" " * indent + line)


def _gb(size: float) -> str:
    """In units of 1e9 bytes, with three digits or so."""
    gb = size / 1e9
    digits = next((n for n, least in enumerate((100, 10, 0.1)) if gb >= least), 3)
    return f"{gb:,.{digits}f}"


def _count(n: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def _seconds(s: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if s >= 2 * size or unit == "s":
            return f"{s / size:.3g} {unit}" if s >= 1 else f"{1000 * s:.3g} ms"
    raise AssertionError
