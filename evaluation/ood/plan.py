"""Who is judged, on which bands and views, with whose statistics."""

from dataclasses import dataclass

import numpy as np

from evaluation.features import Features
from evaluation.fractions import labelled_subset
from evaluation.ood.classifiers import FineTuned, Head, is_fine_tuned, load_fine_tuned, view_size_of
from evaluation.settings import Settings
from evaluation.standardising import Statistics, of_encoder
from evaluation.subject import (
    IMAGE_STATISTICS,
    RANDOM,
    STATISTICS,
    Subject,
    find_subjects,
    image_statistics,
    random_subject,
)
from models.export import load_encoder
from shards.errors import BandstreamError
from shards.shardset import ShardSet


@dataclass(frozen=True)
class Member:
    """One that is judged: features of views, and the head of a fine-tuned run, or None: a probe is fitted; `adapted`
    says how its stem came from other bands, if it did."""

    told: str
    features: Features
    head: Head | None = None
    adapted: str = ""


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


def open_other(asked: Settings) -> ShardSet | None:
    """The set of `--against`; None where classes are held out. Raises BandstreamError."""
    if bool(asked.against) == bool(asked.hold_out):
        raise BandstreamError(
            "what is outside: name another set with --against, or classes with --hold-out, one of both"
        )
    if any(encoder.startswith(RANDOM) or encoder == STATISTICS for encoder in asked.ensemble):
        raise BandstreamError("an ensemble is of runs: name folders with --ensemble")
    return ShardSet.open(asked.against) if asked.against else None


def make_plan(asked: Settings, other: ShardSet | None) -> Plan:
    """A fine-tuned run comes with bands, views, statistics and labels of its own; for an encoder, bands are those
    asked for, or that both sets have, in the first one's order. Floors are image statistics and the same architecture
    with random weights.

    Raises BandstreamError where no band is in common, the other set lacks one that a run needs, or runs do not fit.
    """
    manifest = asked.shard_set.manifest
    own = {band: (s.mean, s.std) for band, s in manifest.statistics.items()}
    if is_fine_tuned(asked.encoder):
        if asked.bands:
            raise BandstreamError(f"{asked.encoder} was fine-tuned with bands of its own: leave --bands out")
        runs = [load_fine_tuned(folder, asked.device) for folder in (asked.encoder, *asked.ensemble)]
        first = runs[0].results
        _check_runs(asked, runs)
        bands: list[str] = first["bands"]
        size = view_size_of(first) or asked.shard_set.grid[0]
        statistics = runs[0].statistics or own
        if runs[0].statistics is None and first["normalise"] == "encoder":
            _, info = load_encoder(first["init"], bands, first["recipe"].get("fallback", "none"))
            statistics = of_encoder(info, manifest.reflectance)
        members = [
            Member(f"fine-tuned {run.results['encoder']}", run.features, run.head, run.results.get("adapted", ""))
            for run in runs
        ]
        floors = [Subject(IMAGE_STATISTICS, image_statistics, None),
                  random_subject(first["encoder"], bands, size, asked.seed, asked.device, stages=False)]  # fmt: skip
        labels = asked.shard_set.labels("train", asked.label[0])
        fraction = first["label_fraction"]
        subset = labelled_subset(labels, fraction, first["seed"])
    else:
        bands = [b for b in asked.band_names if other is None or b in other.manifest.band_names]
        if asked.bands and len(bands) < len(asked.bands):
            missing = [band for band in asked.bands if band not in bands]
            raise BandstreamError(f"{asked.against} has no bands {', '.join(missing)}: leave them out of --bands")
        if not bands:
            raise BandstreamError(f"{asked.shard_set.place} and {asked.against} have no band in common")
        found = [
            find_subjects(encoder, bands, asked.shard_set.grid[0], stages=asked.stages, view_size=asked.view_size,
                          normalise=asked.normalise, reflectance=manifest.reflectance, seed=asked.seed,
                          device=asked.device, fallback=asked.fallback)
            for encoder in (asked.encoder, *asked.ensemble)
        ]  # fmt: skip
        size, subset = found[0].view_size or asked.shard_set.grid[0], asked.subset
        fraction = asked.label_fraction
        if any((one.view_size or size) != size for one in found):
            raise BandstreamError("the ensemble was trained on views of several sizes: choose one with --view-size")
        statistics = found[0].statistics or own
        members = [Member(one.main.told, one.main.features, adapted=one.main.adapted) for one in found]
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
