"""report.html: what a run reached, in one file that needs nothing else."""

import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from jaxft.files import PathLike, write_file
from jaxft.metrics import main_score
from jaxft.svg import Point, Series, line_chart, short, smooth
from jaxft.tables import (
    CSS,
    SHARES,
    Row,
    confusion_table,
    data_sheet,
    mistake_list,
    number,
    per_class,
    percent,
    settings_table,
    show,
    table,
    words,
)

SCALED = ("accuracy", "f1", "matthews", "pearson", "spearman")  # at most 1, so a bar says something


def write_report(
    path: PathLike,
    *,
    config: Row,
    result: Row,
    metrics: Sequence[Row],
    confusion: Any = None,
    labels: Sequence[str] = (),
    mistakes: Sequence[Row] = (),
    inspection: Row | None = None,
) -> None:
    """Writes the page; any part may be missing.

    metrics: rows of metrics.jsonl. confusion: int[C, C], rows true, of the test split, without one
    of validation. mistakes: dicts with text, truth, prediction, and perhaps text_pair, confidence;
    worst first. inspection: as `data.inspection.inspect` gives it, with `advice`, a list of texts.
    result: as result.json; the first score of a split that is no loss is the main one.
    """
    matrix = np.asarray(confusion) if confusion is not None and len(confusion) else None
    labels = labels or [str(index) for index in range(0 if matrix is None else len(matrix))]
    split = "test" if result.get("test") else "validation"
    body = [
        _headline(config, result, split, matrix),
        _tiles(result),
        _section("How it went", _curves(result, metrics)),
        _section("Scores", _scores(result)),
    ]
    if matrix is not None:
        where = f"Where the {split} answers went"
        body.append(_section(where, confusion_table(matrix, labels)))
        body.append(_section("Class by class", per_class(matrix, labels)))
    body.append(_section("The worst mistakes", mistake_list(mistakes)))
    body.append(_section("The data", data_sheet(inspection or {})))
    body.append(_section("The configuration", settings_table(config)))
    body.append(_section("The environment", settings_table(_environment(result))))
    title = escape(f"jaxft · {_model(config)}")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    write_file(path, page.encode("utf-8", "replace"))


def _headline(config: Row, result: Row, split: str, matrix: np.ndarray | None) -> str:
    scores = result.get(split) or {}
    main = main_score(scores)
    task = (config.get("task") or {}).get("name", "")
    above = " · ".join(filter(None, ["jaxft", task, _model(config)]))
    if main is None:
        return f'<header><p class="above">{escape(above)}</p><h1>No score was reached</h1></header>'
    value, base = number(scores[main]), _baseline(result, split, main, matrix)
    where = "the test set" if split == "test" else "the validation set"
    said, bar = [], ""
    if base is not None:
        said.append(f"Always giving the commonest answer would reach {show(main, base)}.")
    if result.get("best_step") is not None:
        steps = f"step {short(result['best_step'])} of {short(result.get('step', 0))}"
        chosen = result.get("validation") or {}
        reached = f", {show(main, chosen[main])} on validation" if main in chosen else ""
        said.append(f"The best checkpoint is {steps}{reached if split == 'test' else ''}.")
    if main.endswith(SCALED) and math.isfinite(value):
        tick = (
            f'<u style="left:{percent(base)}" title="the commonest answer"></u>'
            if base is not None
            else ""
        )
        bar = f'<div class="score"><i style="width:{percent(value)}"></i>{tick}</div>'
    return (
        f'<header><p class="above">{escape(above)}</p>'
        f"<h1>{show(main, value)} <span>{escape(words(main))} on {where}</span></h1>{bar}"
        f"<p>{escape(' '.join(said))}</p></header>"
    )


def _tiles(result: Row) -> str:
    def speed(name: str, unit: str) -> str:
        return f"{short(round(number(result[name]), 1))} {unit}" if result.get(name) else ""

    steady = speed("steady_examples_per_s", "steady")
    memory = result.get("peak_memory_bytes")
    tiles = [
        ("Trained for", _duration(result.get("wall_s")), f"{short(result.get('step', 0))} updates"),
        ("Compiled in", _duration(result.get("compile_s")), ""),
        ("Examples", speed("examples_per_s", "/ s"), steady),
        ("Real tokens", speed("tokens_per_s", "/ s"), "padding not counted"),
        ("Peak memory", f"{number(memory) / 1e9:.2f} GB" if memory else "", ""),
        ("Device", str(result.get("device") or ""), ""),
    ]
    cells = [
        f"<div><small>{name}</small><b>{escape(text)}</b><small>{escape(more)}</small></div>"
        for name, text, more in tiles
        if text
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def _curves(result: Row, metrics: Sequence[Row]) -> str:
    lines = _lines(metrics)
    best = result.get("best_step")
    mark = ("best", float(best)) if best is not None else None
    loss, val_loss = lines.pop("train/loss", []), lines.pop("validation/loss", [])
    charts = [
        line_chart(
            "Loss",
            [
                Series(name="train, as logged", points=loss, kind="faint"),
                Series(name="train, smoothed", points=smooth(loss)),
                Series(name="validation", points=val_loss, colour="var(--c2)", kind="dots"),
            ],
            mark=mark,
        )
    ]
    main = main_score(result.get("validation") or {}) or "accuracy"
    scored = lines.pop(f"validation/{main}", [])
    base = _baseline(result, "validation", main, None)
    level = ("commonest answer", base) if base is not None else None
    line = Series(name=main, points=scored, colour="var(--c2)", kind="dots")
    title = f"Validation {words(main)}"
    shares = main.endswith(SHARES)
    charts.append(line_chart(title, [line], percent=shares, level=level, mark=mark, legend=False))
    names = {"learning_rate": "Learning rate", "grad_norm": "Gradient norm"}
    names |= {"tokens_per_s": "Real tokens per second", "examples_per_s": "Examples per second"}
    first = [f"train/{name}" for name in names]
    groups = sorted({match[1] for name in lines if (match := re.match(r"(.+)/depth_\d+$", name))})
    for name in first:
        charts.append(_by_depth(name, lines) or _single(name, names[name[6:]], lines))
    rest = [_by_depth(name, lines) for name in groups if name not in first]
    rest += [_single(name, name, lines) for name in sorted(lines)]
    shown = f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""
    if not any(rest):
        return shown
    more = f'<summary>More curves</summary><div class="charts">{"".join(rest)}</div>'
    return f"{shown}<details>{more}</details>"


def _single(name: str, title: str, lines: dict[str, list[Point]]) -> str:
    points = lines.pop(name, [])
    if name.startswith("validation/"):
        line = Series(name=title, points=points, colour="var(--c2)", kind="dots")
        return line_chart(title, [line], legend=False)
    if name.endswith("learning_rate"):
        return line_chart(title, [Series(name=title, points=points)], legend=False)
    each = Series(name=title, points=points, kind="faint")
    mean = Series(name="smoothed", points=smooth(points))
    zero = name.endswith("_per_s")  # so that a flutter looks like one
    return line_chart(title, [each, mean], zero=zero, legend=False)


def _by_depth(name: str, lines: dict[str, list[Point]]) -> str:
    """One line a depth, shaded from the embeddings to the head."""
    found = sorted(key for key in lines if key.startswith(f"{name}/depth_"))
    if not found:
        return ""
    lines.pop(name, None)  # the same without depth
    series = []
    for index, key in enumerate(found):
        share = 100 * index / max(len(found) - 1, 1)
        colour = f"color-mix(in oklab, var(--c2) {share:.0f}%, var(--c1))"
        label = key.rpartition("/")[2].replace("_", " ")
        series.append(Series(name=label, points=lines.pop(key), colour=colour, kind="thin"))
    tops = [max((y for _, y in line.points if math.isfinite(y)), default=0.0) for line in series]
    tops = [top for top in tops if top > 0]
    log = bool(tops) and max(tops) > 30 * min(tops)
    title = f"{words(name.rpartition('/')[2]).capitalize()} by depth"
    note = f"from the embeddings (blue) to the head (orange){', log scale' if log else ''}"
    return line_chart(title, series, note=note, log=log, legend=False)


def _scores(result: Row) -> str:
    splits = [name for name in ("validation", "test") if result.get(name)]
    scores = result[splits[-1]] if splits else {}
    names = [name for name, score in scores.items() if isinstance(score, int | float)]
    rows = [
        [escape(split), *(show(name, result[split].get(name)) for name in names)]
        for split in splits
    ]
    base = _baselines(result, splits[-1]) if splits else {}
    if any(name in base for name in names):
        rows.append(["always one answer", *(show(name, base.get(name)) for name in names)])
    return table(["", *(escape(words(name)) for name in names)], rows) if names else ""


def _environment(result: Row) -> dict[str, Any]:
    names = ("device", "processes", "command")
    return {name: result[name] for name in names if result.get(name)} | {
        "versions": result.get("versions") or {}
    }


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _lines(metrics: Sequence[Row]) -> dict[str, list[Point]]:
    """Every series of the log but the bookkeeping."""
    lines: dict[str, list[Point]] = {}
    for row in metrics:
        for name, value in row.items():
            if name not in ("step", "time"):
                lines.setdefault(name, []).append((float(row["step"]), number(value)))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}


def _baselines(result: Row, split: str) -> Row:
    """Scores of always giving the commonest answer, or a regression's mean, by split or for all."""
    base: Row = result.get("baseline") or {}
    return base[split] or {} if split in base else base


def _baseline(result: Row, split: str, main: str, matrix: np.ndarray | None) -> float | None:
    base = _baselines(result, split)
    if main in base:
        return number(base[main])
    if main == "accuracy" and matrix is not None and matrix.sum():
        return float(matrix.sum(axis=1).max() / matrix.sum())
    return None


def _model(config: Row) -> str:
    model = config.get("model") or {}
    return str(model.get("pretrained") or "a model from scratch").rstrip("/")


def _duration(seconds: Any) -> str:
    if seconds is None or not math.isfinite(number(seconds)):
        return ""
    whole = round(number(seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{number(seconds):.1f} s"
