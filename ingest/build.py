"""Archives to shard sets: list, plan, make the shards, and, last, write the manifest.

Killed at any moment and run again, it ends with the same bytes: shards and their records appear atomically, a rerun
reuses those that lie there as recorded, and the folder is a shard set only once `dataset.json` stands in it.
"""

import fcntl
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest import physics, statistics
from ingest.engine import run
from ingest.plan import Shard, assign_splits, cut, fingerprint
from ingest.shard import RECORDS, Record, Task, intact, layout_of, make
from ingest.source import Rejected, Schema, Source
from shards import atomic, catalogue
from shards.bands import SENTINEL2
from shards.errors import BandstreamError
from shards.manifest import CREATED_BY, FILE, ArraySpec, BandSpec, Manifest, ShardSpec, SplitSpec

REJECTED = "rejected.jsonl"
OURS = re.compile(rf"(train|val|test)-\d{{6}}\.(tar|idx)|{REJECTED}|{catalogue.FILE}|\..*{atomic.TEMPORARY}")
"""Files of a set whose manifest was lost."""


@dataclass(frozen=True)
class Options:
    """What an ingest may be told. `split_file`: key → split; `workers` and `strict` do not bear on the bytes."""

    name: str = ""
    seed: int = 0
    shard_samples: int = 1024
    split_file: dict[str, str] | None = None
    workers: int = 1
    strict: bool = False


@dataclass(frozen=True)
class Outcome:
    """What an ingest did: the manifest, and how many inputs were dealt with in this run (0: all was there)."""

    manifest: Manifest
    processed: int


def ingest(
    source: Source,
    archive: Path,
    target: Path,
    options: Options,
    warn: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Turn an archive into the shard set `target`. Raises BandstreamError, and with `strict` on the first rejection.

    `warn` is told of what looks wrong, `progress` (inputs dealt with, all inputs) as work goes on.
    """
    _check_places(archive, target)
    listing = source.listing()
    for warning in listing.warnings:
        warn(warning)
    rejected = list(listing.rejected)
    splits = assign_splits(listing.entries, options.seed, options.split_file, rejected)
    if options.strict and rejected:
        raise BandstreamError(f"{rejected[0]} (--strict stops at the first rejected input)")
    shards = cut(splits, options.shard_samples, options.seed)
    described = _describe(source, options, any(not entry.split for entry in listing.entries))
    plan = fingerprint(shards, rejected, described)
    with _locked(target):
        finished = _finished(target, plan, described, shards, source)
        if finished is not None:
            return finished
        _claim(target, plan, described)
        for warning in physics.check(source, shards):
            warn(warning)
        task = Task(source, target, plan, options.strict)
        total = sum(len(shard.entries) for shard in shards)
        try:
            records = run(task, shards, options.workers, lambda done: progress(done, total))
        except Rejected as rejection:
            raise BandstreamError(f"{rejection} (--strict stops at the first rejected input)") from None
        rejected += [Rejected(*args) for record in records for args in record.rejected]
        manifest = _commit(target, source, described, plan, records, rejected)
    return Outcome(manifest, total)


def _check_places(archive: Path, target: Path) -> None:
    inner, outer = target.resolve(), archive.resolve()
    if inner == outer or outer in inner.parents:
        raise BandstreamError(f"{target} lies inside the archive {archive}: name a folder elsewhere")
    if inner in outer.parents and target.is_dir() and any(target.iterdir()):
        raise BandstreamError(f"the archive {archive} lies inside {target}: name another folder for the shard set")
    if target.exists() and not target.is_dir():
        raise BandstreamError(f"{target} is a file: name a folder for the shard set")


def _describe(source: Source, options: Options, drawn: bool) -> dict[str, Any]:
    """Everything but the listing that decides the bytes."""
    split = "drawn by the seed: a tenth val, a tenth test, the rest train" if drawn else "the archive's"
    return {
        "created_by": CREATED_BY,
        "source": source.describe(),
        "name": options.name or source.name,
        "seed": options.seed,
        "shard_samples": options.shard_samples,
        "split": "split file" if options.split_file is not None else split,
    }


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Make the folder and keep other ingests out of it; the lock dies with the process."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in target.iterdir()}
        if names and not names & {FILE, RECORDS} and not (REJECTED in names and all(map(OURS.fullmatch, names))):
            raise BandstreamError(f"{target} is not empty and holds no shard set: name a new folder")
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BandstreamError(
                f"another ingest is writing to {target}: wait for it, or name another folder"
            ) from None
    except OSError as error:
        raise BandstreamError(f"{target} cannot be written ({error.strerror}): name another folder") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _claim(target: Path, plan: str, described: dict[str, Any]) -> None:
    """Begin, or go on with what an earlier run of the same plan began; sweep up what a kill left behind."""
    records = target / RECORDS
    begun = records / "plan.json"
    try:
        records.mkdir(exist_ok=True)
        if begun.exists():
            content = json.loads(begun.read_bytes())
            if content["plan"] != plan:
                _refuse(target, "an unfinished ingest", content["options"], described)
        for folder in (target, records):
            for stale in folder.glob(f".*{atomic.TEMPORARY}"):
                stale.unlink()
        if not begun.exists():
            atomic.write_json(begun, {"plan": plan, "options": described})
    except OSError as error:
        raise BandstreamError(f"{target} cannot be written ({error.strerror}): name another folder") from None


def _refuse(target: Path, what: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [f"{key} {old.get(key)!r}, now {value!r}" for key, value in new.items() if old.get(key) != value]
    why = "; ".join(changed) or "the archive lists other samples or labels than it did"
    raise BandstreamError(f"{target} holds {what} with other options ({why}): name a new folder, or remove that one")


def _finished(
    target: Path, plan: str, described: dict[str, Any], shards: Sequence[Shard], source: Source
) -> Outcome | None:
    """Where the set stands complete: check it, make damaged shards anew. None where it is still to be ingested."""
    if not (target / FILE).exists():
        return None
    manifest = Manifest.read(target)
    if manifest.source.get("plan") != plan:
        old = {key: manifest.source.get(key) for key in ("split", "shard_samples")}
        old |= {"created_by": manifest.created_by, "name": manifest.name, "seed": manifest.seed}
        old["source"] = {key: manifest.source.get(key) for key in described["source"]}
        _refuse(target, "a shard set", old, described)
    if not _lists(target, manifest):
        (target / FILE).unlink()  # the catalogue needs every shard's rows: ingest again
        return None
    by_name = {f"{shard.name}.tar": shard for shard in shards}
    task = Task(source, target, plan, strict=False)
    made = 0
    for split in manifest.splits.values():
        for spec in split.shards:
            if not intact(target, spec.file, spec.bytes, spec.sha256, spec.idx_sha256):
                record = make(task, by_name[spec.file])
                made += len(by_name[spec.file].entries)
                if (record.sha256, record.idx_sha256) != (spec.sha256, spec.idx_sha256):
                    raise BandstreamError(
                        f"{target / spec.file} was damaged, and the archive no longer gives what it held: "
                        f"remove {target} and ingest again"
                    )
    shutil.rmtree(target / RECORDS, ignore_errors=True)
    for stale in target.glob(f".*{atomic.TEMPORARY}"):
        stale.unlink()
    return Outcome(manifest, made)


def _lists(target: Path, manifest: Manifest) -> bool:
    """Whether the catalogue and the list of rejected inputs have the lines that they should have."""
    try:
        rows = catalogue.read(target).num_rows
        lines = (target / REJECTED).read_text().splitlines()
        counts = Counter(json.loads(line)["reason"] for line in lines)
    except (BandstreamError, OSError, ValueError, KeyError, TypeError):
        return False
    return rows == sum(split.samples for split in manifest.splits.values()) and dict(counts) == manifest.rejected


def _commit(
    target: Path,
    source: Source,
    described: dict[str, Any],
    plan: str,
    records: Sequence[Record],
    rejected: Sequence[Rejected],
) -> Manifest:
    """Write catalogue, rejections and manifest, in this order, and clear the records away."""
    schema = source.schema
    ordered = sorted(rejected, key=lambda rejection: rejection.args)
    lines = [json.dumps({"path": r.path, "reason": r.reason, "detail": r.detail}) + "\n" for r in ordered]
    atomic.write_text(target / REJECTED, "".join(lines))
    taken = [record for record in records if record.samples]
    if not taken:
        first = f", the first: {ordered[0]}" if ordered else ""
        raise BandstreamError(f"not one input could be taken{first}; all are listed in {target / REJECTED}")
    first_label = next(iter(schema.labels), "")
    names = {name: catalogue.label_column(name, first_label) for name in schema.labels}
    columns = {
        names.get(column, column): [value for record in taken for value in record.rows[column]]
        for column in taken[0].rows
    }
    catalogue.write(target, columns, list(names.values()))
    manifest = _manifest(source, described, plan, taken, Counter(rejection.reason for rejection in ordered))
    expected = {shard.file for split in manifest.splits.values() for shard in split.shards}
    for path in (*target.glob("*.tar"), *target.glob("*.idx")):
        if path.with_suffix(".tar").name not in expected:
            path.unlink()
    manifest.write(target)
    shutil.rmtree(target / RECORDS)
    return manifest


def _manifest(
    source: Source, described: dict[str, Any], plan: str, records: Sequence[Record], rejected: Counter[str]
) -> Manifest:
    schema, layout = source.schema, layout_of(source.schema)
    splits = {}
    for split in dict.fromkeys(record.split for record in records):
        own = [record for record in records if record.split == split]
        specs = [
            ShardSpec(file=r.file, samples=r.samples, bytes=r.bytes, sha256=r.sha256, idx_sha256=r.idx_sha256)
            for r in own
        ]
        splits[split] = SplitSpec(samples=sum(record.samples for record in own), shards=specs)
    return Manifest(
        format_version=1,
        name=described["name"],
        source={
            **described["source"],
            "split": described["split"],
            "shard_samples": described["shard_samples"],
            "nodata": schema.nodata,
            "plan": plan,
        },
        seed=described["seed"],
        created_by=CREATED_BY,
        bands=[
            BandSpec(name=name, wavelength_nm=SENTINEL2[name].wavelength_nm, gsd_m=SENTINEL2[name].gsd_m)
            for name in schema.bands
        ],
        sample_bytes=layout.sample_bytes,
        arrays={
            name: ArraySpec(bands=list(bands), shape=(len(bands), *size), dtype="uint16", offset=layout[name].data_at)
            for name, (bands, size) in schema.arrays.items()
        },
        reflectance=schema.reflectance,
        labels=schema.labels,
        masks=schema.masks,
        statistics=_statistics(schema, records),
        splits=splits,
        rejected=dict(sorted(rejected.items())),
    )


def _statistics(schema: Schema, records: Sequence[Record]) -> dict[str, Any]:
    """Statistics of the train split, by band; empty where there is no such split."""
    counts = np.zeros((len(schema.bands), statistics.VALUES), np.int64)
    for record in records:
        if record.split == "train":
            counts += statistics.unpack(record.histogram, len(schema.bands))
    if not counts.any():
        return {}
    return {band: statistics.summary(counts[index], schema.nodata) for index, band in enumerate(schema.bands)}
