"""evaluate, predict and export on a finished run: what stands on stdout, which step, what is
refused.
"""

import codecs
import gzip
import io
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
from datasets import Dataset, DatasetDict
from sklearn import metrics

from jaxft import config as configs
from jaxft import saving
from jaxft.data.sources import quiet
from jaxft.errors import NonFiniteAnswers
from jaxft.nn.weights import flatten
from jaxft.predict import predict
from jaxft.trained import Trained, open_trained
from jaxft.workdir import Workdir

pytestmark = pytest.mark.usefixtures("hurry")
SAME_LOGITS = 1e-5
"""Relative difference of logits between transformers and jaxft, in float32."""
OTHER_ORDER = 1e-6
"""Difference of a loss whose batches were cut in another way."""


@pytest.fixture(scope="module")
def finished(tiny_bert_folder) -> runs.Finished:
    return runs.finished(tiny_bert_folder)


@pytest.fixture
def call(capsys, finished):
    """Runs a verb on the finished run and returns its stdout."""

    def run(verb: str, *words: str) -> str:
        capsys.readouterr()
        runs.VERBS[verb].main([f"--workdir={finished.workdir}", *words])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys, finished):
    def run(verb: str, *words: str, workdir: Path | None = None) -> str:
        return runs.refused(capsys, verb, [f"--workdir={workdir or finished.workdir}", *words])

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# evaluate


def test_evaluate_prints_one_object_with_the_scores_of_the_test_split(call, finished):
    result = json.loads(call("evaluate"))
    assert result["step"] == finished.result["best_step"]
    assert result["rows"] == 19
    assert result["data"] == finished.keys["data.test"]
    for name, value in finished.result["test"].items():
        assert result[name] == pytest.approx(value, abs=OTHER_ORDER)


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_pitfall_4_rows_that_are_cut_are_counted(verb, finished, tmp_path, capsys):
    long = [(" ".join(["good"] * 20), "good"), ("very good", "good"), ("very bad", "bad")]
    given = {"evaluate": "--data", "predict": "--input"}[verb]
    path = runs.table(tmp_path / "long.csv", long)
    runs.VERBS[verb].main([f"--workdir={finished.workdir}", f"{given}={path}"])
    said = f"1 of 3 rows (33.3%) have more than data.max_length={runs.LENGTH} tokens and lose their"
    assert f"{path}: {said} ends." in capsys.readouterr().err


def test_evaluate_scores_any_step_of_any_file(call, finished):
    validation = {
        row["step"]: row for row in runs.metrics(finished.workdir) if "validation/loss" in row
    }
    steps = sorted(int(path.name) for path in (finished.workdir / "checkpoints").iterdir())
    assert len(steps) >= 2
    for word, step in {"last": steps[-1], str(steps[0]): steps[0]}.items():
        result = json.loads(
            call("evaluate", f"--data={finished.keys['data.validation']}", f"--step={word}")
        )
        assert result["step"] == step
        assert result["loss"] == pytest.approx(validation[step]["validation/loss"], abs=OTHER_ORDER)


def test_a_step_that_is_not_there(refused):
    assert "--step=99 is not among" in refused("evaluate", "--step=99")
    assert "best, last" in refused("evaluate", "--step=first")


def test_a_folder_that_is_no_run(refused, tmp_path):
    for verb, words in {
        "evaluate": [],
        "predict": ["--input=x.csv"],
        "export": [f"--output={tmp_path}/out"],
    }.items():
        message = refused(verb, *words, workdir=tmp_path / "nothing")
        assert "has no config.json: it is not the folder of a run" in message
    assert not any(tmp_path.iterdir())


def test_a_run_that_has_saved_nothing_yet(refused, finished, tmp_path):
    early = shutil.copytree(
        finished.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")
    )
    assert "holds no checkpoint yet" in refused("evaluate", workdir=early)


def test_a_run_is_opened_on_any_devices_its_weights_split_over_all(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["attention"] = "splash"
    config["mesh"] = {"fsdp": 8, "data": 1, "zero_stage": 2}
    (workdir / "config.json").write_text(json.dumps(config))
    with open_trained(Workdir(str(workdir)), "best", lambda text: None) as trained:
        table = trained.params["embeddings"]["word"]["table"]
        assert {shard.data.size for shard in table.addressable_shards} == {table.size // 8}
    capsys.readouterr()
    runs.VERBS["evaluate"].main([f"--workdir={workdir}"])
    result = json.loads(capsys.readouterr().out)
    for name, value in finished.result["test"].items():
        assert result[name] == pytest.approx(value, abs=OTHER_ORDER)


def test_evaluate_refuses_rows_it_cannot_score(refused, tmp_path):
    assert "classify, which writes no answers" in refused("evaluate", "--exact_match=text")
    assert "no such file" in refused("evaluate", "--data=nothing.csv")
    strange = runs.table(tmp_path / "strange.csv", [("a film", "ugly")])
    assert "1 label(s) that training has not seen: 'ugly' (line 2)" in refused(
        "evaluate", f"--data={strange}"
    )
    bare = runs.table(tmp_path / "bare.csv", [("a film", "1")], header=("text", "stars"))
    assert "data.label_column=label: no column is called so" in refused(
        "evaluate", f"--data={bare}"
    )


@pytest.fixture(scope="module")
def both(finished, tmp_path_factory) -> str:
    """A folder of `datasets` with the run's training and test rows as splits."""
    folder = tmp_path_factory.mktemp("datasets") / "both"
    splits = {name: finished.keys[f"data.{name}"] for name in ("train", "test")}
    with quiet():
        DatasetDict.from_csv(splits, cache_dir=folder.parent).save_to_disk(folder)
    return str(folder)


def test_each_split_of_a_saved_folder_is_itself(call, finished, both):
    keys = {**finished.keys, "data.train": both, "data.validation": f"{both}:test"}
    _, splits, _ = runs.assembled(keys | {"data.test": both})
    _, expected, _ = runs.assembled(finished.keys)
    for name, other in {"train": "train", "validation": "test", "test": "test"}.items():
        assert splits[name].features[:] == expected[other].features[:]
        assert splits[name].targets == expected[other].targets
    for name, size in {"train": 37, "test": 19}.items():
        result = json.loads(call("evaluate", f"--data={both}:{name}"))
        file = json.loads(call("evaluate", f"--data={finished.keys[f'data.{name}']}"))
        assert result == {**file, "data": f"{both}:{name}"}
        assert result["rows"] == size
        answers = lines(call("predict", f"--input={both}:{name}"))
        assert len(answers) == size


def test_the_split_that_is_read_of_a_saved_folder_is_said(finished, both, capsys):
    runs.VERBS["evaluate"].main([f"--workdir={finished.workdir}", f"--data={both}"])
    assert f"{both}: its split test is read." in capsys.readouterr().err


def test_the_split_that_is_read_is_the_same_for_runs_without_test_rows(
    finished, both, tmp_path, capsys
):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["test"] = None
    (workdir / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    for source, size in {f"--data={both}": 19, "": 21}.items():
        runs.VERBS["evaluate"].main([f"--workdir={workdir}", *filter(None, [source])])
        assert json.loads(capsys.readouterr().out)["rows"] == size


def test_evaluate_does_not_cut_validation_anew_from_rows_that_changed(
    finished, tmp_path, refused, capsys
):
    """Of other rows another part would be cut, which the run may have trained on."""
    keys = finished.keys | {"data.validation": "none", "data.test": "none"}
    keys["data.train"] = runs.table(tmp_path / "train.csv", runs.rows(37, 0))
    workdir, (made, splits, _) = tmp_path / "run", runs.assembled(keys)
    shutil.copytree(finished.workdir, workdir)
    Workdir(str(workdir)).write_json("config.json", configs.to_dict(made.config))
    digests = {name: split.rows.digest for name, split in splits.items()}
    Workdir(str(workdir)).write_json("inputs.json", digests)
    capsys.readouterr()
    runs.VERBS["evaluate"].main([f"--workdir={workdir}"])
    assert json.loads(capsys.readouterr().out)["rows"] == len(splits["validation"])
    changed = runs.table(tmp_path / "train.csv", runs.rows(38, 0))
    said = refused("evaluate", workdir=workdir)
    assert "validation changed since it began" in said
    assert "or give the rows to score as --data." in said
    runs.VERBS["evaluate"].main([f"--workdir={workdir}", f"--data={changed}"])
    assert json.loads(capsys.readouterr().out)["rows"] == 38


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_pitfall_25_a_flag_that_the_rows_do_not_read_is_refused(verb, refused, finished, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a good film", "label": "good"}\n')
    given = {"evaluate": "--data", "predict": "--input"}[verb]
    message = refused(verb, f"{given}={path}", "--config.data.header=false")
    assert f"data.header=false: none of {path} reads that" in message


@pytest.fixture
def opened(finished):
    with open_trained(Workdir(str(finished.workdir)), "best", lambda text: None) as trained:
        yield trained


def test_pitfall_11_no_row_gets_an_answer_that_is_no_number(opened, finished):
    nan = jax.tree.map(lambda x: x * np.float32("nan"), opened.params)
    with pytest.raises(NonFiniteAnswers, match=r"test\.csv: the model answers 19 of 19 rows with"):
        predict(replace(opened, params=nan), finished.keys["data.test"], 0, lambda text: None)


@pytest.mark.parametrize("packing", ["batch", "none"])
@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (5, 1), (8, 8), (24, 2)])
def test_scores_equal_scikit_learns_on_the_whole_set_however_it_is_cut(
    opened, tmp_path, batch_size, devices, packing
):
    mixed = [
        (" ".join(text.split()[: 3 + i % 9]), label)
        for i, (text, label) in enumerate(runs.rows(29, seed=7))
    ]
    path = str(runs.table(tmp_path / "mixed.csv", mixed))
    found, split = runs.outputs(
        opened, path, batch_size=batch_size, devices=devices, packing=packing
    )
    assert found["logits_NC"].shape == (29, 2), "padding is gone"

    logits = logits_of(opened, [text for text, _ in mixed])
    np.testing.assert_allclose(
        found["logits_NC"], logits, atol=SAME_LOGITS, err_msg="rows in their order"
    )
    truth = np.array([("bad", "good").index(label) for _, label in mixed])
    scores = opened.experiment.task.scores(found, split.targets)
    assert scores["accuracy"] == metrics.accuracy_score(truth, logits.argmax(1))
    assert scores["macro_f1"] == pytest.approx(
        metrics.f1_score(truth, logits.argmax(1), average="macro")
    )
    assert scores["matthews"] == pytest.approx(metrics.matthews_corrcoef(truth, logits.argmax(1)))
    logits = logits.astype(np.float64)
    share = np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None])
    assert scores["loss"] == pytest.approx(metrics.log_loss(truth, share), abs=SAME_LOGITS)


def logits_of(trained: Trained, texts: Sequence[str]) -> np.ndarray:
    """Logits by way of transformers, in one padded batch."""
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    from transformers import BertConfig, BertForSequenceClassification

    drawn = trained.experiment.drawn
    model = BertForSequenceClassification(BertConfig(**trained.experiment.hf_config))
    tensors = saving.to_tensors(dict(flatten(trained.params)), drawn.weights, prefix="bert.")
    model.load_state_dict({t.name: torch.tensor(t.values) for t in tensors}, strict=True)
    encoded = trained.experiment.tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**encoded).logits.numpy()


# predict


def test_predict_echoes_every_column_and_adds_what_it_says(call, finished, tmp_path):
    content = [(str(i), text, f'"{i}", x') for i, (text, _) in enumerate(runs.rows(11, seed=3))]
    path = runs.table(tmp_path / "in.csv", content, header=("id", "text", "note, or so"))
    answers = lines(call("predict", f"--input={path}"))
    assert [list(row)[:3] for row in answers] == [["id", "text", "note, or so"]] * 11
    assert [tuple(row.values())[:3] for row in answers] == content
    for row in answers:
        assert row["scores"].keys() == {"bad", "good"}
        assert sum(row["scores"].values()) == pytest.approx(1)
        assert row["prediction"] == max(row["scores"], key=row["scores"].__getitem__)


KINDS = ("csv.gz", "jsonl.gz", "parquet", "folder")


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> dict[str, str]:
    """The same rows, with a column that JSON has no word for where there can be one, by kind."""
    folder = tmp_path_factory.mktemp("everything")
    rows = [{"text": text, "n": i} for i, (text, _) in enumerate(runs.rows(5, seed=3))]
    typed = Dataset.from_list([{**row, "on": date(2026, 1, 1 + row["n"])} for row in rows])
    with gzip.open(folder / "in.csv.gz", "wt") as file:
        file.writelines(["n,text\n", *(f"{row['n']},{row['text']}\n" for row in rows)])
    with gzip.open(folder / "in.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with quiet():
        typed.to_parquet(folder / "in.parquet")
        DatasetDict(test=typed, train=typed.select([0])).save_to_disk(folder / "in.folder")
    return {kind: str(folder / f"in.{kind}") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_predict_echoes_every_column_of_any_kind_of_source(call, everything, kind):
    answers = lines(call("predict", f"--input={everything[kind]}"))
    assert [row["text"] for row in answers] == [text for text, _ in runs.rows(5, seed=3)]
    assert [int(row["n"]) for row in answers] == [0, 1, 2, 3, 4]
    if kind in ("parquet", "folder"):
        assert [row["on"] for row in answers] == [f"2026-01-0{day}" for day in range(1, 6)]
    assert all(row["prediction"] in ("bad", "good") for row in answers)


def test_rows_may_be_spelt_otherwise_than_the_runs(call, refused, finished, tmp_path):
    rows = runs.rows(19, seed=2)
    path = tmp_path / "rows.dat"
    path.write_text("stars;review\n" + "".join(f"{label};{text}\n" for text, label in rows))
    flags = ["--config.data.delimiter=;", "--config.data.text_column=review"]
    answers = lines(call("predict", f"--input={path}", *flags))
    assert [(row["review"], row["stars"]) for row in answers] == rows
    label = "--config.data.label_column=stars"
    result = json.loads(call("evaluate", f"--data={path}", *flags, label))
    right = np.mean([row["prediction"] == row["stars"] for row in answers])
    assert result["accuracy"] == pytest.approx(right)
    for verb, flag in {"predict": label, "evaluate": "--config.optim.learning_rate=1"}.items():
        message = refused(verb, "--input=x" if verb == "predict" else "--data=x", flag)
        assert f"{flag.partition('=')[0]} is the run's own; rows may differ in text" in message


def test_predict_refuses_two_columns_of_one_name_which_json_cannot_hold(refused, tmp_path):
    path = runs.table(tmp_path / "in.csv", [("a film", "1", "2")], header=("text", "n", "n"))
    message = refused("predict", f"--input={path}")
    assert f"{path}: several columns are called 'n', and a row of JSON can hold one" in message


def test_predictions_agree_with_the_scores(call, finished):
    answers = lines(call("predict", f"--input={finished.keys['data.test']}"))
    right = np.mean([row["prediction"] == row["label"] for row in answers])
    assert right == pytest.approx(finished.result["test"]["accuracy"])


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_predict_reads_stdin_and_writes_a_file(call, kind, mark, tmp_path, monkeypatch):
    texts = [text for text, _ in runs.rows(3, seed=3)]
    rows = {
        "csv": "text,n\n" + "".join(f"{text},{i}\n" for i, text in enumerate(texts)),
        "jsonl": "".join(
            json.dumps({"text": text, "n": {"deep": [i]}}) + "\n" for i, text in enumerate(texts)
        ),
    }
    stdin = io.TextIOWrapper(io.BytesIO(mark + rows[kind].encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert call("predict", "--input=-", f"--output={tmp_path}/out.jsonl") == ""
    answers = lines((tmp_path / "out.jsonl").read_text())
    assert [row["text"] for row in answers] == texts
    assert [row["n"] for row in answers] == (
        ["0", "1", "2"] if kind == "csv" else [{"deep": [i]} for i in range(3)]
    )
    assert all(row["prediction"] in ("bad", "good") for row in answers)


def test_a_row_without_text_gets_no_answer_and_moves_no_other(call, tmp_path):
    texts = [text for text, _ in runs.rows(4, seed=3)]
    whole = runs.table(tmp_path / "whole.csv", [(text,) for text in texts], header=("text",))
    gaps = [(texts[0], 1), ("", 2), (texts[1], 3), (texts[2], 4), (" ", 5), (texts[3], 6)]
    holed = runs.table(tmp_path / "holed.csv", gaps, header=("text", "n"))
    answers = lines(call("predict", f"--input={holed}"))
    assert [row["n"] for row in answers] == ["1", "2", "3", "4", "5", "6"]
    assert [answers[i]["prediction"] for i in (1, 4)] == [None, None]
    expected = [row["scores"]["good"] for row in lines(call("predict", f"--input={whole}"))]
    assert [answers[i]["scores"]["good"] for i in (0, 2, 3, 5)] == pytest.approx(
        expected, abs=OTHER_ORDER
    )


def test_predict_refuses_rows_without_the_text_column(refused, tmp_path):
    path = runs.table(tmp_path / "in.csv", [("a film",)], header=("content",))
    assert "data.text_column=text: no column is called so" in refused("predict", f"--input={path}")
    assert "no such file" in refused("predict", "--input=nothing.csv")


def test_an_output_that_cannot_be_written_is_said_before_the_rows_are_computed(
    refused, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs.predict, "predict", lambda *parts: pytest.fail("computed"))
    (tmp_path / "file").touch()
    words = [f"--input={finished.keys['data.test']}"]
    for output, why in {"": "Is a directory", "file/out.jsonl": "File exists"}.items():
        message = refused("predict", *words, f"--output={tmp_path / output}")
        assert message == f"--output={tmp_path / output} cannot be written: {why}."
    for output in ("out.csv", "out.jsonl.gz", "out.Parquet"):
        message = refused("predict", *words, f"--output={tmp_path / output}")
        assert "what is written is JSONL" in message
        assert not (tmp_path / output).exists()


def test_reading_verbs_leave_the_run_as_it_is(call, finished, tmp_path):
    tokens = Path(finished.keys["data.cache_dir"])
    before, kept = runs.content(finished.workdir), runs.content(tokens).keys()
    call("evaluate")
    call("predict", f"--input={finished.keys['data.test']}")
    call("export", f"--output={tmp_path}/out")
    assert runs.content(finished.workdir) == before
    assert runs.content(tokens).keys() == kept, "what predict is asked is not kept"


def test_class_weights_count_in_evaluate_as_they_did_in_the_run(tiny_bert_folder, tmp_path, capsys):
    keys = {**runs.finished(tiny_bert_folder).keys, "task.class_weights": "{'bad': 5.0}"}
    result = runs.run(tmp_path / "run", keys)
    capsys.readouterr()
    runs.VERBS["evaluate"].main([f"--workdir={tmp_path / 'run'}"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["loss"] == pytest.approx(result["test"]["loss"], abs=OTHER_ORDER)


def test_tokens_are_kept_under_one_key_however_often_a_run_starts(finished, tmp_path):
    keys = {**finished.keys, "data.cache_dir": str(tmp_path / "cache")}
    for name in ("one", "two"):
        runs.run(tmp_path / name, keys)
    splits = 3
    assert sum(path.is_dir() for path in (tmp_path / "cache").iterdir()) == splits, "beside locks"
