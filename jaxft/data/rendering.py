"""The report of `data.inspection` as tables on the terminal; overlap and truncation are loud."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

BARS = "▁▂▃▄▅▆▇█"
MOST_CLASSES = 12  # shown; the report holds all


def render(
    report: Mapping[str, Any], sentences: Sequence[str] = (), console: Console | None = None
) -> None:
    """Shows a report, and the sentences of `advice` under it, on stderr."""
    console = console or Console(stderr=True)
    splits = report["splits"]
    for name, split in splits.items():
        if split["source"]:
            console.print(f"{name}: {escape(split['source'])}", soft_wrap=True, highlight=False)
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
