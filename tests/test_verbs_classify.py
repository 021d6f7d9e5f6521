"""All verbs on each kind of problem, and on each family of encoders, from random weights."""

import json
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import runs
from parity import CASES
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

pytestmark = pytest.mark.usefixtures("hurry")
OTHER_ORDER = 1e-5
"""Relative difference of scores whose batches were cut in another way."""
KINDS = ("bad", "dull", "good")


PAIR = {"data.text_pair_column": "text_pair"}


class Case(NamedTuple):
    family: str
    problem: str
    texts: tuple[str, ...]
    keys: dict[str, Any]


TRIED = (
    Case("bert", "regression", ("text", "text_pair"), PAIR),
    Case("roberta", "multi_label_classification", ("text",), {"task.label_separator": ";"}),
    Case("distilbert", "single_label_classification", ("text", "text_pair"), PAIR),
)


def content(case: Case, count: int, seed: int) -> list[tuple[str, ...]]:
    """Rows whose label can be read off their words."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        texts = [runs.sentence(draw, draw.choice(KINDS))[:24] for _ in case.texts]
        there = [kind for kind in KINDS if any(kind in text.split() for text in texts)]
        label = {
            "regression": f"{sum(len(text) for text in texts) / 10 + len(there):.1f}",
            "multi_label_classification": ";".join(there),
            "single_label_classification": there[0] if there else KINDS[2],
        }
        made.append((*texts, label[case.problem]))
    return made


def scored(problem: str, answers: list[dict[str, Any]]) -> dict[str, float]:
    """By the libraries, from what predict says beside the labels."""
    told = [row["label"] for row in answers], [row["prediction"] for row in answers]
    if problem == "regression":
        true, said = np.array(told, float)
        spearman = stats.spearmanr(true, said).statistic
        return {"mse": np.mean((true - said) ** 2), "spearman": spearman}
    if problem == "single_label_classification":
        return {"accuracy": accuracy_score(*told), "macro_f1": f1_score(*told, average="macro")}
    truth, said = (
        [[kind in names for kind in KINDS] for names in column]
        for column in ([label.split(";") for label in told[0]], told[1])
    )
    return {
        "micro_f1": f1_score(truth, said, average="micro"),
        "accuracy": accuracy_score(truth, said),
    }


@pytest.mark.parametrize("case", TRIED, ids=lambda case: f"{case.family}-{case.problem}")
def test_every_verb_agrees_with_the_run(case, tiny_bert_folder, tmp_path, capsys):
    sizes, header = {"train": 24, "validation": 9, "test": 19}, (*case.texts, "label")
    files = {
        f"data.{name}": runs.table(tmp_path / f"{name}.csv", content(case, size, size), header)
        for name, size in sizes.items()
    }
    # The tokenizer pads with 0.
    fields = CASES[case.family] | {"model_type": case.family, "pad_token_id": 0}
    fields["n_layers" if case.family == "distilbert" else "num_hidden_layers"] = 1
    keys = {"model.pretrained": None, "model.config": fields, "model.tokenizer": tiny_bert_folder}
    keys |= {"train.max_steps": 4, "data.cache_dir": tmp_path / "tokens"}
    result = runs.run(tmp_path / "run", {**keys, **files, **case.keys})

    def call(verb: str, *words: str) -> tuple[str, str]:
        capsys.readouterr()
        runs.VERBS[verb].main([f"--workdir={tmp_path / 'run'}", *words])
        return capsys.readouterr()

    evaluated = json.loads(call("evaluate")[0])
    scores = {name: evaluated[name] for name in result["test"]}
    assert scores == pytest.approx(result["test"], rel=OTHER_ORDER)

    told, _ = call("predict", f"--input={files['data.test']}")
    answers = [json.loads(line) for line in told.splitlines()]
    assert len(answers) == sizes["test"]
    for name, value in scored(case.problem, answers).items():
        assert value == pytest.approx(result["test"][name], rel=OTHER_ORDER), name

    out, said = call("export", f"--output={tmp_path / 'out'}")
    assert out == f"{tmp_path / 'out'}\n"
    assert "weights read back equal, transformers' logits equal to" in said
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["problem_type"]) == (case.family, case.problem)
