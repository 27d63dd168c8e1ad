"""How fast this machine does what an ingest does: measured for seconds on the very samples, disks and code.

Reading from the disk is measured on files of the archive that are put out of the page cache for it, everything else on
samples that lie in it: what a cold archive takes is the sum, as a worker waits for the disk and then works.
"""

import hashlib
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from ingest.building.engine import Engine
from ingest.building.plan import Shard
from ingest.building.shard import CLAIM, RECORDS, Task, make, make_recorded, read_record, tally_of
from ingest.source import Entry, Source
from shards import atomic, catalogue
from shards.errors import BandstreamError

MEASURED = "measured"
"""The plan that the shards made here are of."""
WARM_UP = 8
"""Samples that a worker makes before it is timed: imports, GDAL's start, the first page faults."""
SECONDS = 4.0
"""So long each worker makes shards; at least one of train and one of another split."""
PAGE, FOLIO = 4096, 1 << 22
"""Bytes of a page, and at least so many as the kernel keeps together in its page cache."""
PLACES, MOST, LONGEST_S = 2048, 1 << 28, 4.0
"""Places of an archive that are read from the disk, the most bytes of them (of a shard half of that), the
most seconds."""
WHOLE = 1 << 22
"""Of larger files a piece is read."""
NEAR = 32
"""Files of a folder of so many are read together, as those of a patch are."""


@dataclass(frozen=True)
class Job:
    """What a worker makes to be measured; travels to it."""

    source: Source
    folder: Path
    number: int
    entries: tuple[Entry, ...]
    shard_samples: int


@dataclass(frozen=True)
class Work:
    """What a worker took: by split, (inputs, wall seconds, CPU seconds); what an input and its records come to."""

    splits: dict[str, tuple[int, float, float]]
    taken: float  # the share of inputs that were not rejected
    first: str  # the first rejection
    read_bytes: float
    record_bytes: float
    catalogue_bytes: float
    index_bytes: float
    commit_s: float  # of reading a train shard's record and adding it up, catalogue included, in seconds a shard
    start_s: float  # of what is done once, or for the first time


@dataclass(frozen=True)
class Disk:
    """Reading an archive's files: how much of it lies in the page cache, bytes/s of what does not; 0 where the page
    cache could not be got around."""

    cached: float
    rate: float


def work(job: Job) -> Work:
    """Make shards for some seconds, in a worker."""
    task = Task(job.source, job.folder, MEASURED, strict=False)
    begin = time.perf_counter()
    make(task, Shard(f"warm-{job.number:06d}", "train", job.entries[:WARM_UP]))
    start_s = time.perf_counter() - begin
    begin = time.perf_counter()
    # the whole of it, so that what follows finds it in the page cache
    first = make(task, Shard(f"warm-{job.number:06d}", "train", job.entries))
    if not first.samples:
        what = ": ".join(first.rejected[0]) if first.rejected else "it is empty"
        raise BandstreamError(f"not one of {len(job.entries)} samples that were tried can be taken, the first: {what}")
    speed = len(job.entries) / (time.perf_counter() - begin)
    most = max(MOST // 2 * len(job.entries) // first.bytes, 1)
    count = min(job.shard_samples, most, max(len(job.entries), int(speed * SECONDS / 4)))
    entries = tuple(islice(cycle(job.entries), count))
    splits = {"train": (0, 0.0, 0.0), "val": (0, 0.0, 0.0)}
    read = _bytes_read()
    done, end = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end or not done:
        for split, (inputs, wall, cpu) in splits.items():
            shard = Shard(f"{split}-{job.number:06d}", split, entries)
            (job.folder / RECORDS / f"{shard.name}.json").unlink(missing_ok=True)
            before, spent = time.perf_counter(), time.process_time()
            make_recorded(task, shard)
            took = time.perf_counter() - before, time.process_time() - spent
            splits[split] = inputs + count, wall + took[0], cpu + took[1]
            (job.folder / shard.file).unlink(missing_ok=True)
            done += count
    read = _bytes_read() - read
    begin = time.perf_counter()
    catalogue_bytes = _catalogue_bytes(job, "once", first.rows) / first.samples
    start_s += time.perf_counter() - begin
    train, val = (job.folder / f"{split}-{job.number:06d}" for split in splits)
    begin = time.perf_counter()
    record = read_record(job.folder, train.name, MEASURED)
    assert record is not None  # it was made just now
    tally = tally_of(job.source.schema)
    tally.merge(record.statistics)
    _catalogue_bytes(job, "all", record.rows)
    commit_s = time.perf_counter() - begin
    begin = time.perf_counter()
    for number in range(len(job.source.schema.bands)):
        tally.summary(number)
    start_s += time.perf_counter() - begin
    return Work(
        splits,
        first.samples / len(job.entries),
        ": ".join(first.rejected[0]) if first.rejected else "",
        read / done,
        sum((job.folder / RECORDS / f"{path.name}.json").stat().st_size for path in (train, val)) / 2 / count,
        catalogue_bytes,
        train.with_suffix(".idx").stat().st_size / max(record.samples, 1),
        commit_s,
        start_s,
    )


def measure(
    engine: Engine, source: Source, folder: Path, entries: Sequence[Entry], shard_samples: int, workers: int
) -> list[Work]:
    """What each of so many workers takes when all of them make shards in `folder`, which lies where the set will."""
    (folder / RECORDS).mkdir()
    atomic.write_json(folder / RECORDS / CLAIM, {"plan": MEASURED})
    own = [tuple(entries[number::workers]) or tuple(entries) for number in range(workers)]
    return list(engine.map(work, [Job(source, folder, k, own[k], shard_samples) for k in range(workers)]))


def _catalogue_bytes(job: Job, name: str, rows: catalogue.Rows) -> int:
    """What these rows take in a catalogue, its footer apart."""
    import pyarrow.parquet as pq

    schema = job.source.schema
    labels = [catalogue.label_column(name, next(iter(schema.labels))) for name in schema.labels]
    folder = job.folder / f"catalogue-{name}-{job.number}"
    folder.mkdir()
    with catalogue.writing(folder, schema.columns, labels) as add:
        add(rows)
    group = pq.ParquetFile(folder / catalogue.FILE).metadata.row_group(0)
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))


def _bytes_read() -> int:
    """Bytes that this process has asked the kernel for, wherever they came from."""
    try:
        return int(Path("/proc/self/io").read_text().split("rchar:", 1)[1].split(None, 1)[0])
    except (OSError, IndexError, ValueError):  # no such file on other systems, or not for us to read
        return 0


def disk(inputs: Sequence[Path], piece: int, readers: int, seed: int = 0) -> Disk:
    """Read places spread over an archive's files that are first put out of the page cache, by so many readers.

    `piece`: bytes that are read at once of files larger than WHOLE. Folders and inodes stay in memory.
    """
    places: list[tuple[str, int, int]] = []
    total = 0
    for place in islice(_places(list(inputs), piece, random.Random(seed)), PLACES):
        total += place[2]
        if total > MOST and places:
            break
        places.append(place)
    # all are looked at before the first is put out, which may take its neighbours along
    found = [is_there for place in places if (is_there := _is_cached(place)) is not None]
    cold = [place for place in places if _put_out(place)]
    if not found or len(cold) < len(found) / 2:
        return Disk(1.0, 0.0)
    begin = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        read = sum(pool.map(lambda place: _read(place, begin + LONGEST_S), cold))
    return Disk(sum(found) / len(found), read / (time.perf_counter() - begin))


def _places(inputs: list[Path], piece: int, draw: random.Random) -> Iterator[tuple[str, int, int]]:
    """Files of an archive, or pieces of large ones, as (path, first byte, bytes), drawn at random, without end."""
    inside: dict[str, tuple[list[str], list[str]]] = {}

    def listed(folder: str) -> tuple[list[str], list[str]]:
        if folder not in inside:
            folders: list[str] = []
            files: list[str] = []
            with os.scandir(folder) as found:
                for entry in islice((entry for entry in found if entry.name[0] != "."), PAGE):
                    (folders if entry.is_dir() else files).append(entry.path)
            inside[folder] = folders, files
        return inside[folder]

    for _ in range(2 * PLACES):
        at = str(draw.choice(inputs))
        own = [at]
        while os.path.isdir(at):
            folders, files = listed(at)
            if not folders and not files:
                break
            at = draw.choice(folders or files)
            own = [at] if folders or len(files) > NEAR else files
        for path in own:
            size = os.path.getsize(path) if os.path.isfile(path) else 0
            if size > WHOLE:
                length = min(size, max(piece, PAGE))
                yield path, draw.randrange((size - length) // PAGE + 1) * PAGE, length
            elif size:
                yield path, 0, size


def _is_cached(place: tuple[str, int, int]) -> bool | None:
    """Whether the first byte of a place is in the page cache; None where it cannot be read."""
    path, at, _ = place
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # a file system that cannot say
        return True
    finally:
        os.close(descriptor)
    return True


def _put_out(place: tuple[str, int, int]) -> bool:
    """Put a place out of the page cache; whether it is out."""
    path, at, size = place
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.fdatasync(descriptor)  # pages that are yet to be written stay
        # of a large folio that it is told only a part of, the kernel keeps the whole
        start, end = at // FOLIO * FOLIO, -(-(at + size) // FOLIO) * FOLIO
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return _is_cached(place) is False


def _read(place: tuple[str, int, int], deadline: float) -> int:
    path, at, size = place
    if time.perf_counter() > deadline:
        return 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return len(os.pread(descriptor, size, at))
    finally:
        os.close(descriptor)


def written(folder: Path, size: int = 1 << 28) -> float:
    """Bytes/s of writing a file as shards are written, from pieces of memory, to the fsync that ends it."""
    content = random.Random(0).randbytes(1 << 22)
    begin = time.perf_counter()
    with atomic.replacing(folder / "written") as file:
        for _ in range(size // len(content)):
            file.write(content)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    seconds = time.perf_counter() - begin
    (folder / "written").unlink()
    return size / seconds


def hashed(size: int = 1 << 24) -> float:
    """Bytes/s of SHA-256 on one core; the best of three, as it is a floor."""
    content, best = bytes(size), 1e9
    for _ in range(3):
        begin = time.perf_counter()
        hashlib.sha256(content).digest()
        best = min(best, time.perf_counter() - begin)
    return size / best


def copied(size: int = 1 << 26) -> float:
    """Bytes/s of copying in memory on one core, larger than caches; the best of three."""
    content, target, best = bytearray(size), bytearray(size), 1e9
    for _ in range(3):
        begin = time.perf_counter()
        target[:] = content
        best = min(best, time.perf_counter() - begin)
    return size / best
