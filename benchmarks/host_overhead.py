"""What the training loop adds to its updates: `Run.loop` against the same updates back to back.

    python benchmarks/host_overhead.py [--steps=20] [--repeats=3] [--config=configs/bert_cls.py]

Both sides run the same compiled programs on the same batches, in turn. The bare side has its
batches on the device beforehand, reads nothing, and waits once, at the end. `host` is the
`host_ms_per_step` of result.json: what the loop does between two waits for the device. While it
is shorter than an update and the ratio near 1, the device never waits for the host.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxft import config as configs
from jaxft import tasks
from jaxft.data.batches import put
from jaxft.experiment import assemble
from jaxft.step import TrainState
from jaxft.train import Run
from jaxft.workdir import Workdir

Steps = dict[int, Callable]
DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "bert_cls.py"


def bare_ms(run: Run, steps: Steps, state: TrainState) -> float:
    """Milliseconds an update takes when nothing but updates happens; the first one is left out."""
    batches = [put(run.source[k], run.experiment.rows) for k in range(run.schedule.total)]
    began_s = 0.0
    for k, batch in enumerate(batches):
        state, _ = steps[run.plan[k][1]](state, batch, np.int32(k))
        if k == 0:
            jax.block_until_ready(state)
            began_s = time.perf_counter()
    jax.block_until_ready(state)
    return 1e3 * (time.perf_counter() - began_s) / (len(batches) - 1)


def loop_ms(run: Run, steps: Steps, state: TrainState) -> tuple[float, float]:
    """Milliseconds an update takes in `Run.loop`, the first left out, and the host's of them."""
    run.loop(steps, state, 0)
    run.checkpoints.close()
    history = run.history
    return 1e3 * history.steady_s / (history.updates - 1), history.host_ms_per_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default=str(DEFAULT))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    say = partial(print, file=sys.stderr, flush=True)
    overrides = {"train.max_steps": str(given.steps), "train.eval_steps": str(given.steps)}
    config = configs.load(given.config, "", overrides, tasks.options)
    experiment, splits, matched = assemble(config, say)
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            Run(experiment, splits, Workdir(f"{folder}/{i}"), lambda text: None)
            for i in range(given.repeats)
        ]
        say("Compiling ...")
        steps = runs[0].compile()
        rows = []
        # The first updates of a process map its memory: on neither side's account.
        bare_ms(runs[0], steps, experiment.initial_state(runs[0].optimizer, matched))
        for run in runs:
            run.workdir.prepare()
            run.scorer, run.depths = runs[0].scorer, runs[0].depths  # compiled once
            bare = bare_ms(run, steps, experiment.initial_state(run.optimizer, matched))
            loop, host = loop_ms(run, steps, experiment.initial_state(run.optimizer, matched))
            rows.append((bare, loop, loop / bare, host, host / loop))
    report(rows)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{given.steps} updates of {given.config}, {device}, {os.cpu_count()} CPU cores")


def report(rows: Sequence[tuple[float, ...]]) -> None:
    """A Markdown table with a line per repeat and their means."""
    print("| repeat | bare ms/update | loop ms/update | ratio | host ms/update | host share |")
    print("|---|---|---|---|---|---|")
    means = tuple(map(statistics.mean, zip(*rows, strict=True)))
    for name, row in [*enumerate(rows), ("mean", means)]:
        bare, loop, ratio, host, share = row
        print(f"| {name} | {bare:.1f} | {loop:.1f} | {ratio:.3f} | {host:.2f} | {share:.2%} |")


if __name__ == "__main__":
    main()
