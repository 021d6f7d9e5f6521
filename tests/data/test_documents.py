"""Cutting a validation set from the ends of long texts."""

import json
from pathlib import Path

import pytest

from jaxft.data.features import read_splits
from jaxft.errors import UserError
from jaxft.sections import Data
from jaxft.tasks import causal_lm

LINES = [f"Line {i} of a text that is long." for i in range(200)]
PARAGRAPHS = "\n\n".join("\n".join(LINES[i : i + 20]) for i in range(0, 200, 20)) + "\n"


def written(folder: Path, **texts: str) -> dict[str, float]:
    """A file of each text, and a weight."""
    made = {folder / f"{name}.txt": text for name, text in texts.items()}
    for path, text in made.items():
        path.write_text(text)
    return dict.fromkeys(map(str, made), 1.0)


def cut(train: str | dict[str, float], size: int | float = 0.1) -> tuple[list, list, str]:
    """Training and validation rows, each its text and its line, and what is said."""
    said: list[str] = []
    data = Data(train=train, validation_size=size)
    rows = read_splits(causal_lm, data, causal_lm.Options(), said.append)
    assert rows["train"].digest != rows["validation"].digest
    for part in rows.values():
        assert part.dataset["text"][:] == [json.loads(x)["text"] for x in part.dataset["example"]]
    sides = [
        list(zip(rows[name].dataset["text"], rows[name].dataset["line"], strict=True))
        for name in ("train", "validation")
    ]
    return *sides, said[-1]


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        (PARAGRAPHS, "\n\n"),
        (PARAGRAPHS.replace("\n\n", "\n"), "\n"),
        (PARAGRAPHS.replace("\n", " "), " "),
    ],
    ids=["paragraphs", "lines", "words"],
)
@pytest.mark.parametrize("size", [0.07, 0.1, 0.5, 0.93])
def test_the_end_of_one_text_is_cut_where_it_has_a_break(text, mark, size, tmp_path):
    (path,) = written(tmp_path, corpus=text)
    ((head, first),), ((tail, line),), said = cut(path, size)
    assert head + tail == text
    assert head.endswith(mark)
    room = min(size, 1 - size) / 2
    assert size - room <= len(tail) / len(text) <= size + room
    assert (first, line) == (1, head.count("\n") + 1)
    assert said == (f"No validation split given: the end, from line {line} on, is cut from {path}.")
    assert cut(path, size)[:2] == ([(head, first)], [(tail, line)])


@pytest.mark.parametrize(("first", "second", "start"), [(90, 104, 106), (97, 112, 99)])
def test_the_nearest_break_is_taken_on_either_side(first, second, start, tmp_path):
    text = "x" * first + "\n\n" + "y" * (second - first - 2) + "\n\n" + "z" * (198 - second)
    (path,) = written(tmp_path, corpus=text)
    _, ((tail, _),), _ = cut(path, 0.5)
    assert tail == text[start:]


def test_every_text_of_a_mixture_gives_its_end(tmp_path):
    sources = written(tmp_path, one=PARAGRAPHS, other="\n".join(LINES[:50]))
    train, validation, said = cut(sources)
    assert [a[0] + b[0] for a, b in zip(train, validation, strict=True)] == [
        PARAGRAPHS,
        "\n".join(LINES[:50]),
    ]
    lines = [line for _, line in validation]
    assert lines == [190, 46]
    assert f"the end, from line {lines[0]} and {lines[1]} on, is cut from" in said


def test_where_a_source_has_rows_these_are_drawn(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    train, validation, said = cut(written(tmp_path, one=PARAGRAPHS) | {str(path): 1.0})
    assert (len(train), len(validation)) == (181, 20)
    assert (PARAGRAPHS, 1) in train
    assert "20 rows are cut from" in said


def test_a_text_that_cannot_be_cut_so_is_refused(tmp_path):
    (path,) = written(tmp_path, corpus=PARAGRAPHS)
    with pytest.raises(UserError, match=r"size=20 of a training set that is one text is a share"):
        cut(path, 20)
    for text in ("x" * 500, "word " + "x" * 500, "x" * 449 + " " * 51):
        (path,) = written(tmp_path, corpus=text)
        with pytest.raises(UserError, match=r"size=0.1 of .* that is one text: near there"):
            cut(path)
    path = tmp_path / "chat.jsonl"
    turns = [{"role": role, "content": "a word\n\n" * 50} for role in ("user", "assistant")]
    path.write_text(json.dumps({"messages": turns}))
    with pytest.raises(UserError, match=r"size=0.1 of 1 rows leaves"):
        cut(str(path))
