"""What rows of a comparison hold beside scores: detection of what is outside, calibration, pictures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report.comparison.rows import Row, told
from evaluation.report.studies import PICTURES, SCORES
from evaluation.report.words import figure, percent, picture

OOD = {"auroc": "AUROC", "aupr": "AUPR, outside to be found", "fpr95": "FPR where 95 % of the set's own are accepted"}
CALIBRATION = {"ece": "ECE", "brier": "Brier", "nll": "log loss"}


def extra_tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Tables of `extra.ood`, one a measure with a column a score, and of `extra.calibration`; the first is shown."""
    tables: list[dict[str, Any]] = []
    judged = [row for row in rows if (row.get("extra") or {}).get("ood")]
    if judged:
        scores = list(dict.fromkeys(score for row in judged for score in row["extra"]["ood"]))
        for measure, title in OOD.items():
            if any(measure in found for row in judged for found in row["extra"]["ood"].values()):
                tables.append({
                    "title": f"Outside the distribution: {title}", "open": not tables,
                    "columns": [SCORES.get(score, score) for score in scores],
                    "rows": [{"name": _named(row), "cells": [figure(row["extra"]["ood"].get(score, {}).get(measure))
                                                             for score in scores]} for row in judged],
                })  # fmt: skip
    sure = [row for row in rows if (row.get("extra") or {}).get("calibration")]
    if sure:
        tables.append({
            "title": "Calibration: how far probabilities can be believed (lower is better)", "open": False,
            "columns": [*(f"{name}{w}" for name in CALIBRATION.values() for w in ("", ", scaled")), "temperature"],
            "rows": [{"name": _named(row), "cells": _calibration(row["extra"]["calibration"])} for row in sure],
        })  # fmt: skip
    return tables


def run_pictures(out: Path, row: Row | None) -> list[dict[str, str]]:
    """The pictures that a row's first run of `evaluate` wrote."""
    found = []
    for folder in (row or {}).get("folders", [])[:1]:
        for name, about in PICTURES.items():
            path = out / folder / name
            if path.resolve().is_relative_to(out.resolve()) and path.is_file():
                text = f"{told(row or {})}, seed {(row or {})['seeds'][0]}. {about}"
                found.append({"source": picture(path.read_bytes()), "text": text})
    return found


def _calibration(found: dict[str, Any]) -> list[str]:
    both = [figure((found.get(when) or {}).get(key)) for key in CALIBRATION for when in ("as_is", "scaled")]
    return [*both, figure(found.get("temperature"))]


def _named(row: Row) -> str:
    return f"{told(row)}, {percent(row['label_fraction'])}"
