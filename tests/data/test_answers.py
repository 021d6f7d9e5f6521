"""Final numbers of answers, as GSM8K's are checked."""

import json
from decimal import Decimal

import pytest

from jaxft.data.answers import number, reference, same

NUMBERS = {
    "She sells 9 eggs a day.\n#### 18": "18",
    "#### 1,234,567": "1234567",
    "#### -7": "-7",
    "####5": "5",
    "#### $1,000.50 in all, of 3": "1000.50",
    "#### none": None,
    "3 and 4. #### 5 #### 6": "5",
    "The answer is 42.": "42",
    "It is 3.50.": "3.5",
    "from -3 to -12": "-12",
    "10-4": "4",
    "10 - 4 = 6": "6",
    "in 2024, 3,4": "4",
    "1,2345": "2345",
    "12,345.6 km": "12345.6",
    "-$5": "-5",
    "no number": None,
    "": None,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_the_final_number_is_what_follows_the_mark_or_the_last_one(text):
    expected = NUMBERS[text]
    assert number(text) == (None if expected is None else Decimal(expected))


def test_numbers_are_equal_as_numbers_and_texts_without_the_blanks_around_them():
    assert same("so 1,000.0 it is.", "#### 1000", "number")
    assert not same("so 1000.5", "#### 1000", "number")
    assert not same("no idea", "none", "number"), "no number is no answer"
    assert same(" violet\n", "violet", "text")
    assert not same("violets", "violet", "text")


def test_every_form_of_example_has_its_answer():
    turns = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "3"}]
    assert reference({"messages": turns}) == "3"
    assert reference({"messages": turns[:1]}) is None
    assert reference({"prompt": "2?", "completion": "4"}) == "4"
    assert reference({"instruction": "2?", "input": "", "output": "5"}) == "5"
    assert reference({"text": "6"}) is None


def test_gsm8ks_answers_are_found(shared_data):
    path = shared_data / "gsm8k" / "train.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    said = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    marked = [text.rpartition("#### ")[2].replace(",", "") for text in said]
    assert [number(text) for text in said] == [Decimal(text) for text in marked]
