"""Every byte of a shard set held against its manifest, and the manifest against its own checksum.

One pass over the bytes, shards in parallel; of each sample eight bytes stay in memory.
"""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shards import catalogue
from shards.errors import BandstreamError
from shards.layout import TRAILER, SampleLayout
from shards.manifest import FILE, Manifest, ShardSpec, changed
from shards.shardset import json_bytes

REJECTED = "rejected.jsonl"
PIECE = 1 << 23
"""Bytes of a shard that a thread holds at a time, if a sample is not larger."""


@dataclass(frozen=True)
class Problem:
    """A file of the set, and what is wrong with it."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path | str, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """As `examine`, a line a problem."""
    return [str(problem) for problem in examine(folder, progress)]


def examine(folder: Path | str, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Problem]:
    """Compare every file of a set with its manifest.

    Finds changed bytes in shards, indexes, catalogue, list of rejected inputs and the manifest itself; missing, extra
    and swapped shards, stale indexes, keys that occur twice, and a catalogue that lists other samples, places or labels
    than the shards hold. `progress` is told the bytes that are done, of all. Returns nothing for a sound set; raises
    BandstreamError where there is no readable manifest.
    """
    root = Path(folder)
    manifest = Manifest.read(root)
    what = changed((root / FILE).read_bytes())
    problems = [Problem(FILE, what)] if what else []
    listed = [(split, shard) for split, spec in manifest.splits.items() for shard in spec.shards]
    total, done = sum(shard.bytes for _, shard in listed), 0
    holders = {shard.sha256: shard.file for _, shard in listed}
    problems += _check_list(root, manifest)
    bad_catalogue = _check_file(root, manifest, catalogue.FILE)
    rows = _Rows(root, manifest, readable=not bad_catalogue)
    hashes: list[np.ndarray] = []
    threads = min(32, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[ShardSpec, Future[_Found]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        left = iter(listed)
        while True:
            while len(waiting) < 2 * threads and (item := next(left, None)) is not None:
                split, shard = item
                job = pool.submit(_examine_shard, root, manifest, split, shard, holders, rows.take(shard.samples))
                waiting.append((shard, job))
            if not waiting:
                break
            shard, job = waiting.popleft()
            found = job.result()
            problems += found.problems
            rows.wrong |= found.misplaced
            hashes.append(found.hashes)
            progress(done := done + shard.bytes, total)
    problems += _repeated(root, manifest, listed, hashes)
    known = {shard.file for _, shard in listed}
    known |= {Path(file).with_suffix(".idx").name for file in known}
    for path in sorted([*root.glob("*.tar"), *root.glob("*.idx")]):
        if path.name not in known:
            problems.append(Problem(path.name, "not in the manifest"))
    return problems + (bad_catalogue or rows.problems())


def _check_file(root: Path, manifest: Manifest, name: str) -> list[Problem]:
    """Problems of a file that is no shard, by its size and checksum where the manifest has them."""
    path = root / name
    if not path.is_file():
        return [Problem(name, "missing")]
    spec = (manifest.files or {}).get(name)
    if spec is None:
        return []
    if path.stat().st_size != spec.bytes:
        return [Problem(name, f"{path.stat().st_size} bytes, by the manifest {spec.bytes}")]
    return [] if sha256(path) == spec.sha256 else [Problem(name, "its sha256 is not the manifest's")]


def _check_list(root: Path, manifest: Manifest) -> list[Problem]:
    """Problems of the list of rejected inputs."""
    if problems := _check_file(root, manifest, REJECTED):
        return problems
    counts: Counter[str] = Counter()
    try:
        with (root / REJECTED).open(encoding="utf-8") as file:
            counts.update(json.loads(line)["reason"] for line in file)
    except (ValueError, KeyError, TypeError):
        return [Problem(REJECTED, "not a JSON object with a reason a line")]
    return [] if counts == manifest.rejected else [Problem(REJECTED, "its reasons are not those the manifest counts")]


class _Rows:
    """The catalogue, read on as shards are: the rows of one after the other, in the order of the manifest."""

    def __init__(self, root: Path, manifest: Manifest, readable: bool) -> None:
        first = next(iter(manifest.labels), "")
        self.columns = ["key", "split", "shard", "position"]
        self.columns += [catalogue.label_column(name, first) for name in manifest.labels]
        self.path = root / catalogue.FILE
        self.wrong = False
        self.unreadable = ""
        samples = sum(split.samples for split in manifest.splits.values())
        self._batches = self._read(samples) if readable else iter(())
        self._table: Any = None

    def _read(self, samples: int) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                if missing := [name for name in self.columns if name not in file.schema_arrow.names]:
                    self.unreadable = f"has no column {', '.join(missing)}"
                elif file.metadata.num_rows != samples:
                    self.unreadable = f"lists {file.metadata.num_rows} samples, by the manifest {samples}"
                else:
                    for batch in file.iter_batches(catalogue.ROWS, columns=self.columns):
                        yield pa.Table.from_batches([batch])
        except (OSError, pa.ArrowException) as error:
            self.unreadable = f"cannot be read ({' '.join(str(error).split())})"

    def take(self, count: int) -> Any:
        """The next rows, a `pyarrow.Table`; None where they cannot be had."""
        import pyarrow as pa

        while self._table is None or len(self._table) < count:
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._table = batch if self._table is None else pa.concat_tables([self._table, batch])
        rows, self._table = self._table.slice(0, count), self._table.slice(count)
        return rows

    def problems(self) -> list[Problem]:
        if self.unreadable:
            return [Problem(catalogue.FILE, self.unreadable)]
        what = "does not list the samples where the shards hold them, with their labels"
        return [Problem(catalogue.FILE, what)] if self.wrong else []


@dataclass(frozen=True)
class _Found:
    """What a shard told: its problems, a hash of each key (uint64, as many as its samples if its headers could be
    read), and whether the catalogue says otherwise."""

    problems: list[Problem]
    hashes: np.ndarray
    misplaced: bool = False


def _examine_shard(
    root: Path, manifest: Manifest, split: str, shard: ShardSpec, holders: dict[str, str], rows: Any
) -> _Found:
    tar = root / shard.file
    idx = tar.with_suffix(".idx")
    nothing = np.empty(0, np.uint64)
    missing = [Problem(path.name, "missing") for path in (tar, idx) if not path.is_file()]
    if not tar.is_file():
        return _Found(missing, nothing)
    expected = shard.samples * manifest.sample_bytes + len(TRAILER)
    size = tar.stat().st_size
    if size != expected or size != shard.bytes:
        return _Found([*missing, Problem(tar.name, f"{size} bytes, by the manifest {expected}")], nothing)
    problems = missing
    try:
        read = _read(tar, manifest, shard.samples)
        if read.sha256 != shard.sha256:
            other = holders.get(read.sha256)
            what = f"it holds what belongs to {other}" if other else "its sha256 is not the manifest's"
            problems.append(Problem(tar.name, what))
        index = idx.read_bytes() if idx.is_file() else None
    except OSError as error:
        name = Path(error.filename or tar).name
        return _Found([*problems, Problem(name, f"cannot be read ({error.strerror})")], nothing)
    if index is not None and hashlib.sha256(index).hexdigest() != shard.idx_sha256:
        problems.append(Problem(idx.name, "its sha256 is not the manifest's"))
    if read.wrong or read.layout is None:
        return _Found([*problems, Problem(tar.name, read.wrong)], nothing)
    if index is not None and read.layout.index(read.keys).encode() != index:
        problems.append(Problem(idx.name, f"stale, its rows do not fit {tar.name}"))
    hashes = np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in read.keys], np.uint64)
    return _Found(problems, hashes, rows is not None and not _same(rows, manifest, split, shard, read))


@dataclass
class _Read:
    """A shard's checksum, keys and labels (uint8 multi-hot (n, K) or digits (n, d), by label name), and what is wrong
    with its headers."""

    sha256: str
    layout: SampleLayout | None
    keys: list[str]
    labels: dict[str, np.ndarray]
    wrong: str


def _read(tar: Path, manifest: Manifest, count: int) -> _Read:
    """Read a shard of the right size once, a few samples at a time. Raises OSError."""
    stride, digest, keys, wrong = manifest.sample_bytes, hashlib.sha256(), [], ""
    labels: dict[str, list[np.ndarray]] = {name: [] for name in manifest.labels}
    buffer = np.empty((max(1, min(count, PIECE // stride)), stride), np.uint8)
    layout: SampleLayout | None = None
    with tar.open("rb", buffering=0) as file:
        try:
            layout = SampleLayout.of(manifest, json_bytes(file.fileno(), manifest))
            expected = layout.template.copy()
        except (ValueError, BandstreamError) as error:
            wrong = str(error)
        for start in range(0, count, len(buffer)):
            samples = buffer[: min(len(buffer), count - start)]
            _fill(file, samples.reshape(-1).data)
            digest.update(samples.data)
            if wrong or layout is None:
                continue
            try:
                keys += [_key(layout, sample, expected) for sample in samples]
            except ValueError as error:
                wrong = str(error)
            for name, label in manifest.labels.items():
                labels[name].append(layout.view(samples, label.member).copy())
        digest.update(file.read())
    hot = {name: np.concatenate(parts) for name, parts in labels.items() if parts}
    return _Read(digest.hexdigest(), layout, keys, hot, wrong)


def _fill(file: Any, memory: memoryview) -> None:
    """Read until `memory` is full. Raises OSError where the file ends before."""
    while memory:
        taken = file.readinto(memory)
        if not taken:
            raise OSError(None, "it was cut off while it was read", file.name)
        memory = memory[taken:]


def _key(layout: SampleLayout, sample: np.ndarray, expected: np.ndarray) -> str:
    """As `layout.check`, quicker: `expected` is a sample of the layout whose names are overwritten."""
    key = layout.key(sample)
    layout.write_names(expected, key)
    for member in layout.members:
        if not np.array_equal(sample[member.at : member.data_at], expected[member.at : member.data_at]):
            return layout.check(sample)
    return key


def _same(rows: Any, manifest: Manifest, split: str, shard: ShardSpec, read: _Read) -> bool:
    """Whether the catalogue's rows of a shard say what the shard holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    count = len(read.keys)
    if not (
        rows["key"].combine_chunks().equals(pa.array(read.keys, pa.string()))
        and pc.sum(pc.equal(rows["split"], split)).as_py() == count
        and pc.sum(pc.equal(rows["shard"], shard.file)).as_py() == count
        and np.array_equal(rows["position"].to_numpy(), np.arange(count))
    ):
        return False
    first = next(iter(manifest.labels), "")
    for name, label in manifest.labels.items():
        column = rows[catalogue.label_column(name, first)].combine_chunks()
        found = np.zeros((count, len(label.classes)), np.uint8)
        of = np.repeat(np.arange(count), pc.fill_null(pc.list_value_length(column), 0).to_numpy())
        classes = pc.list_flatten(column).to_numpy(zero_copy_only=False)
        if classes.size and not (classes.min() >= 0 and classes.max() < len(label.classes)):
            return False
        np.add.at(found, (of, classes), 1)
        stored = read.labels[name]
        if label.kind == "single":
            digits = stored.astype(np.int64) - ord("0")
            numbers = digits @ 10 ** np.arange(digits.shape[1])[::-1]
            if not ((digits >= 0) & (digits <= 9)).all() or numbers.max() >= len(label.classes):
                return False
            stored = (numbers[:, None] == np.arange(len(label.classes))).astype(np.uint8)
        if not np.array_equal(found, stored):
            return False
    return True


def _repeated(
    root: Path, manifest: Manifest, listed: list[tuple[str, ShardSpec]], hashes: list[np.ndarray]
) -> list[Problem]:
    """Keys that occur twice: found by their hashes, and looked up."""
    if not hashes:
        return []
    every = np.concatenate(hashes)
    starts = np.cumsum([0, *map(len, hashes)])
    order = np.argsort(every, kind="stable")
    problems = []
    for at in np.flatnonzero(every[order[1:]] == every[order[:-1]]):
        places = []
        for number in order[at : at + 2]:
            shard = int(np.searchsorted(starts, number, side="right")) - 1
            with (root / listed[shard][1].file).open("rb") as file:
                name = os.pread(file.fileno(), 100, int(number - starts[shard]) * manifest.sample_bytes)
            places.append((name.partition(b".")[0].decode("ascii", "replace"), listed[shard][1].file))
        (first, holder), (second, file_name) = places
        if first == second:
            problems.append(Problem(file_name, f"sample {second} also stands in {holder}"))
    return problems
