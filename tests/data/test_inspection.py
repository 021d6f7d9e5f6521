"""The report before step 1: counts, lengths, overlap between splits, the baseline, the advice."""

import io
import json
import random
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, mean_squared_error, r2_score

from jaxft.data import duplicates
from jaxft.data.advice import about_batches, advise
from jaxft.data.duplicates import normalised, overlap, signatures, similarity
from jaxft.data.inspection import Split, baseline, inspect, label_summary, lengths
from jaxft.data.plan import Plan
from jaxft.data.rendering import bars, render
from jaxft.data.sources import read

REAL = Path(__file__).parents[3] / "shared" / "data"

LONG = "I ordered a card on Monday, it has still not arrived and nobody answers my calls {}"


def messages(count, seed=0):
    """Texts of random words, unlike one another."""
    letters = random.Random(seed)
    return [
        " ".join("".join(letters.choices("abcdefghij", k=6)) for _ in range(8))
        for _ in range(count)
    ]


def split(texts, labels=None, tokens=None):
    return Split(texts, labels, tokens if tokens is not None else [len(t) for t in texts])


def compare(texts, known):
    texts, known = list(map(normalised, texts)), list(map(normalised, known))
    return overlap(texts, known, signatures(texts), signatures(known))


# --- overlap ----------------------------------------------------------------------------------


def test_pitfall_32_rows_shared_by_train_and_validation_are_counted_and_shown():
    train = [*messages(300), "Where is my CARD?", LONG.format("today")]
    validation = ["where  is my card?", LONG.format("now"), *messages(50, seed=1)]
    report = inspect({"train": split(train), "validation": split(validation)}, max_length=999)
    (pair,) = report["overlap"]
    assert (pair["of"], pair["with"], pair["rows"]) == ("validation", "train", 52)
    assert (pair["exact"], pair["near"]) == (1, 1)
    assert [example["kind"] for example in pair["examples"]] == ["exact", "near"]
    assert pair["examples"][1]["known"] == normalised(LONG.format("today"))
    (sentence,) = [said for said in said_of(report) if "stand in" in said]
    assert sentence.startswith("2 of 52 validation rows (3.8%) also stand in train")
    assert "validation rows that stand in train: 1 exactly, 1 nearly, of 52" in shown(report)


def test_every_pair_of_splits_is_compared_and_clean_splits_say_zero():
    report = inspect(
        {name: split(messages(20, seed=name)) for name in ("train", "validation", "test")},
        max_length=999,
    )
    pairs = [(p["of"], p["with"], p["exact"], p["near"], p["examples"]) for p in report["overlap"]]
    assert pairs == [
        ("validation", "train", 0, 0, []),
        ("test", "train", 0, 0, []),
        ("test", "validation", 0, 0, []),
    ]


@pytest.mark.parametrize("same", ["ＣＡＦＥ́ one", "café\tOne ", "cafe\u0301 one"])
def test_equality_ignores_case_blanks_and_unicode_forms(same):
    assert normalised(same) == "café one"


def test_near_duplicates_are_those_above_the_similarity_and_found_reliably():
    known = messages(2000)
    drawn = random.Random(3)
    changed = []
    for text in known[:1000]:  # similarities of 0.82 for one letter, 0.67 for two, ...
        letters = list(text)
        for at in drawn.sample(range(len(letters)), drawn.randint(1, 3)):
            letters[at] = "z"
        changed.append("".join(letters))
    truth = sum(similarity(a, b) >= duplicates.NEAR for a, b in zip(changed, known, strict=False))
    found = compare(changed, known)
    assert 200 < truth < 500
    assert 0.95 * truth <= found["near"] <= truth
    assert len(found["examples"]) == 3


def test_the_nearest_of_many_similar_texts_is_the_one_compared():
    (text,) = messages(1)
    nearest = "z" + text[1:]
    further = [text[:at] + "z" + text[at + 1 : -9] + "z" + text[-8:] for at in range(9, 40, 2)]
    assert max(similarity(text, other) for other in further) < duplicates.NEAR
    for known in ([nearest, *further], [*further, nearest]):
        assert [found["known"] for found in compare([text], known)["examples"]] == [nearest]


def test_similarity_is_jaccards_over_character_five_grams():
    assert similarity("abcdef", "abcdef") == 1
    assert similarity("abcdef", "abcdefg") == pytest.approx(2 / 3)
    assert similarity("abc", "abd") == 0
    assert similarity("", "") == 1


def test_exact_rows_are_counted_with_repeats_and_shown_once():
    found = compare(["a b c", "A b c", "other"], ["a b c", "a b c"])
    assert (found["exact"], found["near"], len(found["examples"])) == (2, 0, 1)


def test_texts_of_one_template_stay_affordable():
    texts = [
        f"your ticket {i} was received and is now being worked on, thank you" for i in range(9999)
    ]
    start = time.process_time()
    assert compare(texts[5000:], texts[:5000])["near"] > 4000
    assert time.process_time() - start < 5


def test_signatures_do_not_depend_on_the_texts_around(monkeypatch):
    texts = ["", "a", "abcd", *messages(50), "längere Texte, auch mit 😀 und \ud800", "x" * 5000]
    together = signatures(texts)
    assert together.shape == (len(texts), duplicates.BANDS * duplicates.PLACES)
    np.testing.assert_array_equal(together, np.concatenate([signatures([text]) for text in texts]))
    monkeypatch.setattr(duplicates, "CHUNK", 100)
    np.testing.assert_array_equal(together, signatures(texts))
    assert together[1, :2].tolist() == [3770888181, 2106733717]  # the same on every machine


# --- counts -----------------------------------------------------------------------------------


def test_lengths_say_percentiles_and_what_is_cut():
    found = lengths([*range(1, 101)], max_length=90)
    assert [found[key] for key in ("min", "p50", "p99", "max")] == [1, 50, 99, 100]
    assert found["truncated"] == 0.10
    assert lengths([90, 90], max_length=90)["truncated"] == 0
    assert sum(found["histogram"]["counts"]) == 100
    assert len(found["histogram"]["edges"]) == len(found["histogram"]["counts"]) + 1


def test_labels_are_counted_in_each_kind():
    single = label_summary(["b", "a", "b", "b"])
    assert (single["kind"], single["counts"]) == ("single", {"b": 3, "a": 1})
    assert (single["commonest"], single["share"]) == ("b", 0.75)
    multi = label_summary([["a", "b"], ["b"], [], ["c", "b"]])
    assert (multi["kind"], multi["counts"]) == ("multi", {"b": 3, "a": 1, "c": 1})
    assert multi["share"] == 0.75
    number = label_summary(np.array([1.0, 3.0], np.float32))
    assert (number["kind"], number["min"], number["mean"]) == ("regression", 1, 2)


def test_the_baseline_is_trains_answer_scored_as_sklearn_does():
    train, asked = ["a", "a", "b"], ["b", "a", "b", "b"]
    assert baseline(train, asked) == {"accuracy": accuracy_score(asked, ["a"] * 4)}
    assert baseline([["a", "b"], ["b", "a"], []], [["b", "a"], ["a"]]) == {"accuracy": 0.5}
    train, asked = [0.0, 2.0], [1.0, 2.0, 4.0]
    assert baseline(train, asked) == pytest.approx(
        {"mse": mean_squared_error(asked, [1] * 3), "r2": r2_score(asked, [1] * 3)}
    )
    assert baseline(train, train)["r2"] == 0
    assert baseline([1.0, 1.0], [1.0, 1.0]) == {"mse": 0, "r2": 0}


def test_the_report_is_json_and_counts_repeats_within_a_split():
    splits = {
        "train": split(["A", "a ", "b"], ["x", "x", "y"], np.array([1, 2, 3])),
        "test": split(["c"]),
    }
    report = inspect(splits, max_length=2)
    assert json.loads(json.dumps(report)) == report
    assert report["splits"]["train"]["duplicates"] == 1
    assert report["splits"]["test"]["labels"] is report["splits"]["test"]["baseline"] is None


# --- advice and pictures ----------------------------------------------------------------------

SOUND = {
    "learning_rate": 3e-5,
    "num_train_epochs": 3,
    "warmup_steps": 0.1,
    "parameters": 110_000_000,
}


def said_of(report, **settings):
    return advise(report, **(SOUND | settings))


def report_of(rows=1000, labels=None, tokens=None, max_length=128):
    labels = labels or ["a", "b"] * (rows // 2)
    tokens = [20] * rows if tokens is None else tokens
    return inspect({"train": split(messages(rows), labels, tokens)}, max_length=max_length)


def test_sound_settings_get_no_advice():
    assert said_of(report_of()) == []
    assert said_of(report_of(max_length=512)) == []  # far beyond the longest row is fine


@pytest.mark.parametrize(
    ("report", "settings", "said"),
    [
        ({"rows": 100}, {}, "100 train rows are few"),
        ({}, {"learning_rate": 1e-3}, "far above what suits .* 110 M weights .1e-05 to 5e-05."),
        ({}, {"learning_rate": 1e-6}, "far below .* hardly learn"),
        ({}, {"learning_rate": 0.0}, "no weight will change"),
        ({}, {"learning_rate": 1e-4, "parameters": 7_000_000_000}, "far above"),
        ({}, {"warmup_steps": 0}, "No warmup"),
        (
            {"labels": ["a", "b"] * 497 + ["c"] * 6},
            {},
            r"1 of 3 classes .* 10 train rows.*c \(6\)",
        ),
        ({"labels": ["a"] * 850 + ["b"] * 150}, {}, "85% of the train rows are 'a'"),
        ({"labels": [str(i % 31) for i in range(1000)]}, {}, "31 classes, all .*=regression"),
        ({"tokens": [20] * 980 + [200] * 20}, {}, r"2.0% .* data.max_length=128 .* longest 200"),
    ],
)
def test_each_doubtful_setting_gets_its_sentence(report, settings, said):
    found = said_of(report_of(**report), **settings)
    assert any(re.search(said, sentence) for sentence in found), found


def test_rows_are_those_that_are_learnt_from_not_the_texts_they_are_torn_of():
    report = inspect({"train": split(["one long text"], None, [128] * 1000)}, max_length=128)
    assert report["splits"]["train"]["rows"] == 1000
    assert said_of(report) == []


@pytest.mark.parametrize(
    ("packing", "size", "said"),
    [
        ("none", 21, "train.batch_size=21 is larger than the 20 train rows: each epoch"),
        ("batch", 21, "train.batch_size=21 is larger than the 20 train rows: each epoch"),
        ("rows", 6, "train.batch_size=6 is larger than the 5 train rows of 40 tokens: each epoch"),
    ],
)
def test_a_batch_that_an_epoch_does_not_fill_gets_a_sentence(packing, size, said):
    """Rows that hold several examples are what `train.batch_size` counts."""
    plan = Plan(np.full(20, 10), size, max_length=40, seed=0, packing=packing)
    (sentence,) = about_batches(plan)
    assert sentence.startswith(said)
    assert about_batches(replace(plan, batch_size=size - 1)) == []


def test_many_epochs_are_advised_against_only_for_many_rows():
    many = report_of()
    many["splits"]["train"]["rows"] = 20_000
    assert "6 epochs over 20,000 rows" in said_of(many, num_train_epochs=6)[0]
    assert said_of(report_of(), num_train_epochs=6) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 3e-4, "parameters": 22_000_000},  # a small model stands more
        {"learning_rate": 1e-2, "optimizer": "sgd"},
        {"learning_rate": 1e-3, "warmup_steps": 0, "pretrained": False},
    ],
)
def test_rates_are_judged_for_adamw_on_a_pretrained_model_of_that_size(settings):
    assert said_of(report_of(), **settings) == []


def shown(report, sentences=()):
    console = Console(file=io.StringIO(), width=80)
    render(report, sentences, console)
    return console.file.getvalue()


def test_the_picture_fits_80_columns_and_shows_what_counts():
    labels = [f"[b]label {i % 15} {'x' * 50}" for i in range(300)]
    report = inspect(
        {
            "train": split(messages(300), labels, range(300)),
            "validation": split(["[red]a", "b"], ["never", "seen"], [5, 6]),
        },
        max_length=200,
    )
    picture = shown(report, ["Look at [this]."])
    assert max(map(len, picture.splitlines())) <= 80
    for part in ("33.00%", "15 classes", "[b]label 0", "... 3 rarer", "advice Look at [this]."):
        assert part in picture
    assert "always answering the commonest label on validation: accuracy 0.000" in picture


def test_the_picture_names_where_each_split_is_from():
    sources = {"train": "a/[b].csv", "validation": "cut from a/[b].csv", "test": ""}
    splits = {name: split(["a"])._replace(source=source) for name, source in sources.items()}
    lines = shown(inspect(splits, max_length=9)).splitlines()
    assert lines[:2] == ["train: a/[b].csv", "validation: cut from a/[b].csv"]
    assert not any(line.startswith("test:") for line in lines)


def test_the_picture_of_a_regression_shows_its_range_and_mean_baseline():
    picture = shown(inspect({"train": split(["a", "b"], [0.0, 5.0])}, max_length=9))
    assert "train labels: 0 to 5, mean 2.500, standard deviation 2.500" in picture
    assert "always answering the mean on train: mse 6.250, r2 0.000" in picture


def test_bars_show_every_bin_that_is_not_empty():
    assert bars([0, 1, 700, 350]) == " ▂█▅"


@pytest.mark.skipif(not REAL.exists(), reason="the real data of ../shared/data is absent")
def test_goemotions_is_inspected_in_seconds():
    splits = {}
    for name, file in {"train": "train", "validation": "dev", "test": "test"}.items():
        found = read(str(REAL / f"goemotions/{file}.tsv"), {"text": 0, "label": 1}, header=False)
        labels = [label.split(",") for label in found["label"]]
        splits[name] = split(found["text"][:], labels)
    start = time.process_time()
    report = inspect(splits, max_length=128)
    assert time.process_time() - start < 10
    assert len(report["splits"]["train"]["labels"]["counts"]) == 28
    assert [pair["exact"] for pair in report["overlap"]] == [49, 42, 14]
    assert all(pair["near"] > 0 for pair in report["overlap"])
