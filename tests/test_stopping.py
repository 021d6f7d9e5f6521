"""A run that ends early: by a loss that is not finite, or a score that no longer improves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs

from jaxft.train import Run

pytestmark = pytest.mark.usefixtures("hurry")


@pytest.fixture
def keys(tiny_bert_folder) -> dict[str, Any]:
    return runs.finished(tiny_bert_folder).keys


def rows_with(name: str, workdir: Path) -> dict[int, float]:
    return {row["step"]: row[name] for row in runs.metrics(workdir) if name in row}


STEEP = {"optim.learning_rate": 1e38, "optim.max_grad_norm": "none", "optim.warmup_steps": 0}
"""What the first update makes of the weights is finite, what they answer is not."""


@pytest.fixture
def wild(keys, tmp_path, capsys) -> tuple[Path, str]:
    """A run whose second update is not finite, and what it said."""
    steep = keys | STEEP | {"train.eval_steps": 12}
    return tmp_path, runs.refused(capsys, "train", runs.argv(steep, tmp_path))


def test_pitfall_11_a_loss_that_is_not_finite_stops_before_the_update_and_dumps_the_batch(wild):
    workdir, message = wild
    assert message.startswith(
        "Update 2 was refused: loss nan, gradient norm nan. The weights before it are saved"
    )
    assert "a lower optim.learning_rate" in message
    assert not (workdir / "result.json").exists()
    kept = runs.arrays(workdir, 1)
    assert all(np.isfinite(array).all() for name, array in kept.items() if "params" in name)
    assert int(kept["['optimizer']['step']"]) == 1
    assert list(rows_with("train/loss", workdir)) == [1]

    dumped = np.load(workdir / "bad_batch" / "step-2" / "batch.npz")
    assert (dumped["rows_BM"] >= 0).sum() == runs.BATCH
    assert dumped["segments_BL"].max() > 1, "rows are shared"
    lines = (workdir / "bad_batch" / "step-2" / "rows.jsonl").read_text().splitlines()
    known = [text for text, _ in runs.rows(37, seed=0)]
    assert [json.loads(line)["text"] for line in lines] == [
        known[row] for row in dumped["rows_BM"].ravel() if row >= 0
    ]


def test_pitfall_11_weights_that_answer_no_numbers_are_never_scored_or_kept(keys, tmp_path, capsys):
    """The class that NaN comes to may be right more often than any other."""
    steep = keys | STEEP | {"train.eval_steps": 1}
    message = runs.refused(capsys, "train", runs.argv(steep, tmp_path))
    assert message.startswith(
        f"Scoring validation after update 1: {keys['data.validation']}: the model answers 21 of 21 "
        "rows with what is no finite number"
    )
    assert "a lower optim.learning_rate" in message
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    assert not (tmp_path / "result.json").exists()
    assert not rows_with("validation/accuracy", tmp_path)


@pytest.fixture(scope="module")
def worsening(tmp_path_factory, tiny_bert_folder) -> tuple[Path, dict[str, Any]]:
    """A run that learns the opposite of what validation asks, and stops early."""
    folder = tmp_path_factory.mktemp("worsening")
    keys = {"model.pretrained": tiny_bert_folder} | runs.tables(folder)
    runs.table(
        folder / "train.csv", [(text, "good") for text, _ in runs.rows(30, 0)] + runs.rows(2, 1)
    )
    runs.table(
        folder / "validation.csv",
        [(text, "bad") for text, _ in runs.rows(20, 2)] + [("fine", "good")],
    )
    keys |= {
        "train.max_steps": 40,
        "train.eval_steps": 2,
        "optim.learning_rate": 1e-2,
        "data.test": "none",
    }
    keys |= {
        "train.early_stopping_patience": 3,
        "checkpoint.metric_for_best_model": "loss",
        "checkpoint.keep_last": 1,
    }
    runs.run(folder / "run", keys)
    return folder / "run", keys


def test_early_stopping_goes_back_to_the_best_for_the_final_scores(worsening):
    workdir, _ = worsening
    result = json.loads((workdir / "result.json").read_text())
    losses = rows_with("validation/loss", workdir)
    best = min(losses, key=losses.__getitem__)
    assert (result["step"], result["best_step"]) == (best + 6, best)
    assert result["step"] < 40
    assert result["validation"]["loss"] == losses[best]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == sorted(
        [str(best), str(best + 6)]
    )


def test_a_run_that_stopped_early_and_died_before_its_result_trains_no_further(
    worsening, monkeypatch, capsys
):
    workdir, keys = worsening
    before = json.loads((workdir / "result.json").read_text())
    (workdir / "result.json").unlink()
    monkeypatch.setattr(Run, "compile", lambda *given: pytest.fail("nothing is left to train"))
    monkeypatch.setattr(Run, "loop", lambda *given: pytest.fail("nothing is left to train"))
    after = runs.run(workdir, keys)
    assert "Early stopping: loss has not improved for 3 evaluations" in capsys.readouterr().err
    for part in ("step", "best_step", "validation"):
        assert after[part] == before[part]
