"""What the data looks like before step 1: size, balance, lengths, duplicates, leaks, a baseline.

`inspect` makes one JSON-able report of plain lists; `render` shows it; `advice` says in sentences
what looks wrong for the settings. Nothing here stops a run: overlap and truncation are loud.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from jaxft.data.duplicates import normalised, overlap, signatures

BARS = "▁▂▃▄▅▆▇█"
MOST_CLASSES = 12  # shown; the report holds all
MANY_NUMBERS = 30  # whole numbers beyond so many are rather amounts than the names of classes


class Split(NamedTuple):
    """The rows of one split; each field one entry a row, ``labels`` None where there are none.

    ``texts``: a pair is one text, joined by the caller. ``labels``: names, lists of names (multi
    label) or floats (regression). ``lengths``: tokens with special ones, before truncation.
    """

    texts: Sequence[str]
    labels: Sequence[Any] | None
    lengths: Sequence[int] | np.ndarray


def inspect(splits: Mapping[str, Split], *, max_length: int) -> dict[str, Any]:
    """The report of all splits; the baseline of each is what the first one's labels suggest."""
    texts = {name: [normalised(text) for text in split.texts] for name, split in splits.items()}
    hashed = {name: signatures(rows) for name, rows in texts.items()}
    train = next(iter(splits.values()))
    report: dict[str, Any] = {"max_length": max_length, "splits": {}, "overlap": []}
    for name, split in splits.items():
        report["splits"][name] = {
            "rows": len(split.texts),
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


def render(
    report: Mapping[str, Any], sentences: Sequence[str] = (), console: Console | None = None
) -> None:
    """Shows a report, and the sentences of `advice` under it, on stderr."""
    console = console or Console(stderr=True)
    splits = report["splits"]
    table = _table("", "tokens", "50 %", "99 %", "longest", "truncated", "rows", "repeated")
    for name, split in splits.items():
        tokens = split["lengths"]
        table.add_row(
            name,
            bars(tokens["histogram"]["counts"]),
            *(f"{tokens[key]:,}" for key in ("p50", "p99", "max")),
            _loud(f"{tokens['truncated']:.2%}", tokens["truncated"] > 0),
            f"{split['rows']:,}",
            f"{split['duplicates']:,}",
        )
    console.print(table)
    labels = {name: split["labels"] for name, split in splits.items() if split["labels"]}
    if labels:
        _render_labels(labels, console)
    for name, split in splits.items():
        if split["baseline"]:
            scores = ", ".join(f"{key} {value:.3f}" for key, value in split["baseline"].items())
            answer = "mean" if split["labels"]["kind"] == "regression" else "commonest label"
            console.print(f"always answering the {answer} on {name}: {scores}")
    for pair in report["overlap"]:
        said = f"{pair['of']} rows that stand in {pair['with']}: {pair['exact']} exactly"
        shared = pair["exact"] + pair["near"] > 0
        console.print(_loud(f"{said}, {pair['near']} nearly, of {pair['rows']:,}", shared))
        for example in pair["examples"]:
            texts = dict.fromkeys((example["text"][:80], example["known"][:80]))
            console.print(f"  {example['kind']}: {escape('  ~  '.join(texts))}", soft_wrap=True)
    for sentence in sentences:
        console.print(f"[yellow]advice[/] {escape(sentence)}", soft_wrap=True)


def _render_labels(labels: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    first = next(iter(labels.values()))
    if first["kind"] == "regression":
        for name, each in labels.items():
            console.print(
                f"{name} labels: {each['min']:g} to {each['max']:g}, "
                f"mean {each['mean']:.3f}, standard deviation {each['std']:.3f}"
            )
        return
    counts = first["counts"]
    table = _table(f"{len(counts)} classes", "", *labels)
    most = max(counts.values(), default=1)
    for label in list(counts)[:MOST_CLASSES]:
        row = [f"{each['counts'].get(label, 0):,}" for each in labels.values()]
        table.add_row(escape(label[:40]), "█" * round(16 * counts[label] / most), *row)
    if len(counts) > MOST_CLASSES:
        table.add_row(f"... {len(counts) - MOST_CLASSES} rarer ones", "")
    console.print(table)


def _table(label: str, drawing: str, *numbers: str) -> Table:
    left = (Column(head, no_wrap=True) for head in (label, drawing))
    right = (Column(head, no_wrap=True, justify="right") for head in numbers)
    return Table(*left, *right, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def bars(counts: Sequence[int]) -> str:
    """A histogram in one line; a bin that is not empty always shows."""
    top = max(counts)
    return "".join(BARS[-(-count * 7 // top)] if count else " " for count in counts)


def _loud(text: str, yes: bool) -> str:
    return f"[bold red]{text}[/]" if yes else text


def advice(
    report: Mapping[str, Any],
    *,
    learning_rate: float,
    num_train_epochs: float,
    warmup_steps: float,
    batch_size: int,
    parameters: int,
    optimizer: str = "adamw",
    pretrained: bool = True,
) -> list[str]:
    """Plain sentences where the data, or a setting for this data, looks wrong; most are habits of
    fine-tuning, not laws. ``parameters`` is the model's number of weights.

    Source: the ranges of Devlin et al. 2018 (A.3) and Mosbach et al. 2021 for base-size models.
    """
    name, train = next(iter(report["splits"].items()))
    said = _about_labels(name, train["labels"])
    if train["rows"] < 500:
        said.append(
            f"{train['rows']} {name} rows are few: scores will differ between seeds by points. Run "
            "several seeds (--config.seed) and compare their means."
        )
    if train["rows"] >= 10_000 and num_train_epochs > 5:
        said.append(
            f"{num_train_epochs:g} epochs over {train['rows']:,} rows are many: 2 to 4 usually do "
            "(train.num_train_epochs), more tends to overfit."
        )
    if batch_size > train["rows"]:
        said.append(
            f"train.batch_size={batch_size} is larger than the {train['rows']} {name} rows: each "
            "epoch is one update padded with nothing. Take a smaller one."
        )
    if pretrained and optimizer == "adamw":
        said += _about_rate(learning_rate, parameters)
    if pretrained and warmup_steps == 0 and learning_rate > 0:
        said.append(
            "No warmup: the first updates are large while the optimizer's averages are empty, and "
            "some seeds collapse. optim.warmup_steps=0.1 is the usual choice."
        )
    for split_name, split in report["splits"].items():
        tokens = split["lengths"]
        if tokens["truncated"] > 0.01:
            said.append(
                f"{tokens['truncated']:.1%} of the {split_name} rows are longer than "
                f"data.max_length={report['max_length']} and lose their ends; 99 % have at most "
                f"{tokens['p99']} tokens, the longest {tokens['max']}."
            )
    for pair in report["overlap"]:
        if shared := pair["exact"] + pair["near"]:
            said.append(
                f"{shared} of {pair['rows']} {pair['of']} rows ({shared / pair['rows']:.1%}) also "
                f"stand in {pair['with']}, exactly or nearly: the scores on {pair['of']} flatter."
            )
    return said


def _about_labels(name: str, labels: Mapping[str, Any] | None) -> list[str]:
    if not labels or labels["kind"] == "regression":
        return []
    said = []
    classes = len(labels["counts"])
    if classes > MANY_NUMBERS and all(name.lstrip("-").isdecimal() for name in labels["counts"]):
        said.append(
            f"{classes} classes, all of them whole numbers, are learnt as names without an order. "
            "If they are amounts or marks: --config.task.problem_type=regression."
        )
    if few := [f"{label} ({n})" for label, n in labels["counts"].items() if n < 10]:
        said.append(
            f"{len(few)} of {classes} classes have fewer than 10 {name} rows and "
            f"will hardly be learned: {', '.join(few[-5:])}{', ...' if len(few) > 5 else ''}."
        )
    if labels["share"] > 0.8:
        said.append(
            f"{labels['share']:.0%} of the {name} rows are {labels['commonest']!r}: accuracy says "
            "little here. Watch macro F1, and try class weights."
        )
    return said


def _about_rate(learning_rate: float, parameters: int) -> list[str]:
    small = parameters < 50_000_000  # smaller models stand, and want, larger steps
    low, high = 5e-6, 5e-4 if small else 1e-4
    if parameters > 1_000_000_000:
        low, high = 5e-7, 5e-5
    if learning_rate == 0:
        return ["optim.learning_rate=0: no weight will change."]
    if low <= learning_rate <= high:
        return []
    side, risk = ("below", "hardly learn") if learning_rate < low else ("above", "forget")
    return [
        f"optim.learning_rate={learning_rate:g} is far {side} what suits a pretrained model of "
        f"{parameters / 1e6:,.0f} M weights ({low * 2:g} to {high / 2:g}): it may {risk}."
    ]
