"""What so many samples take, shards, bytes and hours: sums over what was measured (`ingest.planning.trial`)."""

import heapq
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ingest.building.plan import MEMORY, MEMORY_DRAWN
from shards.layout import TRAILER
from shards.manifest import SPLITS

FEW = 20_000
"""So many shards are dealt out one by one to see which worker ends last; of more it does not matter."""


@dataclass(frozen=True)
class Measured:
    """An archive and this machine: what a sample takes. Seconds are of wall time unless they say otherwise.

    `samples`: as listed, of the unpacked beginnings where `share` is less than 1; `splits`: by split; `sample_s`: of
    the archive in the page cache, by split, all `workers` at work, for one of them; `cpu_s`: CPU seconds of a core.
    `reading`: bytes/s of the archive's disk with so many readers, 0 where unknown; `cached`: the share of the archive
    in the page cache.
    """

    kind: str
    workers: int
    shard_samples: int
    samples: int
    rejected: int
    share: float
    splits: dict[str, int]
    drawn: bool
    sample_bytes: int
    read_bytes: float
    index_bytes: float
    catalogue_bytes: float
    record_bytes: float
    entry_bytes: float
    spool_bytes: float
    taken: float
    first: str
    start_s: float
    list_s: float
    spool_s: float
    sample_s: dict[str, float]
    cpu_s: dict[str, float]
    commit_s: float
    reading: float
    cached: float
    writing: float
    hashing: float
    copying: float
    cores: int
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> int:
        """Samples of the whole archive, with those that cannot be taken."""
        return round(self.samples / self.share)

    def mean(self, of: Mapping[str, float]) -> float:
        """What a sample takes on average over the splits."""
        train = self.splits.get("train", 0) / max(self.samples, 1)
        return train * of["train"] + (1 - train) * of["val"]

    def floors(self) -> dict[str, float]:
        """Seconds a sample that each thing alone would take, all `workers` at work: the largest is what binds."""
        parts = {
            "CPU": self.mean(self.cpu_s) / min(self.workers, self.cores),
            "write and fsync": self.sample_bytes / self.writing,
        }
        if self.reading:
            parts["read from the disk"] = self.read_bytes / self.reading
        return parts


@dataclass(frozen=True)
class Estimate:
    """What so many samples take: bytes and seconds.

    `set`: shards and their indices; `aside`: beside the set until it is done; `scratch`: what is unpacked; `memory`: of
    the plan. Seconds are of an archive that lies in the page cache, but for `cold_s`, which comes on top where it comes
    from the disk; `fits`: whether memory has room for it; `cached`: the share that is there.
    """

    samples: int
    splits: dict[str, int]
    shards: int
    set: int
    catalogue: int
    aside: int
    scratch: int
    memory: int
    read: int
    start_s: float
    spool_s: float
    list_s: float
    make_s: float
    commit_s: float
    cold_s: float
    cached: float
    fits: bool

    @property
    def warm(self) -> float:
        """Seconds in all, nothing read from the disk."""
        return self.start_s + self.spool_s + self.list_s + self.make_s + self.commit_s

    @property
    def seconds(self) -> float:
        """Seconds in all, what is not in the page cache read from the disk."""
        return self.warm + (1 - self.cached) * self.cold_s

    @classmethod
    def of(cls, measured: Measured, inputs: int, cached: float = 0.0) -> "Estimate":
        """An ingest of so many inputs like those that were measured, of which a share is in the page cache."""
        m = measured
        splits = {split: round(inputs * count / max(m.samples, 1)) for split, count in m.splits.items()}
        if splits:
            largest = max(splits, key=lambda split: splits[split])
            splits[largest] += inputs - sum(splits.values())
        cuts = {split: -(-count // m.shard_samples) for split, count in splits.items()}
        samples = round(inputs * m.taken)
        shards = sum(cuts.values())
        # what was unpacked or read long ago makes room for what is written
        fits = inputs * m.read_bytes + samples * m.sample_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf(
            "SC_PAGE_SIZE"
        )
        return cls(
            samples=samples,
            splits={split: round(count * m.taken) for split, count in splits.items() if count},
            shards=shards,
            set=round(samples * (m.sample_bytes + m.index_bytes)) + shards * len(TRAILER),
            catalogue=round(samples * m.catalogue_bytes),
            aside=round(inputs * (m.entry_bytes + m.record_bytes)),
            scratch=round(inputs * m.spool_bytes),
            memory=inputs * (MEMORY_DRAWN if m.drawn else MEMORY),
            read=round(inputs * m.read_bytes),
            start_s=m.start_s,
            spool_s=inputs * max(m.spool_s, m.spool_bytes / m.writing),
            list_s=inputs * m.list_s,
            make_s=_dealt(m, splits),
            commit_s=shards * m.commit_s,
            cold_s=inputs * m.read_bytes / m.reading if m.reading else 0.0,
            cached=cached if fits else 0.0,
            fits=fits,
        )


def _dealt(m: Measured, splits: Mapping[str, int]) -> float:
    """Seconds until the last worker has made its last shard."""
    kind = {split: "train" if split == "train" else "val" for split in splits}
    shards = sum(-(-count // m.shard_samples) for count in splits.values())
    if shards > FEW:
        work = sum(count * m.sample_s[kind[split]] for split, count in splits.items())
        return work / m.workers
    ends = [0.0] * m.workers
    for split in SPLITS:
        left = splits.get(split, 0)
        while left > 0:
            samples = min(left, m.shard_samples)
            left -= samples
            heapq.heapreplace(ends, ends[0] + samples * m.sample_s[kind[split]])
    return max(ends)


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one around it that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
