"""Whom a comparison singles out: the best encoder, chosen on val, and whom it is held against."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report.comparison.rows import Row, is_baseline, main_score
from evaluation.runs import read_json
from shards.errors import BandstreamError


def contest(out: Path, rows: Sequence[Row], comparison: dict[str, Any]) -> tuple[Row | None, Row | None]:
    """Of one label fraction: the best encoder, and whom it is held against: the baseline, else the best floor.

    The best is chosen by its mean score on val where all candidates' runs recorded one, else by that on test: `choice`.
    The best floor is that with the highest mean on test, against which the encoder has it hardest.
    """
    rows = [row for row in rows if math.isfinite(_mean(row))]
    others = [row for row in rows if not row.get("floor") and not is_baseline(row, comparison)]
    validated = _on_val(out, others)
    best = max(zip(validated or map(_mean, others), others, strict=True), key=lambda one: one[0], default=(0, None))[1]
    own = ((best or {}).get("to_baseline") or {}).get("baseline", comparison.get("baseline"))
    beside = [row for row in rows if is_baseline(row, comparison) and own in (None, row["encoder"])]
    return best, max(beside or [row for row in rows if row.get("floor")], key=_mean, default=None)


def choice(out: Path, rows: Sequence[Row], comparison: dict[str, Any]) -> str:
    """How `contest` chose the best encoder of these rows; "" where there was nothing to choose."""
    others = [row for row in rows if math.isfinite(_mean(row)) and not row.get("floor")
              and not is_baseline(row, comparison)]  # fmt: skip
    if len(others) < 2:
        return ""
    if _on_val(out, others):
        return f"The best on val of {len(others)} that were tried."
    return (
        f"The highest on the test split itself of {len(others)} that were tried, for not all recorded a score on val: "
        "its lead flatters it."
    )


def _mean(row: Row) -> float:
    return float(main_score(row)["mean"])


def _on_val(out: Path, rows: Sequence[Row]) -> list[float]:
    """Each row's mean score on val over its runs; [] where a run has none."""
    found = []
    for row in rows:
        values = [_val(out, folder) for folder in row.get("folders", [])]
        if not values or not all(math.isfinite(value) for value in values):
            return []
        found.append(sum(values) / len(values))
    return found


def _val(out: Path, folder: str) -> float:
    path = out / folder / "results.json"
    if not path.resolve().is_relative_to(out.resolve()) or not path.is_file():
        return math.nan
    try:
        value = read_json(path).get("val")
    except (BandstreamError, AttributeError):
        return math.nan
    return float(value) if isinstance(value, int | float) else math.nan
