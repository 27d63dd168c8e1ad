"""Features of what is inside and of what is outside."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.ood.plan import Plan
from evaluation.samples import sample_keys
from evaluation.settings import Settings, Split
from evaluation.standardising import converted
from shards.errors import BandstreamError
from shards.shardset import ShardSet


@dataclass(frozen=True)
class Sides:
    """A member's features and labels of the set, and its features from outside."""

    train: Split
    val: Split
    inside: Split
    outside: np.ndarray


def extract_sides(
    asked: Settings, plan: Plan, other: ShardSet | None, held_out: list[int]
) -> tuple[list[Sides], tuple[np.ndarray, np.ndarray]]:
    """Of each member, its sides; and the keys of the samples inside and outside.

    `held_out`: numbers of classes, where there is no other set. Raises BandstreamError where one side is empty.
    """
    functions = [member.features for member in plan.members]
    shared: dict[str, Any] = {"view_size": plan.view_size, "bands": plan.bands}
    found: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
    keys = sample_keys(asked.shard_set, "test")
    for split, subset in (("train", plan.subset), ("val", None), ("test", None)):
        found[split] = asked.extract(split, functions, statistics=plan.statistics, subset=subset, **shared)
    if other is not None:
        outside, _ = asked.extract(
            outside_split(other), functions, shard_set=other, labelled=False,
            statistics=converted(plan.statistics, asked.shard_set.manifest.reflectance, other.manifest.reflectance),
            **shared,
        )  # fmt: skip
        chosen = {split: (features, labels) for split, (features, labels) in found.items()}
        places = keys, sample_keys(other, outside_split(other))
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


def outside_split(shard_set: ShardSet) -> str:
    """Where samples from outside come from: test, or else val, or else train."""
    return next(split for split in ("test", "val", "train") if split in shard_set.manifest.splits)


def class_number(name: str, classes: list[str]) -> int:
    if name not in classes:
        raise BandstreamError(f"there is no class {name!r} to hold out: choose from {', '.join(classes)}")
    return classes.index(name)
