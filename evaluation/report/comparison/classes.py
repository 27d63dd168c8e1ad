"""Classes of a comparison: scores of each, and confusions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.pictures import short_names
from evaluation.report.comparison.rows import Row, identity, is_plain, labels_told, told
from evaluation.report.words import NAMES, sentence, signed
from evaluation.runs import read_json
from shards.errors import BandstreamError

MEASURES = {"macro_map": "average_precision", "macro_iou": "iou"}
"""Of classes, by the score that rows are judged by; else F1."""
COLUMNS = 5
OPEN = 12
"""Confusion matrices of so many classes are shown at once, larger ones when asked for."""


def per_class(rows: Sequence[Row], best: Row | None, beside: Row | None) -> dict[str, Any] | None:
    """A table of the rows of one label fraction: a class a line, a bar an encoder; what the best has over `beside`."""
    rows = [row for row in rows if row.get("per_class")]
    if not rows:
        return None
    held = rows[0]["per_class"]
    measure = MEASURES.get(rows[0]["score"], "f1")
    measure = measure if measure in held else next(iter(held))
    first = [identity(row) for row in (beside, best) if row]
    chosen = sorted(rows, key=lambda row: (identity(row) not in first, bool(row.get("floor")), not is_plain(row)))
    chosen = chosen[:COLUMNS]
    chosen.sort(key=lambda row: first.index(identity(row)) if identity(row) in first else len(first))
    values = [row["per_class"].get(measure, {}) for row in chosen]
    lines = []
    for name in dict.fromkeys(name for held in values for name in held):
        low, high = ((row["per_class"].get(measure, {}).get(name) if row else None) for row in (beside, best))
        ahead = high - low if low is not None and high is not None else None
        lines.append({
            "name": name, "cells": [held.get(name) for held in values],
            "difference": None if ahead is None else signed(ahead), "ahead": ahead or 0.0,
        })  # fmt: skip
    return {
        "title": f"{sentence(NAMES.get(measure, measure))} of each class, {labels_told(rows[:1])}", "rows": lines,
        "columns": [told(row) for row in chosen], "beside": told(beside) if beside else "",
        "difference": f"{told(best)} − {told(beside)}" if best and beside else None,
    }  # fmt: skip


def confusions(out: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each row's confusion matrix as shares of its true classes; classes that occur nowhere are left out."""
    found = []
    for row in rows:
        counts = np.asarray(row.get("confusion") or [], np.float64)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.sum():
            continue
        classes = class_names(out, row, len(counts))
        there = np.flatnonzero(counts.sum(0) + counts.sum(1))
        counts = counts[np.ix_(there, there)]
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        names = [classes[k] for k in there]
        short = short_names(names)
        found.append({
            "title": f"{told(row)}, {labels_told([row])}", "open": len(names) <= OPEN,
            "names": [{"name": name, "short": told} for name, told in zip(names, short, strict=True)],
            "rows": [{"name": name, "short": short[row_number],
                      "cells": [{"share": share, "right": k == row_number,
                                 "text": f"{max(100 * share, 1):.0f}" if share >= 0.005 else ""}
                                for k, share in enumerate(line.tolist())]}
                     for row_number, (name, line) in enumerate(zip(names, shares, strict=True))],
        })  # fmt: skip
    return found


def class_names(out: Path, row: Row, count: int) -> list[str]:
    """Names, from the results of one of the row's runs, else from its scores, else numbers."""
    for folder in row.get("folders", []):
        path = out / folder / "results.json"
        if path.resolve().is_relative_to(out.resolve()) and path.is_file():
            try:
                classes = read_json(path).get("classes") or []
            except BandstreamError:
                continue
            if len(classes) == count:
                return [str(name) for name in classes]
    names = [str(name) for name in next(iter((row.get("per_class") or {"": {}}).values()))]
    return names if len(names) == count else [f"class {k}" for k in range(count)]
