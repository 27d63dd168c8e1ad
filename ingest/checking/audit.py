"""`bandstream audit`: copies in a shard set, exact and near, and ground that training and test samples share.

One pass over the shards leaves some 100 bytes a sample in memory; then all is sorting, and a second look at the pixels
of those few pairs that may be near copies.
"""

import json
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xxhash

from ingest.checking import leakage, likeness
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet

PIECE = 1 << 23
"""Bytes of a shard that a thread holds at a time, if a sample is not larger."""
LOOKED_AT = 200_000
"""So many candidates are compared by their pixels, the nearest first."""
THUMBS = 4096
"""Of so many patches the cells are remembered."""
EXACT, NEAR, OVERLAP = "exact", "near", "overlap"
Progress = Callable[[str, int, int], None]


@dataclass
class Findings:
    """Pairs of sample numbers, int64 (m, 2), by what they are, and their measures, float32 (m,): 1, the correlation of
    near copies, the share of overlap. `groups`: of exact copies, and the samples in them; `notes`: what could not be
    compared, in words."""

    samples: int
    splits: dict[str, int]
    pairs: dict[str, np.ndarray] = field(default_factory=dict)
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    across: dict[str, int] = field(default_factory=dict)
    groups: tuple[int, int] = (0, 0)
    overlapping: dict[tuple[str, str], int] = field(default_factory=dict)
    total_overlaps: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> bool:
        """Whether anything crosses from one split into another."""
        return any(self.across.values())


class Audit:
    """A shard set gone through. Samples are numbered over the splits and shards in the manifest's order."""

    def __init__(self, folder: Path, progress: Progress = lambda stage, done, total: None) -> None:
        self.set = ShardSet.open(folder)
        self.progress = progress
        manifest = self.set.manifest
        self.shards = [(split, shard) for split, spec in manifest.splits.items() for shard in spec.shards]
        self.starts = np.cumsum([0, *(shard.samples for _, shard in self.shards)])
        self.split = np.repeat(
            np.array([list(manifest.splits).index(split) for split, _ in self.shards], np.uint8), np.diff(self.starts)
        )
        self.bands = _planes(manifest)
        self._thumbs: OrderedDict[int, list[np.ndarray]] = OrderedDict()

    def run(self) -> Findings:
        """Find all."""
        count, manifest = int(self.starts[-1]), self.set.manifest
        findings = Findings(count, {name: split.samples for name, split in manifest.splits.items()})
        seen = self._pass()
        firsts = np.ones(count, bool)
        pairs = []
        for group in likeness.exact_groups(seen.hashes):
            firsts[group[1:]] = False
            pairs.append(np.stack([np.full(len(group) - 1, group[0]), group[1:]], 1))
            # a pair a copy, and where the first is of another split than they, what crosses is seen from each
            findings.groups = findings.groups[0] + 1, findings.groups[1] + len(group)
        exact = np.concatenate([np.empty((0, 2), np.int64), *pairs])
        self._add(findings, EXACT, exact, np.ones(len(exact), np.float32))
        self._near(findings, seen, np.flatnonzero(firsts & ~seen.flat))
        if flat := int((firsts & seen.flat).sum()):
            findings.notes.append(f"{flat:,} flat patches (one colour) were compared for exact copies alone")
        self._overlaps(findings, seen)
        return findings

    def _add(self, findings: Findings, kind: str, pairs: np.ndarray, measures: np.ndarray) -> None:
        findings.pairs[kind], findings.measures[kind] = pairs, measures
        findings.across[kind] = int((self.split[pairs[:, 0]] != self.split[pairs[:, 1]]).sum())

    def _pass(self) -> "_Seen":
        """Read all shards once, in parallel."""
        seen = _Seen(int(self.starts[-1]), len(self.bands))
        threads = min(32, len(os.sched_getaffinity(0)))
        waiting: deque[tuple[int, Future[None]]] = deque()
        left, done = iter(range(len(self.shards))), 0
        with ThreadPoolExecutor(threads) as pool:
            while True:
                while len(waiting) < 2 * threads and (number := next(left, None)) is not None:
                    waiting.append((number, pool.submit(self._read, number, seen)))
                if not waiting:
                    return seen
                number, job = waiting.popleft()
                job.result()
                done += self.shards[number][1].samples
                self.progress("audit", done, int(self.starts[-1]))

    def _read(self, number: int, seen: "_Seen") -> None:
        """Hashes, signatures and footprints of one shard."""
        layout = self.set.layout
        _, shard = self.shards[number]
        stride, at = layout.sample_bytes, int(self.starts[number])
        spans = [
            (layout[name].data_at, layout[name].payload_at + layout[name].size) for name in self.set.manifest.arrays
        ]
        buffer = np.empty((max(1, min(shard.samples, PIECE // stride)), stride), np.uint8)
        with (self.set.root / shard.file).open("rb") as file:
            for first in range(0, shard.samples, len(buffer)):
                samples = buffer[: min(len(buffer), shard.samples - first)]
                count = len(samples)
                if file.readinto(samples.reshape(-1).data) < samples.size:
                    raise BandstreamError(f"{self.set.root / shard.file} was cut off: run bandstream verify")
                rows = slice(at + first, at + first + count)
                for sample, row in zip(samples, range(rows.start, rows.stop), strict=True):
                    digest = xxhash.xxh3_128()
                    for begin, end in spans:
                        digest.update(sample[begin:end].data)
                    seen.hashes[row] = np.frombuffer(digest.digest(), np.uint64)
                    seen.place(row, bytes(layout.view(sample, "json")))
                planes = [layout.view(samples, member)[:, plane] for member, plane in self.bands]
                seen.bits[rows], seen.flat[rows] = likeness.signatures(planes)

    def _near(self, findings: Findings, seen: "_Seen", numbers: np.ndarray) -> None:
        """Near copies among these samples."""
        found = likeness.candidates(seen.bits[numbers])
        if len(found.pairs) > LOOKED_AT:
            findings.notes.append(
                f"of {len(found.pairs):,} pairs with like signatures the {LOOKED_AT:,} nearest were compared"
            )
        if found.crowded:
            findings.notes.append(f"{found.crowded:,} patches are like so many others that near copies may be missing")
        pairs = numbers[found.pairs[:LOOKED_AT]]
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        measures = np.zeros(len(pairs), np.float32)
        for row, (first, second) in enumerate(pairs.tolist()):
            measures[row] = likeness.likeness(self._cells(first), self._cells(second))
            if row % 256 == 255 or row == len(pairs) - 1:
                self.progress("compare", row + 1, len(pairs))
        near = measures >= likeness.CORRELATION
        self._add(findings, NEAR, pairs[near], measures[near])

    def _cells(self, number: int) -> list[np.ndarray]:
        """The cells of a patch, of those bands that signatures are made of."""
        if number in self._thumbs:
            self._thumbs.move_to_end(number)
            return self._thumbs[number]
        shard, at = self._locate(number)
        layout = self.set.layout
        with (self.set.root / shard).open("rb") as file:
            raw = os.pread(file.fileno(), layout.sample_bytes, at * layout.sample_bytes)
        sample = np.frombuffer(raw, np.uint8)
        thumb = [
            likeness.cells(layout.view(sample, member)[plane][None], likeness.THUMB)[0] for member, plane in self.bands
        ]
        self._thumbs[number] = thumb
        if len(self._thumbs) > THUMBS:
            self._thumbs.popitem(last=False)
        return thumb

    def _overlaps(self, findings: Findings, seen: "_Seen") -> None:
        names = list(findings.splits)
        found = leakage.overlaps(seen.footprints(), self.split, len(names))
        self._add(findings, OVERLAP, found.pairs, found.shares)
        findings.across[OVERLAP] = findings.total_overlaps = found.total
        for number, name in enumerate(names):
            for other, other_name in enumerate(names):
                if other != number:
                    count = int(found.touched[self.split == number, other].sum())
                    findings.overlapping[name, other_name] = count
        if unknown := int((seen.crs < 0).sum()):
            findings.notes.append(
                f"the places of {unknown:,} samples are unknown: they were not looked at for overlaps"
            )
        if found.total > len(found.pairs):
            findings.notes.append(f"the first {len(found.pairs):,} overlapping pairs are listed")
        if found.crowded:
            findings.notes.append(f"{found.crowded:,} samples lie among so many that overlaps may be missing")

    def _locate(self, number: int) -> tuple[str, int]:
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.shards[shard][1].file, int(number - self.starts[shard])

    def name(self, number: int) -> dict[str, Any]:
        """Key, split, shard and position of a sample."""
        shard, at = self._locate(number)
        with (self.set.root / shard).open("rb") as file:
            key = os.pread(file.fileno(), 100, at * self.set.layout.sample_bytes).partition(b".")[0].decode("ascii")
        split = list(self.set.manifest.splits)[self.split[number]]
        return {"key": key, "split": split, "shard": shard, "position": at}


class _Seen:
    """What one pass keeps of each sample: 16 bytes of hash, 24 of signature, 51 of place and flags."""

    def __init__(self, count: int, bands: int) -> None:
        self.hashes = np.empty((count, 2), np.uint64)
        self.bits = np.empty((count, bands), np.uint64)
        self.flat = np.empty(count, bool)
        self.crs = np.full(count, -1, np.int16)
        self.bounds = np.zeros((count, 4))
        self.centres = np.zeros((count, 2))
        self.systems: dict[str, int] = {}
        self._lock = Lock()

    def place(self, row: int, text: bytes) -> None:
        """Take down where a sample lies, by its json, which may say nothing of it."""
        content = json.loads(text)
        crs, bounds = content.get("crs", ""), content.get("bounds")
        if crs and bounds and bounds[2] > bounds[0] and bounds[3] > bounds[1]:
            with self._lock:
                self.crs[row] = self.systems.setdefault(crs, len(self.systems))
            self.bounds[row] = bounds
            self.centres[row] = content["lon"], content["lat"]

    def footprints(self) -> leakage.Footprints:
        return leakage.Footprints(self.crs, self.bounds, self.centres, [_metres(crs) for crs in self.systems])


def _metres(name: str) -> float:
    """Metres of a unit of a coordinate system; 0 for degrees. Raises BandstreamError where PROJ does not know it."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        crs = CRS.from_string(name)
        return 0.0 if crs.is_geographic else float(crs.linear_units_factor[1])
    except CRSError as error:
        raise BandstreamError(f"the samples name a coordinate system {name!r} that is unknown ({error})") from None


def _planes(manifest: Manifest) -> list[tuple[str, int]]:
    """Member and plane, of the first date, of the bands that signatures are made of."""
    chosen = likeness.looked_at([band.wavelength_nm for band in manifest.bands])
    where = {
        band: (member, plane)
        for member, array in manifest.arrays.items()
        for plane, band in enumerate(array.bands)
        if array.time == min(each.time for each in manifest.arrays.values())
    }
    return [where[manifest.bands[number].name] for number in chosen]
