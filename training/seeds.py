"""Runs of several seeds: what is finished is not run again, and what they found together."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards import atomic
from shards.errors import BandstreamError

SETTINGS, RESULTS, SUMMARY = "settings.json", "results.json", "summary.json"


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` → [0, 1, 2]. Raises BandstreamError."""
    try:
        seeds = [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        seeds = [-1]
    if any(not 0 <= seed < 2**63 for seed in seeds):
        raise BandstreamError(f"--seeds {text}: whole numbers with commas between them, such as 0,1,2")
    return seeds


def finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What results.json holds where this very run is finished in `out`; None where it is yet to be run there.

    A run that was stopped begins anew, over what it left. Raises BandstreamError where the folder holds anything else.
    """
    if not out.exists() or not any(out.iterdir()):
        return None
    known = read(out / SETTINGS)
    if known is None:
        raise BandstreamError(f"{out} is not empty: name another folder")
    differing = differences(known, json.loads(json.dumps(settings)))
    if differing:
        raise BandstreamError(f"{out} holds a run with another {', '.join(differing)}: name another folder")
    return read(out / RESULTS)


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file; None where there is none. Raises BandstreamError where it is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise BandstreamError(f"{path} cannot be read ({error}): name another folder") from None
    return content


def differences(known: dict[str, Any], wanted: dict[str, Any], place: str = "") -> list[str]:
    """Names, dotted, of what differs between two trees of settings."""
    found = []
    for name in sorted(known.keys() | wanted.keys()):
        here, there = known.get(name), wanted.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            found += differences(here, there, f"{place}{name}.")
        elif here != there:
            found.append(place + name)
    return found


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_summary(out: Path, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """summary.json of runs that differ in their seed: each score's values, mean and standard deviation over seeds.

    The deviation is the sample's (n - 1). Scores of classes are left to the runs' own results.json.
    """
    names = [name for name, value in runs[0]["test"].items() if isinstance(value, float)]
    values = {f"test_{name}": [run["test"][name] for run in runs] for name in names}
    values[f"val_{runs[0]['score']}"] = [run["val"] for run in runs]
    summary = {
        "seeds": [run["seed"] for run in runs], "score": runs[0]["score"],
        **{name: runs[0][name] for name in ("task", "kind", "target", "init", "label_fraction", "encoder", "classes")},
        "scores": {name: {"mean": float(np.mean(each)), "std": float(np.std(each, ddof=1)), "values": each}
                   for name, each in values.items()},
    }  # fmt: skip
    atomic.write_json(out / SUMMARY, summary)
    return summary
