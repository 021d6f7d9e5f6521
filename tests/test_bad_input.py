"""Every mistake of the issue's list: one clear message, exit code 2, nothing written or lost, no
traceback.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import runs
from safetensors.numpy import load_file, save_file

SENTENCES = [text for text, _ in runs.rows(12, seed=5)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory, tiny_bert_folder):
    folder = tmp_path_factory.mktemp("bad_input")
    return {"model.pretrained": tiny_bert_folder} | runs.tables(folder)


@pytest.fixture
def refused(capsys, tmp_path, keys):
    """The message of `train` with some keys changed; the workdir must not have come into being."""

    def message(changed: dict[str, Any], workdir: Path = tmp_path / "run") -> str:
        said = runs.refused(capsys, "train", runs.argv(keys | changed, workdir))
        assert not workdir.is_dir()
        return said

    return message


def file(folder: Path, content: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def csv(*labels: Any) -> str:
    texts = zip(SENTENCES, labels, strict=False)
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in texts)


DATA = {
    "an empty file": ("", "rows.csv is empty"),
    "a file of blanks": ("\n \n", "rows.csv is empty"),
    "no rows under the header": ("text,label\n", "no rows under the header in line 1"),
    "empty texts only": ("text,label\n,good\n ,bad\n", "none of the 2 rows has something in text"),
    "an empty text": (
        csv("good", "bad", "good") + ",bad\n",
        r"1 of 4 rows (25.0%) have no text (lines 5)",
    ),
    "one class": (csv("good", "good", "good"), "one class only (good)"),
    "bytes that are not UTF-8": (
        csv("good", "bad").encode() + b"caf\xe9,good\n",
        "line 4: byte 0xe9 at offset",
    ),
    "a ragged row": (csv("good", "bad") + "one,two,three\n", "line 4: 3 fields, expected 2"),
    "an unclosed quote": (
        csv("good", "bad") + '"never closed,bad\nmore,good\n',
        "line 4: a quote opens",
    ),
    "an empty label": (csv("good", "bad", ""), "line 4: the label is empty"),
}


@pytest.mark.parametrize("what", DATA)
def test_a_training_file_with(what, refused, tmp_path):
    content, expected = DATA[what]
    message = refused({"data.train": file(tmp_path, content)})
    assert expected in message
    assert "rows.csv" in message


def test_no_such_file(refused, keys):
    message = refused({"data.train": str(keys["data.train"]).replace("train.csv", "trian.csv")})
    assert "trian.csv: no such file" in message
    assert "train.csv" in message.partition("no such file")[2], "what it may have meant"


def test_a_wrong_column(refused):
    message = refused({"data.text_column": "txt"})
    assert "data.text_column=txt: no column is called so" in message
    assert "'text', 'label'" in message


def test_a_label_in_validation_that_training_has_not_seen(refused, tmp_path):
    path = file(tmp_path, csv("good", "bad", "ugly"))
    message = refused({"data.validation": path})
    assert (
        f"{path}: 1 label(s) that training has not seen: 'ugly' (line 4). Known are 'bad', 'good'"
        in message
    )


def test_validation_rows_of_classes_that_weigh_nothing(refused, tmp_path):
    path = file(tmp_path, csv("good", "good"))
    message = refused({"data.validation": path, "task.class_weights": "{'good': 0.0}"})
    assert f"{path}: all rows are 'good', which task.class_weights gives 0" in message


@pytest.mark.parametrize("cell", ["nan", "", "many"])
def test_a_regression_label_that_is_no_number(refused, tmp_path, cell):
    path = file(tmp_path, csv(0.5, 1.25, cell, 2.0))
    given = {"data.train": path, "data.validation": path, "data.test": "none"}
    message = refused(given | {"task.problem_type": "regression"})
    assert f"{path}, line 4" in message
    assert "number" in message


def test_a_regression_label_that_is_nan_where_the_problem_is_guessed(refused, tmp_path):
    path = file(tmp_path, csv(0.5, 1.25, "nan", 2.0))
    message = refused({"data.train": path, "data.validation": path, "data.test": "none"})
    assert f"{path}, line 4" in message


CONFIG = {
    "a misspelt key": ({"optim.learning_rat": 1}, "no such key; did you mean optim.learning_rate?"),
    "an unknown key": ({"optim.zzz": 1}, "no such key\n    optim has: name, learning_rate"),
    "an unknown section": ({"qqqq.zzz": 1}, "there are: model, task, data"),
    "a wrong type": ({"train.batch_size": "many"}, "--config.train.batch_size=many: "),
    "a fraction for a count": ({"train.batch_size": 8.5}, "--config.train.batch_size=8.5: "),
    "a value out of range": ({"optim.learning_rate": -1}, "--config.optim.learning_rate=-1: "),
    "an unknown choice": ({"optim.name": "adam"}, "--config.optim.name=adam: "),
    "two keys for one thing": (
        {"train.num_train_epochs": 2},
        "train.max_steps = 12 and train.num_train_epochs = 2",
    ),
    "a micro-batch that does not divide": (
        {"train.gradient_accumulation_steps": 3},
        "train.batch_size = 8 cannot",
    ),
    "a task that is none": (
        {"task.name": "clasify"},
        "task.name='clasify' is no task; there is causal_lm, classify",
    ),
    "a metric that is none": (
        {"checkpoint.metric_for_best_model": "f1"},
        "checkpoint.metric_for_best_model='f1' is no score of this task; there is loss, accuracy, "
        "macro_f1",
    ),
    "weights of labels that are none": (
        {"task.class_weights": '{"god": 2}'},
        "task.class_weights names 'god'; the labels are 'bad', 'good'",
    ),
    "a weight below 0": ({"task.class_weights": '{"good": -1}'}, "must be >= 0"),
    "weights that are all 0": (
        {"task.class_weights": '{"good": 0, "bad": 0}'},
        "task.class_weights are all 0",
    ),
    "a multiplier that matches nothing": (
        {"optim.lr_multipliers": '{"nothing.*": 2}'},
        '"nothing.*" matches',
    ),
    "positions beyond the model's": (
        {"data.max_length": 41},
        "data.max_length=41 is beyond the model's 40 positions",
    ),
    "an activation that no block marks": (
        {
            "model.activation_checkpointing": "full",
            "model.kept_activations": '{"softmax": "host"}',
        },
        "one of block_input, qkv, attention_out, mlp_hidden to one of device, host",
    ),
    "exceptions from a checkpointing that is off": (
        {"model.kept_activations": '{"block_input": "host"}'},
        "are exceptions from full checkpointing, and model.activation_checkpointing = 'none'",
    ),
    "a kernel that this device lacks": (
        {"model.attention": "cudnn"},
        "model.attention='cudnn' is impossible with a cpu device",
    ),
    "a kernel that cannot tell the examples of a row apart": (
        {"model.attention": "cudnn"},
        "examples that share rows (data.packing=none keeps them apart)",
    ),
    "a batch that the mesh cannot split": (
        {"train.batch_size": 12},
        "train.batch_size=12 cannot be split over",
    ),
    "micro-batches that the mesh cannot split": (
        {"train.gradient_accumulation_steps": 2},
        "train.gradient_accumulation_steps = 2: use a multiple of 16, such as 16",
    ),
    "a mesh that does not multiply": ({"mesh.data": 3}, "do not multiply to the 8 devices here"),
    "tensor that does not divide heads": (
        {"mesh.tensor": 8},
        "mesh.tensor=8 cannot split 4 (key-value) heads; the nearest that can is 4 of [1, 2, 4]",
    ),
    "tokens that the mesh cannot split": (
        {"data.max_length": 15, "mesh.context": 2},
        "data.max_length=15 cannot be split into mesh.context=2 parts: use a multiple of 2, such "
        "as 16",
    ),
}


@pytest.mark.parametrize("what", CONFIG)
def test_a_config_with(what, refused):
    changed, expected = CONFIG[what]
    message = refused(changed)
    assert expected in message
    assert next(iter(changed)).partition(".")[0] in message, "the key is named"


@pytest.fixture
def checkpoint(tiny_bert_folder, tmp_path):
    """A copy of the tiny BERT that may be spoilt."""
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert_folder, folder)

    def fields(**changed: Any) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    def tensors(**changed: np.ndarray | None) -> None:
        content = load_file(folder / "model.safetensors") | changed
        save_file({k: v for k, v in content.items() if v is not None}, folder / "model.safetensors")

    return SimpleNamespace(
        folder=folder, path=folder / "model.safetensors", fields=fields, tensors=tensors
    )


QUERY = "encoder.layer.1.attention.self.query.weight"


def test_a_checkpoint_without_a_config(refused, checkpoint):
    (checkpoint.folder / "config.json").unlink()
    message = refused({"model.pretrained": checkpoint.folder})
    assert f"{checkpoint.folder} has no config.json" in message


def test_a_truncated_safetensors_file(refused, checkpoint):
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-100])
    message = refused({"model.pretrained": checkpoint.folder})
    assert str(checkpoint.path) in message
    assert "truncated" in message


def test_all_tensors_that_do_not_fit_are_named_at_once(refused, checkpoint):
    wrong = {"embeddings.word_embeddings.weight": np.zeros((9, 32), np.float32)}
    checkpoint.tensors(**{QUERY: None, "encoder.extra.weight": np.zeros(3, np.float32)}, **wrong)
    message = refused({"model.pretrained": checkpoint.folder})
    assert f"missing    {QUERY} [32, 32]" in message
    assert "extra      encoder.extra.weight" in message
    assert "misshaped  embeddings.word_embeddings.weight is [9, 32], expected [64, 32]" in message


def test_a_pickle(refused, checkpoint):
    checkpoint.path.rename(checkpoint.folder / "pytorch_model.bin")
    message = refused({"model.pretrained": checkpoint.folder})
    assert "only a pickle (pytorch_model.bin)" in message
    assert "save_pretrained" in message


def test_no_weights_at_all(refused, checkpoint):
    checkpoint.path.unlink()
    message = refused({"model.pretrained": checkpoint.folder})
    assert "no model.safetensors" in message


def test_an_unsupported_family(refused, checkpoint):
    checkpoint.fields(model_type="mamba")
    message = refused({"model.pretrained": checkpoint.folder})
    assert "model_type 'mamba' is not supported; there is bert" in message


def test_a_config_field_that_nobody_understands(refused, checkpoint):
    checkpoint.fields(rope_theta=1e6)
    message = refused({"model.pretrained": checkpoint.folder})
    assert "rope_theta" in message


def test_a_tokenizer_larger_than_the_embedding(refused, checkpoint):
    checkpoint.fields(vocab_size=20)
    words = load_file(checkpoint.path)["embeddings.word_embeddings.weight"][:20]
    checkpoint.tensors(**{"embeddings.word_embeddings.weight": words})
    message = refused({"model.pretrained": checkpoint.folder})
    assert "the embedding only 20 rows" in message


def test_a_folder_without_a_tokenizer(refused, checkpoint):
    for path in checkpoint.folder.glob("tokenizer*"):
        path.unlink()
    message = refused({"model.pretrained": checkpoint.folder})
    assert f"{checkpoint.folder} has no tokenizer" in message


def test_the_hub_out_of_reach(refused):
    message = refused({"model.pretrained": "google-bert/bert-base-uncased"})
    assert "'google-bert/bert-base-uncased' is no folder here, not in the hub's cache" in message
    assert "hf download google-bert/bert-base-uncased" in message


def test_a_reporter_that_is_not_installed(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install wandb" in refused({"train.report_to": "tensorboard,wandb"})


def test_a_folder_that_is_not_there(refused):
    message = refused({"model.pretrained": "/no/such/folder"})
    assert "'/no/such/folder': there is no such folder" in message


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_workdir_that_cannot_be_written(refused, tmp_path, inside):
    workdir = file(tmp_path, "a file", name="taken") / inside
    message = refused({}, workdir)
    assert f"--workdir={workdir}" in message
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize("name", ["config.json", "model/notes.txt", "result.json"])
def test_a_workdir_that_holds_what_no_run_has_written(capsys, tmp_path, keys, name):
    workdir = tmp_path / "project"
    (workdir / name).parent.mkdir(parents=True)
    (workdir / name).write_text('{"model_type": "bert"}')
    (workdir / "readme.md").write_text("what a run does not touch")
    before = runs.content(workdir)
    message = runs.refused(capsys, "train", runs.argv(keys, workdir))
    assert f"--workdir={workdir} is not the folder of a run" in message
    assert f"would overwrite what is there: {name.partition('/')[0]}. " in message
    assert runs.content(workdir) == before


def test_pitfall_15_a_disk_too_small_for_the_checkpoints_to_come(refused, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return SimpleNamespace(free=1e5)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    message = refused({"checkpoint.keep_last": 5})
    assert "0.0001 GB are free, but 7 checkpoints of 0.000" in message
    assert Path(asked[0]).is_dir()


def test_some_of_the_flags_for_several_processes(capsys, keys):
    message = runs.refused(capsys, "train", [*runs.argv(keys), "--num_processes=2"])
    assert "go together" in message
