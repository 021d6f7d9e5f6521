"""jaxft against Hugging Face's Trainer: the same fine-tuning on CPU, in turn, with equal threads.

    python benchmarks/vs_hf_trainer.py --output=docs/vs_hf_trainer.md
    python benchmarks/vs_hf_trainer.py --seeds=1 --max-steps=4        to see that it works

Both start from one checkpoint, read the same files, and train with AdamW, the same schedule, batch
size, epochs, decay, clipping and dropout in float32. Each run is a fresh process, nothing cached
(tokens, compiled programs); one update of each beforehand, not counted, warms the disk.
HF runs as it comes (random batches, padded to their longest row) and with its length grouping;
`python -m jaxft.train` with its own defaults: the texts of an update share rows.

- examples/s: from the first batch to the last update, compilation inside, evaluation outside.
- steady: without the first update, and for jaxft without those beside a save or evaluation.
- The score is that of the last weights. jaxft evaluates twice at the end, saves once, and writes
  TensorBoard events and a report; HF evaluates once and writes nothing: both are in the whole time.
- peak memory is the process's ru_maxrss, mapped files included.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OURS, RANDOM, GROUPED = "jaxft", "HF Trainer", "HF Trainer, length grouping"
SAMPLING = {RANDOM: "random", GROUPED: "group_by_length"}
SIDES = (RANDOM, GROUPED, OURS)
SHARED = {"warmup": 0.1, "weight_decay": 0.01, "max_grad_norm": 1.0, "max_length": 256}

MEASURES = {
    "examples_per_s": ("examples/s", "{:.1f}"),
    "steady_examples_per_s": ("steady examples/s", "{:.1f}"),
    "tokens_per_s": ("real tokens/s", "{:,.0f}"),
    "wall_s": ("whole process, s", "{:.0f}"),
    "first_update_s": ("start to first update, s", "{:.1f}"),
    "compile_s": ("compilation, s", "{:.1f}"),
    "peak_memory_mb": ("peak memory, MB", "{:,.0f}"),
    "accuracy_percent": ("dev accuracy, %", "{:.2f}"),
}
Run = dict[str, Any]


def jaxft_command(given: argparse.Namespace, seed: int, workdir: str) -> list[str]:
    keys = {
        "model.pretrained": given.folder,
        "model.dtype": "float32",
        "data.train": given.train,
        "data.validation": given.validation,
        "data.test": "none",
        "data.header": "false",
        "data.text_column": 0,
        "data.label_column": 1,
        "data.delimiter": "\\t",
        "data.quoting": "false",
        "data.max_length": SHARED["max_length"],
        "data.cache_dir": f"{workdir}/tokens",
        "optim.learning_rate": given.learning_rate,
        "optim.lr_scheduler_type": given.schedule,
        "optim.warmup_steps": SHARED["warmup"],
        "optim.weight_decay": SHARED["weight_decay"],
        "optim.max_grad_norm": SHARED["max_grad_norm"],
        "train.batch_size": given.batch_size,
        "train.eval_steps": 10**9,  # beyond the end, where it evaluates and saves anyway
        "checkpoint.keep_last": 1,
        "checkpoint.keep_best": 0,
        "seed": seed,
    }
    length = "max_steps" if given.max_steps else "num_train_epochs"
    keys[f"train.{length}"] = given.max_steps or given.epochs
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    config = f"--config={ROOT / 'configs' / 'bert_cls.py'}"
    return [sys.executable, "-m", "jaxft.train", config, f"--workdir={workdir}", *flags]


def hf_command(given: argparse.Namespace, seed: int, workdir: str, sampling: str) -> list[str]:
    flags = {
        "model": given.folder,
        "train": given.train,
        "validation": given.validation,
        "workdir": workdir,
        "sampling": sampling,
        "schedule": given.schedule,
        "epochs": given.epochs,
        "learning_rate": given.learning_rate,
        "batch_size": given.batch_size,
        "max_steps": given.max_steps or -1,
        "seed": seed,
        **SHARED,
    }
    script = str(Path(__file__).with_name("hf_trainer.py"))
    return [sys.executable, script, *(f"--{name}={value}" for name, value in flags.items())]


def run(given: argparse.Namespace, side: str, seed: int) -> Run:
    """One fresh process, timed from outside. Raises RuntimeError, with its last lines."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = f"{folder}/run"
        os.mkdir(workdir)
        if side == OURS:
            command = jaxft_command(given, seed, workdir)
        else:
            command = hf_command(given, seed, workdir, SAMPLING[side])
        began_s = time.perf_counter()
        first_update_s, lines = None, []
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(given.threads, folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:
            lines.append(line)
            if first_update_s is None and line.startswith("step 1/"):
                first_update_s = time.perf_counter() - began_s
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{''.join(lines[-20:])}")
        result = json.loads(Path(workdir, "result.json").read_text())
    return {
        "side": side,
        "seed": seed,
        "updates": result["step"],
        "wall_s": wall_s,
        "first_update_s": first_update_s,
        "peak_memory_mb": usage.ru_maxrss * 1024 / 1e6,
        "accuracy_percent": 100 * result["validation"]["accuracy"],
        **{name: result[name] for name in MEASURES if name in result},
        "versions": result["versions"],
    }


def environment(threads: int, folder: str) -> dict[str, str]:
    """The user's, without settings that would favour a side."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "OMP_"))}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": f"{folder}/datasets",
    }


def spread(values: list[float | None], form: str) -> str:
    """Mean (lowest to highest)."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, low, high = (form.format(f(known)) for f in (statistics.mean, min, max))
    return mean if len(known) == 1 else f"{mean} ({low} to {high})"


def compared(runs: list[Run], measure: str, peer: str) -> str:
    """jaxft / peer, seed by seed; for a score the difference."""
    values = {(run["side"], run["seed"]): run[measure] for run in runs}
    seeds = {run["seed"] for run in runs}
    pairs = [(values.get((OURS, seed)), values.get((peer, seed))) for seed in sorted(seeds)]
    whole = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs]
    if measure == "accuracy_percent":
        return spread([ours - theirs for ours, theirs in whole], "{:+.2f}")
    return spread([ours / theirs for ours, theirs in whole], "{:.2f}")


def table(given: argparse.Namespace, runs: list[Run]) -> str:
    """All of it as Markdown."""
    versions = {k: v for run in runs for k, v in run["versions"].items()}
    length = f"{given.max_steps} updates" if given.max_steps else f"{given.epochs:g} epochs"
    lines = [
        f"{given.data}, {given.model}: batch {given.batch_size}, {length}, learning rate "
        f"{given.learning_rate:g} ({given.schedule}, warmup {SHARED['warmup']:g}), "
        f"{len({run['seed'] for run in runs})} seed(s).",
        f"{hardware()}, {given.threads} thread(s) a side. "
        + ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
        + ".",
        f"Mean (lowest to highest); `python benchmarks/vs_hf_trainer.py {' '.join(sys.argv[1:])}`",
        "",
        f"| | {' | '.join(SIDES)} | jaxft / HF | jaxft / HF grouped |",
        "|---" * (len(SIDES) + 3) + "|",
    ]
    for measure, (words, form) in MEASURES.items():
        cells = [spread([r[measure] for r in runs if r["side"] == side], form) for side in SIDES]
        cells += [compared(runs, measure, peer) for peer in (RANDOM, GROUPED)]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def hardware() -> str:
    info = Path("/proc/cpuinfo")
    found = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    name = found[0].partition(":")[2].strip() if found else platform.processor()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{name}, {os.cpu_count()} cores, {memory_bytes / 1e9:.0f} GB"


def locate(model: str) -> str:
    """The checkpoint's folder as jaxft finds it; in a process, so that this one stays small."""
    script = "import sys; from jaxft.hub import locate; print(locate(sys.argv[1])[0])"
    command = [sys.executable, "-c", script, model]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", default="sst2", help="folder under ../shared/data with train.tsv and dev.tsv")
    add("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    add("--batch-size", type=int, default=32)
    add("--epochs", type=float, default=2.0)
    add("--learning-rate", type=float, default=5e-5)
    add("--schedule", default="linear", choices=["linear", "cosine"])
    add("--seeds", type=int, default=3, help="one repeat each")
    add("--max-steps", type=int, help="updates instead of epochs, for a quick try")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--output", help="F.md for the table; the runs go to F.json")
    given = parser.parse_args()
    given.train, given.validation = (
        str(ROOT.parent / "shared" / "data" / given.data / f"{name}.tsv")
        for name in ("train", "dev")
    )
    given.folder = locate(given.model)
    return given


def main() -> None:
    given = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])  # children inherit it
    for side in SIDES:
        run(argparse.Namespace(**{**vars(given), "max_steps": 1}), side, seed=0)
    runs: list[Run] = []
    for seed in range(given.seeds):
        for side in SIDES:
            runs.append(run(given, side, seed))
            shown = [f"{w} {runs[-1][m] or 0:.2f}" for m, (w, _) in MEASURES.items()]
            print(f"seed {seed}, {side}: {', '.join(shown)}", file=sys.stderr, flush=True)
        if given.output:
            path = Path(given.output)
            path.write_text(table(given, runs))
            path.with_suffix(".json").write_text(json.dumps(runs, indent=1) + "\n")
    print(table(given, runs))


if __name__ == "__main__":
    main()
