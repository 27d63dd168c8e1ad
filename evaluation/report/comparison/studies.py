"""What an axis or a variant of a recipe does: scores of its points, and their difference to the recipe as it is."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report.comparison.charts import STYLES, band_chart, key, line_of
from evaluation.report.comparison.rows import (
    Row,
    identity,
    is_plain,
    labels_told,
    lead,
    main_score,
    paired,
    settings_told,
    told,
    value_told,
)
from evaluation.report.comparison.table import lead_table
from evaluation.report.words import NAMES, percent, safe, sentence

SPREAD = 8.0
"""Values whose largest is so many times the smallest stand on a logarithmic axis."""


def studies(out: Path, comparison: dict[str, Any], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A study for each encoder of which a protocol's `rows` hold several points."""
    found = []
    for encoder in dict.fromkeys(row["encoder"] for row in rows if not row.get("floor")):
        own = [row for row in rows if row["encoder"] == encoder and not row.get("floor")]
        if len({identity(row) for row in own}) > 1:
            found.append(_study(out, comparison, encoder, own))
    return found


def _study(out: Path, comparison: dict[str, Any], encoder: str, rows: Sequence[Row]) -> dict[str, Any]:
    reference = next((row for row in rows if is_plain(row)), rows[0])
    name = f"{encoder}, the recipe as it is" if is_plain(reference) else told(reference)
    groups, shown = [], []
    for fraction in sorted({row["label_fraction"] for row in rows}):
        own = [row for row in rows if row["label_fraction"] == fraction]
        base = next((row for row in own if identity(row) == identity(reference)), None)
        lines = []
        for row in own:
            line = row | {"shown_as": _point(row)}
            if row is base:
                line["shown_as"] = _as_it_is(row) if is_plain(row) else f"{_point(row)} (held against)"
            if base is not None and row is not base and not lead(row.get("to_recipe")):
                line["to_recipe"] = paired(out, row, base)
            lines.append(line)
        lines.sort(key=lambda line: identity(line) != identity(reference))
        shown += lines
        groups.append({"title": labels_told(own), "rows": lines})
    table = lead_table(groups, comparison, shown, {"recipe": "difference to " + ("the recipe" if is_plain(reference)
                                                                                 else _point(reference))})  # fmt: skip
    knobs = list(dict.fromkeys(knob for row in rows if not row.get("variant") for knob in row.get("settings") or {}))
    return {
        "title": f"What changes of {encoder} do",
        "text": f"Each point is trained like {name}, but for what its line says; differences are paired with it.",
        "table": table,
        "charts": [chart for knob in knobs if (chart := _axis(rows, knob))],
    }


def _axis(rows: Sequence[Row], knob: str) -> dict[str, Any] | None:
    """Score over a knob's values; a line a label fraction, or, where other knobs vary too, their values."""
    points = [row for row in rows if knob in (row.get("settings") or {}) and not row.get("variant")]
    values = list(dict.fromkeys(_hashable(row["settings"][knob]) for row in points))
    if len(values) < 2:
        return None
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = {value: float(value) if numeric else float(number) for number, value in enumerate(values)}
    log = numeric and min(values) > 0 and max(values) / min(values) >= SPREAD
    fractions = {row["label_fraction"] for row in points}
    groups: dict[str, list[Row]] = {}
    for row in points:
        others = settings_told({name: value for name, value in row["settings"].items() if name != knob})
        share = f"{percent(row['label_fraction'])} of the labels" if len(fractions) > 1 or not others else ""
        groups.setdefault(", ".join(part for part in (others, share) if part), []).append(row)
    lines = []
    for style, (name, own) in enumerate(list(groups.items())[:STYLES], 1):
        own = sorted(own, key=lambda row: places[_hashable(row["settings"][knob])])
        found = [main_score(row) for row in own]
        xs = [places[_hashable(row["settings"][knob])] for row in own]
        lines.append(line_of(name, xs, found, style))
    score = NAMES.get(points[0]["score"], points[0]["score"].replace("_", " "))
    told_values = {places[value]: value_told(value) for value in values}
    svg = band_chart(lines, told_values, knob, score, log=log)
    return {
        "svg": safe(svg), "text": f"{sentence(score)} on the test split over {knob}, with 95 % intervals.",
        "keys": [{"svg": safe(key(line.style)), "name": line.name} for line in lines],
        "left_out": len(groups) - len(lines),
    } if svg else None  # fmt: skip


def _point(row: Row) -> str:
    what = settings_told(row.get("settings") or {})
    if row.get("variant"):
        return f"{row['variant']}: {what}" if what and what != row["variant"] else str(row["variant"])
    return what or told(row)


def _as_it_is(row: Row) -> str:
    settings = settings_told(row.get("settings") or {})
    return f"{settings} (the recipe as it is)" if settings else "the recipe as it is"


def _hashable(value: Any) -> Any:
    if isinstance(value, int | float | str):
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)
    return value_told(value)
