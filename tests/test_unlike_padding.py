"""RoBERTa, whose positions count on from the padding's, beside a tokenizer that pads otherwise."""

import json
from typing import Any

import pytest
import runs

from jaxft import evaluate, export, predict
from jaxft.errors import UserError

pytestmark = pytest.mark.usefixtures("hurry")
ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 1,
}
UNK, CLS, NO_TOKEN = 1, 2, 40
"""Ids of the tokenizer, which pads with 0."""
OTHER_ORDER = 1e-6
"""Difference of a loss whose batches were cut in another way."""


@pytest.fixture
def keys(tmp_path, tiny_bert_folder) -> dict[str, Any]:
    """Of a run with several labels a row."""
    several = ("red", "blue", "red;blue", "")
    rows = [(text, several[i % 4]) for i, (text, _) in enumerate(runs.rows(24, seed=1))]
    names = ("train", "validation", "test")
    data = {f"data.{name}": runs.table(tmp_path / f"{name}.csv", rows) for name in names}
    data |= {"data.cache_dir": tmp_path / "tokens", "task.label_separator": ";"}
    return data | {"model.tokenizer": tiny_bert_folder}


def padded_with(padding: int) -> dict[str, Any]:
    return {"model.config": ROBERTA | {"pad_token_id": padding}}


def test_what_positions_count_from_stays_through_all_verbs(keys, tmp_path, capsys):
    length = {"train.max_steps": 4, "train.eval_steps": 4}
    result = runs.run(tmp_path / "run", keys | length | padded_with(NO_TOKEN))
    workdir = f"--workdir={tmp_path}/run"
    capsys.readouterr()
    evaluate.main([workdir])
    scores = json.loads(capsys.readouterr().out)
    for name, value in result["test"].items():
        assert scores[name] == pytest.approx(value, abs=OTHER_ORDER)
    predict.main([workdir, f"--input={keys['data.test']}"])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 24
    assert {tuple(answer["scores"]) for answer in answers} == {("blue", "red")}
    export.main([workdir, f"--output={tmp_path}/out"])
    said = capsys.readouterr().err
    pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    assert "transformers' logits equal to" in said
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == NO_TOKEN
    report = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Class by class</h2>" in report
    assert report.count("<th>red</th>") == 2, "among the classes and in the data"


def test_a_token_that_the_model_takes_for_padding_is_told_and_refused_where_all_texts_have_it(keys):
    said: list[str] = []
    runs.assembled(keys | padded_with(UNK), say=said.append)
    (warning,) = [line for line in said if "WARNING" in line]
    assert "pads with token 1 (pad_token_id in its config.json), the tokenizer with 0" in warning
    assert "calls 1 '[UNK]'" in warning
    with pytest.raises(UserError, match=r"calls 2 '\[CLS\]', which every text has"):
        runs.assembled(keys | padded_with(CLS))


def test_a_model_from_scratch_pads_as_its_byte_tokenizer(keys):
    said: list[str] = []
    given = keys | {"model.tokenizer": "None", "model.config": ROBERTA | {"vocab_size": 260}}
    experiment, *_ = runs.assembled(given, say=said.append)
    assert experiment.drawn.dims.pad_token_id == experiment.tokenizer.pad_token_id == 0
    assert experiment.hf_config["pad_token_id"] == 0
    assert not any("WARNING" in line for line in said)


def test_a_model_that_no_padding_shapes_takes_it_from_the_tokenizer(keys, tiny_bert_folder):
    experiment, *_ = runs.assembled(keys | {"model.pretrained": tiny_bert_folder})
    assert "pad_token_id" not in experiment.drawn.config
    assert experiment.hf_config["pad_token_id"] == experiment.tokenizer.pad_token_id
