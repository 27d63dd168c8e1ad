"""What of a shard set is learned: labels or masks, by name, and the part of them that is used."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evaluation import metrics
from evaluation.fractions import labelled_subset
from shards.errors import BandstreamError
from shards.shardset import ShardSet


@dataclass(frozen=True)
class Target:
    """Labels or masks of a shard set: `what` of the two, and `kind`, `single`, `multilabel` or `segment`."""

    name: str
    what: Literal["labels", "masks"]
    kind: str
    classes: list[str]


@dataclass(frozen=True)
class Labelled:
    """The labels that are used: sample numbers of the train split, int64 (n,); how often they hold each class (samples,
    or pixels of masks), int64 (K,); and the classes that the train split has and they have not."""

    subset: np.ndarray
    counts: np.ndarray
    missing: list[str]


def choose_target(shard_set: ShardSet, task: str, name: str | None = None) -> Target:
    """The labels (`classify`) or masks (`segment`) called `name`, or the first. Raises BandstreamError without them."""
    what: Literal["labels", "masks"] = "masks" if task == "segment" else "labels"
    specs: dict[str, Any] = dict(shard_set.manifest.masks if task == "segment" else shard_set.manifest.labels)
    if not specs:
        raise BandstreamError(f"{shard_set.place} has no {what}: ingest a set that has some")
    name = name or next(iter(specs))
    if name not in specs:
        raise BandstreamError(f"{shard_set.place} has no {what} {name!r}: it has {', '.join(specs)}")
    spec = specs[name]
    return Target(name, what, getattr(spec, "kind", "segment"), spec.classes)


def class_counts(shard_set: ShardSet, split: str, target: Target) -> np.ndarray:
    """How often each class occurs in each sample of a split: int64 (n, K), labels 0 or 1, masks in pixels.

    Of masks, only their own bytes are read. Raises BandstreamError where they hold a class that there is not.
    """
    if target.what == "labels":
        labels = shard_set.labels(split, target.name)
        if labels.ndim == 1:
            labels = np.eye(len(target.classes), dtype=np.int64)[labels]
        return labels.astype(np.int64)
    shard_set.size(split)
    member = shard_set.manifest.masks[target.name].member
    counts = []
    for number, shard in enumerate(shard_set.manifest.splits[split].shards):
        with ExitStack() as stack:
            if shard_set.remote is None:
                path = shard_set.paths(split)[number]
            else:
                path = stack.enter_context(shard_set.hold(split, number)).path
            stored = np.memmap(path, np.uint8, "r", shape=(shard.samples, shard_set.layout.sample_bytes))
            for mask in shard_set.layout.view(stored, member):
                counts.append(np.bincount(mask.ravel(), minlength=256))
    every, width = np.stack(counts), len(target.classes)
    strange = [value for value in range(width, metrics.IGNORE) if every[:, value].any()]
    if strange:
        raise BandstreamError(
            f"{shard_set.place}: {split} masks hold the class {strange[-1]}, of {width} from 0 on: verify the set, "
            "ingest again"
        )
    return every[:, :width]


def labelled(shard_set: ShardSet, target: Target, fraction: float, seed: int) -> Labelled:
    """A fraction of the train split's labels, stratified by its classes (of masks: by those present in each).

    Raises BandstreamError where they leave nothing to tell apart, or fewer than two samples.
    """
    counts = class_counts(shard_set, "train", target)
    subset = labelled_subset((counts > 0).astype(np.uint8), fraction, seed)
    held = counts[subset].sum(0)
    if len(subset) < 2:
        raise BandstreamError(f"label fraction {fraction:g} of {len(counts)} samples leaves one: raise it")
    there = _named(target.classes, held > 0)
    if not there:
        told = "masks are ignored altogether" if target.kind == "segment" else "samples have no label"
        raise BandstreamError(f"all {len(subset)} labelled {told}: raise the label fraction, or take another target")
    if len(there) == 1 and target.kind != "multilabel":
        raise BandstreamError(
            f"the {len(subset)} labelled samples hold one class alone ({there[0]}): raise the label fraction"
        )
    return Labelled(subset, held, _named(target.classes, (counts.sum(0) > 0) & (held == 0)))


def _named(classes: Sequence[str], chosen: np.ndarray) -> list[str]:
    return [name for name, taken in zip(classes, chosen.tolist(), strict=True) if taken]
