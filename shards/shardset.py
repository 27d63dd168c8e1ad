"""A shard set, opened: checked against its manifest before a byte of it is used."""

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shards import catalogue
from shards.errors import BandstreamError
from shards.layout import BLOCK, TRAILER, SampleLayout, finest_grid, tar_size
from shards.manifest import Manifest, ShardSpec
from shards.remote.cache import Cache, File, Held, Part, Wait
from shards.remote.files import RemoteFiles
from shards.remote.store import LOCAL, is_url


@dataclass(frozen=True)
class Sample:
    """One sample: arrays by member, labels and masks by their names in the manifest, `json` parsed."""

    key: str
    arrays: dict[str, np.ndarray]
    labels: dict[str, np.ndarray | int]
    masks: dict[str, np.ndarray]
    json: dict[str, Any]


class ShardSet:
    """The shards of a folder, or of a URL of fsspec. Sample i of a split is its running number over the split's
    shards, in manifest order.

    The files of a URL are fetched, whole, into a local cache when they are needed, and checked (`shards.remote`).
    `place` is what messages call the set.
    """

    def __init__(self, root: Path | str, manifest: Manifest, layout: SampleLayout) -> None:
        self.place = str(root)
        self.manifest = manifest
        self.layout = layout
        self.remote: RemoteFiles | None = None
        self._exact: SampleLayout | None = None

    @classmethod
    def open(cls, place: Path | str, cache: Path | str | None = None, cache_gb: float | None = None) -> "ShardSet":
        """Open a set, comparing each shard's size, stride and headers with the manifest, those of a URL once they are
        needed: then their checksums, too.

        Parameters: `cache`, the folder for copies of a URL's files, and `cache_gb`, how much it may hold, in 10⁹ bytes
        (`shards.remote.cache.Cache`). Raises BandstreamError naming the shard that is missing, of another size, or
        laid out otherwise.
        """
        if is_url(str(place)) and str(place).partition("://")[0] not in LOCAL:
            return cls._open_remote(str(place), cache, cache_gb)
        root = _folder(place)
        manifest = Manifest.read(root)
        layout: SampleLayout | None = None
        for split in manifest.splits.values():
            for shard in split.shards:
                path = root / shard.file
                try:
                    with path.open("rb") as file:
                        layout = check_shard(file.fileno(), manifest, shard, layout, path)
                except FileNotFoundError:
                    raise BandstreamError(f"{path} is missing: run the ingest again") from None
        if layout is None:
            raise BandstreamError(f"{root} holds no samples: nothing was taken at ingest, see {root}/rejected.jsonl")
        return cls(root, manifest, layout)

    @classmethod
    def _open_remote(cls, url: str, cache: Path | str | None, cache_gb: float | None) -> "ShardSet":
        remote = RemoteFiles(url, Cache(cache, cache_gb))
        manifest = remote.manifest()
        if not manifest.splits:
            raise BandstreamError(
                f"{remote.url} holds no samples: nothing was taken at ingest, see {remote.url}/rejected.jsonl"
            )
        last = SampleLayout.declared(manifest).members[-1]
        padded = SampleLayout.of(manifest, max(0, manifest.sample_bytes - last.payload_at))  # json's own size: later
        opened = cls(remote.url, manifest, padded)
        opened.remote = remote
        return opened

    @property
    def root(self) -> Path:
        """The folder of the set. Raises BandstreamError where it is not on this machine."""
        if self.remote is not None:
            raise BandstreamError(f"{self.place} is a URL: copy the set to a folder and name that")
        return Path(self.place)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width, in pixels, of the finest array."""
        return finest_grid(self.manifest)

    def size(self, split: str) -> int:
        """Number of samples in a split. Raises BandstreamError where the set has no such split."""
        if split not in self.manifest.splits:
            raise BandstreamError(
                f"{self.place} has no split {split!r}: it has {', '.join(self.manifest.splits)}; "
                "name another, or ingest with a split that has one"
            )
        return self.manifest.splits[split].samples

    def paths(self, split: str) -> list[Path]:
        """The shard files of a split, in order. Raises BandstreamError where they are not on this machine."""
        self.size(split)
        return [self.root / shard.file for shard in self.manifest.splits[split].shards]

    def file(self, split: str, number: int) -> File:
        """A shard, as the manifest describes it."""
        shard = self.manifest.splits[split].shards[number]
        return File(shard.file, shard.bytes, shard.sha256)

    def hold(
        self, split: str, number: int, claim: Held | Part | Wait | None = None, stop: threading.Event | None = None
    ) -> Held:
        """A shard of a remote set, fetched if need be, and checked as `open` checks those of a folder.

        `claim` and `stop` as in `RemoteFiles.hold`. Raises BandstreamError.
        """
        assert self.remote is not None
        held = self.remote.hold(self.file(split, number), claim, stop)
        shard = self.manifest.splits[split].shards[number]
        try:
            self.layout = check_shard(held.descriptor, self.manifest, shard, self._exact, f"{self.place}/{shard.file}")
        except BaseException:
            held.close()
            raise
        self._exact = self.layout
        return held

    @contextmanager
    def catalogue(self) -> Iterator[Path]:
        """The file of the catalogue, as long as the block lasts. Raises BandstreamError where it cannot be had."""
        if self.remote is None:
            yield self.root / catalogue.FILE
            return
        spec = (self.manifest.files or {}).get(catalogue.FILE)
        if spec is None:
            raise BandstreamError(
                f"{self.place} is of an early bandstream, without a checksum of {catalogue.FILE}: copy the set to a "
                "folder and name that, or ingest again"
            )
        with self.remote.hold(File(catalogue.FILE, spec.bytes, spec.sha256)) as held:
            yield held.path

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
        with self._opened(split, int(shard[0])) as descriptor:
            raw = os.pread(descriptor, self.layout.sample_bytes, int(offset[0]))
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

    @contextmanager
    def _opened(self, split: str, number: int) -> Iterator[int]:
        """The descriptor of a shard."""
        if self.remote is None:
            with self.paths(split)[number].open("rb") as file:
                yield file.fileno()
        else:
            with self.hold(split, number) as held:
                yield held.descriptor

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

    def chosen_bands(self, bands: Sequence[str] | None) -> list[str]:
        """These bands, or all. Raises BandstreamError on one that the set has not, or that is named twice."""
        there = self.manifest.band_names
        if not bands:
            return there
        if missing := [band for band in bands if band not in there]:
            raise BandstreamError(f"{self.place} has no bands {', '.join(missing)}: it has {', '.join(there)}")
        if len(set(bands)) < len(bands):
            raise BandstreamError(f"bands {', '.join(bands)}: name each once")
        return list(bands)

    def labels(self, split: str, name: str) -> np.ndarray:
        """All labels of a split in sample order: uint8 (n, K) multi-hot or int64 (n,), from the catalogue."""
        if name not in self.manifest.labels:
            known = ", ".join(self.manifest.labels) or "none"
            raise BandstreamError(f"{self.place} has no labels {name!r}: it has {known}")
        spec = self.manifest.labels[name]
        column = catalogue.label_column(name, next(iter(self.manifest.labels)))
        with self.catalogue() as path:
            table = catalogue.read(path, ["split", "shard", "position", column])
        rows = table.filter([value == split for value in table["split"].to_pylist()]).to_pydict()
        if len(rows["split"]) != self.size(split):
            raise BandstreamError(f"{self.place}/{catalogue.FILE} does not list the samples of {split}: ingest again")
        shards = self.manifest.splits[split].shards
        number = {spec.file: start for spec, start in zip(shards, self._starts[split], strict=False)}
        hot = np.zeros((self.size(split), len(spec.classes)), np.uint8)
        for shard, position, classes in zip(rows["shard"], rows["position"], rows[column], strict=True):
            hot[number[shard] + position, classes] = 1
        return hot if spec.kind == "multilabel" else hot.argmax(1).astype(np.int64)


def check_shard(
    descriptor: int, manifest: Manifest, shard: ShardSpec, layout: SampleLayout | None, where: Path | str
) -> SampleLayout:
    """Compare an open shard's size, and the headers of its first and last sample, with its manifest.

    Returns the layout, which is that of another shard of the set, if one was looked at before. Raises BandstreamError.
    """
    size, expected = os.fstat(descriptor).st_size, shard.samples * manifest.sample_bytes + len(TRAILER)
    if size != shard.bytes or size != expected:
        raise BandstreamError(
            f"{where} has {size} bytes, by its manifest {expected}: run `bandstream verify`, then ingest again"
        )
    try:
        layout = layout or SampleLayout.of(manifest, json_bytes(descriptor, manifest))
        for number in {0, shard.samples - 1}:
            raw = os.pread(descriptor, layout.sample_bytes, number * layout.sample_bytes)
            layout.check(np.frombuffer(raw, np.uint8))
    except ValueError as error:
        raise BandstreamError(f"{where} does not fit its manifest: {error}: ingest again") from None
    return layout


def _folder(place: Path | str) -> Path:
    """The folder that is meant."""
    if is_url(str(place)):
        import fsspec

        return Path(fsspec.core.url_to_fs(str(place))[1])
    if isinstance(place, Path) and re.match(r"[a-z0-9+]{2,}:/[^/]", str(place)) and not place.exists():
        raise BandstreamError(
            f"{place} looks like a URL that was taken for a path: in code, give it as text; "
            "where only a folder will do, copy the set to one and name that"
        )
    return Path(place)


def json_bytes(descriptor: int, manifest: Manifest) -> int:
    """The size of the json member, which the manifest leaves to the tar header of a shard's first sample."""
    at = SampleLayout.declared(manifest).members[-1].at
    return tar_size(os.pread(descriptor, BLOCK, at))
