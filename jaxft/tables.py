"""Blocks of report.html: tables, bars, the confusion matrix, mistakes; and its style sheet."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from jaxft.metrics import MOST_NAMED
from jaxft.svg import short

MOST_MISTAKES = 30
LONGEST_TEXT = 700  # characters
SHARES = ("accuracy", "share")  # shown in per cent

Row = Mapping[str, Any]


def confusion_table(matrix: np.ndarray, labels: Sequence[str]) -> str:
    """Rows true, columns predicted, and the commonest mistakes; of too many classes those alone."""
    size = len(labels)
    totals = np.maximum(matrix.sum(axis=1), 1)
    wrong = np.where(np.eye(size, dtype=bool), 0, matrix)
    top = [divmod(int(k), size) for k in np.argsort(-wrong, axis=None, kind="stable")[:5]]
    pairs = [
        f"<li>{escape(labels[i])} taken for {escape(labels[j])}: {matrix[i, j]} of {totals[i]}</li>"
        for i, j in top
        if wrong[i, j]
    ]
    told = f"<h3>Most often</h3><ul>{''.join(pairs)}</ul>" if pairs else ""
    if size > MOST_NAMED:
        note = f"<p class='note'>{size} classes are too many for a table of each with each.</p>"
        return f"<div>{told}{note}</div>"
    drawn = _each_with_each(matrix, labels, totals)
    note = (
        "<p class='note'>A row is what was true, a column what was answered. Point at a cell.</p>"
    )
    return f'<div class="side"><div class="wide">{drawn}{note}</div><div>{told}</div></div>'


def _each_with_each(matrix: np.ndarray, labels: Sequence[str], totals: np.ndarray) -> str:
    """Shaded by the share of the row, off the diagonal in red."""
    size = len(labels)
    head = "".join(f"<th><span>{escape(label)}</span></th>" for label in labels)
    rows = []
    for i, label in enumerate(labels):
        cells = []
        for j, count in enumerate(matrix[i].tolist()):
            if not count:
                cells.append("<td></td>")
                continue
            share = count / totals[i]
            ink = ";color:var(--page)" if share > 0.6 else ""
            colour = "var(--hit)" if i == j else "var(--miss)"
            back = f"color-mix(in oklab,{colour} {8 + 92 * share:.0f}%,transparent)"
            title = f"{label} → {labels[j]}: {count} of {totals[i]} ({share:.1%})"
            cells.append(f'<td style="background:{back}{ink}" title="{escape(title)}">{count}</td>')
        rows.append(f"<tr><th>{escape(label)}</th>{''.join(cells)}</tr>")
    kind = "tiny" if size > 40 else "small" if size > 25 else ""
    return f"<table class='confusion {kind}'><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def per_class(counts: np.ndarray, labels: Sequence[str]) -> str:
    """Of each class, from its rows, its answers and the right ones of these, [C, 3]."""
    true, answered, hits = counts.T
    precision, recall = hits / np.maximum(answered, 1), hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(true + answered, 1)
    rows = [
        [
            escape(label),
            *(_meter(score[index]) for score in (precision, recall, f1)),
            short(int(true[index])),
            short(int(answered[index])),
        ]
        for index, label in enumerate(labels)
    ]
    return table(["class", "precision", "recall", "F1", "rows", "answers"], rows)


def mistake_list(mistakes: Sequence[Row]) -> str:
    """Texts with what was answered and what is true, or with their loss where that is all there
    is.
    """
    items = []
    for row in mistakes[:MOST_MISTAKES]:
        texts = [str(row[name]) for name in ("text", "text_pair") if row.get(name)]
        texts = [text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…" for text in texts]
        said = "".join(f"<blockquote>{escape(text)}</blockquote>" for text in texts)
        items.append(f"<li>{said}<p>{_judged(row)}</p></li>")
    return f'<ol class="mistakes">{"".join(items)}</ol>' if items else ""


def _judged(row: Row) -> str:
    if "truth" not in row:
        return f"<b class='miss'>{short(row['loss per token'])}</b> loss a learnt token"
    sure = row.get("confidence")
    how = f"<small>{percent(number(sure))} sure</small>" if sure is not None else ""
    truth, answer = escape(_plain(row["truth"])), escape(_plain(row["prediction"]))
    return f"<b class='miss'>{answer}</b> was answered, <b class='hit'>{truth}</b> is true {how}"


def data_sheet(inspection: Row) -> str:
    """What `data.inspection` found: splits, lengths, labels, overlap, advice."""
    splits = inspection["splits"]
    head = ["", "rows", "repeated", "tokens, median", "99 %", "longest", "truncated"]
    rows, cards = [], []
    for name, split in splits.items():
        tokens = split["lengths"]
        row = [split["rows"], split["duplicates"], *(tokens[key] for key in ("p50", "p99", "max"))]
        rows.append([escape(name), *map(short, row), f"{100 * tokens['truncated']:.2f}\u00a0%"])
    for name, split in list(splits.items())[:1]:
        histogram = split["lengths"]["histogram"]
        bins = [f"{round(a)} – {round(b)}" for a, b in pairwise(histogram["edges"])]
        counts = [[count] for count in histogram["counts"]]
        cards.append(_bars(f"Tokens in a row of {name}", bins, counts, [name]))
    labels = {name: split["labels"]["counts"] for name, split in splits.items() if _counted(split)}
    if labels:
        each = list(dict.fromkeys(label for counts in labels.values() for label in counts))
        counts = [[counts.get(label, 0) for counts in labels.values()] for label in each]
        cards.append(_bars(f"{len(each)} classes", each, counts, list(labels)))
    shared = [
        [f"{pair['of']} rows in {pair['with']}", *map(short, (pair["exact"], pair["near"]))]
        for pair in inspection["overlap"]
    ]
    found = f"<div><h3>Overlap</h3>{table(['', 'exactly', 'nearly'], shared)}</div>"
    cards += [found] if shared else []
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in inspection["advice"])
    cards += [f"<div><h3>Advice</h3><ul>{said}</ul></div>"] if said else []
    drawn = f'<div class="facts">{"".join(cards)}</div>'
    return table(head, rows) + drawn


def _counted(split: Row) -> bool:
    return bool((split.get("labels") or {}).get("counts"))


def _bars(
    title: str, names: Sequence[str], counts: Sequence[Sequence[int]], columns: Sequence[str]
) -> str:
    """A row a name with its counts, one a column; the bar is the first one's."""
    most = max((row[0] for row in counts), default=0) or 1
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    rows = [
        f"<tr><th>{escape(str(name))}</th>"
        f"<td>{f'<i style=width:{percent(row[0] / most)}></i>' if row[0] else ''}</td>"
        f"{''.join(f'<td>{short(count)}</td>' for count in row)}</tr>"
        for name, row in zip(names, counts, strict=True)
    ]
    body = f'<table class="bars"><tr><th></th><th></th>{head}</tr>{"".join(rows)}</table>'
    return f'<div><h3>{escape(title)}</h3><div class="tall">{body}</div></div>'


def settings_table(settings: Row) -> str:
    """Sections of a nested dict side by side, keys as one would give them on the command line."""
    loose = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    parts = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    if loose:
        parts[""] = loose
    blocks = [
        f"<div>{f'<h3>{escape(str(name))}</h3>' if name else ''}"
        + table([], [[escape(str(key)), escape(_plain(value))] for key, value in part.items()])
        + "</div>"
        for name, part in parts.items()
        if part
    ]
    return f'<div class="settings">{"".join(blocks)}</div>' if blocks else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the first of a row names it."""
    top = f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>" if head else ""
    lines = [
        f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    ]
    return f'<div class="wide"><table>{top}{"".join(lines)}</table></div>'


def show(name: str, value: Any) -> str:
    if value is None:
        return "–"
    score = number(value)
    if name.endswith(SHARES) and math.isfinite(score):
        return f"{100 * score:.1f}\u00a0%"
    return f"{score:.3f}" if math.isfinite(score) and abs(score) < 1000 else short(score)


def _meter(share: float) -> str:
    return f"<span class='meter'><i style='width:{percent(share)}'></i></span>{share:.3f}"


def percent(share: float) -> str:
    """A width for CSS; nothing for NaN."""
    return f"{100 * min(max(0.0, share), 1.0):.1f}%"


def words(name: str) -> str:
    return name.replace("_", " ").replace("f1", "F1")


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return short(value) if isinstance(value, float) else str(value)


def number(value: Any) -> float:
    return float(value)  # "NaN" too, as JSON has it


CSS = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #fff; --ink: #22262d; --soft: #667080;
  --line: #e4e2dc; --c1: #2f6fb3; --c2: #d9742b; --hit: #2b7a6f; --miss: #c4473d; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1c2026; --ink: #e4e7eb;
  --soft: #97a1af; --line: #313740; --c1: #6aaef0; --c2: #f0a05a; --hit: #58b8a8; --miss: #ee8378;
} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 80px; }
.above, small, .note { color: var(--soft); font-size: 13px; }
.above { margin: 0; letter-spacing: .02em; overflow-wrap: anywhere; }
h1 { font-size: clamp(34px, 7vw, 58px); line-height: 1.1; margin: 8px 0 14px;
  letter-spacing: -.02em; }
h1 span { font-size: .42em; font-weight: 500; letter-spacing: 0; color: var(--soft); }
h2 { font-size: 21px; margin: 44px 0 14px; }
h3 { font-size: 14px; margin: 0 0 8px; color: var(--soft); font-weight: 600; }
.score { position: relative; height: 10px; border-radius: 5px; background: var(--line); }
.score i { position: absolute; inset: 0 auto 0 0; border-radius: 5px; background: var(--hit); }
.score u { position: absolute; top: -4px; bottom: -4px; width: 3px; margin-left: -1px;
  border-radius: 2px; background: var(--ink); box-shadow: 0 0 0 2px var(--page); }
.tiles { display: grid; gap: 12px; margin-top: 22px;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tiles div, .chart, .mistakes li, .facts > div, .settings > div { background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tiles b { display: block; font-size: 18px; overflow-wrap: anywhere; }
.chart { margin: 0; } .chart svg { display: block; width: 100%; height: auto; margin-top: 6px; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; }
.key { font-size: 13px; color: var(--soft); }
.key i { display: inline-block; width: 14px; height: 3px; margin: 0 6px 3px 0; border-radius: 2px; }
.tick { font-size: 12px; fill: var(--soft); }
.end { text-anchor: end; } .mid { text-anchor: middle; }
svg line { stroke: var(--line); } line.level { stroke: var(--soft); stroke-dasharray: 5 4; }
line.mark { stroke: var(--hit); stroke-dasharray: 2 3; } path.bad { fill: var(--miss); }
path.line, path.dots, path.faint, path.thin { fill: none; stroke-width: 2; stroke-linejoin: round; }
path.thin { stroke-width: 1.3; } path.faint { stroke-width: 1; opacity: .35; }
@media (max-width: 600px) { .tick { font-size: 17px; } }
.strip { fill: var(--ink); opacity: 0; } .strip:hover { opacity: .08; }
.wide { overflow-x: auto; } .tall { max-height: 580px; overflow: auto; }
table { border-collapse: collapse; font-size: 14px; }
th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
.settings td { white-space: normal; overflow-wrap: anywhere; }
.confusion th, .confusion td { border: 0; padding: 0; }
.confusion tr > th:first-child { padding-right: 10px; white-space: nowrap; text-align: right;
  position: sticky; left: 0; background: var(--page); vertical-align: middle; }
.confusion tr:first-child th { height: 130px; vertical-align: bottom; }
.confusion tr:first-child span { display: inline-block; writing-mode: vertical-rl;
  max-height: 220px; transform: rotate(180deg); white-space: nowrap; padding-top: 6px; }
.confusion td { min-width: 42px; height: 34px; text-align: center; vertical-align: middle;
  border: 1px solid var(--line); }
.side { display: flex; flex-wrap: wrap; gap: 20px 48px; } .side > * { max-width: 100%; }
.side ul { padding-left: 18px; }
.tiny { font-size: 9px; line-height: 1.1; }
.tiny td { min-width: 11px; height: 11px; font-size: 0; }
.small { font-size: 10px; } .small td { min-width: 17px; height: 17px; font-size: 8px; }
.meter { display: inline-block; width: 90px; height: 7px; border-radius: 4px; margin-right: 8px;
  background: var(--line); } .meter i { display: block; height: 100%; border-radius: 4px;
  background: var(--c1); }
.charts, .mistakes { list-style: none; margin: 0; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.mistakes p { margin: 8px 0 0; font-size: 14px; }
.hit { color: var(--hit); } .miss { color: var(--miss); }
blockquote { margin: 0 0 6px; padding-left: 12px; border-left: 3px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 12em; overflow-y: auto; }
.facts, .settings { columns: 320px; column-gap: 14px; margin-top: 14px; }
.facts > div, .settings > div { break-inside: avoid; margin-bottom: 14px; }
.facts ul { margin: 0; padding-left: 20px; }
.bars { width: 100%; } .bars td:nth-child(2) { width: 40%; padding-top: 10px; }
.bars :is(td, th):nth-child(n + 3) { text-align: right; padding: 4px 0 4px 10px; }
.bars i { display: block; height: 8px; min-width: 1px; border-radius: 4px; background: var(--c1); }
.settings table { font-size: 13px; } .settings tr:last-child > * { border: 0; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); margin-bottom: 12px; }
"""
