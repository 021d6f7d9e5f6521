"""Processes that train, timed from outside, and tables of what they measured."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
DIFFERENCES = ("accuracy_percent", "held_out_loss")
"""Measures that are compared by their difference, the others by their ratio."""
Run = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Sides that do the same work, and which are set against which."""

    what: str
    """The work, in words."""
    sides: Mapping[str, Callable[[int, str, int | None], list[str]]]
    """By name, the command for a seed, a folder to write to, and a number of updates (None: as
    many as the work has).
    """
    pairs: Sequence[tuple[str, str]]
    """jaxft's side, the peer's."""
    measures: Mapping[str, tuple[str, str]]
    """By name, its words and its format."""

    def only(self, ending: str) -> "Comparison":
        """Those sides whose names end so, and what pairs are left of them."""
        sides = {name: side for name, side in self.sides.items() if name.endswith(ending)}
        pairs = [pair for pair in self.pairs if sides.keys() >= set(pair)]
        return replace(self, sides=sides, pairs=pairs)


def run(compared: Comparison, side: str, seed: int, threads: int, max_steps: int | None) -> Run:
    """One fresh process. Raises RuntimeError, with its last lines."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = f"{folder}/run"
        os.mkdir(workdir)
        command = compared.sides[side](seed, workdir, max_steps)
        began_s = time.perf_counter()
        first_update_s, lines = None, []
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(threads, folder),
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
    found = {
        **result,
        "updates": result["step"],
        "wall_s": wall_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "first_update_s": first_update_s,
        "peak_memory_mb": usage.ru_maxrss * 1024 / 1e6,
        "accuracy_percent": 100 * result["validation"].get("accuracy", 0),
        "held_out_loss": result["validation"]["loss"],
    }
    named = {name: found[name] for name in (*compared.measures, "versions") if name in found}
    return {"side": side, "seed": seed, **named}


def environment(threads: int, folder: str) -> dict[str, str]:
    """The user's, without settings that would favour a side."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "OMP_"))}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": f"{folder}/datasets",
    }


def jaxft_command(recipe: str, workdir: str, keys: Mapping[str, Any]) -> list[str]:
    """`python -m jaxft.train`, with its own defaults but for the keys."""
    whole = {
        **keys,
        "model.dtype": "float32",
        "data.cache_dir": f"{workdir}/tokens",
        "train.eval_steps": 10**9,  # beyond the end, where it evaluates and saves anyway
        "checkpoint.keep_last": 1,
        "checkpoint.keep_best": 0,
    }
    flags = [f"--config.{key}={value}" for key, value in whole.items()]
    config = f"--config={ROOT / 'configs' / recipe}"
    fresh = f"--compilation_cache_dir={workdir}/programs"
    return [sys.executable, "-m", "jaxft.train", config, f"--workdir={workdir}", fresh, *flags]


def hf_command(task: str, workdir: str, flags: Mapping[str, Any]) -> list[str]:
    """The peer's process."""
    words = [f"--{name}={value}" for name, value in flags.items()]
    script = str(Path(__file__).with_name("hf_trainer.py"))
    return [sys.executable, script, f"--task={task}", f"--workdir={workdir}", *words]


def table(compared: Comparison, runs: Sequence[Run], threads: int) -> str:
    """All of it as Markdown."""
    versions = {k: v for run in runs for k, v in run["versions"].items()}
    against = [f"{ours} / {theirs}" for ours, theirs in compared.pairs]
    lines = [
        f"{compared.what}, {len({run['seed'] for run in runs})} seed(s).",
        f"{hardware()}, {threads} thread(s) a side. "
        + ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
        + ".",
        f"Mean (lowest to highest); `python benchmarks/vs_hf_trainer.py {' '.join(sys.argv[1:])}`",
        "",
        f"| | {' | '.join([*compared.sides, *against])} |",
        "|---" * (len(compared.sides) + len(against) + 1) + "|",
    ]
    for measure, (words, form) in compared.measures.items():
        cells = [
            spread([run[measure] for run in runs if run["side"] == side], form)
            for side in compared.sides
        ]
        cells += [ratio(runs, measure, ours, theirs) for ours, theirs in compared.pairs]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float | None], form: str) -> str:
    """Mean (lowest to highest)."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, low, high = (form.format(f(known)) for f in (statistics.mean, min, max))
    return mean if len(known) == 1 else f"{mean} ({low} to {high})"


def ratio(runs: Sequence[Run], measure: str, ours: str, theirs: str) -> str:
    """Ours / theirs, seed by seed; for a score the difference."""
    values = {(run["side"], run["seed"]): run[measure] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    pairs = [(values.get((ours, seed)), values.get((theirs, seed))) for seed in seeds]
    whole = [(a, b) for a, b in pairs if a is not None and b]
    if measure in DIFFERENCES:
        return spread([a - b for a, b in whole], "{:+.2f}")
    return spread([a / b for a, b in whole], "{:.2f}")


def hardware() -> str:
    info = Path("/proc/cpuinfo")
    found = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    name = found[0].partition(":")[2].strip() if found else platform.processor()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{name}, {os.cpu_count()} cores, {memory_bytes / 1e9:.0f} GB"
