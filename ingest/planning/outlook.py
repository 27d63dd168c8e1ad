"""What `bandstream plan` says of an ingest that has not begun."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ingest.building.plan import MEMORY, MEMORY_DRAWN
from ingest.planning.estimate import Estimate, Measured, existing

BUSY = 0.4
"""Share of a worker's time without CPU from which on it is told."""


def report(m: Measured, estimates: Sequence[Estimate], target: Path, scratch: Path | None) -> Iterator[str]:
    """Lines for a person: a column a size, then what the time is made of, then what stands in the way."""
    yield (
        f"{m.kind}: {m.workers} worker{'s' * (m.workers > 1)}, shards of {m.shard_samples:,}; "
        f"measured on this machine, {m.cores} cores"
    )
    columns = [_column(m, e) for e in estimates]
    wide = max(len(cell) for column in columns for cell, _ in column.values()) + 2
    for name in columns[0]:
        notes = columns[0][name][1]
        yield f"  {name:<26}" + "".join(f"{column[name][0]:>{wide}}" for column in columns) + (notes and f"   {notes}")
    yield from _reasons(m)
    idle = 1 - m.mean(m.cpu_s) / m.mean(m.sample_s)
    if idle > BUSY:
        yield f"note: workers waited {idle:.0%} of the time, for the disk or for other programs on these cores"
    for note in m.notes:
        yield f"note: {note}"
    if m.rejected:
        yield f"note: {m.rejected:,} inputs are refused before they are read"
    if m.taken < 1:
        yield f"note: {1 - m.taken:.1%} of the samples that were tried are rejected, the first: {m.first}"
    for e in estimates:
        yield from _room(e, target, scratch)


def _column(m: Measured, e: Estimate) -> dict[str, tuple[str, str]]:
    """What a size takes: row → (how much, why)."""
    splits = "drawn by the seed" if m.drawn else "the archive's or the split file's"
    how = "listed" if m.share == 1 else "judged by the beginning"
    rows = {"samples": (f"{e.samples:,}", how if e.samples == round(m.whole * m.taken) else "as asked for")}
    rows |= {f"  {split}": (f"{count:,}", splits) for split, count in e.splits.items()}
    rows["shards"] = f"{e.shards:,}", ""
    rows["shard set"] = _bytes(e.set), f"{m.sample_bytes:,} B a sample, {m.index_bytes:.0f} B of index"
    rows["catalogue"] = _bytes(e.catalogue), f"{m.catalogue_bytes:.0f} B a sample"
    rows["beside it, until done"] = (
        _bytes(e.aside),
        f"list {m.entry_bytes:.0f} B, records {m.record_bytes:.0f} B a sample",
    )
    if m.spool_bytes:
        rows["scratch, until done"] = _bytes(e.scratch), f"unpacked, {m.spool_bytes:,.0f} B a sample"
    rows["memory of the plan"] = (
        _bytes(e.memory),
        f"{MEMORY_DRAWN if m.drawn else MEMORY} B a sample, beside the source's own listing",
    )
    rows["archive, read"] = _bytes(e.read), f"{m.read_bytes:,.0f} B a sample"
    rows["start"] = _time(e.start_s), "Python, its libraries, a look at the bands"
    if m.spool_s:
        rows["unpack"] = _time(e.spool_s), f"{m.spool_s * 1e6:,.0f} µs a sample, one core"
    rows["list"] = _time(e.list_s), f"{m.list_s * 1e6:,.0f} µs a sample, one core"
    rows["make shards"] = (
        _time(e.make_s),
        f"{m.mean(m.sample_s) / m.workers * 1e6:,.0f} µs a sample, {m.workers} at work",
    )
    rows["catalogue and manifest"] = _time(e.commit_s), f"{m.commit_s * 1e3:,.0f} ms a shard, one core"
    if e.cold_s:
        warm = _time(e.warm) if e.fits else "-"
        rows["in all, from memory"] = warm, "the archive in the page cache; - where it does not fit"
        rows["in all, from the disk"] = _time(e.warm + e.cold_s), "none of it there"
        rows["in all, as it is now"] = _time(e.seconds), f"{e.cached:.0%} of it there"
    else:
        rows["in all"] = _time(e.warm), "reading from the disk could not be measured: from memory"
    return rows


def _reasons(m: Measured) -> Iterator[str]:
    cpu, cores = m.mean(m.cpu_s), min(m.workers, m.cores)
    parts = m.floors()
    yield f"a sample takes {cpu * 1e6:,.0f} µs of CPU on a core; alone, each of these would take"
    sha, copies = m.sample_bytes / m.hashing, (m.read_bytes + 2 * m.sample_bytes) / m.copying
    rest = max(cpu - sha - copies, 0.0)
    lines = {
        "SHA-256": (sha / cores, f"of the CPU; {m.hashing / 1e6:,.0f} MB/s a core"),
        "copies in memory": (copies / cores, f"of the CPU; read, packed, written: {m.copying / 1e9:,.1f} GB/s a core"),
        "all else": (rest / cores, "of the CPU; files opened, rasters read, tar and npy packed, pixels counted, json"),
        "CPU": (parts["CPU"], f"on {cores} core{'s' * (cores > 1)}"),
        "write and fsync": (parts["write and fsync"], f"{m.sample_bytes:,} B at {m.writing / 1e6:,.0f} MB/s"),
    }
    if m.reading:
        why = f"{m.read_bytes:,.0f} B at {m.reading / 1e6:,.0f} MB/s, {m.workers} at a time, out of the page cache"
        lines["read from the disk"] = parts["read from the disk"], why
    for name, (seconds, why) in lines.items():
        yield f"  {name:<26}{seconds * 1e6:>10,.0f} µs   {why}"
    warm = {name: value for name, value in parts.items() if name != "read from the disk"}
    binding = f"what binds: {max(parts, key=lambda name: parts[name])}"
    if len(warm) < len(parts):
        binding += f"; where the archive lies in the page cache: {max(warm, key=lambda name: warm[name])}"
    yield binding


def _room(e: Estimate, target: Path, scratch: Path | None) -> Iterator[str]:
    """A warning where a disk has not the room."""
    needs = {existing(target): e.set + e.catalogue + e.aside}
    unpacked = existing(scratch or target)
    same = [folder for folder in needs if folder.stat().st_dev == unpacked.stat().st_dev]
    place = same[0] if same else unpacked
    needs[place] = needs.get(place, 0) + e.scratch
    for folder, need in needs.items():
        free = shutil.disk_usage(folder).free
        if need > free:
            yield (
                f"warning: {e.samples:,} samples need {_bytes(need)} in {folder}, where {_bytes(free)} are free: "
                "make room, or name another folder"
            )


def _bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def content(m: Measured, estimates: Sequence[Estimate]) -> dict[str, Any]:
    """All of it for a file."""
    sizes = [asdict(e) | {"warm_s": e.warm, "seconds": e.seconds, "hours": e.seconds / 3600} for e in estimates]
    return {"measured": asdict(m), "floors_s": m.floors(), "sizes": sizes}
