"""One shard = one task = one pure function of archive, plan and options: read, pack, hash, write, rename."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest import statistics
from ingest.plan import Shard
from ingest.source import Facts, Rejected, Schema, Source
from shards import atomic, catalogue
from shards.layout import TRAILER, SampleLayout, class_digits, pad_json

SLOTS = 32
"""Samples packed, counted, hashed and written at a time: few enough to stay in the processor's cache."""
RECORDS = ".partial"
"""Folder inside the set that holds the records of finished shards until the manifest is written."""


@dataclass(frozen=True)
class Record:
    """What is known of a finished shard. `rows`: catalogue columns; `tally`: statistics of train shards, else empty."""

    plan: str
    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    idx_sha256: str
    rows: dict[str, list[Any]]
    rejected: list[list[str]]
    tally: str

    @property
    def file(self) -> str:
        return f"{self.name}.tar"


@dataclass
class Task:
    """What every shard of an ingest shares; travels to the workers once."""

    source: Source
    target: Path
    plan: str
    strict: bool

    def layout(self) -> SampleLayout:
        return layout_of(self.source.schema)


def layout_of(schema: Schema) -> SampleLayout:
    """The byte layout of a schema's samples."""
    labels: dict[str, tuple[tuple[int, ...], str] | int] = {}
    for label in schema.labels.values():
        count = len(label.classes)
        labels[label.member] = ((count,), "uint8") if label.kind == "multilabel" else class_digits(count)
    return SampleLayout(
        {name: ((len(array.bands), *array.size), array.dtype) for name, array in schema.arrays.items()},
        labels,
        {mask.member: (schema.finest, "uint8") for mask in schema.masks.values()},
        schema.json_bytes,
    )


def tally_of(schema: Schema) -> statistics.Tally:
    """An empty tally of a schema's bands."""
    dtypes = {band: array.dtype for array in schema.arrays.values() for band in array.bands}
    return statistics.Tally(tuple(dtypes[band.name] for band in schema.bands), schema.nodata)


def read_record(folder: Path, name: str, plan: str) -> Record | None:
    """The record that a run of this plan left of a shard; None where there is none."""
    try:
        record = Record(**json.loads((folder / RECORDS / f"{name}.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.plan == plan and record.name == name else None


def intact(folder: Path, file: str, size: int, sha256: str, idx_sha256: str) -> bool:
    """Whether a tar and its index lie in `folder` with these checksums."""
    tar = folder / file
    try:
        if tar.stat().st_size != size:
            return False
        with tar.open("rb") as opened, tar.with_suffix(".idx").open("rb") as index:
            return (
                hashlib.file_digest(opened, "sha256").hexdigest() == sha256
                and hashlib.file_digest(index, "sha256").hexdigest() == idx_sha256
            )
    except OSError:
        return False


def make(task: Task, shard: Shard, progress: Callable[[int], None] = lambda done: None) -> Record:
    """Write `NAME.tar` and `NAME.idx` atomically and return what is known of them.

    `progress` is told how many inputs have been dealt with. With `strict`, raises the first Rejected.
    """
    schema, layout = task.source.schema, task.layout()
    writer = _Writer(task, shard, layout)
    path = task.target / f"{shard.name}.tar"
    with atomic.replacing(path) as file:
        for start in range(0, len(shard.entries), SLOTS):
            entries = shard.entries[start : start + SLOTS]
            filled = writer.fill(entries)
            file.write(filled)
            # the kernel begins to write this chunk out now, so that the fsync at the end has little left to wait for
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            writer.digest.update(filled)
            progress(len(entries))
        file.write(TRAILER)
        writer.digest.update(TRAILER)
    index = layout.index(writer.keys)
    if writer.keys:
        atomic.write_text(path.with_suffix(".idx"), index)
    else:
        os.unlink(path)
    return Record(
        plan=task.plan,
        name=shard.name,
        split=shard.split,
        samples=len(writer.keys),
        bytes=len(writer.keys) * layout.sample_bytes + len(TRAILER),
        sha256=writer.digest.hexdigest(),
        idx_sha256=hashlib.sha256(index.encode()).hexdigest(),
        rows=writer.rows(schema),
        rejected=[list(rejection.args) for rejection in writer.rejected],
        tally=writer.tally.pack() if shard.split == "train" else "",
    )


def make_recorded(task: Task, shard: Shard, progress: Callable[[int], None] = lambda done: None) -> None:
    """Leave a shard and its record, unless an earlier run did."""
    record = read_record(task.target, shard.name, task.plan)
    if record is not None and not (task.strict and record.rejected) and _stands(task.target, record):
        progress(len(shard.entries))
        return
    record = make(task, shard, progress)
    atomic.write_json(task.target / RECORDS / f"{shard.name}.json", vars(record))


def _stands(folder: Path, record: Record) -> bool:
    return not record.samples or intact(folder, record.file, record.bytes, record.sha256, record.idx_sha256)


class _Writer:
    """A few sample slots, filled again and again; what the shard's samples told."""

    def __init__(self, task: Task, shard: Shard, layout: SampleLayout) -> None:
        self.task, self.shard, self.layout = task, shard, layout
        self.schema = task.source.schema
        self.slots = np.empty((SLOTS, layout.sample_bytes), np.uint8)
        self.slots[:] = layout.template
        self.views = [{member.name: layout.view(slot, member.name) for member in layout.members} for slot in self.slots]
        self.digest = hashlib.sha256()
        self.keys: list[str] = []
        self.facts: list[Facts] = []
        self.rejected: list[Rejected] = []
        self.tally = tally_of(self.schema)
        self.numbers = {band.name: number for number, band in enumerate(self.schema.bands)}

    def fill(self, entries: tuple[Any, ...]) -> memoryview:
        """Read these entries into the slots and count them: the bytes of those that were taken."""
        taken = 0
        for entry in entries:
            views = self.views[taken]
            try:
                facts = self.task.source.read(entry, views)
            except Rejected as rejection:
                if self.task.strict:
                    raise
                self.rejected.append(rejection)
                continue
            for name, label in self.schema.labels.items():
                target, indices = views[label.member], facts.labels[name]
                if label.kind == "multilabel":
                    target[:] = 0
                    target[list(indices)] = 1
                else:
                    target[:] = np.frombuffer(b"%0*d" % (len(target), *indices), np.uint8)
            text = json.dumps(facts.json, ensure_ascii=True, allow_nan=False)
            views["json"][:] = np.frombuffer(pad_json(text, self.schema.json_bytes, entry.key), np.uint8)
            self.layout.write_names(self.slots[taken], entry.key)
            self.keys.append(entry.key)
            self.facts.append(facts)
            taken += 1
        if self.shard.split == "train" and taken:
            for member, array in self.schema.arrays.items():
                pixels = self.layout.view(self.slots[:taken], member)
                for index, band in enumerate(array.bands):
                    self.tally.add(self.numbers[band], pixels[:, index])
        return self.slots[:taken].reshape(-1).data

    def rows(self, schema: Schema) -> dict[str, list[Any]]:
        """Catalogue columns of the shard's samples."""
        count = len(self.keys)
        rows: dict[str, list[Any]] = {
            "key": self.keys,
            "split": [self.shard.split] * count,
            "shard": [f"{self.shard.name}.tar"] * count,
            "position": list(range(count)),
            "lon": [facts.place and facts.place[0] for facts in self.facts],
            "lat": [facts.place and facts.place[1] for facts in self.facts],
            "date": [facts.date for facts in self.facts],
        }
        for name in schema.labels:
            rows[catalogue.label_column(name, next(iter(schema.labels)))] = [list(f.labels[name]) for f in self.facts]
        for column in schema.columns:
            rows[column] = [facts.columns[column] for facts in self.facts]
        return rows
