"""Rows of a comparison: how they are called, which belong together, what they are held against."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.intervals import difference
from evaluation.predictions import FILE, Predictions, load_predictions
from evaluation.report.words import percent
from shards.errors import BandstreamError

Row = dict[str, Any]
"""One of `rows` in comparison.json."""
RESAMPLES = 1000
NOTHING = float("nan")


def told(row: Row) -> str:
    """What a row is called: its encoder, with its variant or its axes' values where it has some."""
    what = row.get("variant") or settings_told(row.get("settings") or {})
    return f"{row['encoder']} ({what})" if what else str(row["encoder"])


def settings_told(settings: dict[str, Any]) -> str:
    return ", ".join(f"{knob.split('.')[-1].replace('_', ' ')} {value_told(value)}" for knob, value in settings.items())


def value_told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def identity(row: Row) -> str:
    """The same for rows of one encoder at all label fractions."""
    return json.dumps([row["encoder"], row.get("variant"), row.get("settings"), bool(row.get("floor"))], sort_keys=True)


def is_plain(row: Row) -> bool:
    """Whether a row is its encoder's recipe as it is."""
    return bool(row.get("plain", not row.get("variant") and not row.get("settings")))


def main_score(row: Row) -> dict[str, Any]:
    """mean, low, high and values of the score that a row is judged by; NaN for what is not there."""
    found = dict(row.get("scores", {}).get(row.get("score"), {}))
    return {name: _number(found.get(name)) for name in ("mean", "low", "high")} | {"values": found.get("values") or []}


def lead(found: dict[str, Any] | None) -> dict[str, float] | None:
    """A difference with its bounds; None where there is none."""
    if not found or not math.isfinite(_number(found.get("mean"))):
        return None
    return {name: _number(found.get(name)) for name in ("mean", "low", "high")}


def verdict(found: dict[str, float] | None) -> str:
    """`better`, `worse`, `not told apart` (the interval holds 0), or "" where there is no interval."""
    if found is None or not (math.isfinite(found["low"]) and math.isfinite(found["high"])):
        return ""
    if found["low"] > 0:
        return "better"
    return "worse" if found["high"] < 0 else "not told apart"


def baselines(comparison: dict[str, Any]) -> list[str]:
    """Encoders that others are held against: the comparison's own, and those that single encoders have instead."""
    own = [row["to_baseline"]["baseline"] for row in comparison["rows"] if row.get("to_baseline")]
    return list(dict.fromkeys(name for name in (comparison.get("baseline"), *own) if name))


def is_baseline(row: Row, comparison: dict[str, Any]) -> bool:
    return not row.get("floor") and row["encoder"] in baselines(comparison) and is_plain(row)


def baseline_told(comparison: dict[str, Any]) -> str:
    names = baselines(comparison)
    return names[0] if len(names) == 1 else "each encoder's baseline"


def best_floor(row: Row, rows: Sequence[Row]) -> str | None:
    """Of the floors that a row is held against, that with the highest mean at the same label fraction."""
    there = {r["encoder"]: main_score(r)["mean"] for r in rows
             if r.get("floor") and r["label_fraction"] == row["label_fraction"]}  # fmt: skip
    names = [name for name, found in (row.get("to_floors") or {}).items() if lead(found)]
    return max(names, key=lambda name: there.get(name, -math.inf)) if names else None


def in_lead(rows: Sequence[Row]) -> list[Row]:
    """Rows of the lead table: of an encoder that is varied, the recipe as it is, where that is among its points."""
    plain = {row["encoder"] for row in rows if is_plain(row)}
    return [row for row in rows if is_plain(row) or row["encoder"] not in plain]


def predictions(out: Path, row: Row) -> dict[int, Predictions]:
    """Seed → what the row's run of that seed said of the test split; empty where a file is not there."""
    found = {}
    for seed, folder in zip(row.get("seeds", []), row.get("folders", []), strict=False):
        path = out / folder
        if not path.resolve().is_relative_to(out.resolve()) or not (path / FILE).is_file():
            return {}
        found[seed] = load_predictions(path)
    return found


def paired(out: Path, row: Row, other: Row) -> dict[str, float] | None:
    """The difference of two rows' scores with its 95 % interval, over the same seeds and test samples.

    Without predictions of both: the difference of the means, and bounds of NaN.
    """
    plain = {"mean": main_score(row)["mean"] - main_score(other)["mean"], "low": NOTHING, "high": NOTHING}
    if not math.isfinite(plain["mean"]):
        return None
    try:
        ours, theirs = predictions(out, row), predictions(out, other)
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return plain
        found = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds], row["score"],
                           resamples=RESAMPLES)  # fmt: skip
    except BandstreamError:
        return plain
    return {"mean": found.estimate, "low": found.low, "high": found.high}


def ranked(rows: Sequence[Row]) -> list[str]:
    """Identities of rows by their mean over label fractions, highest first, floors last; what is no number, lowest."""
    means: dict[str, list[float]] = {}
    floors = {identity(row) for row in rows if row.get("floor")}
    for row in rows:
        means.setdefault(identity(row), []).append(main_score(row)["mean"])
    over = {name: sum(each) / len(each) for name, each in means.items()}
    return sorted(over, key=lambda name: (name in floors, -over[name] if math.isfinite(over[name]) else math.inf))


def labels_told(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    counts = sorted({row["labelled_samples"] for row in rows if row.get("labelled_samples")})
    many = f", {counts[0]:,}" if counts else ""
    if len(counts) > 1:
        many += f" to {counts[-1]:,}"
    return f"{percent(rows[0]['label_fraction'])} of the labels" + (f"{many} samples" if counts else "")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else NOTHING
