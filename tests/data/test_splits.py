"""Dropping empty rows, and cutting a validation split."""

import hashlib
from collections import Counter

import pytest
from datasets import Dataset

from jaxft.data.splits import cut_validation, drop_empty
from jaxft.errors import UserError
from jaxft.tasks import classify


def tickets(n=200, labels=("a", "b", "b", "b"), **more):
    columns = {
        "text": [f"message {i}" for i in range(n)],
        "label": [labels[i % len(labels)] for i in range(n)],
        "line": list(range(2, n + 2)),
    }
    return Dataset.from_dict(columns | more)


def cut(data, size, **options):
    """(train, validation) of a classifier's rows."""
    labels = [[]] * len(data)
    if "label" in data.column_names:
        labels = classify.Options(**options).names(data["label"][:])
    return cut_validation(data, size, labels)


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


def test_the_cut_is_by_content_alone():
    data = tickets()
    _, validation = cut(data, 20)
    other = data.select(range(199, -1, -1)).select_columns(["line", "label", "text"])
    assert set(cut(other, 20)[1]["text"]) == set(validation["text"])
    digest = hashlib.sha256(" ".join(validation["text"]).encode()).hexdigest()
    assert digest[:16] == "69f0b000ea615be3"  # the same rows on every machine


@pytest.mark.parametrize(("size", "rows"), [(20, 20), (0.1, 20), (0.5, 100), (1, 1), (0.001, 1)])
def test_size_is_rows_or_a_share(size, rows):
    train, validation = cut(tickets(), size)
    assert (len(train), len(validation)) == (200 - rows, rows)
    assert sorted(train["line"][:] + validation["line"][:]) == list(range(2, 202))
    assert validation["line"][:] == sorted(validation["line"])


def test_each_label_has_its_share_and_rare_ones_stay_in_train():
    labels = ["a"] * 150 + ["b"] * 48 + ["c", "d"]
    train, validation = cut(tickets(label=labels), 20)
    assert Counter(validation["label"]) == {"a": 15, "b": 5}
    assert {"c", "d"} <= set(train["label"])


def test_a_label_in_validation_is_always_in_train():
    pairs = [f"l{i // 2}" for i in range(200)]  # two rows each
    for labels, size in (pairs, 0.1), (pairs, 0.4), (pairs, 0.5), (["a"] * 100 + pairs[:100], 0.6):
        train, validation = cut(tickets(label=labels), size)
        assert len(validation) == size * 200
        assert set(validation["label"]) <= set(train["label"])


@pytest.mark.parametrize("labels", [[i / 7 for i in range(200)], [f"{i}.5" for i in range(200)]])
def test_unique_labels_of_a_regression_are_cut_plainly(labels):
    assert len(cut(tickets(label=labels), 0.25)[1]) == 50


def names(side, separator=None):
    cells = side["label"]
    return {name for cell in cells for name in (cell.split(separator) if separator else cell)}


def test_labels_that_nearly_every_row_has_for_itself_stay_in_train():
    """The draw is plain there, and took the only rows of a label; with single ones, with lists and
    with separated ones."""
    train, validation = cut(tickets(40, label=[f"l{i % 38}" for i in range(40)]), 0.3)
    assert set(validation["label"]) <= set(train["label"])
    lists = [
        [f"x{i}", f"y{i % 7}"] if i % 9 == 0 else [f"y{i % 7}", f"z{i % 5}"] for i in range(60)
    ]
    train, validation = cut(tickets(60, label=lists), 0.5)
    assert len(validation) > 20
    assert names(validation) <= names(train)
    joined = ["|".join(cell) for cell in lists]
    train, validation = cut(tickets(60, label=joined), 0.5, label_separator="|")
    assert len(validation) > 20
    assert names(validation, "|") <= names(train, "|")


def test_every_source_of_a_mixture_keeps_a_row_in_train():
    for small in range(1, 4):
        origin = [0] * 60 + [1] * small
        data = tickets(60 + small, labels=["a", "b"], origin=origin)
        for size in (0.5, 50):
            train, validation = cut(data, size)
            assert set(train["origin"]) == {0, 1}
            assert len(validation) > 25


def test_whole_numbers_are_cut_plainly_where_they_are_to_be_learnt_as_numbers():
    data = tickets(label=list(range(200)))
    assert len(cut(data, 0.25, problem_type="regression")[1]) == 50
    with pytest.raises(UserError, match="train keeps one of each label"):
        cut(data, 0.25)


def test_lists_of_labels_and_no_labels_are_cut():
    labels = [["x", "y"] if i % 2 else ["x"] for i in range(200)]
    validation = cut(tickets(label=labels), 20)[1]
    assert Counter(map(tuple, validation["label"])) == {("x", "y"): 10, ("x",): 10}
    assert len(cut(tickets().remove_columns("label"), 20)[1]) == 20


def test_pitfall_32_equal_texts_are_never_on_both_sides_of_the_cut():
    texts = [f"Message  {i // 4}" if i % 2 else f"message {i // 4}" for i in range(200)]
    for labels in (["a"] * 200, [str(i % 3) for i in range(200)]):
        train, validation = cut(tickets(text=texts, label=labels), 40)
        assert len(validation) == 40
        sides = [{text.lower().split()[1] for text in side["text"]} for side in (train, validation)]
        assert not sides[0] & sides[1]


def test_pairs_are_equal_only_when_both_texts_are():
    data = tickets(text=["same"] * 200, text_pair=[f"other {i}" for i in range(200)])
    assert len(cut(data, 20)[1]) == 20


@pytest.mark.parametrize("size", [0, 200, 500])
def test_a_cut_that_leaves_a_side_empty_is_refused(size):
    with pytest.raises(UserError, match=f"data.validation_size={size} of 200 rows"):
        cut(tickets(), size)
    with pytest.raises(UserError, match="rows of equal"):
        cut(tickets(text=["same"] * 200), 20)
