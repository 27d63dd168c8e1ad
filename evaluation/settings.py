"""What `bandstream evaluate` was asked for."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.features import Features, extract_all
from evaluation.fractions import labelled_subset
from evaluation.standardising import Statistics
from evaluation.subject import FINE_TUNED
from models.hub import WEIGHTS
from pipeline.loader import Loader
from pipeline.views import ViewRecipe
from shards import atomic
from shards.bands import Fallback
from shards.errors import BandstreamError
from shards.manifest import LabelSpec
from shards.shardset import ShardSet
from training.seeds import SETTINGS, digest

UNTOLD = {"shard_set", "against", "batch_size", "device", "threads"}
"""Options that results do not depend on, or that stand elsewhere in `Settings.identity`."""
Split = tuple[np.ndarray, np.ndarray]
"""Features float32 (n, D), and labels (n,) or multi-hot (n, K)."""


@dataclass(frozen=True)
class Settings:
    """The options, as typed, and the shard set, opened."""

    shard_set: ShardSet
    encoder: str
    protocol: str
    level: str
    label_fraction: float
    view_size: int | None
    normalise: str
    batch_size: int
    seed: int
    device: torch.device
    threads: int | None
    labels: str | None = None
    clusters: int | None = None
    method: str = "tsne"
    against: str | None = None
    hold_out: tuple[str, ...] = ()
    ensemble: tuple[str, ...] = ()
    passes: int = 20
    dropout: float = 0.1
    neighbours: int = 10
    bands: tuple[str, ...] | None = None
    """None: all of the set, or what the protocol says."""
    fallback: Fallback = "none"

    @cached_property
    def band_names(self) -> list[str]:
        """Of the views, in the order of the encoder's channels. Raises BandstreamError on bands the set has not."""
        return self.shard_set.chosen_bands(self.bands)

    @cached_property
    def label(self) -> tuple[str, LabelSpec]:
        """Name and description of the label set, the first if none was named. Raises BandstreamError without it."""
        labels = self.shard_set.manifest.labels
        if not labels:
            raise BandstreamError(f"{self.shard_set.place} has no labels to probe with: ingest a set that has some")
        if self.labels is not None and self.labels not in labels:
            raise BandstreamError(f"{self.shard_set.place} has no labels {self.labels!r}: it has {', '.join(labels)}")
        name = self.labels or next(iter(labels))
        return name, labels[name]

    @property
    def stages(self) -> bool:
        return self.level == "stages"

    @cached_property
    def subset(self) -> np.ndarray:
        """Sample numbers of train whose labels are used. Raises BandstreamError where they tell nothing apart."""
        name, spec = self.label
        labels = self.shard_set.labels("train", name)
        chosen = labelled_subset(labels, self.label_fraction, self.seed)
        refuse_one_class(labels[chosen], spec.classes, self.shard_set.place)
        return chosen

    def extract(
        self,
        split: str,
        functions: list[Features],
        *,
        view_size: int | None,
        statistics: Statistics | None,
        bands: list[str] | None = None,
        subset: np.ndarray | None = None,
        shard_set: ShardSet | None = None,
        labelled: bool = True,
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Features of a split, an array (n, D) a function, and its labels; each sample once, in order."""
        loader = Loader(
            shard_set or self.shard_set, split, self.batch_size, [ViewRecipe.plain(view_size)], training=False,
            device=self.device.type, threads=self.threads, labels=self.label[0] if labelled else None, subset=subset,
            statistics=statistics, bands=bands or self.band_names,
        )  # fmt: skip
        try:
            return extract_all(loader, functions)
        finally:
            loader.close()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What results depend on, as JSON has it: two evaluations with the same are the same. Sets are their
        fingerprints, encoders also the SHA-256 of their weights. Raises BandstreamError where `against` is no set."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in UNTOLD}
        weights = {
            f"{folder}/{file}": found
            for folder in (self.encoder, *self.ensemble)
            for file in (WEIGHTS, FINE_TUNED)
            if (found := digest(Path(folder) / file))
        }
        against = ShardSet.open(self.against).manifest.fingerprint() if self.against else None
        return {
            **options, "hold_out": list(self.hold_out), "bands": self.bands and list(self.bands),
            "ensemble": list(self.ensemble), "weights_sha256": weights,
            "data": self.shard_set.manifest.fingerprint(), "against": against,
        }  # fmt: skip

    def begin(self, out: Path) -> None:
        """Make the folder, and say in it what its files will be of: nothing is written there before."""
        out.mkdir(parents=True, exist_ok=True)
        atomic.write_json(out / SETTINGS, self.identity)

    def described(self) -> dict[str, Any]:
        """What every results.json of `evaluate` begins with."""
        name, spec = self.label
        manifest = self.shard_set.manifest
        return {
            "stage": "evaluate", "task": "classify", "kind": spec.kind, "target": name, "protocol": self.protocol,
            "source": self.encoder, "label_fraction": self.label_fraction, "seed": self.seed,
            "normalise": self.normalise, "bands": self.band_names, "level": self.level, "classes": spec.classes,
            "data": {"name": manifest.name, "manifest": manifest.fingerprint()},
        }  # fmt: skip


def refuse_one_class(labels: np.ndarray, classes: list[str], place: str) -> None:
    """Raises BandstreamError where labels (n,), or every column of multi-hot (n, K), are the same all over."""
    if labels.ndim == 2:
        if (labels == labels[:1]).all():
            raise BandstreamError(
                f"every labelled train sample of {place} has the same labels: there is nothing to tell apart"
            )
    elif len(np.unique(labels)) < 2:
        raise BandstreamError(
            f"every labelled train sample of {place} is of one class, {classes[int(labels[0])]!r}: "
            "there is nothing to tell apart; use more labels"
        )
