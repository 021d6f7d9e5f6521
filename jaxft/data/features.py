"""Files -> rows -> token ids and targets, with what was dropped and cut on the way."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np

from jaxft.data.cache import cache_key, cached_map, content_hash
from jaxft.data.encoding import tokenizer_content
from jaxft.data.labels import as_text
from jaxft.data.sources import quiet, refuse_unread, several
from jaxft.data.splits import drop_empty
from jaxft.data.templates import before_text
from jaxft.errors import UserError
from jaxft.sections import Data
from jaxft.stderr import Say, silently

MAKERS = ("data/*.py", "tasks/*.py", "problems.py")
"""The files of the package that decide what tokens and targets are."""
BY = ("tokenizers", "transformers")
"""The packages whose versions do so too."""
EVALUATION = "eval/"
"""What the names of further evaluation splits begin with."""


class Reader(Protocol):
    """What reading a split needs of a task: its module."""

    TEXTS: Sequence[str]
    """Columns that must not be empty, as far as there are."""

    def reading(self, data: Data, answers: bool) -> dict[str, Any]:
        """What `read` depends on beside the source, as JSON; `answers`: rows to learn from."""

    def read(self, source: str, *, split: str, **options: Any) -> datasets.Dataset:
        """The columns the task needs, and `line`."""

    def cut(
        self, dataset: datasets.Dataset, size: int | float, options: Any
    ) -> tuple[datasets.Dataset, datasets.Dataset]:
        """Training and validation rows of a training set, for the task's `options`."""


class Featuriser(Protocol):
    """What tokenising a split needs of a task."""

    def features(
        self, columns: Mapping[str, Sequence], tokenizer: Any, max_length: int, source: str
    ) -> dict[str, list]:
        """`input_ids`, `full_length`, and more; `trained` and `lost` (targets that were cut off)
        where a row has many, `row` (which of `columns` a row is made of) where they are not one to
        one, `dropped` (a reason, or "") where some cannot be used.
        """


@dataclass(frozen=True)
class Rows:
    """One split as it was read: the task's columns and `line`."""

    source: str
    dataset: datasets.Dataset
    digest: str
    """Of the source's content and the options it was read with; "": its tokens are not kept."""
    weights: tuple[float, ...] = (1.0,)
    """Of the sources that are mixed here; column `origin` says which one a row is from."""


@dataclass(frozen=True)
class Split:
    """One split as the model sees it."""

    rows: Rows
    features: datasets.Dataset
    """`input_ids`, `full_length`, `row` (in `rows`), and what the task adds."""
    lengths: np.ndarray
    """Tokens per row, int [N]."""

    def __len__(self) -> int:
        return len(self.features)

    def row(self, number: int) -> dict[str, Any]:
        """The row, as it was read, that an example is made of."""
        return self.rows.dataset[self.features[number]["row"]]

    @property
    def counts(self) -> tuple[int, ...]:
        """Examples of each of the sources that are mixed; they follow each other."""
        if "origin" not in self.rows.dataset.column_names:
            return (len(self),)
        origins = np.asarray(self.rows.dataset["origin"][:])[np.asarray(self.features["row"][:])]
        return tuple(np.bincount(origins, minlength=len(self.rows.weights)).tolist())

    @property
    def targets(self) -> list[Any] | None:
        """What the task wants as the answer of each row; None where its answers are tokens."""
        if "target" not in self.features.column_names:
            return None
        return list(self.features["target"])


def read_rows(
    reader: Reader,
    source: str,
    data: Data,
    say: Say,
    *,
    split: str = "train",
) -> Rows:
    """Reads a source and drops its empty texts.

    Raises:
        UserError: the source cannot be read, or more than `data.max_dropped` of its rows are empty.
    """
    if part := several(source, split):
        say(f"{source}: its split {part} is read.")
    options = reader.reading(data, answers=True)
    everything = reader.read(source, split=split, **options)
    named = [name for name in reader.TEXTS if name in everything.column_names]
    kept, lines = drop_empty(everything, named, source)
    if lines:
        _count_dropped(lines, len(everything), "have no text", source, data.max_dropped, say)
    digest = cache_key(content=content_hash(source, split), **options)
    return Rows(source, kept, digest)


def _count_dropped(
    lines: Sequence[int],
    total: int,
    why: str,
    source: str,
    allowed: float,
    say: Say,
) -> None:
    """Says how many rows are left out; raises UserError when they are more than allowed."""
    counted = (
        f"{source}: {len(lines)} of {total} rows ({len(lines) / total:.1%}) {why} "
        f"(lines {', '.join(map(str, lines[:5]))}{', ...' if len(lines) > 5 else ''})"
    )
    if len(lines) > allowed * total:
        raise UserError(f"{counted}; data.max_dropped={allowed:g} allows fewer.")
    say(f"{counted}: dropped.")


@quiet()
def read_splits(reader: Reader, data: Data, options: Any, say: Say) -> dict[str, Rows]:
    """Training, validation and (where given) test rows; a missing validation split is cut from
    training.
    """
    assert data.train is not None
    weights = data.train if isinstance(data.train, dict) else {data.train: 1.0}
    held_out = [data.validation, data.test, *data.evaluations.values()]
    refuse_unread(data.format_given, [*weights, *filter(None, held_out)])
    mixed = {source: read_rows(reader, source, data, say) for source in weights}
    rows = {"train": _mix(mixed, tuple(weights.values()))}
    for name, source in ("validation", data.validation), ("test", data.test):
        if source is not None:
            rows[name] = read_rows(reader, source, data, say, split=name)
    for name, source in data.evaluations.items():
        rows[f"{EVALUATION}{name}"] = read_rows(reader, source, data, say, split="test")
    if data.validation is None:
        whole = rows["train"]
        parts = reader.cut(whole.dataset, data.validation_size, options)
        what = f"{len(parts[1])} rows are"
        if len(parts[0]) == len(whole.dataset):  # no row went, but the ends of texts
            what = f"the end, from line {' and '.join(map(str, parts[1]['line']))} on, is"
        say(f"No validation split given: {what} cut from {whole.source}.")
        for name, part in zip(("train", "validation"), parts, strict=True):
            key = cache_key(whole=whole.digest, part=name, size=data.validation_size)
            rows[name] = Rows(whole.source, part, key, whole.weights)
    return rows


def _mix(parts: Mapping[str, Rows], weights: tuple[float, ...]) -> Rows:
    """Several sources behind each other, in the order they were named."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    datasets_ = [
        one.add_column("origin", np.full(len(one), i))
        for i, one in enumerate(_aligned({name: part.dataset for name, part in parts.items()}))
    ]
    digest = cache_key(parts=[part.digest for part in parts.values()])
    return Rows(" + ".join(parts), datasets.concatenate_datasets(datasets_), digest, weights)


def _aligned(parts: Mapping[str, datasets.Dataset]) -> list[datasets.Dataset]:
    """With labels of one type: a CSV file has them as text, where others may have numbers.

    Raises: UserError where some are lists and others are not.
    """
    if len({str(part.features.get("label")) for part in parts.values()}) == 1:
        return list(parts.values())
    cells = {name: [as_text(cell) for cell in part["label"]] for name, part in parts.items()}
    lists = [name for name in parts if any(isinstance(cell, list) for cell in cells[name])]
    others = [name for name in parts if any(isinstance(cell, str) for cell in cells[name])]
    if lists and others:
        raise UserError(
            f"Labels are lists in {', '.join(lists)}, but not in {', '.join(others)}: the sources "
            "that data.train mixes have labels of one kind."
        )
    return [
        part.remove_columns("label").add_column("label", cells[name])
        for name, part in parts.items()
    ]


@quiet()
def tokenise(
    rows: Rows,
    task: Featuriser,
    tokenizer: Any,
    data: Data,
    say: Say = silently,
) -> Split:
    """Token ids and targets of a split, from the cache where the same were made before.

    Raises:
        UserError: what the task refuses, or more than `data.max_dropped` of the rows it cannot use.
    """
    key = rows.digest and cache_key(
        code=_code(),
        rows=rows.digest,
        tokenizer=tokenizer_content(tokenizer),
        task=repr(task),
        max_length=data.max_length,
    )
    numbered = rows.dataset.add_column("row", np.arange(len(rows.dataset)))

    def features(columns: Mapping[str, Sequence]) -> dict[str, list]:
        made = task.features(columns, tokenizer, data.max_length, rows.source)
        first = made.pop("row", range(len(columns["row"])))
        return {**made, "row": [columns["row"][i] for i in first]}

    made = cached_map(numbered, features, key or None, data.cache_dir)
    if "dropped" in made.column_names:
        made = _usable(made, rows, data.max_dropped, say)
    _say_cut(made, rows.source, data.max_length, say)
    _say_bare(made, rows.source, tokenizer, say)
    lengths = np.asarray([len(ids) for ids in made["input_ids"]], np.int64)
    return Split(rows, made, lengths)


@cache
def _code() -> str:
    """Of the code that makes tokens and targets, none of which outlive a change of it."""
    package = Path(__file__).parent.parent
    files = sorted(path for name in MAKERS for path in package.glob(name))
    made_by = [version(name).encode() for name in BY]
    return hashlib.sha256(
        b"\0".join([*made_by, *(path.read_bytes() for path in files)])
    ).hexdigest()


def _usable(made: datasets.Dataset, rows: Rows, allowed: float, say: Say) -> datasets.Dataset:
    """The rows that can be learned from; the others are counted by reason."""
    reasons = np.asarray(made["dropped"][:])
    for reason in sorted(set(reasons) - {""}):
        lost = np.asarray(made["row"][:])[reasons == reason]
        lines = np.asarray(rows.dataset["line"][:])[lost].tolist()
        why = f"cannot be learned from: {reason}"
        _count_dropped(lines, len(made), why, rows.source, allowed, say)
    if not (reasons == "").any():
        raise UserError(f"{rows.source}: no row is left to learn from.")
    return made.select(np.flatnonzero(reasons == "")) if reasons.any() else made


def _say_cut(made: datasets.Dataset, source: str, max_length: int, say: Say) -> None:
    """How many rows lose their ends, and of their targets what share."""
    cut = np.count_nonzero(np.asarray(made["full_length"]) > max_length)
    if not cut:
        return
    said = (
        f"{source}: {cut} of {len(made)} rows ({cut / len(made):.1%}) have more than "
        f"data.max_length={max_length} tokens and lose their ends"
    )
    if "lost" in made.column_names and (lost := sum(made["lost"])):
        whole = lost + sum(sum(row) for row in made["trained"])
        said += f", with {lost} of {whole} learnt tokens ({lost / whole:.1%})"
    say(f"{said}.")


def _say_bare(made: datasets.Dataset, source: str, tokenizer: Any, say: Say) -> None:
    """How many rows lack what the tokenizer puts before a text: a chat template may forget it."""
    if not (before := before_text(tokenizer)):
        return
    _, starts = np.unique(made["row"][:], return_index=True)  # a document is torn into several
    bare = sum(ids[: len(before)] != before for ids in made.select(starts)["input_ids"])
    if bare:
        say(
            f"{source}: {bare} of {len(starts)} rows begin without "
            f"{tokenizer.decode(before)}, which the tokenizer puts before a text and the chat "
            "template does not. A model that was trained with it is better with a template that "
            "has it, as those that task.chat_template names do."
        )
