"""Dropping empty rows, and cutting a validation split."""

import hashlib
from collections import Counter

import pytest
from datasets import Dataset

from jaxft.data.splits import cut_validation, drop_empty
from jaxft.errors import UserError


def tickets(n=200, labels=("a", "b", "b", "b"), **more):
    columns = {
        "text": [f"message {i}" for i in range(n)],
        "label": [labels[i % len(labels)] for i in range(n)],
        "line": list(range(2, n + 2)),
    }
    return Dataset.from_dict(columns | more)


def test_rows_without_text_are_dropped_and_their_lines_given():
    texts = ["a", " \t", None, "b", "c"]
    data = tickets(5, text=texts, text_pair=["x", "x", "x", "", "y"])
    kept, lines = drop_empty(data, ["text"], "a.csv")
    assert (kept["text"][:], lines) == (["a", "b", "c"], [3, 4])
    kept, lines = drop_empty(data, ["text", "text_pair"], "a.csv")
    assert (kept["text"][:], lines) == (["a", "c"], [3, 4, 5])


def test_an_empty_list_of_labels_is_an_answer():
    data = tickets(2, label=[[], ["a"]])
    assert drop_empty(data, ["text", "label"], "a.csv") == (data, [])


def test_a_source_with_only_empty_texts_is_refused():
    with pytest.raises(UserError, match=r"a.csv: none of the 2 rows .*data.text_column"):
        drop_empty(tickets(2, text=["", None]), ["text"], "a.csv")


def test_the_cut_is_by_content_and_seed_alone():
    data = tickets()
    _, validation = cut_validation(data, 20, seed=0)
    other = data.select(range(199, -1, -1)).select_columns(["line", "label", "text"])
    assert set(cut_validation(other, 20, seed=0)[1]["text"]) == set(validation["text"])
    assert set(cut_validation(data, 20, seed=1)[1]["text"]) != set(validation["text"])
    digest = hashlib.sha256(" ".join(validation["text"]).encode()).hexdigest()
    assert digest[:16] == "98e5497a81e7cdc6"  # the same rows on every machine


@pytest.mark.parametrize(("size", "rows"), [(20, 20), (0.1, 20), (0.5, 100), (1, 1), (0.001, 1)])
def test_size_is_rows_or_a_share(size, rows):
    train, validation = cut_validation(tickets(), size, seed=0)
    assert (len(train), len(validation)) == (200 - rows, rows)
    assert sorted(train["line"][:] + validation["line"][:]) == list(range(2, 202))
    assert validation["line"][:] == sorted(validation["line"])


def test_each_label_has_its_share_and_rare_ones_stay_in_train():
    labels = ["a"] * 150 + ["b"] * 48 + ["c", "d"]
    train, validation = cut_validation(tickets(label=labels), 20, seed=0)
    assert Counter(validation["label"]) == {"a": 15, "b": 5}
    assert {"c", "d"} <= set(train["label"])


def test_a_label_in_validation_is_always_in_train():
    pairs = [f"l{i // 2}" for i in range(200)]  # two rows each
    for labels, size in (pairs, 0.1), (pairs, 0.4), (pairs, 0.5), (["a"] * 100 + pairs[:100], 0.6):
        train, validation = cut_validation(tickets(label=labels), size, seed=0)
        assert len(validation) == size * 200
        assert set(validation["label"]) <= set(train["label"])


@pytest.mark.parametrize("labels", [[i / 7 for i in range(200)], [f"{i}.5" for i in range(200)]])
def test_unique_labels_of_a_regression_are_cut_plainly(labels):
    assert len(cut_validation(tickets(label=labels), 0.25, seed=0)[1]) == 50


def test_lists_of_labels_and_no_labels_are_cut():
    labels = [["x", "y"] if i % 2 else ["x"] for i in range(200)]
    validation = cut_validation(tickets(label=labels), 20, seed=0)[1]
    assert Counter(map(tuple, validation["label"])) == {("x", "y"): 10, ("x",): 10}
    assert len(cut_validation(tickets().remove_columns("label"), 20, seed=0)[1]) == 20


def test_pitfall_32_equal_texts_are_never_on_both_sides_of_the_cut():
    texts = [f"Message  {i // 4}" if i % 2 else f"message {i // 4}" for i in range(200)]
    for labels in (["a"] * 200, [str(i % 3) for i in range(200)]):
        train, validation = cut_validation(tickets(text=texts, label=labels), 40, seed=0)
        assert len(validation) == 40
        sides = [{text.lower().split()[1] for text in side["text"]} for side in (train, validation)]
        assert not sides[0] & sides[1]


def test_pairs_are_equal_only_when_both_texts_are():
    data = tickets(text=["same"] * 200, text_pair=[f"other {i}" for i in range(200)])
    assert len(cut_validation(data, 20, seed=0)[1]) == 20


@pytest.mark.parametrize("size", [0, 200, 500])
def test_a_cut_that_leaves_a_side_empty_is_refused(size):
    with pytest.raises(UserError, match=f"data.validation_size={size} of 200 rows"):
        cut_validation(tickets(), size, seed=0)
    with pytest.raises(UserError, match="rows of equal"):
        cut_validation(tickets(text=["same"] * 200), 20, seed=0)
