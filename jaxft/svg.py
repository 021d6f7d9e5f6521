"""Line charts as inline SVG: no script, no external file, colours from the page's CSS variables.

A tooltip is an SVG <title> on a transparent strip, one for every x that has room.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from typing import Literal

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 14, 30
MOST_POINTS = 400  # of a drawn line; a longer one keeps the extremes of each stretch
MOST_STRIPS = 130
MOST_DOTS = 60
DECADES = 6  # that a log scale shows below its top

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. points: (x, y) by rising x; a y that is not finite is marked, never joined over."""

    name: str
    points: Sequence[Point]
    colour: str = "var(--c1)"
    kind: Literal["line", "thin", "faint", "dots"] = "line"  # dots: a line with its points


@dataclass(frozen=True)
class _Axes:
    """Where data lie in the picture."""

    first: float
    last: float
    ticks: list[float]
    log: bool
    percent: bool

    def across(self, x: float) -> float:
        return LEFT + (x - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def up(self, y: float) -> float:
        y, low, high = (
            math.log(value) if self.log else value for value in (y, self.ticks[0], self.ticks[-1])
        )
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def holds(self, y: float) -> bool:
        return math.isfinite(y) and (not self.log or y >= self.ticks[0])

    def text(self, y: float) -> str:
        return f"{100 * y:.4g}\u00a0%" if self.percent and math.isfinite(y) else short(y)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    percent: bool = False,
    log: bool = False,
    level: tuple[str, float] | None = None,
    mark: tuple[str, float] | None = None,
    zero: bool = False,
    legend: bool = True,
) -> str:
    """A <figure>. level: a named horizontal line at y; mark: a named vertical line at x; zero: the
    y axis begins at 0."""
    series = [line for line in series if line.points]
    if not series:
        return ""
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points if math.isfinite(y) and (y > 0 or not log)]
    ys += ([level[1]] if level else []) + ([0.0] if zero else [])
    ticks = _log_ticks(ys) if log else _ticks(min(ys, default=0.0), max(ys, default=1.0))
    axes = _Axes(min(xs), max(max(xs), min(xs) + 1), ticks, log, percent)
    parts = _frame(axes, level, mark)
    for line in series:
        parts += _drawn(line, axes)
    parts += _strips(series, axes)
    names = "".join(
        f'<span class="key"><i style="background:{line.colour}"></i>{escape(line.name)}</span>'
        for line in series
        if legend and line.kind != "faint"
    )
    caption = f"<b>{escape(title)}</b>" + (f"<small>{escape(note)}</small>" if note else "")
    return (
        f'<figure class="chart"><figcaption>{caption}{names}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def smooth(points: Sequence[Point], share: float = 0.06) -> list[Point]:
    """The mean over a window of `share` of the points around each: no lag, NaNs left out."""
    finite = [point for point in points if math.isfinite(point[1])]
    sums = [0.0, *accumulate(y for _, y in finite)]
    half = round(share * len(finite) / 2)
    out = []
    for index, (x, _) in enumerate(finite):
        start, end = max(0, index - half), min(len(finite), index + half + 1)
        out.append((x, (sums[end] - sums[start]) / (end - start)))
    return out


def short(value: float) -> str:
    """A number as people write it: 12,345, 0.123, 2e-05."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0 or (abs(value) < 1e15 and value == int(value)):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _frame(
    axes: _Axes, level: tuple[str, float] | None, mark: tuple[str, float] | None
) -> list[str]:
    parts = [_text("end", LEFT - 7, HEIGHT - 9, "step")]
    for tick in axes.ticks:
        parts.append(_across_line("grid", axes.up(tick)))
        parts.append(_text("end", LEFT - 7, axes.up(tick) + 4, axes.text(tick)))
    for tick in _ticks(axes.first, axes.last, whole=True):
        if axes.first <= tick <= axes.last:
            parts.append(_text("mid", axes.across(tick), HEIGHT - 9, short(tick)))
    if level:
        parts.append(_across_line("level", axes.up(level[1])))
        parts.append(_text("end", WIDTH - RIGHT, axes.up(level[1]) - 5, level[0]))
    if mark and axes.first <= mark[1] <= axes.last:
        x = axes.across(mark[1])
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        right = x > WIDTH * 0.7
        parts.append(_text("end" if right else "", x - 5 if right else x + 5, TOP + 9, mark[0]))
    return parts


def _across_line(kind: str, y: float) -> str:
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(anchor: str, x: float, y: float, text: str) -> str:
    return f'<text class="tick {anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _drawn(line: Series, axes: _Axes) -> list[str]:
    pen, path, dots, bad = "M", "", [], []
    for x, y in _thinned(line.points):
        if not axes.holds(y):
            pen = "M"
            if not math.isfinite(y):
                bad.append(
                    f'<path class="bad" d="M{axes.across(x) - 5:.1f} {TOP}l10 0l-5 9z">'
                    f"<title>step {short(x)}: {escape(line.name)} is {short(y)}</title></path>"
                )
            continue
        at_x, at_y = f"{axes.across(x):.1f}", f"{axes.up(y):.1f}"
        path += f"{pen}{at_x} {at_y}"
        pen = "L"
        dots.append(f'<circle cx="{at_x}" cy="{at_y}" r="3" style="fill:{line.colour}"/>')
    drawn = f'<path class="{line.kind}" d="{path}" style="stroke:{line.colour}"/>' if path else ""
    return [
        drawn,
        *(dots if (line.kind == "dots" and len(dots) <= MOST_DOTS) or len(dots) == 1 else ()),
        *bad,
    ]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """The lowest and highest point of each stretch, and all that is not finite."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(len(points) / (MOST_POINTS / 2))
    out: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])]
        if finite:
            out += {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
        out += [point for point in stretch if not math.isfinite(point[1])][:1]
    return sorted(out, key=lambda p: p[0])


def _strips(series: Sequence[Series], axes: _Axes) -> list[str]:
    every = sorted({x for line in series for x, _ in line.points})
    dots = {x for line in series if line.kind == "dots" for x, _ in line.points}
    xs = sorted({*every[:: math.ceil(len(every) / MOST_STRIPS)], *sorted(dots)[:MOST_STRIPS]})
    at: dict[float, list[str]] = {x: [f"step {short(x)}"] for x in xs}
    for line in series:
        for x, y in line.points:
            if x in at:
                at[x].append(f"{line.name} {axes.text(y)}")
    edges = [axes.across((left + right) / 2) for left, right in pairwise(xs)]
    parts = []
    for x, left, right in zip(xs, [LEFT, *edges], [*edges, WIDTH - RIGHT], strict=True):
        title = escape("\n".join(at[x]))
        parts.append(
            f'<rect class="strip" x="{left:.1f}" y="{TOP}" width="{max(right - left, 1):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{title}</title></rect>'
        )
    return parts


def _ticks(lowest: float, highest: float, whole: bool = False) -> list[float]:
    """Round numbers that enclose the range, about five."""
    if highest - lowest < 1e-12 * max(abs(highest), 1e-300):
        lowest, highest = lowest - (abs(lowest) * 0.1 or 0.5), highest + (abs(highest) * 0.1 or 0.5)
    raw = (highest - lowest) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999) * power
    if whole:
        step = max(1.0, round(step))
    start, end = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    return [index * step for index in range(start, end + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten that enclose the range, but for what is too small to matter."""
    highest = math.ceil(math.log10(max(values, default=1.0)) - 1e-9)
    lowest = math.floor(math.log10(min(values, default=0.1)) + 1e-9)
    lowest = min(max(lowest, highest - DECADES), highest - 1)
    return [10.0**power for power in range(lowest, highest + 1)]
