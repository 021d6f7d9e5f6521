"""What a column of labels is taken for."""

import math

import pytest

from jaxft.data.labels import guess, names
from jaxft.errors import UserError

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ([0, 1, 2], SINGLE),
        ([0.0, 1.0, math.nan], SINGLE),  # as pandas writes whole numbers of which one is missing
        ([0.5, math.nan], NUMBER),
        ([0.5, None], NUMBER),
        (["0", "1", "nan"], NUMBER),  # a word, which is refused by its line
        (["good", None], SINGLE),
        ([["a"], None], MULTI),
    ],
)
def test_what_is_missing_does_not_make_labels_a_regression(label, problem):
    assert guess(label, None) == problem


def test_lists_that_pandas_wrote_into_a_csv_are_no_names():
    for label in (["['a', 'b']", " ['a']", None, ""], ["[1, 2]", "[]"]):
        with pytest.raises(UserError, match="lists written as text"):
            guess(label, None)
    for label in (["[spam]", "[ham]"], ["['a']", "b"], ["", None]):
        assert guess(label, None) == SINGLE
    assert guess(["['a']"], ", ") == MULTI


def test_a_missing_label_has_no_name():
    assert [names(cell, SINGLE, None) for cell in (math.nan, None, 1.0)] == [[], [], ["1"]]
    assert names(math.nan, MULTI, None) == []
