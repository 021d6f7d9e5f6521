"""Fine-tuning a checkpoint that has a head and labels of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import runs

from jaxft import export
from jaxft.errors import UserError

pytestmark = pytest.mark.usefixtures("hurry")


@pytest.fixture
def tuned(tiny_bert_folder, tmp_path) -> Path:
    """An exported head whose labels are in an order of their own."""
    folder = tmp_path / "tuned"
    export.main([f"--workdir={runs.finished(tiny_bert_folder).workdir}", f"--output={folder}"])
    path = folder / "config.json"
    labels = {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
    path.write_text(json.dumps(json.loads(path.read_text()) | labels))
    return folder


@pytest.fixture
def data(tiny_bert_folder) -> dict[str, Any]:
    keys = runs.finished(tiny_bert_folder).keys
    return {key: value for key, value in keys.items() if key.startswith("data.")}


def test_a_tuned_head_keeps_its_weights_and_the_order_of_its_labels(tuned, data):
    experiment, _, matched = runs.assembled(data | {"model.pretrained": tuned})
    assert experiment.task.labels == ("good", "bad")
    assert matched.new == ()
    assert experiment.hf_config["id2label"] == {"0": "good", "1": "bad"}


def test_a_head_of_other_labels_is_refused_or_started_afresh(tuned, data, tmp_path):
    path = runs.table(tmp_path / "other.csv", runs.rows(20, 1, ("red", "blue")))
    other = data | {
        "model.pretrained": tuned,
        "data.train": path,
        "data.validation": path,
        "data.test": "none",
    }
    with pytest.raises(
        UserError,
        match=r"knows the labels good, bad; the data hold blue, red.*model\.new_head=true",
    ):
        runs.assembled(other)
    experiment, _, matched = runs.assembled(other | {"model.new_head": True})
    assert experiment.task.labels == ("blue", "red")
    assert {weight.in_head for weight in matched.new} == {True}


def test_a_head_of_more_classes_serves_data_that_lack_some(tuned, data):
    path = tuned / "config.json"
    three = {"id2label": {"0": "good", "1": "bad", "2": "ugly"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | three))
    with pytest.raises(
        UserError, match=r"misshaped  classifier.weight is \[2, 32\], expected \[3, 32\]"
    ):
        runs.assembled(data | {"model.pretrained": tuned})


def test_numbered_labels_say_nothing_about_the_data(tuned, data):
    path = tuned / "config.json"
    numbered = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | numbered))
    experiment, _, matched = runs.assembled(data | {"model.pretrained": tuned})
    assert experiment.task.labels == ("bad", "good")
    assert matched.new == ()


def test_a_fresh_head_has_the_labels_of_the_data_and_no_other(tuned, data):
    path = tuned / "config.json"
    three = {"id2label": {"0": "good", "1": "bad", "2": "ugly"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | three))
    for source in ({"model.pretrained": tuned, "model.new_head": True}, {"model.config": tuned}):
        experiment, *_ = runs.assembled(data | source)
        assert experiment.task.labels == ("bad", "good")
        assert experiment.hf_config["id2label"] == {"0": "bad", "1": "good"}
