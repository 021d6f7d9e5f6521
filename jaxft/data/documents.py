"""Texts and rows to learn from: where a validation set is cut from them."""

import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from jaxft.data.columns import dataset
from jaxft.data.splits import cut_validation
from jaxft.errors import UserError

BREAKS = ("\n\n", "\n", " ")
"""Where a text may be cut, the best first: a blank line, the end of a line, a blank."""


def cut(rows: Dataset, size: int | float, options: Any) -> tuple[Dataset, Dataset]:
    """Training and validation rows; of sources that are one text each, the ends of these."""
    if _each_source_is_one(rows):
        return _cut_ends(rows, size)
    return cut_validation(rows, size, [[]] * len(rows))


def _each_source_is_one(rows: Dataset) -> bool:
    """Whether no source of a training set has rows to choose from, but one long text."""
    sources = set(rows["origin"][:]) if "origin" in rows.column_names else {0}
    return len(sources) == len(rows) and all("text" in json.loads(row) for row in rows["example"])


def _cut_ends(rows: Dataset, size: int | float) -> tuple[Dataset, Dataset]:
    """(train, validation): the texts without their last share ``size``, and these ends.

    Raises: UserError where ``size`` is a number of rows, or a text has no place to be cut.
    """
    where = f"data.validation_size={size} of a training set that is one text"
    if not isinstance(size, float):
        raise UserError(f"{where} is a share of it, such as 0.1; or give data.validation.")
    texts = [json.loads(row)["text"] for row in rows["example"]]
    starts = [_start(text, size) for text in texts]
    if None in starts:
        raise UserError(
            f"{where}: near there, it has neither the end of a line nor a blank. Give "
            "data.validation, or another size."
        )
    lines = [
        line + text.count("\n", 0, start)
        for line, text, start in zip(rows["line"], texts, starts, strict=True)
    ]
    heads = [text[:start] for text, start in zip(texts, starts, strict=True)]
    tails = [text[start:] for text, start in zip(texts, starts, strict=True)]
    return _with(rows, heads, rows["line"][:]), _with(rows, tails, lines)


def _start(text: str, share: float) -> int | None:
    """Where the end of a text begins that is about a ``share`` of it: between half and one and a
    half, at the best of `BREAKS` there is and at the nearest of these.
    """
    wanted = round(len(text) * (1 - share))
    reach = round(len(text) * min(share, 1 - share) / 2)
    for mark in BREAKS:
        before = text.rfind(mark, wanted - reach, wanted)
        after = text.find(mark, wanted, wanted + reach)
        found = [at for at in (before, after) if at >= 0]
        if found:
            at = min(found, key=lambda at: abs(at - wanted)) + len(mark)
            return at if text[:at].strip() and text[at:].strip() else None
    return None


def _with(rows: Dataset, texts: Sequence[str], lines: Sequence[int]) -> Dataset:
    """The rows with other texts, which start in other lines."""
    examples = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    made = dataset({"text": list(texts), "example": examples}, lines, "data.train")
    return made.add_column("origin", rows["origin"][:]) if "origin" in rows.column_names else made
