"""A shard set, opened: checked against its manifest before a byte of it is used."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shards import catalogue
from shards.errors import BandstreamError
from shards.layout import BLOCK, TRAILER, SampleLayout, finest_grid, tar_size
from shards.manifest import Manifest


@dataclass(frozen=True)
class Sample:
    """One sample: arrays by member, labels and masks by their names in the manifest, `json` parsed."""

    key: str
    arrays: dict[str, np.ndarray]
    labels: dict[str, np.ndarray | int]
    masks: dict[str, np.ndarray]
    json: dict[str, Any]


class ShardSet:
    """The shards of a folder. Sample i of a split is its running number over the split's shards, in manifest order."""

    def __init__(self, root: Path, manifest: Manifest, layout: SampleLayout) -> None:
        self.root = root
        self.manifest = manifest
        self.layout = layout

    @classmethod
    def open(cls, folder: Path | str) -> "ShardSet":
        """Open a folder, comparing each shard's size, stride and headers with the manifest (not its checksum).

        Raises BandstreamError naming the shard that is missing, of another size, or laid out otherwise.
        """
        root = Path(folder)
        manifest = Manifest.read(root)
        layout: SampleLayout | None = None
        for split in manifest.splits.values():
            for shard in split.shards:
                path = root / shard.file
                expected = shard.samples * manifest.sample_bytes + len(TRAILER)
                try:
                    with path.open("rb") as file:
                        size = os.fstat(file.fileno()).st_size
                        if size != shard.bytes or size != expected:
                            raise BandstreamError(
                                f"{path} has {size} bytes, by its manifest {expected}: "
                                "run `bandstream verify`, then ingest again"
                            )
                        layout = layout or SampleLayout.of(manifest, json_bytes(file.fileno(), manifest))
                        for number in {0, shard.samples - 1}:
                            raw = os.pread(file.fileno(), layout.sample_bytes, number * layout.sample_bytes)
                            layout.check(np.frombuffer(raw, np.uint8))
                except FileNotFoundError:
                    raise BandstreamError(f"{path} is missing: run the ingest again") from None
                except ValueError as error:
                    raise BandstreamError(f"{path} does not fit its manifest: {error}: ingest again") from None
        if layout is None:
            raise BandstreamError(f"{root} holds no samples: nothing was taken at ingest, see {root}/rejected.jsonl")
        return cls(root, manifest, layout)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width, in pixels, of the finest array."""
        return finest_grid(self.manifest)

    def size(self, split: str) -> int:
        """Number of samples in a split. Raises BandstreamError where the set has no such split."""
        if split not in self.manifest.splits:
            raise BandstreamError(
                f"{self.root} has no split {split!r}: it has {', '.join(self.manifest.splits)}; "
                "name another, or ingest with a split that has one"
            )
        return self.manifest.splits[split].samples

    def paths(self, split: str) -> list[Path]:
        """The shard files of a split, in order."""
        self.size(split)
        return [self.root / shard.file for shard in self.manifest.splits[split].shards]

    @cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        return {
            name: np.cumsum([0] + [shard.samples for shard in split.shards])
            for name, split in self.manifest.splits.items()
        }

    def locate(self, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers (n,) → (shard number (n,), byte in that shard (n,)), both int64."""
        starts = self._starts[split]
        indices = np.asarray(indices, np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < starts[-1]):
            raise IndexError(f"{split} has samples 0 to {starts[-1] - 1}")
        shard = np.searchsorted(starts, indices, side="right") - 1
        return shard, (indices - starts[shard]) * self.layout.sample_bytes

    def read(self, split: str, index: int) -> Sample:
        """Read one whole sample: for a person's look and for tests; batches come through `pipeline`."""
        shard, offset = self.locate(split, np.array([index]))
        path = self.paths(split)[int(shard[0])]
        with path.open("rb") as file:
            raw = os.pread(file.fileno(), self.layout.sample_bytes, int(offset[0]))
        sample = np.frombuffer(raw, np.uint8)
        labels: dict[str, np.ndarray | int] = {}
        for name, label in self.manifest.labels.items():
            content = self.layout.view(sample, label.member)
            labels[name] = content if label.kind == "multilabel" else int(bytes(content))
        return Sample(
            self.layout.check(sample),
            {name: self.layout.view(sample, name) for name in self.manifest.arrays},
            labels,
            {name: self.layout.view(sample, mask.member) for name, mask in self.manifest.masks.items()},
            json.loads(bytes(self.layout.view(sample, "json"))),
        )

    def upsampled(self, sample: Sample, time: int = 0) -> np.ndarray:
        """The bands of a sample on its finest grid, nearest neighbour: float32 (C, H, W) in manifest order."""
        height, width = finest_grid(self.manifest)
        planes: dict[str, np.ndarray] = {}
        for name, array in self.manifest.arrays.items():
            if array.time == time:
                rows = np.arange(height) * array.shape[1] // height
                columns = np.arange(width) * array.shape[2] // width
                fine = sample.arrays[name][:, rows[:, None], columns]
                planes |= dict(zip(array.bands, fine, strict=True))
        return np.stack([planes[band] for band in self.manifest.band_names]).astype(np.float32)

    def labels(self, split: str, name: str) -> np.ndarray:
        """All labels of a split in sample order: uint8 (n, K) multi-hot or int64 (n,), from the catalogue."""
        if name not in self.manifest.labels:
            known = ", ".join(self.manifest.labels) or "none"
            raise BandstreamError(f"{self.root} has no labels {name!r}: it has {known}")
        spec = self.manifest.labels[name]
        column = catalogue.label_column(name, next(iter(self.manifest.labels)))
        table = catalogue.read(self.root).select(["split", "shard", "position", column])
        rows = table.filter([value == split for value in table["split"].to_pylist()]).to_pydict()
        if len(rows["split"]) != self.size(split):
            raise BandstreamError(f"{self.root}/{catalogue.FILE} does not list the samples of {split}: ingest again")
        number = {path.name: start for path, start in zip(self.paths(split), self._starts[split], strict=False)}
        hot = np.zeros((self.size(split), len(spec.classes)), np.uint8)
        for shard, position, classes in zip(rows["shard"], rows["position"], rows[column], strict=True):
            hot[number[shard] + position, classes] = 1
        return hot if spec.kind == "multilabel" else hot.argmax(1).astype(np.int64)


def json_bytes(descriptor: int, manifest: Manifest) -> int:
    """The size of the json member, which the manifest leaves to the tar header of a shard's first sample."""
    at = SampleLayout.declared(manifest).members[-1].at
    return tar_size(os.pread(descriptor, BLOCK, at))
