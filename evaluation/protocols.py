"""The protocols of frozen features on one set: linear, knn, cluster, retrieval, map. Floors go through the same.

Whatever is chosen is chosen on val; the test split is scored once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import metrics
from evaluation.calibration import calibrate
from evaluation.clustering import cluster
from evaluation.figures import reliability_figure
from evaluation.intervals import difference, interval
from evaluation.maps import find_umap, map_figure, place, spread
from evaluation.pictures import save_picture
from evaluation.predictions import Predictions, save_predictions
from evaluation.probe import knn, linear_probe
from evaluation.retrieval import retrieve
from evaluation.retrieval_picture import neighbour_sheet
from evaluation.samples import sample_keys
from evaluation.scoring import SCORE
from evaluation.settings import Settings, Split
from evaluation.subject import find_subjects
from shards import atomic

SPLITS = {
    "linear": ("train", "val", "test"),
    "knn": ("train", "val", "test"),
    "cluster": ("train", "test"),
    "retrieval": ("train", "test"),
    "map": ("test",),
}
RESAMPLES = 1000
Splits = dict[str, Split]


@dataclass(frozen=True)
class Outcome:
    """Scores on test, what was chosen on val, per-sample scores (n, K), what else results.json says, and pictures."""

    test: dict[str, Any]
    chosen: float | None = None
    scores: np.ndarray | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, np.ndarray | bytes] = field(default_factory=dict)


def score_name(asked: Settings) -> str:
    """The key of `test` that a protocol is judged by."""
    names = {"cluster": "purity", "retrieval": "map", "map": "trustworthiness"}
    return names.get(asked.protocol, SCORE[asked.label[1].kind])


def floor_folder(out: Path, told: str) -> Path:
    """Where the test predictions of a floor lie, such as floors/image-statistics."""
    return out / "floors" / told.replace(" ", "-")


def run_protocol(asked: Settings, out: Path) -> dict[str, Any]:
    """Evaluate and write results.json, test_predictions.npz, those of the floors below floors/, and pictures to `out`;
    returns what results.json holds."""
    began = time.perf_counter()
    _, spec = asked.label
    if asked.protocol == "map" and asked.method == "umap":
        find_umap()  # before the work, not after it
    manifest = asked.shard_set.manifest
    subjects = find_subjects(
        asked.encoder, asked.band_names, asked.shard_set.grid[0], stages=asked.stages, view_size=asked.view_size,
        normalise=asked.normalise, reflectance=manifest.reflectance, seed=asked.seed, device=asked.device,
        fallback=asked.fallback,
    )  # fmt: skip
    functions = [subject.features for subject in subjects.all]
    chosen: dict[str, np.ndarray | None] = {"val": None, "test": None}
    if asked.protocol == "map":
        chosen["test"] = spread(asked.shard_set.size("test"), asked.seed)
    found: list[Splits] = [{} for _ in functions]
    for split in SPLITS[asked.protocol]:
        features, labels = asked.extract(
            split, functions, view_size=subjects.view_size, statistics=subjects.statistics,
            subset=asked.subset if split == "train" else chosen[split],
        )  # fmt: skip
        for splits, own in zip(found, features, strict=True):
            splits[split] = own, labels
    extracted = time.perf_counter() - began

    # -- each subject alike, the test split once -----------------------------------------------------------------------
    outcomes = [PROTOCOLS[asked.protocol](asked, splits) for splits in found]
    score = score_name(asked)
    used = asked.subset if "train" in SPLITS[asked.protocol] else np.empty(0)
    results = asked.described() | {
        "encoder": subjects.main.told, "adapted": subjects.main.adapted, "labelled_samples": len(used),
        "view_size": subjects.view_size or asked.shard_set.grid[0], "features": int(found[0]["test"][0].shape[1]),
        "score": score, "chosen_on_val": outcomes[0].chosen, "test": outcomes[0].test,
        "test_samples": asked.shard_set.size("test"), **outcomes[0].extra,
        "floors": {
            subject.told: {"chosen_on_val": outcome.chosen, "test": outcome.test,
                           "features": splits["test"][0].shape[1]}
            for subject, outcome, splits in zip(subjects.floors, outcomes[1:], found[1:], strict=True)
        },
    }  # fmt: skip
    asked.begin(out)
    if outcomes[0].scores is not None:
        keys, truth = sample_keys(asked.shard_set, "test"), found[0]["test"][1]
        runs = [Predictions(keys, truth, o.scores, spec.kind, spec.classes) for o in outcomes if o.scores is not None]
        results |= _with_intervals(runs, [subject.told for subject in subjects.floors], score)
        folders = [out, *(floor_folder(out, subject.told) for subject in subjects.floors)]
        for folder, run in zip(folders, runs, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            save_predictions(folder, keys, truth, run.scores, spec.kind, spec.classes)
    if asked.protocol == "map":
        panels = {subject.told: outcome for subject, outcome in zip(subjects.all[::-1], outcomes[::-1], strict=True)}
        results |= _draw_maps(asked, out, panels, found[0]["test"][1], chosen["test"])
    for name, picture in outcomes[0].pictures.items():
        if isinstance(picture, bytes):
            atomic.write_bytes(out / name, picture)
        else:
            save_picture(out / name, picture)
    results["seconds"] = {"features": extracted, "all": time.perf_counter() - began}
    atomic.write_json(out / "results.json", results)
    return results


def _linear(asked: Settings, splits: Splits) -> Outcome:
    _, spec = asked.label
    probed = linear_probe(splits["train"], splits["val"], splits["test"][0], len(spec.classes))
    assert probed.model is not None
    logits = {split: probed.model.logits(splits[split][0]) for split in ("val", "test")}
    calibrated = calibrate((splits["val"][1], logits["val"]), (splits["test"][1], logits["test"]))
    diagram = reliability_figure({name: calibrated[key] for key, name in CALIBRATED.items()})
    return Outcome(
        _scored(spec, splits["test"][1], probed.scores), probed.chosen, probed.scores,
        {"calibration": calibrated}, {"reliability.png": diagram},
    )  # fmt: skip


CALIBRATED = {"as_is": "as fitted", "scaled": "with the temperature of val"}


def _knn(asked: Settings, splits: Splits) -> Outcome:
    _, spec = asked.label
    probed = knn(splits["train"], splits["val"], splits["test"][0], len(spec.classes))
    scores = probed.scores.astype(np.float32)  # as they are kept, ties included
    return Outcome(_scored(spec, splits["test"][1], scores), probed.chosen, scores)


def _cluster(asked: Settings, splits: Splits) -> Outcome:
    clusters = asked.clusters or len(asked.label[1].classes)
    return Outcome(cluster(splits["train"][0], splits["test"], clusters, asked.seed))


def _retrieval(asked: Settings, splits: Splits) -> Outcome:
    found = retrieve(splits["train"], splits["test"], asked.seed)
    sheet = neighbour_sheet(asked.shard_set, asked.label, found.queries, asked.subset[found.neighbours], found.right)
    return Outcome(found.scores, pictures={"neighbours.png": sheet})


def _map(asked: Settings, splits: Splits) -> Outcome:
    placed, trust = place(splits["test"][0], asked.method, asked.seed)
    return Outcome({"trustworthiness": trust}, scores=None, extra={"method": asked.method, "places": placed.tolist()})


PROTOCOLS: dict[str, Callable[[Settings, Splits], Outcome]] = {
    "linear": _linear, "knn": _knn, "cluster": _cluster, "retrieval": _retrieval, "map": _map,
}  # fmt: skip


def _scored(spec: Any, truth: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    return (metrics.multilabel if spec.kind == "multilabel" else metrics.single_label)(truth, scores, spec.classes)


def _with_intervals(runs: list[Predictions], floors: list[str], score: str) -> dict[str, Any]:
    """95 % intervals of the first run's scores, and of its lead over each floor on the same samples."""
    if len(runs[0].keys) < 2:
        return {}
    names = (score, "macro_f1")
    return {
        "intervals": {name: interval(runs[:1], name, resamples=RESAMPLES).as_dict() for name in names},
        "above_floors": {
            told: difference(runs[:1], [floor], score, resamples=RESAMPLES).as_dict()
            for told, floor in zip(floors, runs[1:], strict=True)
        },
    }


def _draw_maps(
    asked: Settings, out: Path, panels: dict[str, Outcome], labels: np.ndarray, chosen: np.ndarray | None
) -> dict[str, Any]:
    """map.png, floors first: what there was before pretraining stands left of what there is after it."""
    _, spec = asked.label
    places = {told: np.array(outcome.extra["places"]) for told, outcome in panels.items()}
    atomic.write_bytes(out / "map.png", map_figure(places, labels, spec.classes, asked.method))
    return {"mapped_samples": (chosen if chosen is not None else np.arange(len(labels))).tolist()}
