"""What the data looks like before step 1: size, balance, lengths, duplicates, leaks, a baseline.

One JSON-able report of plain lists, which `data.rendering` shows and `data.advice` judges.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from jaxft.data.duplicates import normalised, overlap, signatures


class Split(NamedTuple):
    """What one split holds; ``labels`` None where there are none.

    ``texts``: as they were read; a pair is one text, joined by the caller. ``labels``: names, lists
    of names (multi label) or floats (regression). ``lengths``: tokens with special ones, before
    truncation, of each row that is learnt from: several of a long text, none of one left out.
    ``source``: where it is from, in words.
    """

    texts: Sequence[str]
    labels: Sequence[Any] | None
    lengths: Sequence[int] | np.ndarray
    source: str = ""


def inspect(splits: Mapping[str, Split], *, max_length: int) -> dict[str, Any]:
    """The report of all splits; the baseline of each is what the first one's labels suggest."""
    texts = {name: [normalised(text) for text in split.texts] for name, split in splits.items()}
    hashed = {name: signatures(rows) for name, rows in texts.items()}
    train = next(iter(splits.values()))
    report: dict[str, Any] = {"max_length": max_length, "splits": {}, "overlap": []}
    for name, split in splits.items():
        report["splits"][name] = {
            "source": split.source,
            "rows": len(split.lengths),
            "duplicates": len(texts[name]) - len(set(texts[name])),
            "lengths": lengths(split.lengths, max_length),
            "labels": None if split.labels is None else label_summary(split.labels),
            "baseline": None if split.labels is None else baseline(train.labels, split.labels),
        }
    for known, name in combinations(splits, 2):
        found = overlap(texts[name], texts[known], hashed[name], hashed[known])
        report["overlap"].append({"of": name, "with": known, "rows": len(texts[name]), **found})
    return report


def lengths(tokens: Sequence[int] | np.ndarray, max_length: int) -> dict[str, Any]:
    """Percentiles, a histogram of equal bins, and the share of rows longer than ``max_length``."""
    tokens = np.asarray(tokens)
    bins = min(16, int(np.ptp(tokens)) + 1)
    counts, edges = np.histogram(tokens, bins)
    percentiles = np.percentile(tokens, [0, 50, 90, 99, 100], method="lower").astype(int).tolist()
    return {
        **dict(zip(("min", "p50", "p90", "p99", "max"), percentiles, strict=True)),
        "mean": float(tokens.mean()),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "truncated": float(np.mean(tokens > max_length)),
    }


def label_summary(labels: Sequence[Any]) -> dict[str, Any]:
    """Counts by falling frequency and the commonest's share of rows, or a regression's range."""
    if _regression(labels):
        values = np.asarray(labels, float)
        return {
            "kind": "regression",
            "min": float(values.min()),
            "max": float(values.max()),
            "mean": float(values.mean()),
            "std": float(values.std()),
        }
    multi = any(isinstance(label, list | tuple) for label in labels)
    each = [name for label in labels for name in label] if multi else labels
    counts = {str(name): n for name, n in Counter(each).most_common()}
    commonest = next(iter(counts), None)
    return {
        "kind": "multi" if multi else "single",
        "counts": counts,
        "commonest": commonest,
        "share": counts[commonest] / len(labels) if commonest is not None else 0.0,
    }


def baseline(train: Sequence[Any] | None, labels: Sequence[Any]) -> dict[str, float] | None:
    """Accuracy on ``labels`` of always answering train's commonest label (multi label: set of
    them), in regression mse and r2 of always answering train's mean.
    """
    if train is None:
        return None
    if _regression(train):
        values = np.asarray(labels, float)
        mse = float(np.mean((values - np.mean(np.asarray(train, float))) ** 2))
        variance = float(values.var())
        return {"mse": mse, "r2": 1 - mse / variance if variance else 0.0}
    known, asked = ([_set(label) for label in side] for side in (train, labels))
    commonest = Counter(known).most_common(1)[0][0]
    return {"accuracy": sum(label == commonest for label in asked) / len(asked)}


def _regression(labels: Sequence[Any]) -> bool:
    return not isinstance(labels[0], list | tuple) and np.asarray(labels[:1]).dtype.kind == "f"


def _set(label: Any) -> Any:
    return frozenset(label) if isinstance(label, list | tuple) else label
