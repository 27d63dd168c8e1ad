"""comparison.json: the finished cells of a comparison, a row an encoder, protocol and label fraction, over seeds."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.comparison.grid import Cell, Encoder, Grid, Protocol
from evaluation.comparison.record import is_finished
from evaluation.intervals import Interval, difference, interval
from evaluation.predictions import FILE as PREDICTIONS
from evaluation.predictions import Predictions, load_predictions
from evaluation.runs import read_json
from evaluation.weighted import SCORES
from training.seeds import RESULTS, SUMMARY

FILE = "comparison.json"
RESAMPLES = 1000
EXTRA = ("ood", "calibration")
"""What results.json may hold beside `test`, of which the means over seeds are given."""


@dataclass(frozen=True)
class Run:
    """A finished run, or a floor of one: the scores on test, and what was said of each sample, where that was kept."""

    seed: int
    folder: Path
    """In the comparison's folder."""
    content: Mapping[str, Any]
    """results.json; of a floor, with its own `test` in the place of the encoder's."""
    predictions: Predictions | None


def compare_runs(
    title: str, baseline: str | None, grid: Grid, out: Path, failed: list[dict[str, str]]
) -> dict[str, Any]:
    """All that comparison.json holds. Intervals are BCa over test samples and seeds (`evaluation.intervals`)."""
    rows: list[dict[str, Any]] = []
    protocols, scores = [], {}
    whose = {one.key: baseline_of(grid, one.baseline or baseline) for one in grid.encoders}
    common = baseline_of(grid, baseline)
    for protocol in grid.protocols:
        own: list[dict[str, Any]] = []
        task, kind = protocol.recipe and protocol.recipe.task, None
        for fraction in protocol.label_fractions:
            made, told = _rows(protocol, fraction, grid, out, whose)
            own, (task, kind) = own + made, told or (task, kind)
        if own:
            scores[protocol.name] = own[0]["score"]
        protocols.append({"name": protocol.name, "task": task, "kind": kind, "evaluate": protocol.evaluate,
                          "of": protocol.of and protocol.of.name, "settings": protocol.settings})  # fmt: skip
        rows += own
    return {
        "format_version": 1, "title": title, "score": scores, "baseline": common and common.name,
        "protocols": protocols, "rows": rows, "failed": failed,
        "seconds": sum(_seconds(out, cell) for cell in grid.cells),
    }  # fmt: skip


def baseline_of(grid: Grid, name: str | None) -> Encoder | None:
    """The encoder that differences are to: its table as it is, or else the first of its points; None without one."""
    named = [encoder for encoder in grid.encoders if encoder.name == (name or "scratch")]
    return next((encoder for encoder in named if encoder.plain), named[0] if named else None)


def _rows(
    protocol: Protocol, fraction: float, grid: Grid, out: Path, whose: dict[str, Encoder | None]
) -> tuple[list[dict[str, Any]], tuple[Any, Any] | None]:
    """Of one protocol at one label fraction: encoders in the grid's order, then floors, each once; task and kind."""
    told_kind = None
    found: dict[str, list[Run]] = {}
    for cell in grid.cells:
        if cell.protocol is protocol and cell.label_fraction == fraction and is_finished(out, cell):
            content = read_json(out / cell.folder / RESULTS)
            found.setdefault(cell.encoder.key, []).append(
                Run(cell.seed, cell.folder, content, _kept(out / cell.folder))
            )
    rows: list[dict[str, Any]] = []
    floors: dict[str, list[Run]] = {}
    for encoder in grid.encoders:
        if not (runs := found.get(encoder.key)):
            continue
        row = {
            "protocol": protocol.name, "encoder": encoder.name, "variant": encoder.variant,
            "settings": encoder.settings, "plain": encoder.plain, "floor": False, **_of_runs(fraction, runs),
        }  # fmt: skip
        baseline = whose[encoder.key]
        against = found.get(baseline.key) if baseline and encoder is not baseline else None
        if against and (lead := _lead(runs, against, row["score"])):
            row["to_baseline"] = {"baseline": baseline.name if baseline else "", **lead}
        own = _floors(out, runs)
        leads = {told: lead for told, those in own.items() if (lead := _lead(runs, those, row["score"]))}
        if leads:
            row["to_floors"] = leads
        pretraining = [_trained(out, encoder, run.seed) for run in runs]
        seconds = means([run.content["seconds"] for run in runs])
        if all(value is not None for value in pretraining):
            seconds = {"pretraining": float(np.mean(pretraining))} | seconds  # type: ignore[arg-type]
        told_kind = runs[0].content["task"], runs[0].content["kind"]
        rows.append(row | {"extra": _extra(runs), "seconds": seconds})
        for told, those in own.items():
            floors.setdefault(told, those)
    for told, those in floors.items():
        rows.append({"protocol": protocol.name, "encoder": told, "variant": "", "settings": {}, "plain": True,
                     "floor": True, **_of_runs(fraction, those), "extra": _extra(those)})  # fmt: skip
    return rows, told_kind


def _extra(runs: list[Run]) -> dict[str, Any]:
    """What results.json says beside scores on test, means over seeds. `aupr` of ood is that of finding outside ones."""
    extra = {name: means([run.content[name] for run in runs]) for name in EXTRA if name in runs[0].content}
    if "ood" in extra:
        extra["ood"] = {name: found | {"aupr": found["aupr_out"]} for name, found in extra["ood"].items()}
    return extra


def _of_runs(fraction: float, runs: list[Run]) -> dict[str, Any]:
    """What a row says of runs that differ in their seed: scores with intervals, scores of classes, confusion."""
    tests = [run.content["test"] for run in runs]
    names = [name for name in tests[0] if all(type(test.get(name)) is float for test in tests)]
    row: dict[str, Any] = {
        "label_fraction": fraction, "labelled_samples": runs[0].content["labelled_samples"],
        "seeds": [run.seed for run in runs], "folders": [run.folder.as_posix() for run in runs],
        "score": runs[0].content["score"],
        "scores": {name: _score(runs, name, [test[name] for test in tests]) for name in names},
        "per_class": {
            measure: {held: float(np.mean([test["per_class"][measure][held] for test in tests
                                           if held in test["per_class"][measure]])) for held in classes}
            for measure, classes in tests[0].get("per_class", {}).items()
        },
    }  # fmt: skip
    if all("confusion" in test for test in tests):
        row["confusion"] = np.sum([test["confusion"] for test in tests], 0).tolist()
    return row


def _score(runs: list[Run], name: str, values: list[float]) -> dict[str, Any]:
    """Mean, deviation over seeds (n - 1; None of one seed), and the bounds, which take kept predictions."""
    found = _bounds(runs, lambda kept: interval(kept, name, resamples=RESAMPLES), name)
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    low, high = (_finite(found.low), _finite(found.high)) if found else (None, None)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "std": std, "values": values}


def _lead(runs: list[Run], others: list[Run], score: str) -> dict[str, Any] | None:
    """The paired difference, over the seeds that both have."""
    there = {run.seed: run for run in others}
    pairs = [(run, there[run.seed]) for run in runs if run.seed in there]
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]

    def lead(kept: list[Predictions]) -> Interval:
        return difference(kept[: len(ours)], kept[len(ours) :], score, resamples=RESAMPLES)

    found = _bounds([*ours, *theirs], lead, score)
    return {"mean": found.estimate, "low": _finite(found.low), "high": _finite(found.high)} if found else None


def _bounds(runs: list[Run], of: Callable[[list[Predictions]], Interval], score: str) -> Interval | None:
    """None where predictions were not kept, are too few, or give no such score."""
    kept = [run.predictions for run in runs if run.predictions is not None]
    if not kept or len(kept) < len(runs) or len(kept[0].keys) < 2 or score not in SCORES[kept[0].kind]:
        return None
    return of(kept)


def _floors(out: Path, runs: list[Run]) -> dict[str, list[Run]]:
    """Floors by what they are called, a run for each run of an encoder that has it."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        for told, floor in run.content.get("floors", {}).items():
            folder = run.folder / "floors" / told.replace(" ", "-")
            own = {name: value for name, value in run.content.items() if name not in (*EXTRA, "floors")}
            found.setdefault(told, []).append(Run(run.seed, folder, own | floor, _kept(out / folder)))
    return found


def _kept(folder: Path) -> Predictions | None:
    return load_predictions(folder) if (folder / PREDICTIONS).is_file() else None


def means(contents: Sequence[Any]) -> dict[str, Any]:
    """Of equally built tables of numbers: the mean of each number that all have; what is no number is left out."""
    found: dict[str, Any] = {}
    for name in contents[0]:
        values = [content.get(name) for content in contents]
        if all(isinstance(value, Mapping) for value in values):
            found[name] = means(values)
        elif all(type(value) in (int, float) for value in values):
            found[name] = float(np.mean(values))
    return found


def _trained(out: Path, encoder: Encoder, seed: int) -> float | None:
    """Seconds that an encoder's training took, where its run says so."""
    folder = encoder.folder(seed)
    if folder is None and encoder.how == "scratch":
        return None
    place = Path(encoder.source or "") if folder is None else out / folder
    return next(_recorded(place), None)


def _seconds(out: Path, cell: Cell) -> float:
    return next(_recorded(out / cell.folder), 0.0) if is_finished(out, cell) else 0.0


def _recorded(folder: Path) -> Iterator[float]:
    """Seconds, as fine-tuning, evaluation or pretraining tells them; nothing where none did."""
    if (folder / RESULTS).is_file():
        yield float(read_json(folder / RESULTS)["seconds"]["all"])
    if (folder / SUMMARY).is_file():
        yield float(read_json(folder / SUMMARY)["seconds"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
