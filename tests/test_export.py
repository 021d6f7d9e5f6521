"""export on a finished run: what other tools load from it, and what never leaves."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
from folders import edit_config

from jaxft import export, hub, pretrained
from jaxft.checkpoint import Checkpoints
from jaxft.nn.weights import Weight, flatten, unflatten
from jaxft.source import byte_tokenizer, origin
from jaxft.tasks import causal_lm
from jaxft.trained import Trained, open_trained
from jaxft.workdir import Workdir

pytestmark = pytest.mark.usefixtures("hurry")
SAME_LOGITS = 1e-5
"""Relative difference of logits between transformers and jaxft, in float32."""


@pytest.fixture(scope="module")
def finished(tiny_bert_folder) -> runs.Finished:
    return runs.finished(tiny_bert_folder)


@pytest.fixture
def call(capsys, finished):
    """Exports the finished run and returns what stands on stdout."""

    def run(*words: str) -> str:
        capsys.readouterr()
        export.main([f"--workdir={finished.workdir}", *words])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys, finished):
    def run(*words: str) -> str:
        return runs.refused(capsys, "export", [f"--workdir={finished.workdir}", *words])

    return run


@pytest.fixture
def opened(finished):
    with open_trained(Workdir(str(finished.workdir)), "best", lambda text: None) as trained:
        yield trained


def test_an_export_gives_transformers_our_logits_labels_and_tokenizer(
    call, opened, finished, tmp_path
):
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    assert call(f"--output={tmp_path}/out") == f"{tmp_path}/out\n"
    folder = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.problem_type == "single_label_classification"
    texts = [text for text, _ in runs.rows(6, seed=4)]
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()
    path = str(runs.table(tmp_path / "in.csv", [(text, "good") for text in texts]))
    ours = runs.outputs(opened, path, batch_size=8, devices=1)[0]["logits_NC"]
    np.testing.assert_allclose(theirs, ours, rtol=SAME_LOGITS, atol=SAME_LOGITS)
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "accuracy" in card
    assert "learning rate 0.01" in card
    assert f"trained on `{finished.keys['data.train']}`" in card
    words = ["python", "-m", "jaxft.train", *runs.argv(finished.keys, finished.workdir)]
    assert shlex.join(words) in card.splitlines()
    assert "base_model" not in card, "a folder is on no hub"
    length = opened.experiment.config.data.max_length
    assert f'model="THIS_FOLDER", truncation=True, max_length={length})' in card
    classify = pipeline("text-classification", model=folder, truncation=True, max_length=length)
    assert classify("good " * 10_000)[0]["label"] in ("bad", "good")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out"], (
        "nothing half made is left"
    )


def test_an_export_names_the_model_it_began_as_where_it_is_on_the_hub(finished, tmp_path):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    began = json.loads((workdir / "origin.json").read_text())
    assert began == {"base_model": None, "generation_config": {}}
    (workdir / "origin.json").write_text(json.dumps(began | {"base_model": "owner/name"}))
    export.main([f"--workdir={workdir}", f"--output={tmp_path}/out", "--dtype=bfloat16"])
    assert "base_model: owner/name" in (tmp_path / "out" / "README.md").read_text()


def test_what_a_run_began_as_is_told_from_where_it_was_found(
    tiny_bert_folder, tmp_path, monkeypatch
):
    folder = shutil.copytree(tiny_bert_folder, tmp_path / "bert")
    written = {"temperature": 0.6, "eos_token_id": 7}
    (folder / "generation_config.json").write_text(json.dumps(written))
    monkeypatch.chdir(tmp_path)
    assert origin("bert") == {"base_model": None, "generation_config": written}
    assert origin(None) == {}
    monkeypatch.setattr(hub, "locate", lambda name: (folder, "the hub's cache"))
    assert origin("owner/bert")["base_model"] == "owner/bert"


def test_pitfall_8_an_export_writes_as_the_model_it_began_as_up_to_where_answers_end_now():
    began = {"generation_config": {"temperature": 0.6, "top_p": 0.95, "eos_token_id": 99}}
    made = causal_lm.Task().files(byte_tokenizer(), began)["generation_config.json"]
    assert made == {"temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 3], "pad_token_id": 0}


def test_transformers_logits_are_compared_in_float32_whatever_the_run_computes_in(
    finished, tmp_path, capsys
):
    pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["dtype"] = "bfloat16"
    (workdir / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    export.main([f"--workdir={workdir}", f"--output={tmp_path}/out"])
    said = capsys.readouterr().err
    assert "Compute: bfloat16" in said
    assert "transformers' logits equal to" in said


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_export_in_half_precision_says_so_in_its_config(call, tmp_path, dtype):
    call(f"--output={tmp_path}/out", f"--dtype={dtype}")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    whole = tmp_path / "whole"
    call(f"--output={whole}")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "out", whole)]
    assert sizes[0] < 0.6 * sizes[1]


def test_an_export_never_overwrites(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "is not an empty folder" in refused(f"--output={tmp_path}/mine")
    assert "is not an empty folder" in refused(f"--output={tmp_path}/mine/thesis.tex")
    message = refused(f"--output={tmp_path}/mine/thesis.tex/out")
    assert f"--output={tmp_path}/mine/thesis.tex/out" in message
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_an_export_goes_to_the_current_folder_and_to_ones_home(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    here = tmp_path / "here"
    (here / ".partial").mkdir(parents=True)
    (here / ".partial" / "config.json").write_text("of an export that was killed")
    monkeypatch.chdir(here)
    before = here.stat().st_ino
    call("--output=.")
    call("--output=~/home")
    assert here.stat().st_ino == before, "a shell that is in it stays in it"
    assert runs.content(here) == runs.content(tmp_path / "home")
    assert "model.safetensors" in runs.content(here)
    assert not (here / ".partial").exists()


def test_an_export_to_a_url_is_refused(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("--output=gs://b/m").startswith("--output=gs://b/m: give a folder on a disk")
    assert not any(tmp_path.iterdir())


def poison(value: float):
    """`Checkpoints.restore` with one weight replaced."""
    restore = Checkpoints.restore

    def poisoned(self: Checkpoints, *args: Any, **options: Any) -> Any:
        restored = restore(self, *args, **options)
        leaves = dict(flatten(restored.params))
        path = ("pooler", "bias")
        leaves[path] = jax.device_put(
            np.full(leaves[path].shape, value, np.float32), leaves[path].sharding
        )
        return replace(restored, params=unflatten(leaves))

    return poisoned


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (1e6, "float16")]
)
def test_pitfall_11_what_is_not_finite_is_never_exported(
    refused, tmp_path, monkeypatch, value, dtype
):
    monkeypatch.setattr(Checkpoints, "restore", poison(value))
    message = refused(f"--output={tmp_path}/out", f"--dtype={dtype}")
    assert "pooler.dense.bias" in message
    assert "not finite" in message
    assert not any(tmp_path.iterdir())


def test_pitfall_19_an_export_that_was_not_written_as_meant_is_a_loud_bug(
    call, tmp_path, monkeypatch
):
    block = pretrained.block

    def read_wrongly(matched: pretrained.Match, weight: Weight, span: slice) -> np.ndarray:
        found = block(matched, weight, span)
        return found[::-1] + 1 if weight.name == "heads/classify/bias" else found

    monkeypatch.setattr(pretrained, "block", read_wrongly)
    with pytest.raises(
        RuntimeError, match="heads/classify/bias was not read back as it was written"
    ):
        call(f"--output={tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_pitfall_19_logits_that_transformers_does_not_share_are_a_loud_bug(
    call, tmp_path, monkeypatch
):
    pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    export_ = export.export

    def export_wrongly(trained: Trained, folder: Path, dtype: str) -> None:
        """Every weight is as it was meant, and the model that they are read into is not."""
        export_(trained, folder, dtype)
        edit_config(folder, layer_norm_eps=1e-3)

    monkeypatch.setattr(export, "export", export_wrongly)
    with pytest.raises(RuntimeError, match="transformers' logits differ"):
        call(f"--output={tmp_path}/out")
    assert not any(tmp_path.iterdir())
