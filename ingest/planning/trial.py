"""An ingest on trial: what a sample takes, measured on the archive and the machine that it will run on.

The archive is listed as an ingest lists it, and some of its samples, spread over it, are really made into shards on the
disk where the set will lie, by as many workers. Of a compressed archive only the beginning is unpacked, and counts for
the whole of it in proportion. Everything else is sums (`ingest.planning.estimate`).
"""

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ingest.building import physics
from ingest.building.build import ENTRIES
from ingest.building.engine import Here, Processes
from ingest.building.plan import Plan
from ingest.building.shard import layout_of
from ingest.planning import rates
from ingest.planning.estimate import Measured, existing
from ingest.reading import tar
from ingest.reading.unpack import unpacked
from ingest.source import Listening, Source
from shards.errors import BandstreamError
from shards.layout import TRAILER

SAMPLES = 256
"""So many samples a worker is measured on, where the archive has them."""
HEAD = 1 << 28
"""Bytes of a compressed archive's files that are unpacked to measure it."""
HEAD_S = 20.0
"""No longer than this."""
SHORT = 5.0
"""Seconds: a listing that took no longer is done twice."""
MADE_UP = 512
"""Patches of the made-up archive that is measured where no archive is named."""


@dataclass(frozen=True)
class Head:
    """The beginning of a compressed tar: the share of it that was unpacked, in how many seconds, to how many bytes."""

    share: float
    seconds: float
    bytes: int


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
        found = tar.NAME.search(path.name) if isinstance(path, Path) and path.is_file() else None
        if not found or found[1].lower() == "tar":
            return path
        place = scratch / str(len(heads)) / f"{path.name[: found.start()]}.tar"
        place.parent.mkdir()
        heads.append((path, unpack(path, place)))
        return place

    taken, told = tuple(map(cut, src)), {name: cut(value) for name, value in options.items()}

    def build() -> Source:
        return make(taken, **told)

    source = build()
    share = 1.0
    if heads:
        # the samples' archive is the largest; others, such as one of maps, are of the same samples
        largest, head = max(heads, key=lambda pair: pair[0].stat().st_size)
        share = head.share
    if share < 1:
        notes.append(
            f"judged by the first {head.bytes / 1e6:,.0f} MB of {largest.name}, {share:.1%} of it: what lies further "
            "behind, such as labels or masks, is not counted"
        )
    listening = Listening(scratch, notes.append, notes.append, lambda done, total: progress("list", done, total))
    start_s = _start(source) * (2 if workers > 1 else 1)  # the main process, then its workers
    import pyarrow.parquet  # noqa: F401  (part of the start, not of the listing that imports it)

    begin = time.perf_counter()
    try:
        plan = Plan(source.listing(listening), folder / ENTRIES, seed, shard_samples, split_file)
    except BandstreamError as error:
        behind = " (only its beginning was unpacked: unpack it, or name the patches alone)" if share < 1 else ""
        raise BandstreamError(f"{error}{behind}") from None
    list_s = time.perf_counter() - begin
    if list_s < SHORT:  # of a short listing much is spent on what is done for the first time
        (scratch / "again").mkdir()
        begin = time.perf_counter()
        Plan(build().listing(Listening(scratch / "again")), folder / "again", seed, shard_samples, split_file)
        again = min(list_s, time.perf_counter() - begin)
        start_s, list_s = start_s + list_s - again, again
    if not plan.total:
        first = f", the first: {plan.rejected[0]}" if plan.rejected else ""
        raise BandstreamError(f"nothing to ingest: not one input can be taken{first}")
    begin = time.perf_counter()
    notes += physics.check(source, plan)
    start_s += time.perf_counter() - begin
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
        start_s=start_s + _average([one.start_s for one in found]),
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

    code = f"import ingest.building.build, ingest.commands, pyarrow.parquet, {type(source).__module__}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds)[1]


def unpack(path: Path, to: Path) -> Head:
    """The first files of a compressed tar as a tar of their own. Raises BandstreamError."""
    size = path.stat().st_size
    begin = time.perf_counter()
    with path.open("rb") as raw, to.open("w+b") as out:
        stream = unpacked(raw, path)
        end, folder_end, folder, share = 0, 0, "", 1.0
        for header in tar.headers_of(tar.Stream(_copied(stream, out)), path):
            if end >= HEAD or (end and time.perf_counter() - begin > HEAD_S):
                end = folder_end if folder_end > end / 2 else end  # better a patch less than half of one
                share = raw.tell() / size * end / out.tell()  # more was unpacked than is kept
                break
            if header.name.rpartition("/")[0] != folder:
                folder, folder_end = header.name.rpartition("/")[0], end
            end = header.at + header.size + -header.size % tar.BLOCK
        out.truncate(end)
        out.seek(end)
        out.write(TRAILER)
    return Head(share, time.perf_counter() - begin, end)


def _copied(pieces: Iterator[bytes], out: BinaryIO) -> Iterator[bytes]:
    for piece in pieces:
        out.write(piece)
        yield piece
