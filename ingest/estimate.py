"""What an ingest will take: shards, bytes and hours, before it begins, from rates measured on this machine.

The archive is listed as an ingest lists it, and some of its samples, spread over it, are really made into shards on the
disk where the set will lie, by as many workers. Of a compressed archive only the beginning is unpacked, and counts for
the whole of it in proportion. Everything else is sums (`Estimate`).
"""

import heapq
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ingest import files, physics, rates
from ingest.build import ENTRIES
from ingest.engine import Here, Processes
from ingest.plan import Plan
from ingest.shard import layout_of
from ingest.source import Listening, Source
from shards.errors import BandstreamError
from shards.layout import TRAILER
from shards.manifest import SPLITS

SAMPLES = 256
"""So many samples a worker is measured on, where the archive has them."""
HEAD = 1 << 28
"""Bytes of a compressed archive's files that are unpacked to measure it."""
HEAD_S = 20.0
"""No longer than this."""
MADE_UP = 512
"""Patches of the made-up archive that is measured where no archive is named."""
FEW = 20_000
"""So many shards are dealt out one by one to see which worker ends last; of more it does not matter."""


@dataclass(frozen=True)
class Head:
    """The beginning of a compressed tar: the share of it that was unpacked, in how many seconds, to how many bytes."""

    share: float
    seconds: float
    bytes: int


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

    `set`: shards and their indices; `aside`: beside the set until it is done; `scratch`: what is unpacked. Seconds are
    of an archive that lies in the page cache, but for `cold`, which comes on top where it has to come from the disk.
    """

    samples: int
    splits: dict[str, int]
    shards: int
    set: int
    catalogue: int
    aside: int
    scratch: int
    read: int
    start_s: float
    spool_s: float
    list_s: float
    make_s: float
    commit_s: float
    cold_s: float

    @property
    def warm(self) -> float:
        """Seconds in all, nothing read from the disk."""
        return self.start_s + self.spool_s + self.list_s + self.make_s + self.commit_s

    @classmethod
    def of(cls, measured: Measured, inputs: int) -> "Estimate":
        """An ingest of so many inputs like those that were measured."""
        m = measured
        splits = {split: round(inputs * count / max(m.samples, 1)) for split, count in m.splits.items()}
        if splits:
            largest = max(splits, key=lambda split: splits[split])
            splits[largest] += inputs - sum(splits.values())
        cuts = {split: -(-count // m.shard_samples) for split, count in splits.items()}
        samples = round(inputs * m.taken)
        shards = sum(cuts.values())
        return cls(
            samples=samples,
            splits={split: round(count * m.taken) for split, count in splits.items() if count},
            shards=shards,
            set=round(samples * (m.sample_bytes + m.index_bytes)) + shards * len(TRAILER),
            catalogue=round(samples * m.catalogue_bytes),
            aside=round(inputs * (m.entry_bytes + m.record_bytes)),
            scratch=round(inputs * m.spool_bytes),
            read=round(inputs * m.read_bytes),
            start_s=m.start_s * (2 if m.workers > 1 else 1),
            spool_s=inputs * m.spool_s,
            list_s=inputs * m.list_s,
            make_s=_dealt(m, splits),
            commit_s=shards * m.commit_s,
            cold_s=inputs * m.read_bytes / m.reading if m.reading and not m.spool_s else 0.0,
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


def measure(
    make: Callable[..., Source],
    src: tuple[Path, ...],
    options: dict[str, Any],
    target: Path,
    workers: int,
    shard_samples: int,
    seed: int = 0,
    split_file: Mapping[str, str] | None = None,
    scratch: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Measured:
    """List the archive `src`, of which `make(src, **options)` makes the source, and measure it. Raises BandstreamError.

    `target`: where the set will lie; beside it, in a folder that is gone afterwards, samples are made. `scratch`: the
    folder for what is unpacked.
    """
    beside = existing(target)
    with tempfile.TemporaryDirectory(prefix=".bandstream-plan-", dir=beside) as here:
        folder = Path(here)
        aside = folder / "scratch" if scratch is None else Path(scratch, folder.name)
        aside.mkdir(parents=True)
        try:
            return _measure(make, src, options, folder, workers, shard_samples, seed, split_file, aside, progress)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def measure_made_up(target: Path, workers: int, shard_samples: int, *others: Any) -> Measured:
    """The same of a small made-up BigEarthNet v2, in a temporary folder on the disk of the set."""
    from ingest.sources.bigearthnet import BigEarthNet
    from ingest.synthetic.archive import make_archive

    with tempfile.TemporaryDirectory(prefix=".bandstream-plan-", dir=existing(target)) as here:
        archive = Path(here, "archive")
        make_archive(archive, MADE_UP)
        return measure(lambda src, **_: BigEarthNet(src), (archive,), {}, target, workers, shard_samples, *others)


def _measure(
    make: Callable[..., Source],
    src: tuple[Path, ...],
    options: dict[str, Any],
    folder: Path,
    workers: int,
    shard_samples: int,
    seed: int,
    split_file: Mapping[str, str] | None,
    scratch: Path,
    progress: Callable[[str, int, int], None],
) -> Measured:
    notes: list[str] = []
    heads: list[tuple[Path, Head]] = []

    def cut(path: Any) -> Any:
        """The path itself, or of a compressed tar its beginning as a plain one."""
        found = files.TAR.search(path.name) if isinstance(path, Path) and path.is_file() else None
        if not found or found[1].lower() == "tar":
            return path
        place = scratch / str(len(heads)) / f"{path.name[: found.start()]}.tar"
        place.parent.mkdir()
        heads.append((path, unpack(path, place)))
        return place

    # the patches' archive is the first; others, such as maps, are judged by it
    source = make(tuple(map(cut, src)), **{name: cut(value) for name, value in options.items()})
    share = heads[0][1].share if heads else 1.0
    if share < 1:
        head = heads[0][1]
        notes.append(
            f"judged by the first {head.bytes / 1e6:,.0f} MB of {heads[0][0].name}, {share:.1%} of it: what lies "
            "further behind, such as labels or masks, is not counted"
        )
    listening = Listening(scratch, notes.append, notes.append, lambda done, total: progress("list", done, total))
    start_s = _start(source)
    import pyarrow.parquet  # noqa: F401  (part of the start, not of the listing that imports it)

    begin = time.perf_counter()
    try:
        plan = Plan(source.listing(listening), folder / ENTRIES, seed, shard_samples, split_file)
    except BandstreamError as error:
        behind = " (only its beginning was unpacked: unpack it, or name the patches alone)" if share < 1 else ""
        raise BandstreamError(f"{error}{behind}") from None
    list_s = time.perf_counter() - begin
    if not plan.total:
        first = f", the first: {plan.rejected[0]}" if plan.rejected else ""
        raise BandstreamError(f"nothing to ingest: not one input can be taken{first}")
    notes += physics.check(source, plan)
    wanted = SAMPLES * workers
    # a shard is drawn from all over the archive
    shards = sorted({number * len(plan) // min(len(plan), 8) for number in range(min(len(plan), 8))})
    each = -(-wanted // len(shards))
    entries = list(itertools.chain.from_iterable(plan[number].entries[:each] for number in shards))
    with Processes(workers) if workers > 1 else Here() as engine:
        found = rates.measure(engine, source, folder, entries, shard_samples, workers)
    layout = layout_of(source.schema)
    sample_s, cpu_s = {}, {}
    for split in ("train", "val"):
        sample_s[split] = _average([one.splits[split][1] / one.splits[split][0] for one in found])
        cpu_s[split] = _average([one.splits[split][2] / one.splits[split][0] for one in found])
    read_bytes = _average([one.read_bytes for one in found])
    disk = rates.disk(source.inputs, round(read_bytes), workers)
    inputs = plan.total
    return Measured(
        kind=source.describe().get("kind", source.name),
        workers=workers,
        shard_samples=shard_samples,
        samples=inputs,
        rejected=len(plan.rejected),
        share=share,
        splits={split: count for split, count in plan.splits.items() if count},
        drawn=plan.drawn,
        sample_bytes=layout.sample_bytes,
        read_bytes=read_bytes,
        index_bytes=_average([one.index_bytes for one in found]),
        catalogue_bytes=_average([one.catalogue_bytes for one in found]),
        record_bytes=_average([one.record_bytes for one in found]),
        entry_bytes=plan.path.stat().st_size / inputs,
        spool_bytes=sum(head.bytes / head.share for _, head in heads) * share / inputs,
        taken=_average([one.taken for one in found]),
        first=next((one.first for one in found if one.first), ""),
        start_s=start_s,
        list_s=list_s / inputs,
        spool_s=sum(head.seconds / head.share for _, head in heads) * share / inputs,
        sample_s=sample_s,
        cpu_s=cpu_s,
        commit_s=_average([one.commit_s for one in found]),
        reading=disk.rate,
        cached=disk.cached,
        writing=rates.written(folder),
        hashing=rates.hashed(),
        copying=rates.copied(),
        cores=len(os.sched_getaffinity(0)),
        notes=notes,
    )


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _start(source: Source) -> float:
    """Seconds that a process takes until it can begin."""
    import subprocess
    import sys

    code = f"import ingest.build, ingest.commands, pyarrow.parquet, {type(source).__module__}"
    begin = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    return time.perf_counter() - begin


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one around it that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def unpack(path: Path, to: Path) -> Head:
    """The first files of a compressed tar as a tar of their own. Raises BandstreamError."""
    size = path.stat().st_size
    begin = time.perf_counter()
    with path.open("rb") as raw, to.open("w+b") as out:
        stream = files._gunzipped(raw, path) if path.name.lower().endswith("gz") else files._unzstd(raw, path)
        end, consumed = 0, size
        for header in files._headers(files._Stream(_copied(stream, out)), path):
            if end >= HEAD or (end and time.perf_counter() - begin > HEAD_S):
                consumed = raw.tell()
                break
            end = header.at + header.size + -header.size % files.BLOCK
        out.truncate(end)
        out.seek(end)
        out.write(TRAILER)
    return Head(consumed / size, time.perf_counter() - begin, end)


def _copied(pieces: Iterator[bytes], out: BinaryIO) -> Iterator[bytes]:
    for piece in pieces:
        out.write(piece)
        yield piece
