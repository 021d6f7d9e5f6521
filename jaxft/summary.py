"""What a run tells people: the data before it, scores on the way, the result and the report at its
end.
"""

import io
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from jaxft import __version__, files, html, metrics, report
from jaxft.config import to_dict
from jaxft.data import inspection, previews, rendering
from jaxft.data.advice import advise
from jaxft.data.batches import BatchSource
from jaxft.data.features import Split
from jaxft.data.plan import Plan
from jaxft.errors import NonFiniteAnswers
from jaxft.experiment import Experiment
from jaxft.hardware import memory_bytes
from jaxft.history import History
from jaxft.nn.weights import unflatten
from jaxft.recorder import NonFiniteLoss, Recorder
from jaxft.report import RunLog
from jaxft.scoring import Outputs
from jaxft.sharding import bytes_per_device
from jaxft.stderr import Say
from jaxft.step import TrainState
from jaxft.workdir import Workdir

WORST = 30
WORTH_SAYING = 1.1
"""So many times as many tokens computed are worth another setting."""
TAMER = (
    "Try, in a new --workdir: a lower optim.learning_rate or more optim.warmup_steps; "
    "optim.max_grad_norm=1.0; model.dtype=float32"
)
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "grain")


def inspect(
    experiment: Experiment, splits: Mapping[str, Split], epochs: float, plan: Plan
) -> dict[str, Any]:
    """Shows the data and advice on the settings; returns the report."""
    config, task = experiment.config, experiment.task
    texts = experiment.module.TEXTS

    def look(split: Split) -> inspection.Split:
        columns = [
            split.rows.dataset[name][:] for name in texts if name in split.rows.dataset.column_names
        ]
        joined = [" | ".join(parts) for parts in zip(*columns, strict=True)]
        targets = split.targets
        labels = None if targets is None else [task.readable(target) for target in targets]
        return inspection.Split(joined, labels, split.features["full_length"][:])

    found = inspection.inspect(
        {name: look(split) for name, split in splits.items()}, max_length=config.data.max_length
    )
    sentences = advise(
        found,
        learning_rate=config.optim.learning_rate,
        num_train_epochs=epochs,
        warmup_steps=config.optim.warmup_steps,
        batch_size=config.train.batch_size,
        parameters=sum(weight.size for weight in experiment.drawn.weights.values()),
        optimizer=config.optim.name,
        pretrained=config.model.pretrained is not None,
    )
    sentences += padding_advice(plan)
    if jax.process_index() == 0:
        rendering.render(found, sentences)
        previews.show(task.preview(splits["train"].features, experiment.tokenizer))
    return {**found, "advice": sentences}


def held(experiment: Experiment, state: TrainState) -> str:
    """What a device holds of an abstract state, and of the gradients."""
    places = jax.tree.map(lambda x: x.sharding, state)
    split = unflatten(experiment.places.gradients)
    params = bytes_per_device(state.params, places.params) / 1e6
    grads = bytes_per_device(state.params, split) / 1e6
    moments = bytes_per_device(state.opt_state, places.opt_state) / 1e6
    axes = ", ".join(f"{axis}={size}" for axis, size in experiment.mesh.shape.items())
    offloaded = experiment.config.optim.offload
    where, most = (", in host memory", "at most ") if offloaded else ("", "")
    return (
        f"Mesh {axes}; per device {params:,.1f} MB of parameters{where}, {most}{grads:,.1f} MB of "
        f"gradients, {moments:,.1f} MB of optimizer state{where}"
    )


def padding_advice(plan: Plan) -> list[str]:
    """What to change where shared rows pad more than rows of one example would."""
    if plan.packing != "batch":
        return []
    alone = _other_packing(plan).full
    if alone < WORTH_SAYING * plan.full:
        return []
    unit = plan.row_unit
    why = f": rows come in multiples of devices x micro-batches = {unit}" if unit > 1 else ""
    return [
        f"{plan.full:.0%} of the tokens in a batch are real, with data.packing=none "
        f"{alone:.0%}{why}. That, or a larger train.batch_size, pads less."
    ]


def _other_packing(plan: Plan) -> Plan:
    """An epoch without packing, or, of a run without, with it."""
    return replace(plan, packing="batch" if plan.packing == "none" else "none", epochs=1)


def padding(plan: Plan) -> str:
    """What share of the computed tokens is padding, and what it would be without packing (or, in a
    run without, with it).
    """
    other = _other_packing(plan)

    def share(plan: Plan) -> str:
        widths = ", ".join(map(str, plan.widths))
        return f"{1 - plan.full:.1%} (rows of {widths})"

    return (
        f"Padding: {share(plan)} of the tokens computed; with data.packing={other.packing} it "
        f"would be {share(other)}"
    )


def log_preview(log: RunLog, experiment: Experiment, train: Split) -> None:
    """The examples that were shown at the start, for TensorBoard."""
    shown = experiment.task.preview(train.features, experiment.tokenizer)
    for number, example in enumerate(shown, 1):
        log.text(0, f"example/{number}", previews.markdown(example))


def log_scores(
    recorder: Recorder,
    task: Any,
    step: int,
    scores: Mapping[str, float],
    outputs: Outputs,
    targets: Any,
) -> None:
    """Validation scores to the log and above the progress bar, with the gap to training."""
    row = {f"validation/{name}": value for name, value in scores.items()}
    if recorder.history.train_loss is not None:
        row["gap/loss"] = scores["loss"] - recorder.history.train_loss
    recorder.log.scalars(step, row)
    recorder.bar.say(f"step {step}: validation {_shown(scores)}")
    if (warning := task.warning(outputs, targets)) is not None:
        recorder.bar.say(f"WARNING: {warning}")
    if recorder.log.shows_images and (matrix := task.confusion(outputs, targets)) is not None:
        recorder.log.image(step, "validation/confusion", report.confusion_png(matrix, task.labels))


def log_further(recorder: Recorder, name: str, step: int, scores: Mapping[str, float]) -> None:
    """Scores of a named evaluation set to the log and above the progress bar."""
    recorder.log.scalars(step, {f"{name}/{key}": value for key, value in scores.items()})
    recorder.bar.say(f"step {step}: {name} {_shown(scores)}")


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def result(
    experiment: Experiment,
    history: History,
    end: int,
    best: int,
    found: Mapping[str, tuple[dict[str, float], Outputs]],
) -> dict[str, Any]:
    """What `result.json` holds. Rates count from the first batch to the last update, compilation
    inside, evaluation outside.
    """
    busy_s = history.train_s + history.compile_s

    def steady(count: int) -> float | None:
        return count / history.steady_s if history.steady_s else None

    return {
        "step": end,
        "best_step": best,
        **{name: scores for name, (scores, _) in found.items()},
        "before": history.before,
        "wall_s": history.wall_s,
        "compile_s": history.compile_s,
        "train_s": history.train_s,
        "examples_per_s": history.examples / busy_s,
        "tokens_per_s": history.tokens / busy_s,
        "steady_examples_per_s": steady(history.steady_examples),
        "steady_tokens_per_s": steady(history.steady_tokens),
        "host_ms_per_step": history.host_ms_per_step,
        "peak_memory_bytes": memory_bytes(peak=True),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "versions": {
            "jaxft": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "command": shlex.join(["python", "-m", "jaxft.train", *sys.argv[1:]]),
    }


def write(
    workdir: Workdir,
    experiment: Experiment,
    splits: Mapping[str, Split],
    result: dict[str, Any],
    found: Mapping[str, tuple[dict[str, float], Outputs]],
    inspected: Mapping[str, Any],
) -> None:
    """`report.html`, then `result.json`, whose presence means that the run is finished."""
    task = experiment.task
    result["baseline"] = {name: inspected["splits"][name]["baseline"] for name in found}
    name = "test" if "test" in found else "validation"
    split, outputs = splits[name], found[name][1]
    texts = [t for t in experiment.module.TEXTS if t in split.rows.dataset.column_names]
    mistakes = [
        {**mistake, **{text: split.row(mistake["row"])[text] for text in texts}}
        for mistake in task.worst(outputs, split.targets)[:WORST]
    ]
    html.write_report(
        workdir.file("report.html"),
        config=to_dict(experiment.config),
        result=result,
        metrics=report.read_metrics(workdir.path),
        metric=experiment.metric,
        confusion=task.confusion(outputs, split.targets),
        labels=task.labels,
        mistakes=mistakes,
        inspection=inspected,
    )
    workdir.write_json("result.json", result)


def announce(result: Mapping[str, Any], workdir: Workdir, say: Say) -> None:
    """What was reached, where it is, what to type next; the result itself on stdout."""
    say(f"\nDone: {result['step']} steps, best at step {result['best_step']}.")
    for name in ("validation", "test"):
        if name in result:
            say(f"  {name:<11} {_shown(result[name])}")
            if base := result["baseline"][name]:
                say(f"{'':14}(always {metrics.constant_answer(base)}: {_shown(base)})")
    for name, before in result["before"].items():
        say(f"  {name:<11} {_shown(result[name])}\n{'':14}(before training: {_shown(before)})")
    say(
        f"  {result['examples_per_s']:.1f} examples/s with compilation; the report is "
        f"{workdir.file('report.html')}"
    )
    say("Next:")
    say(f"  tensorboard --logdir {workdir}")
    say(f"  python -m jaxft.predict --workdir={workdir} --input=FILE")
    say(f"  python -m jaxft.export --workdir={workdir} --output=FOLDER")
    print(files.dumps(result))


def dump_batch(workdir: Workdir, source: BatchSource, split: Split, error: NonFiniteLoss) -> str:
    """Writes the batch of a refused update, arrays and rows, and returns its folder."""
    folder = workdir.file(f"bad_batch/step-{error.step}")
    batch = source[error.step - 1]
    named = jax.tree_util.tree_leaves_with_path({"targets": batch.targets})
    targets = {"_".join(str(part.key) for part in path): leaf for path, leaf in named}
    arrays = {**batch.tokens._asdict(), **targets, "weights_BM": batch.weights_BM}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, rows_BM=batch.rows_BM)
    files.write_file(files.join(folder, "batch.npz"), buffer.getvalue())
    lines = [
        json.dumps(split.row(int(row)), ensure_ascii=False)
        for row in batch.rows_BM.ravel()
        if row >= 0
    ]
    files.write_file(files.join(folder, "rows.jsonl"), ("\n".join(lines) + "\n").encode())
    return folder


def advise_non_finite(error: NonFiniteLoss, folder: str) -> str:
    """What to do about a loss that is not finite."""
    return (
        f"Update {error.step} was refused: loss {error.loss}, gradient norm {error.grad_norm}. The "
        f"weights before it are saved; the batch is in {folder}.\n{TAMER}; and look at the rows of "
        "that batch."
    )


def advise_non_finite_answers(error: NonFiniteAnswers, step: int, name: str) -> str:
    """What to do about weights that answer without numbers."""
    return f"Scoring {name} after update {step}: {error}\n{TAMER}."
