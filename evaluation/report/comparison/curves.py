"""Scores of a comparison over label fractions."""

from collections.abc import Sequence
from typing import Any

from evaluation.report.comparison.charts import STYLES, band_chart, key, line_of
from evaluation.report.comparison.rows import (
    Row,
    baseline_told,
    best_floor,
    identity,
    is_baseline,
    lead,
    main_score,
    told,
)
from evaluation.report.words import percent, safe, sentence


def curves(
    rows: Sequence[Row], order: Sequence[str], comparison: dict[str, Any], fractions: Sequence[float], score: str
) -> dict[str, Any] | None:
    """Score over label fraction, and the lead over the baseline (or best floor) over label fraction."""
    if len(fractions) < 2:
        return None
    lines, leads, style, floors = [], [], 1, 0
    for name in order:
        own = sorted((row for row in rows if identity(row) == name), key=lambda row: float(row["label_fraction"]))
        if own[0].get("floor"):
            number, floors = -(floors % 3), floors + 1
        elif is_baseline(own[0], comparison):
            number = 1
        else:
            style += 1
            number = style
        if number > STYLES:
            continue
        found = [main_score(row) for row in own]
        xs = [row["label_fraction"] for row in own]
        lines.append(line_of(told(own[0]), xs, found, number))
        ahead = [(row["label_fraction"], held) for row in own if (held := _ahead_of(row, rows))]
        if ahead:
            leads.append(line_of(told(own[0]), [x for x, _ in ahead], [held for _, held in ahead], number))
    ticks = {fraction: percent(fraction) for fraction in fractions}
    to = baseline_told(comparison) if any(row.get("to_baseline") for row in rows) else "the best floor"
    first = safe(band_chart(lines, ticks, "labels", score, log=True))
    about = f"{sentence(score)} on the test split over the share of labels, with 95 % intervals."
    charts = [{"svg": first, "text": about}]
    if second := band_chart(leads, ticks, "labels", f"lead over {to}", log=True, zero=True):
        charts.append({"svg": safe(second), "text": f"The lead over {to}, paired. Where a band leaves out 0, the two "
                       "differ by this data."})  # fmt: skip
    keys = [{"svg": safe(key(line.style)), "name": line.name + (" (floor)" if line.style <= 0 else "")}
            for line in sorted(lines, key=lambda line: line.style <= 0)]  # fmt: skip
    left_out = len(order) - len(lines)
    return {"charts": charts, "keys": keys, "left_out": left_out}


def _ahead_of(row: Row, rows: Sequence[Row]) -> dict[str, float] | None:
    if any(other.get("to_baseline") for other in rows):
        return lead(row.get("to_baseline"))
    floor = best_floor(row, rows)
    return lead(row["to_floors"][floor]) if floor else None
