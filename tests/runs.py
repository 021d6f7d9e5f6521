"""Tiny runs of the verbs, in this process and in others."""

import contextlib
import csv
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
from conftest import WORDS, hurried
from orbax.checkpoint import v1 as ocp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxft import config as configs
from jaxft import evaluate, export, flags, predict, tasks, train
from jaxft.data.features import Split, read_rows
from jaxft.experiment import Experiment, assemble, tokenise_splits
from jaxft.scoring import Scorer
from jaxft.sharding import make_mesh
from jaxft.trained import Trained

BATCH, LENGTH = 8, 16
VERBS = {"train": train, "evaluate": evaluate, "predict": predict, "export": export}
FIXED = {
    "task.name": "classify",
    "data.max_length": LENGTH,
    "train.batch_size": BATCH,
    "train.max_steps": 12,
    "train.eval_steps": 4,
    "train.logging_steps": 1,
    "optim.learning_rate": 1e-3,
    "optim.warmup_steps": 2,
    "checkpoint.keep_last": 2,
    "checkpoint.keep_best": 1,
}


def sentence(draw: random.Random, *words: str) -> str:
    """9 to 13 words, LENGTH tokens at most."""
    text = [*words, *(draw.choice(WORDS) for _ in range(draw.randint(9, 13) - len(words)))]
    draw.shuffle(text)
    return " ".join(text)


def rows(count: int, seed: int, labels: Sequence[str] = ("bad", "good")) -> list[tuple[str, str]]:
    """Texts with a label that is one of their words."""
    draw = random.Random(seed)
    chosen = [labels[i % len(labels)] for i in range(count)]
    draw.shuffle(chosen)
    return [(sentence(draw, label), label) for label in chosen]


def table(path: Path, content: Iterable[Sequence[Any]], header: Sequence[str] = ("text", "label")):
    """Writes a CSV file and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *content])
    return path


def tables(folder: Path) -> dict[str, str]:
    """The config keys of a small data set under `folder`: five batches, the last one not full."""
    sizes = {"train": 37, "validation": 21, "test": 19}
    made = {
        f"data.{name}": str(table(folder / f"{name}.csv", rows(size, seed)))
        for seed, (name, size) in enumerate(sizes.items())
    }
    return made | {"data.cache_dir": str(folder / "tokens")}


def argv(keys: dict[str, Any], workdir: Path | str | None = None) -> list[str]:
    """The command line of `train`; None is left to the recipe."""
    given = FIXED | keys
    words = [f"--config.{key}={value}" for key, value in given.items()]
    return words + ([f"--workdir={workdir}"] if workdir is not None else [])


def run(workdir: Path | str, keys: dict[str, Any]) -> dict[str, Any]:
    """Trains in this process and returns the result."""
    words = argv(keys, workdir)
    with mock.patch.object(sys, "argv", ["train", *words]):
        train.main(words)
    content = (Path(workdir) / "result.json").read_text()
    return json.loads(content)


class Finished(NamedTuple):
    """A run that is over; not to be written into."""

    workdir: Path
    keys: dict[str, Any]
    result: dict[str, Any]
    said: str


@cache
def finished(model: Path) -> Finished:
    """A run over all three splits that learns a little, made once for all tests of a process."""
    folder = model.parent / "finished"
    keys = {"model.pretrained": model, "optim.learning_rate": 1e-2} | tables(folder)
    err = io.StringIO()
    with contextlib.redirect_stderr(err), hurried():
        result = run(folder / "run", keys)
    return Finished(folder / "run", keys, result, err.getvalue())


def refused(capsys: pytest.CaptureFixture, verb: str, words: Sequence[str]) -> str:
    """The message of a command that must end with exit code 2, one message and no traceback."""
    capsys.readouterr()
    with mock.patch.object(sys, "argv", [verb, *words]), pytest.raises(SystemExit) as left:
        flags.run(VERBS[verb].main)
    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert out == ""
    assert err.count("jaxft: error: ") == 1
    assert "Traceback" not in err
    return err.partition("jaxft: error: ")[2].strip()


def assembled(
    keys: dict[str, Any], say: Callable[[str], None] = lambda text: None
) -> tuple[Experiment, dict[str, Split], Any]:
    """The parts of a run without running it."""
    given = flags.train_flags(argv(keys), tasks.options)
    made = configs.load(given.config, given.arg, given.overrides, tasks.options)
    return assemble(made, say)


def start(words: Sequence[str], code: str = "", **environment: str) -> subprocess.Popen:
    """Another process that trains; `code` runs in it before, with `train` at hand."""
    program = f"import sys\nfrom jaxft import flags, train\n{code}\nflags.run(train.main)\n"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )


def arrays(workdir: Path | str, step: int) -> dict[str, np.ndarray]:
    """Weights, moments and count of a checkpoint, as numpy arrays by name."""
    folder = Path(workdir).resolve() / "checkpoints" / str(step)
    found = ocp.checkpointables_metadata(folder).metadata
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        {name: found[name] for name in ("params", "optimizer")},
    )
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load_checkpointables(folder, wanted))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics(workdir: Path | str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what a clock decides."""
    timed = ("time", "train/examples_per_s", "train/tokens_per_s", "train/memory_bytes")
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def events_of(folder: Path | str) -> EventAccumulator:
    """What TensorBoard's own reader finds."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    return events.Reload()


def outputs(
    trained: Trained, path: str, *, batch_size: int, devices: int, packing: str = "batch"
) -> tuple[dict[str, np.ndarray], Any]:
    """What the scorer gives for a file on a mesh of so many devices, and the split."""
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    train = replace(trained.experiment.config.train, eval_batch_size=batch_size)
    data = replace(trained.experiment.config.data, packing=packing)
    config = replace(trained.experiment.config, train=train, data=data)
    experiment = replace(trained.experiment, mesh=mesh, config=config)
    rows = read_rows(experiment.module, path, data, lambda text: None)
    splits = tokenise_splits(experiment, {"data": rows}, lambda text: None)
    host = jax.tree.map(np.asarray, trained.params)
    return Scorer(experiment, splits)(host, "data"), splits["data"]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether all arrays are bitwise equal."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes()
        for name in one
    )
