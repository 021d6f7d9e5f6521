"""Files -> rows -> token ids and targets, with what was dropped and cut on the way."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import numpy as np

from jaxft import __version__
from jaxft.data.cache import cache_key, cached_map, content_hash
from jaxft.data.sources import read
from jaxft.data.splits import cut_validation, drop_empty
from jaxft.errors import UserError
from jaxft.schema import Data


class Featuriser(Protocol):
    """What a split needs of a task."""

    def features(
        self, columns: Mapping[str, Sequence], tokenizer: Any, max_length: int, source: str
    ) -> dict[str, list]: ...


@dataclass(frozen=True)
class Rows:
    """One split as it was read: the task's columns and `line`."""

    source: str
    dataset: datasets.Dataset
    digest: str
    """Of the source's content and the options it was read with."""


@dataclass(frozen=True)
class Split:
    """One split as the model sees it."""

    rows: Rows
    features: datasets.Dataset
    """`input_ids`, `truncated`, and what the task adds."""
    lengths: np.ndarray
    """Tokens per row, int [N]."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def targets(self) -> list[Any]:
        return list(self.features["target"])


def read_rows(
    source: str,
    data: Data,
    columns: Mapping[str, str],
    texts: Sequence[str],
    say: Callable[[str], None],
    *,
    split: str = "train",
    without: Sequence[str] = (),
) -> Rows:
    """Reads a source and drops its empty texts; `columns` maps a row's parts to keys of `data`.

    Raises:
        UserError: the source cannot be read, or more than `data.max_dropped` of its rows are empty.
    """
    wanted = {name: getattr(data, key) for name, key in columns.items() if name not in without}
    options: dict[str, Any] = {"delimiter": data.delimiter, "quoting": data.quoting}
    options |= {"encoding": data.encoding, "header": data.header}
    everything = read(source, wanted, split=split, **options)
    named = [name for name in texts if name in everything.column_names]
    kept, lines = drop_empty(everything, named, source)
    if lines:
        share = len(lines) / len(everything)
        counted = (
            f"{source}: {len(lines)} of {len(everything)} rows ({share:.1%}) have no text "
            f"(lines {', '.join(map(str, lines[:5]))}{', ...' if len(lines) > 5 else ''})"
        )
        if share > data.max_dropped:
            raise UserError(f"{counted}; data.max_dropped={data.max_dropped:g} allows fewer.")
        say(f"{counted}: dropped.")
    digest = cache_key(content=content_hash(source, split), columns=wanted, **options)
    return Rows(source, kept, digest)


def read_splits(
    data: Data,
    columns: Mapping[str, str],
    texts: Sequence[str],
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Rows]:
    """Training, validation and (where given) test rows; a missing validation split is cut from
    training.
    """
    assert data.train is not None
    rows = {"train": read_rows(data.train, data, columns, texts, say)}
    for name, source in ("validation", data.validation), ("test", data.test):
        if source is not None:
            rows[name] = read_rows(source, data, columns, texts, say, split=name)
    if data.validation is None:
        whole = rows["train"]
        parts = cut_validation(whole.dataset, data.validation_size, seed)
        say(f"No validation split given: {len(parts[1])} rows are cut from {data.train}.")
        for name, part in zip(("train", "validation"), parts, strict=True):
            key = cache_key(whole=whole.digest, part=name, size=data.validation_size, seed=seed)
            rows[name] = Rows(data.train, part, key)
    return rows


def tokenise(rows: Rows, task: Featuriser, tokenizer: Any, data: Data) -> Split:
    """Token ids and targets of a split, from the cache where the same were made before."""
    key = cache_key(
        version=__version__,
        rows=rows.digest,
        tokenizer=tokenizer_content(tokenizer),
        task=repr(task),
        max_length=data.max_length,
    )

    def features(columns: Mapping[str, Sequence]) -> dict[str, list]:
        return task.features(columns, tokenizer, data.max_length, rows.source)

    made = cached_map(rows.dataset, features, key, data.cache_dir)
    lengths = np.asarray([len(ids) for ids in made["input_ids"]], np.int64)
    return Split(rows, made, lengths)


def tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """What a fast tokenizer does, as JSON; the options that its last call left in it are no part of
    that.
    """
    left_behind = {"truncation": None, "padding": None}
    return json.loads(tokenizer.backend_tokenizer.to_str()) | left_behind
