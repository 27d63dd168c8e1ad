"""ROC curves as inline SVG."""

from collections.abc import Sequence
from html import escape

from evaluation.report.comparison.charts import MARKS, Line

SIDE, LEFT, TOP, BOTTOM = 300, 44, 10, 44


def roc_chart(lines: Sequence[Line]) -> str:
    """Lines from (0, 0) to (1, 1), and the diagonal of chance, dashed."""

    def place(x: float, y: float) -> str:
        return f"{LEFT + x * SIDE:.1f} {TOP + (1 - y) * SIDE:.1f}"

    said = f"ROC curves: {', '.join(line.name for line in lines)}"
    width, height = LEFT + SIDE + 14, TOP + SIDE + BOTTOM
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}">']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = (float(value) for value in place(tick, tick).split())
        parts.append(f'<path class="grid" d="M{LEFT} {y}h{SIDE}M{x} {TOP}v{SIDE}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text class="tick" x="{x}" y="{TOP + SIDE + 17}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="line floor" d="M{place(0, 0)}L{place(1, 1)}"><title>chance</title></path>')
    parts.append(f'<text class="tick" x="{LEFT + SIDE}" y="{height - 6}" text-anchor="end">inside suspected</text>')
    for line in lines:
        points = [place(x, y) for x, y in zip(line.xs, line.ys, strict=True)]
        path = f'<path class="line s{line.style}" d="M{"L".join(points)}">'
        parts.append(f"{path}<title>{escape(line.name)}</title></path>")
        at = points[len(points) * line.style // (len(lines) + 2)]
        parts.append(f'<path class="dot s{line.style}" transform="translate({at})" d="{MARKS[line.style - 1]}"/>')
    return "".join([*parts, "</svg>"])
