"""Out-of-distribution detection between two shard sets, or of classes that a probe never saw.

Inside is the test split of the set; outside, the test split of another set (`--against`), or the test samples of
classes that were held out of train and val (`--hold-out`). Higher scores mean further outside, all of them.

Both sides are standardised with the same statistics, those of the set that the classifier learned from: in use, a
strange sample comes alone, and nobody knows the mean of where it comes from; with its own set's statistics, part of
what makes it strange would be taken away. Where the two sets store reflectance with another scale or offset, the
statistics are converted, so that it is reflectance that is compared. Patches of another size in pixels are resampled
to the same view, which leaves its own traces: choose sets of one size, or read the scores with that in mind.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import metrics
from evaluation.calibration import calibrate
from evaluation.features import Features
from evaluation.figures import reliability_figure, separation_figure
from evaluation.fractions import labelled_subset
from evaluation.ood import scores as measures
from evaluation.ood.classifiers import RESULTS, FineTuned, Head, is_fine_tuned, load_fine_tuned, view_size_of
from evaluation.ood.detection import detection
from evaluation.predictions import save_predictions
from evaluation.probe import linear_probe
from evaluation.protocols import CALIBRATED
from evaluation.runs import read_json
from evaluation.samples import sample_keys
from evaluation.scoring import SCORE
from evaluation.settings import Settings, Split, refuse_one_class
from evaluation.subject import (
    IMAGE_STATISTICS,
    RANDOM,
    Statistics,
    Subject,
    find_subjects,
    image_statistics,
    random_subject,
)
from models.export import load_encoder
from shards import atomic
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet

NAMES = {
    "max_softmax": "maximum softmax", "energy": "energy", "entropy": "entropy",
    "mutual_information": "mutual information", "mahalanobis": "Mahalanobis", "knn": "nearest neighbours",
}  # fmt: skip
CHUNK = 4096


@dataclass(frozen=True)
class Member:
    """One that is judged: features of views, and the head of a fine-tuned run, or None: a probe is fitted."""

    told: str
    features: Features
    head: Head | None = None


@dataclass(frozen=True)
class Plan:
    """Who is judged, on what views. The first `together` members are one ensemble; further ones are floors."""

    members: list[Member]
    together: int
    bands: list[str]
    view_size: int
    statistics: Statistics
    subset: np.ndarray
    label_fraction: float


@dataclass(frozen=True)
class Sides:
    """A member's features and labels of the set, and its features from outside."""

    train: Split
    val: Split
    inside: Split
    outside: np.ndarray


def run_ood(asked: Settings, out: Path) -> dict[str, Any]:
    """Judge and write results.json, ood_scores.npz and pictures to `out`; returns what results.json holds."""
    began = time.perf_counter()
    if is_fine_tuned(asked.encoder):
        asked = replace(asked, labels=read_json(Path(asked.encoder) / RESULTS).get("target"))
    spec = asked.label[1]
    other = _other(asked)
    held_out = [_class_number(held, spec.classes) for held in asked.hold_out]
    plan = _plan(asked, other)
    sides, keys = _extract(asked, plan, other, held_out)
    extracted = time.perf_counter() - began
    classes = [held for k, held in enumerate(spec.classes) if k not in held_out]
    refuse_one_class(sides[0].train[1], classes, asked.shard_set.place)

    multi = spec.kind == "multilabel"
    groups = [list(range(plan.together)), *([k] for k in range(plan.together, len(sides)))]
    judged = [_judge(asked, [plan.members[k] for k in group], [sides[k] for k in group], len(classes), multi)
              for group in groups]  # fmt: skip
    main = judged[0]
    score = SCORE[spec.kind]
    test = {told: _test(found, classes, multi) for told, found in zip(("main", *_told(plan)), judged, strict=True)}
    results = asked.described() | {
        "encoder": " + ".join(member.told for member in plan.members[: plan.together]), "bands": plan.bands,
        "labelled_samples": len(sides[0].train[1]), "view_size": plan.view_size, "classes": classes,
        "features": int(sides[0].outside.shape[1]), "score": score, "chosen_on_val": main.chosen,
        "test": test["main"], "test_samples": len(sides[0].inside[1]),
        "label_fraction": plan.label_fraction, "ood": main.detections, "ood_samples": len(sides[0].outside),
        "sign": "higher scores: further out of distribution",
        "against": None if other is None else {
            "name": other.manifest.name, "manifest": other.manifest.fingerprint(), "split": _split(other),
            "bands_left_out": [b for b in asked.shard_set.manifest.band_names if b not in plan.bands],
        },
        "hold_out": list(asked.hold_out),
        "passes": "members of the ensemble" if plan.together > 1 else asked.passes,
        "calibration": main.calibration,
        "floors": {told: {"test": test[told], "ood": found.detections, "chosen_on_val": found.chosen}
                   for told, found in zip(_told(plan), judged[1:], strict=True)},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"{side}_{key}": values[number] for key, values in main.scores.items()
              for number, side in enumerate(("inside", "outside"))}  # fmt: skip
    with atomic.replacing(out / "ood_scores.npz") as file:
        np.savez_compressed(file, inside_keys=keys[0], outside_keys=keys[1], **arrays)
    save_predictions(out, keys[0], sides[0].inside[1], main.probabilities, spec.kind, classes)
    titles = {key: f"{NAMES[key]}: AUROC {found['auroc']:.3f}" for key, found in main.detections.items()}
    atomic.write_bytes(out / "ood.png", separation_figure(main.scores, titles))
    diagrams = {told: main.calibration[key] for key, told in CALIBRATED.items()}
    atomic.write_bytes(out / "reliability.png", reliability_figure(diagrams))
    results["seconds"] = {"features": extracted, "all": time.perf_counter() - began}
    atomic.write_json(out / "results.json", results)
    return results


@dataclass(frozen=True)
class Judged:
    scores: dict[str, tuple[np.ndarray, np.ndarray]]
    detections: dict[str, Any]
    probabilities: np.ndarray
    truth: np.ndarray
    calibration: dict[str, Any]
    chosen: float | None


def _judge(asked: Settings, members: list[Member], sides: list[Sides], classes: int, multi: bool) -> Judged:
    heads, chosen = [], None
    for member, side in zip(members, sides, strict=True):
        head = member.head
        if head is None:
            probed = linear_probe(side.train, side.val, side.inside[0], classes)
            assert probed.model is not None
            head, chosen = Head.of_probe(probed.model), probed.chosen
        heads.append(head)
    mahalanobis = measures.Mahalanobis(*sides[0].train)
    neighbours = measures.Neighbours(sides[0].train[0], asked.neighbours, asked.seed)

    def scores_of(features: list[np.ndarray]) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
        for start in range(0, len(features[0]), CHUNK):
            chunk = [x[start : start + CHUNK] for x in features]
            each = np.stack([head.logits(x) for head, x in zip(heads, chunk, strict=True)])  # (members, n, K)
            logits, passes = each.mean(0), each
            if len(heads) == 1:
                passes = heads[0].passes(chunk[0], asked.passes, asked.dropout, asked.seed + start)
            parts["max_softmax"].append(measures.max_softmax(logits, multi))
            parts["energy"].append(measures.energy(logits, multi))
            parts["entropy"].append(measures.entropy(measures.mean_probabilities(each, multi), multi))
            parts["mutual_information"].append(measures.mutual_information(passes, multi))
            parts["mahalanobis"].append(mahalanobis.score(chunk[0]))
            parts["knn"].append(neighbours.score(chunk[0]))
        return {name: np.concatenate(values) for name, values in parts.items()}

    inside = scores_of([side.inside[0] for side in sides])
    outside = scores_of([side.outside for side in sides])
    logits = {
        split: np.mean([head.logits(getattr(side, split)[0]) for head, side in zip(heads, sides, strict=True)], 0)
        for split in ("val", "inside")
    }
    return Judged(
        {name: (inside[name], outside[name]) for name in NAMES},
        {name: detection(inside[name], outside[name]) for name in NAMES},
        measures.mean_probabilities(logits["inside"][None], multi),
        sides[0].inside[1],
        calibrate((sides[0].val[1], logits["val"]), (sides[0].inside[1], logits["inside"])),
        chosen,
    )


def _plan(asked: Settings, other: ShardSet | None) -> Plan:
    manifest = asked.shard_set.manifest
    own = {band: (s.mean, s.std) for band, s in manifest.statistics.items()}
    if is_fine_tuned(asked.encoder):
        runs = [load_fine_tuned(folder, asked.device) for folder in (asked.encoder, *asked.ensemble)]
        first = runs[0].results
        _check_runs(asked, runs)
        bands: list[str] = first["bands"]
        size = view_size_of(first) or asked.shard_set.grid[0]
        statistics = runs[0].statistics or own
        if runs[0].statistics is None and first["normalise"] == "encoder":
            _, info = load_encoder(first["init"], bands)
            statistics = {band.name: (band.mean, band.std) for band in info.bands}
        members = [Member(f"fine-tuned {run.results['encoder']}", run.features, run.head) for run in runs]
        floors = [Subject(IMAGE_STATISTICS, image_statistics, None),
                  random_subject(first["encoder"], bands, size, asked.seed, asked.device, stages=False)]  # fmt: skip
        labels = asked.shard_set.labels("train", asked.label[0])
        fraction = first["label_fraction"]
        subset = labelled_subset(labels, fraction, first["seed"])
    else:
        bands = [b for b in manifest.band_names if other is None or b in other.manifest.band_names]
        if not bands:
            raise BandstreamError(f"{asked.shard_set.place} and {asked.against} have no band in common")
        found = [
            find_subjects(encoder, bands, asked.shard_set.grid[0], stages=asked.stages, view_size=asked.view_size,
                          normalise=asked.normalise, seed=asked.seed, device=asked.device)
            for encoder in (asked.encoder, *asked.ensemble)
        ]  # fmt: skip
        size, subset = found[0].view_size or asked.shard_set.grid[0], asked.subset
        fraction = asked.label_fraction
        if any((one.view_size or size) != size for one in found):
            raise BandstreamError("the ensemble was trained on views of several sizes: choose one with --view-size")
        statistics = found[0].statistics or own
        members = [Member(one.main.told, one.main.features) for one in found]
        floors = found[0].floors
    together = len(members)
    members += [Member(floor.told, floor.features) for floor in floors]
    if other is not None and (missing := [band for band in bands if band not in other.manifest.band_names]):
        raise BandstreamError(
            f"{asked.against} lacks the bands {', '.join(missing)}, which the classifier was trained with"
        )
    return Plan(members, together, bands, size, statistics, subset, fraction)


def _check_runs(asked: Settings, runs: list[FineTuned]) -> None:
    first = runs[0].results
    if asked.hold_out:
        raise BandstreamError(
            "a fine-tuned run has seen all classes: --hold-out takes a pretrained encoder, which is probed"
        )
    if first["data"]["manifest"] != asked.shard_set.manifest.fingerprint():
        raise BandstreamError(
            f"{asked.encoder} was fine-tuned on another set, {first['data']['name']!r}: "
            "name that as DST, and this with --against"
        )
    for run, folder in zip(runs, (asked.encoder, *asked.ensemble), strict=True):
        for key in ("classes", "bands", "data", "normalise"):
            if run.results[key] != first[key]:
                raise BandstreamError(f"{folder} differs from {asked.encoder} in {key}: an ensemble is of like runs")


def _extract(
    asked: Settings, plan: Plan, other: ShardSet | None, held_out: list[int]
) -> tuple[list[Sides], tuple[np.ndarray, np.ndarray]]:
    """Of each member, its sides; and the keys of the samples inside and outside."""
    functions = [member.features for member in plan.members]
    shared: dict[str, Any] = {"view_size": plan.view_size, "bands": plan.bands}
    found: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
    keys = sample_keys(asked.shard_set, "test")
    for split, subset in (("train", plan.subset), ("val", None), ("test", None)):
        found[split] = asked.extract(split, functions, statistics=plan.statistics, subset=subset, **shared)
    if other is not None:
        outside, _ = asked.extract(
            _split(other), functions, shard_set=other, labelled=False,
            statistics=converted(plan.statistics, asked.shard_set.manifest, other.manifest), **shared,
        )  # fmt: skip
        chosen = {split: (features, labels) for split, (features, labels) in found.items()}
        places = keys, sample_keys(other, _split(other))
    else:
        classes = len(asked.label[1].classes)
        strange = has_class(found["test"][1], held_out)
        if not strange.any() or strange.all():
            raise BandstreamError(
                f"{int(strange.sum())} of {len(strange)} test samples are of {', '.join(asked.hold_out)}: "
                "there must be some on both sides"
            )
        outside = [features[strange] for features in found["test"][0]]
        chosen = {}
        for split, (features, labels) in found.items():
            kept = ~has_class(labels, held_out)
            if not kept.any():
                raise BandstreamError(f"no sample of {split} is without {', '.join(asked.hold_out)}: hold out fewer")
            chosen[split] = [x[kept] for x in features], without(labels[kept], held_out, classes)
        places = keys[~strange], keys[strange]
    sides = [
        Sides(own["train"], own["val"], own["test"], strange_ones)
        for own, strange_ones in zip(
            (
                {split: (features[k], labels) for split, (features, labels) in chosen.items()}
                for k in range(len(functions))
            ),
            outside,
            strict=True,
        )
    ]
    return sides, places


def converted(statistics: Statistics, own: Manifest, other: Manifest) -> Statistics:
    """Statistics in stored numbers of one set → the same reflectance in stored numbers of another."""
    a, b = own.reflectance, other.reflectance
    return {
        band: ((mean * a.scale + a.offset - b.offset) / b.scale, std * a.scale / b.scale)
        for band, (mean, std) in statistics.items()
    }


def has_class(labels: np.ndarray, held_out: list[int]) -> np.ndarray:
    """Which samples are of one of these classes, or, multi-hot, hold one: bool (n,)."""
    if labels.ndim == 1:
        return np.isin(labels, held_out)
    held: np.ndarray = labels[:, held_out]
    return np.asarray(held.max(1) > 0)


def without(labels: np.ndarray, held_out: list[int], classes: int) -> np.ndarray:
    """Labels of samples that are of none of these classes, with the remaining classes numbered anew."""
    if labels.ndim == 2:
        return np.delete(labels, held_out, 1)
    kept = np.setdiff1d(np.arange(classes), held_out)
    return np.searchsorted(kept, labels)


def _other(asked: Settings) -> ShardSet | None:
    if bool(asked.against) == bool(asked.hold_out):
        raise BandstreamError(
            "what is outside: name another set with --against, or classes with --hold-out, one of both"
        )
    if any(encoder.startswith(RANDOM) or encoder == "statistics" for encoder in asked.ensemble):
        raise BandstreamError("an ensemble is of runs: name folders with --ensemble")
    return ShardSet.open(asked.against) if asked.against else None


def _split(shard_set: ShardSet) -> str:
    """Where samples from outside come from: test, or else val, or else train."""
    return next(split for split in ("test", "val", "train") if split in shard_set.manifest.splits)


def _class_number(name: str, classes: list[str]) -> int:
    if name not in classes:
        raise BandstreamError(f"there is no class {name!r} to hold out: choose from {', '.join(classes)}")
    return classes.index(name)


def _told(plan: Plan) -> list[str]:
    return [member.told for member in plan.members[plan.together :]]


def _test(found: Judged, classes: list[str], multi: bool) -> dict[str, Any]:
    return (metrics.multilabel if multi else metrics.single_label)(found.truth, found.probabilities, classes)
