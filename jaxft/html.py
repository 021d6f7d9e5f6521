"""report.html: what a run reached, in one file that needs nothing else."""

import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from jaxft.files import PathLike, write_file
from jaxft.metrics import constant_answer
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
    metric: str,
    confusion: np.ndarray | None,
    counts: np.ndarray | None,
    labels: Sequence[str],
    mistakes: Sequence[Row],
    inspection: Row,
) -> None:
    """Writes the page.

    metrics: rows of metrics.jsonl. metric: the score that chose the best checkpoint. confusion,
    int[C, C], rows true, and counts, int[C, 3], as a task's `per_class` gives them, are of the test
    split, without one of validation. mistakes: as a task's `worst` gives them, with their texts.
    inspection: as `data.inspection.inspect` gives it, with `advice`, a list of texts. result: as
    result.json.
    """
    split = "test" if "test" in result else "validation"
    # What chose by the loss chose by its exponential too, which says more.
    main = "perplexity" if metric == "loss" and "perplexity" in result[split] else metric
    body = [
        _headline(config, result, split, main),
        _tiles(result),
        _section("How it went", _curves(result, metrics, main)),
        _section("Scores", _scores(result)),
    ]
    if confusion is not None:
        where = f"Where the {split} answers went"
        body.append(_section(where, confusion_table(confusion, labels)))
    if counts is not None:
        body.append(_section("Class by class", per_class(counts, labels)))
    body.append(_section("Where it went most wrong", mistake_list(mistakes)))
    body.append(_section("The data", data_sheet(inspection)))
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


def _headline(config: Row, result: Row, split: str, main: str) -> str:
    above = f"jaxft · {config['task']['name']} · {_model(config)}"
    value, always = number(result[split][main]), _always(result, split, main)
    where = "the test set" if split == "test" else "the validation set"
    said, bar, tick = [], "", ""
    if always is not None:
        answer, base = always
        said.append(f"Always giving {answer} would reach {show(main, base)}.")
        tick = f'<u style="left:{percent(base)}" title="{answer}"></u>'
    steps = f"step {short(result['best_step'])} of {short(result['step'])}"
    chosen = f", {show(main, result['validation'][main])} on validation" if split == "test" else ""
    said.append(f"The best checkpoint is {steps}{chosen}.")
    if main.endswith(SCALED) and math.isfinite(value):
        bar = f'<div class="score"><i style="width:{percent(value)}"></i>{tick}</div>'
    return (
        f'<header><p class="above">{escape(above)}</p>'
        f"<h1>{show(main, value)} <span>{escape(words(main))} on {where}</span></h1>{bar}"
        f"<p>{escape(' '.join(said))}</p></header>"
    )


def _tiles(result: Row) -> str:
    def speed(name: str, unit: str) -> str:
        return f"{short(round(number(result[name]), 1))} {unit}" if result[name] else ""

    steady = speed("steady_examples_per_s", "steady")
    memory = result["peak_memory_bytes"]
    tiles = [
        ("Trained for", _duration(result["wall_s"]), f"{short(result['step'])} updates"),
        ("Compiled in", _duration(result["compile_s"]), ""),
        ("Examples", speed("examples_per_s", "/ s"), steady),
        ("Real tokens", speed("tokens_per_s", "/ s"), "padding not counted"),
        ("Peak memory", f"{number(memory) / 1e9:.2f} GB" if memory else "", ""),
        ("Device", result["device"], ""),
    ]
    cells = [
        f"<div><small>{name}</small><b>{escape(text)}</b><small>{escape(more)}</small></div>"
        for name, text, more in tiles
        if text
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _curves(result: Row, metrics: Sequence[Row], main: str) -> str:
    lines = _lines(metrics)
    mark = ("best", float(result["best_step"]))
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
    scored = lines.pop(f"validation/{main}", [])
    level = _always(result, "validation", main)
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
    if not name.startswith("train/"):
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
    """Of the splits, the constant answer and the named evaluation sets, before and after."""
    splits = [name for name in ("validation", "test") if name in result]
    rows = {name: result[name] for name in splits}
    if base := result["baseline"][splits[-1]]:
        rows[f"always {constant_answer(base)}"] = base
    for name, before in result["before"].items():
        rows |= {f"{name} before": before, f"{name} after": result[name]}
    names = result[splits[-1]]
    shown = [
        [escape(row), *(show(name, scores.get(name)) for name in names)]
        for row, scores in rows.items()
    ]
    return table(["", *(escape(words(name)) for name in names)], shown)


def _environment(result: Row) -> dict[str, Any]:
    return {name: result[name] for name in ("device", "processes", "command", "versions")}


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


def _always(result: Row, split: str, main: str) -> tuple[str, float] | None:
    """The constant answer and its score; None where there is none."""
    base = result["baseline"][split] or {}
    return (constant_answer(base), number(base[main])) if main in base else None


def _model(config: Row) -> str:
    return str(config["model"]["pretrained"] or "a model from scratch").rstrip("/")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{seconds:.1f} s"
