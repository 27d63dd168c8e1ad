"""The table of a comparison: each row's score with its interval, and its differences to others."""

import math
from collections.abc import Sequence
from typing import Any

from evaluation.report.comparison.charts import strip
from evaluation.report.comparison.rows import Row, best_floor, is_baseline, lead, main_score, told, verdict
from evaluation.report.words import NAMES, figure, safe, signed

SECOND = ("macro_f1", "micro_map", "nmi", "ari", "silhouette", "by_chance")
"""Scores that stand beside the one that is judged by, where a row has them."""


def lead_table(
    groups: list[dict[str, Any]], comparison: dict[str, Any], rows: Sequence[Row], differences: dict[str, str]
) -> dict[str, Any]:
    """Rows in groups, each with its score, its interval, and its differences: `baseline`, `floor`, `recipe` → title."""
    shown = [row for group in groups for row in group["rows"]]
    scores = [main_score(row) for row in shown]
    ends = [value for score in scores for value in score.values() if isinstance(value, float) and math.isfinite(value)]
    span = (min(ends, default=0.0), max(ends, default=1.0))
    second = [name for name in SECOND if any(name in r["scores"] and name != r["score"] for r in shown)][:2]
    drawn = []
    for group in groups:
        means = [mean for row in group["rows"] if math.isfinite(mean := main_score(row)["mean"])]
        highest = max(means) if len(means) > 1 else math.inf
        lines = []
        for row in group["rows"]:
            score, leads = main_score(row), leads_of(row, rows)
            role = "floor" if row.get("floor") else "baseline" if is_baseline(row, comparison) else ""
            lines.append({
                "name": row.get("shown_as") or told(row), "role": role,
                "mean": figure(score["mean"]), "interval": _bounds(score["low"], score["high"]),
                "strip": safe(strip(score["low"], score["mean"], score["high"], span, role)),
                "best": score["mean"] == highest,
                "seeds": len(row.get("seeds", [])),
                "second": [figure(row["scores"].get(name, {}).get("mean", math.nan)) for name in second],
                "leads": {name: _lead_cell(leads.get(name)) for name in differences},
            })  # fmt: skip
        drawn.append({"title": group["title"], "rows": lines})
    used = {name: title for name, title in differences.items()
            if any(line["leads"][name] for group in drawn for line in group["rows"])}  # fmt: skip
    score_name = NAMES.get(shown[0]["score"], shown[0]["score"].replace("_", " ")) if shown else "score"
    return {"score": score_name, "groups": drawn, "second": [NAMES.get(n, n.replace("_", " ")) for n in second],
            "differences": used}  # fmt: skip


def leads_of(row: Row, rows: Sequence[Row]) -> dict[str, tuple[dict[str, float], str] | None]:
    floor = best_floor(row, rows)
    found = {"baseline": lead(row.get("to_baseline")), "recipe": lead(row.get("to_recipe")),
             "floor": lead(row["to_floors"][floor]) if floor else None}  # fmt: skip
    return {name: (value, floor if name == "floor" and floor else "") for name, value in found.items() if value}


def _lead_cell(found: tuple[dict[str, float], str] | None) -> dict[str, str] | None:
    if found is None:
        return None
    value, note = found
    bounds = f"{signed(value['low'])} to {signed(value['high'])}" if verdict(value) else ""
    return {"mean": signed(value["mean"]), "bounds": bounds, "verdict": verdict(value), "note": note}


def _bounds(low: float, high: float) -> str:
    return f"{figure(low)} to {figure(high)}" if math.isfinite(low) and math.isfinite(high) else "–"
