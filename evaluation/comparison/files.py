"""The tables of a comparison as CSV, for spreadsheets and for papers."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shards import atomic

FOLDER = "tables"
WHO = ("protocol", "encoder", "variant", "settings", "floor", "label_fraction", "labelled_samples", "seeds")
COLUMNS = {
    "scores": (*WHO, "score", "mean", "low", "high", "std", "values"),
    "differences": (*WHO, "score", "to", "mean", "low", "high"),
    "per_class": (*WHO, "measure", "class", "mean"),
}


def write_tables(out: Path, comparison: Mapping[str, Any]) -> None:
    """Write tables/scores.csv, differences.csv and per_class.csv from what comparison.json holds.

    `settings` is JSON; seeds and values have spaces between them; numbers are as in comparison.json, unrounded.
    """
    lines: dict[str, list[list[Any]]] = {name: [] for name in COLUMNS}
    for row in comparison["rows"]:
        who = [*(row[name] for name in ("protocol", "encoder", "variant")),
               json.dumps(row["settings"], ensure_ascii=False) if row["settings"] else "",
               int(row["floor"]), row["label_fraction"], row["labelled_samples"], _spaced(row["seeds"])]  # fmt: skip
        for name, score in row["scores"].items():
            lines["scores"].append(
                [*who, name, *(score[key] for key in ("mean", "low", "high", "std")), _spaced(score["values"])]
            )
        for to, lead in _leads(row):
            lines["differences"].append([*who, row["score"], to, lead["mean"], lead["low"], lead["high"]])
        for measure, classes in row["per_class"].items():
            lines["per_class"] += [[*who, measure, held, mean] for held, mean in classes.items()]
    (out / FOLDER).mkdir(exist_ok=True)
    for name, columns in COLUMNS.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *lines[name]])
        atomic.write_text(out / FOLDER / f"{name}.csv", text.getvalue())


def _leads(row: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "to_baseline" in row:
        yield row["to_baseline"]["baseline"], row["to_baseline"]
    yield from row.get("to_floors", {}).items()


def _spaced(values: list[Any]) -> str:
    return " ".join(map(str, values))
