"""Reading the cells of a label column: names, their order, their weights, numbers."""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from jaxft.errors import UserError

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


def names(cell: Any, problem: str, separator: str | None) -> list[str]:
    """The label names in one cell; none for an empty one, or for a number to be learnt."""
    if problem == "regression":
        return []
    if problem == "multi_label_classification":
        if isinstance(cell, str):
            cell = cell.split(separator) if separator else [cell]
        elif not isinstance(cell, Sequence | np.ndarray):
            cell = [] if cell is None else [cell]
    else:
        cell = [cell]
    return [name for name in map(_name, cell) if name]


def _name(value: Any) -> str:
    if _missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    # A column of numbers with a gap is one of floats to pandas, which writes 1 as 1.0 into a CSV.
    return str(int(text.partition(".")[0])) if re.fullmatch(r"-?\d+\.0+", text) else text


def _missing(cell: Any) -> bool:
    """Null, or the NaN that pandas writes for it."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def as_text(cell: Any) -> Any:
    """A cell with its numbers written as names; an empty one and a list stay what they are."""
    if _missing(cell):
        return None
    return [_name(each) for each in cell] if isinstance(cell, list) else _name(cell)


def guess(label: Sequence[Any], separator: str | None) -> Problem:
    """Lists or a separator mean several labels; numbers that are not all whole mean regression.

    What is missing says nothing, and is named where the labels are read.
    """
    if separator is not None or any(isinstance(cell, list | tuple | np.ndarray) for cell in label):
        return "multi_label_classification"
    try:
        numbers = [float(cell) for cell in label if not _missing(cell)]
    except (TypeError, ValueError):
        _refuse_written_lists(label)
        return "single_label_classification"
    whole = all(number.is_integer() for number in numbers)
    return "single_label_classification" if whole else "regression"


def _refuse_written_lists(label: Sequence[Any]) -> None:
    """Raises: UserError for lists as pandas writes them into a CSV: each would be a class."""
    written = [cell.strip() for cell in label if isinstance(cell, str) and cell.strip()]
    if not written or any(cell[0] != "[" or cell[-1] != "]" for cell in written):
        return
    with suppress(ValueError, SyntaxError):
        ast.literal_eval(written[0])
        raise UserError(
            f"The labels are lists written as text, such as {written[0][:60]}. Save the rows as "
            "JSONL or Parquet, which have lists, or join each row's labels and say how "
            "(task.label_separator). Where that is one label's name: "
            "task.problem_type=single_label_classification."
        )


def order(counts: Mapping[str, int], known: Sequence[str]) -> tuple[str, ...]:
    """The checkpoint's own order, else numbers by value, else names by the alphabet."""
    if set(counts) <= set(known):
        return tuple(known)
    if all(re.fullmatch(r"-?\d+", name) for name in counts):
        return tuple(sorted(counts, key=lambda name: (int(name), name)))
    return tuple(sorted(counts))


def class_weights(
    given: Literal["balanced"] | Mapping[str, float] | None,
    labels: Sequence[str],
    counts: Mapping[str, int],
) -> tuple[float, ...]:
    """A factor per label; balanced ones are rows / (classes * rows of the class), as in
    scikit-learn.

    Raises:
        UserError: a factor for a label that the data do not have, or none above 0.
    """
    if given is None:
        return (1.0,) * len(labels)
    if given == "balanced":
        total = sum(counts.values())
        return tuple(total / (len(labels) * max(counts.get(name, 0), 1)) for name in labels)
    strange = [name for name in given if name not in labels]
    if strange:
        raise UserError(
            f"task.class_weights names {', '.join(map(repr, strange))}; the labels are "
            f"{', '.join(map(repr, labels))}."
        )
    factors = tuple(float(given.get(name, 1.0)) for name in labels)
    if not any(factors):
        raise UserError("task.class_weights are all 0: nothing would be learnt.")
    return factors


def number(cell: Any, where: str) -> float:
    """A finite number.

    Raises:
        UserError: it is none; `where` says where.
    """
    try:
        number = float(cell)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {cell!r} is no number, and the task is regression.") from None
    if not np.isfinite(number):
        raise UserError(
            f"{where}: the label is {number}; a regression label must be a finite number."
        )
    return number
