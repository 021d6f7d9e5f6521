"""Which rows train and which validate: empty ones dropped, a validation split cut from train."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from datasets import Dataset

from jaxft.data.duplicates import normalised
from jaxft.errors import UserError


def drop_empty(dataset: Dataset, columns: Sequence[str], path: str) -> tuple[Dataset, list[int]]:
    """The rows with something in each of ``columns``, and the lines of the others.

    None and blank strings are empty; anything else, an empty list of labels too, is not.

    Raises: UserError when no row is left.
    """
    empty = np.zeros(len(dataset), bool)
    for name in columns:
        values = dataset[name][:]
        empty |= [v is None or (isinstance(v, str) and not v.strip()) for v in values]
    if empty.all():
        raise UserError(
            f"{path}: none of the {len(dataset)} rows has something in {' and '.join(columns)}. "
            "Are these the right columns? data.text_column, data.text_pair_column, "
            "data.label_column name them."
        )
    lines = np.asarray(dataset["line"][:])[empty].tolist()
    return (dataset.select(np.flatnonzero(~empty)) if lines else dataset), lines


def cut_validation(
    dataset: Dataset, size: int | float, labels: Sequence[Sequence[str]]
) -> tuple[Dataset, Dataset]:
    """(train, validation): ``size`` rows, or a share below 1, drawn by content alone: runs with
    other seeds are compared on the same rows.

    Rows of equal (normalised) texts stay together, so that the two sides share none. ``labels``
    are the names that each row has, none of a number: each set of names has its share in
    validation, unless all but every row has its own; then the draw is plain. Train keeps a row at
    least of each name, and of each source of a mixture.

    Raises: UserError when one side would be empty.
    """
    n = len(dataset)
    target = max(1, round(size * n)) if isinstance(size, float) else size
    texts = [dataset[name][:] for name in ("text", "text_pair") if name in dataset.column_names]
    origins = dataset["origin"][:] if "origin" in dataset.column_names else [0] * n
    equal = defaultdict(list)
    for row, parts in enumerate(zip(*texts, strict=True)):
        equal["\0".join(normalised(part or "") for part in parts)].append(row)
    groups = [equal[text] for text in sorted(equal, key=_hash)]
    # A class is what the rows of one text are labelled with: a set of names, or those in conflict.
    classes: dict[str, list[list[int]]] = defaultdict(list)
    for rows in groups:
        classes[json.dumps(sorted({json.dumps(sorted(labels[row])) for row in rows}))].append(rows)
    if sum(_count(members) - 1 for members in classes.values()) < target:
        classes = {"": groups}
    drawn = _draw(classes, target) if 0 < target < n else []
    held = [{*labels[row], origin} for row, origin in enumerate(origins)]
    chosen = _but_last(drawn, held)
    if not chosen:
        raise UserError(
            f"data.validation_size={size} of {n} rows leaves train or validation without a row. "
            "Allowed is a share between 0 and 1 or a number of rows below that (rows of equal "
            "texts are not torn apart, and train keeps one of each label and source); or give "
            "data.validation."
        )
    return dataset.select(np.setdiff1d(np.arange(n), chosen)), dataset.select(chosen)


def _draw(classes: Mapping[str, list[list[int]]], target: int) -> list[list[int]]:
    """The first groups of each class that fit its share, one row of each always staying."""
    most = {name: _count(groups) - 1 for name, groups in classes.items()}
    total = sum(_count(groups) for groups in classes.values())
    share = {name: _count(groups) * target / total for name, groups in classes.items()}
    quota = {name: min(int(share[name]), most[name]) for name in classes}
    largest_remainder = sorted(classes, key=lambda name: (quota[name] - share[name], name))
    while (left := target - sum(quota.values())) > 0:
        for name in [name for name in largest_remainder if quota[name] < most[name]][:left]:
            quota[name] += 1
    chosen = []
    for name, groups in classes.items():
        for rows in groups:
            if len(rows) <= quota[name]:
                quota[name] -= len(rows)
                chosen.append(rows)
    return chosen


def _but_last(groups: Sequence[list[int]], held: Sequence[set]) -> list[int]:
    """The rows of the groups in order, without those groups that have the last of what is held."""
    left = Counter(chain.from_iterable(held))
    left.subtract(chain.from_iterable(held[row] for rows in groups for row in rows))
    chosen = []
    for rows in groups:
        theirs = set().union(*(held[row] for row in rows))
        if all(left[one] for one in theirs):
            chosen += rows
        else:
            left.update(theirs)
    return sorted(chosen)


def _count(groups: Sequence[Sequence[int]]) -> int:
    return sum(len(rows) for rows in groups)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
