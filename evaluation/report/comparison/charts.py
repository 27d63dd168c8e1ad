"""Charts of comparisons as inline SVG: lines with interval bands, ROC curves, strips of intervals.

Colours come from the page. Whatever tells lines apart does so without colour too: each has a mark of its own, floors
are dashed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from evaluation.report.charts import ticks

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 50, 16, 12, 44
STYLES = 7
"""Colours of the page, s1 to s7, and as many marks."""
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.8L4.6 3.4H-4.6z",
    "M0 -5L5 0L0 5L-5 0z",
    "M0 4.8L4.6 -3.4H-4.6z",
    "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "M-4.4 -4.4L0 -1.6L4.4 -4.4L1.6 0L4.4 4.4L0 1.6L-4.4 4.4L-1.6 0z",
)


@dataclass(frozen=True)
class Line:
    """Values over places `xs`, with the bounds of their intervals (or none).

    `style` 1 to 7, or 0 to -2: a floor, dashed in one of three ways.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    style: int


def line_of(name: str, xs: Sequence[float], found: Sequence[Mapping[str, float]], style: int) -> Line:
    """A line through scores or differences of `mean`, `low` and `high`."""
    return Line(name, xs, [f["mean"] for f in found], [f["low"] for f in found], [f["high"] for f in found], style)


def band_chart(
    lines: Sequence[Line], x_ticks: Mapping[float, str], x_label: str, y_label: str, *, log: bool, zero: bool = False
) -> str:
    """Lines over labelled ticks, on a logarithmic axis where `log`, with bands; `zero` draws a line at 0 and holds it.

    "" where there are no two places, or no finite value.
    """
    xs = sorted({*x_ticks, *(x for line in lines for x in line.xs)})
    ys = [y for line in lines for y in (*line.ys, *line.lows, *line.highs) if math.isfinite(y)]
    if len(xs) < 2 or not ys:
        return ""
    ys += [0.0] if zero else []
    low, high = min(ys), max(ys)
    y_ticks = ticks(low, high) if high > low else ticks(low - 0.05, high + 0.05)
    scale = math.log if log else float
    first, last = scale(xs[0]), scale(xs[-1])
    inset = 10

    def at_x(x: float) -> float:
        return LEFT + inset + (scale(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT - 2 * inset)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    said = f"{y_label} over {x_label}: {', '.join(line.name for line in lines)}"
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">']
    for y in y_ticks:
        kind = "zero" if zero and y == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {at_y(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{_said(y)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    end = -math.inf
    for x, told in sorted(x_ticks.items()):
        parts.append(f'<path class="axis" d="M{at_x(x):.1f} {HEIGHT - BOTTOM}v4"/>')
        half = 3.6 * len(told)
        if at_x(x) - half > end:
            where = min(at_x(x), WIDTH - half)
            parts.append(f'<text class="tick" x="{where:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                         f"{escape(told)}</text>")  # fmt: skip
            end = where + half + 4
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    for line in lines:
        upper = [(at_x(x), at_y(y)) for x, y in zip(line.xs, line.highs, strict=False) if math.isfinite(y)]
        lower = [(at_x(x), at_y(y)) for x, y in zip(line.xs, line.lows, strict=False) if math.isfinite(y)]
        if len(upper) > 1 and line.style > 0:
            parts.append(f'<path class="band s{line.style}" d="{_path([*upper, *lower[::-1]])}z"/>')
    for line in lines:
        points = [(at_x(x), at_y(y)) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
        name = f"<title>{escape(line.name)}</title>"
        if line.style <= 0:
            parts.append(f'<path class="line floor f{-line.style}" d="{_path(points)}">{name}</path>')
            continue
        parts.append(f'<path class="line s{line.style}" d="{_path(points)}">{name}</path>')
        parts += [_mark(line.style, x, y) for x, y in points]
    return "".join([*parts, "</svg>"])


def key(style: int) -> str:
    """What a line of `band_chart` looks like, for its legend."""
    drawn = f'<path class="line s{style}" d="M1 8H33"/>{_mark(style, 17, 8)}'
    if style <= 0:
        drawn = f'<path class="line floor f{-style}" d="M1 8H33"/>'
    return f'<svg class="sample" viewBox="0 0 34 16" width="34" height="16" aria-hidden="true">{drawn}</svg>'


def strip(low: float, mean: float, high: float, span: tuple[float, float], style: str = "") -> str:
    """An interval with its mean, on the scale of `span`; says nothing that its row does not say in numbers."""
    if not all(math.isfinite(value) for value in (low, mean, high)):
        return ""
    wide = max(span[1] - span[0], 1e-9)
    a, b, c = (4 + 112 * min(max((value - span[0]) / wide, 0), 1) for value in (low, mean, high))
    return (
        f'<svg class="strip {style}" viewBox="0 0 120 16" width="120" height="16" aria-hidden="true">'
        f'<path class="rail" d="M4 8H116"/><path class="whisker" d="M{a:.1f} 8H{c:.1f}M{a:.1f} 4v8M{c:.1f} 4v8"/>'
        f'<circle class="point" cx="{b:.1f}" cy="8" r="4"/></svg>'
    )


def _said(y: float) -> str:
    return f"{y:g}".replace("-", "−")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(points))


def _mark(style: int, x: float, y: float) -> str:
    return f'<path class="dot s{style}" transform="translate({x:.1f} {y:.1f})" d="{MARKS[(style - 1) % len(MARKS)]}"/>'
