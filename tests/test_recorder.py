"""What TensorBoard shows of a run, each value against what it is said to be."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
import runs

from jaxft import recorder, report

pytestmark = pytest.mark.usefixtures("hurry")
STEPS, RATE, PEAK, MEMORY = 4, 1e-2, 1e12, 123_456_789
DEPTHS = 4
"""Of the tiny BERT: embeddings, two layers with the pooler beside the upper one, the head."""
KEYS = {
    "optim.learning_rate": RATE,
    "optim.layer_decay": 0.5,
    "optim.lr_scheduler_type": "linear",
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0,
    "train.max_steps": STEPS,
    "train.eval_steps": 2,
    "checkpoint.save_steps": 1,
    "checkpoint.keep_last": STEPS,
}
SUMS = 1e-4
"""Relative difference of float32 sums in another order, of differences of weights."""


class Shown(NamedTuple):
    """A run, what TensorBoard's own reader finds of it, and its confusion pictures as drawn."""

    workdir: Path
    said: str
    scalars: dict[str, dict[int, float]]
    images: dict[str, dict[int, bytes]]
    texts: list[str]
    drawn: list[tuple[np.ndarray, tuple[str, ...], bytes]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory, tiny_bert_folder, hurry) -> Shown:
    """A run that saves every update, on devices whose peak and memory are known."""
    folder = tmp_path_factory.mktemp("shown")
    keys = {"model.pretrained": tiny_bert_folder} | runs.tables(folder) | KEYS
    draw, drawn = report.confusion_png, []

    def draw_and_note(matrix: Any, labels: Any) -> bytes:
        drawn.append((np.array(matrix), tuple(labels), draw(matrix, labels)))
        return drawn[-1][2]

    with (
        mock.patch.object(recorder, "peak_flops", return_value=PEAK),
        mock.patch.object(recorder, "memory_bytes", return_value=MEMORY),
        mock.patch.object(report, "confusion_png", draw_and_note),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        runs.run(folder / "run", keys)
    events = runs.events_of(folder / "run")
    found = events.Tags()
    scalars = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in found["scalars"]}
    images = {
        tag: {e.step: e.encoded_image_string for e in events.Images(tag)} for tag in found["images"]
    }
    return Shown(folder / "run", err.getvalue(), scalars, images, found["tensors"], drawn)


def test_every_value_of_a_run_is_there_and_as_in_the_lines(shown):
    names = ["loss", "learning_rate", "grad_norm", "changed_weights", "examples_per_s"]
    names += ["tokens_per_s", "mfu", "memory_bytes"]
    for name in ("learning_rate", "update_ratio"):
        names += [f"{name}/depth_{depth:02d}" for depth in range(DEPTHS)]
    expected = {f"train/{name}": [1, 2, 3, 4] for name in names}
    scores = ["loss", "accuracy", "macro_f1", "micro_f1", "matthews"]
    expected |= {f"validation/{name}": [2, 4] for name in scores} | {"gap/loss": [2, 4]}
    assert {tag: list(values) for tag, values in shown.scalars.items()} == expected
    lines: dict[str, dict[int, float]] = {tag: {} for tag in expected}
    for row in report.read_metrics(shown.workdir):
        for tag in row.keys() - {"step", "time"}:
            lines[tag][row["step"]] = row[tag]
    for tag, values in lines.items():
        assert shown.scalars[tag] == pytest.approx(values, rel=1e-6), tag
    assert "config" in shown.texts


def test_learning_rates_by_depth_are_the_schedule_times_the_decay(shown):
    for depth in range(DEPTHS):
        factor = 0.5 ** (DEPTHS - 1 - depth)
        expected = {s: RATE * factor * (1 - (s - 1) / STEPS) for s in range(1, STEPS + 1)}
        found = shown.scalars[f"train/learning_rate/depth_{depth:02d}"]
        assert found == pytest.approx(expected, rel=1e-5)
    assert shown.scalars["train/learning_rate"] == found, "the highest, which is the head's"


def depth_sums(weights: dict[str, np.ndarray]) -> np.ndarray:
    """The sum of a model's arrays at each depth."""
    sums = np.zeros(DEPTHS)
    for name, array in weights.items():
        if "layers" in name:
            sums[1:3] += array.reshape(2, -1).sum(1)
        else:
            sums[0 if "embeddings" in name else 3 if "heads" in name else 2] += array.sum()
    return sums


def test_update_ratios_by_depth_are_those_of_the_weights_that_were_saved(shown):
    before, after = (
        {
            name: array.astype(np.float64)
            for name, array in runs.arrays(shown.workdir, step).items()
            if name.startswith("['params']")
        }
        for step in (2, 3)
    )
    moved = depth_sums({name: (after[name] - x) ** 2 for name, x in before.items()})
    size = depth_sums({name: x**2 for name, x in before.items()})
    found = [shown.scalars[f"train/update_ratio/depth_{d:02d}"][3] for d in range(DEPTHS)]
    np.testing.assert_allclose(found, np.sqrt(moved / size), rtol=SUMS)
    changed = sum(int((after[name] != x).sum()) for name, x in before.items())
    share = changed / sum(x.size for x in before.values())
    assert 0 < share < 1, "words that no row has keep theirs"
    assert shown.scalars["train/changed_weights"][3] == pytest.approx(share, rel=SUMS)


def test_utilisation_and_memory_are_those_of_the_devices(shown):
    said = re.search(r"Compiled the update for (\d+) rows of (\d+) tokens", shown.said)
    rows, width = map(int, said.groups())
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    flops = (6 * matrices + 2 * 12 * 32 * width) * rows * width
    available = PEAK * jax.device_count()
    examples = [
        flops / (shown.scalars["train/mfu"][step] * available) * per_s
        for step, per_s in shown.scalars["train/examples_per_s"].items()
    ]
    assert sorted(examples) == pytest.approx([5, 8, 8, 8], rel=1e-5), "37 rows in batches of 8"
    assert set(shown.scalars["train/memory_bytes"].values()) == {np.float32(MEMORY)}


def test_the_gap_is_how_much_worse_validation_is_than_training(shown):
    for step in (2, 4):
        gap = shown.scalars["validation/loss"][step] - shown.scalars["train/loss"][step]
        assert shown.scalars["gap/loss"][step] == pytest.approx(gap, abs=1e-6)


def test_each_evaluation_draws_its_confusion_matrix(shown):
    pictures = shown.images["validation/confusion"]
    assert list(pictures) == [2, 4]
    for (step, picture), (matrix, labels, drawn) in zip(pictures.items(), shown.drawn, strict=True):
        assert picture == drawn
        assert labels == ("bad", "good")
        assert matrix.sum(1).tolist() == [11, 10], "rows are true"
        accuracy = matrix.trace() / matrix.sum()
        assert shown.scalars["validation/accuracy"][step] == pytest.approx(accuracy)
