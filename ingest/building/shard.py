"""One shard = one task = one pure function of archive, plan and options: read, pack, hash, write, rename."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest.building import statistics
from ingest.building.plan import Shard
from ingest.source import Facts, Rejected, Schema, Source
from shards import atomic, catalogue
from shards.errors import BandstreamError
from shards.layout import TRAILER, SampleLayout, class_digits, pad_json

SLOTS, SLOT_BYTES = 32, 1 << 23
"""Samples packed, counted, hashed and written at a time, and their bytes (of more than one sample): few enough to stay
in the processor's cache."""
RECORDS = ".partial"
"""Folder inside the set that holds the records of finished shards until the manifest is written."""
CLAIM = "plan.json"
"""Which plan the records are of, and so whose the folder is."""
PAUSES_S = (1.0, 4.0, 16.0)
"""Before a shard is tried again that failed as network file systems do for a while."""
FOR_GOOD = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
"""Errors that waiting does not mend."""
FOR_A_WHILE = {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH}
FOR_A_WHILE |= {errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
"""Errors that say nothing about the file that was being read: no reason to reject it."""


@dataclass(frozen=True)
class Record:
    """What is known of a finished shard. `rows`: catalogue columns; `statistics`: of train shards a packed Tally."""

    plan: str
    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    idx_sha256: str
    rows: dict[str, list[Any]]
    rejected: list[list[str]]
    statistics: str

    @property
    def file(self) -> str:
        return f"{self.name}.tar"


class Vanished(BandstreamError):
    """What is read is no longer there, or no longer what it was: what was rejected since may be sound."""


@dataclass(frozen=True)
class Input:
    """A file or folder that an ingest reads, as it was before: a folder that has turned empty is an unmounted one."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "Input":
        status = path.stat()
        return cls(path, -1, 0) if path.is_dir() else cls(path, status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Raises Vanished."""
        try:
            same = Input.of(self.path) == self and (self.size >= 0 or any(os.scandir(self.path)))
        except FileNotFoundError:
            same = False
        if not same:
            raise Vanished(
                f"{self.path} went away or was changed while it was read: bring it back and run the same command again"
            )


@dataclass
class Task:
    """What every shard of an ingest shares; travels to the workers."""

    source: Source
    target: Path
    plan: str
    strict: bool
    inputs: tuple[Input, ...] = ()

    def layout(self) -> SampleLayout:
        return layout_of(self.source.schema)

    def check_claim(self) -> None:
        """Raises BandstreamError where the folder is not this plan's: a worker may outlive its ingest, and another one,
        with other options, may have begun."""
        try:
            plan = json.loads((self.target / RECORDS / CLAIM).read_bytes())["plan"]
        except FileNotFoundError:
            plan = None
        if plan != self.plan:
            raise BandstreamError(f"{self.target} was removed, or begun anew, while shards were made: run it again")

    def check_inputs(self) -> None:
        """Raises Vanished."""
        for each in self.inputs:
            each.check()


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


def make(
    task: Task, shard: Shard, progress: Callable[[int], None] = lambda done: None, patient: bool = False
) -> Record:
    """Write `NAME.tar` and `NAME.idx` atomically and return what is known of them.

    `progress` is told how many inputs have been dealt with. With `strict`, raises the first Rejected; with `patient`,
    OSError where a file cannot be read for a reason that may pass. Raises BandstreamError where the folder is not the
    task's, Vanished where the archive is not what it was.
    """
    task.check_claim()
    schema, layout = task.source.schema, task.layout()
    writer = _Writer(task, shard, layout, patient)
    path = task.target / f"{shard.name}.tar"

    def check() -> None:
        if writer.rejected:
            task.check_inputs()
        task.check_claim()

    with atomic.replacing(path, check) as file:
        for start in range(0, len(shard.entries), len(writer.slots)):
            entries = shard.entries[start : start + len(writer.slots)]
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
        atomic.write_text(path.with_suffix(".idx"), index, task.check_claim)
    else:
        path.unlink(missing_ok=True)
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
        statistics=writer.tally.pack() if shard.split == "train" else "",
    )


def make_recorded(task: Task, shard: Shard, progress: Callable[[int], None] = lambda done: None) -> None:
    """Leave a shard and its record, unless an earlier run did; tried again after some OSErrors, which it else raises.

    `progress` is told how many inputs have been dealt with, and takes back those of a try that failed.
    """
    for pause in (*PAUSES_S, None):
        counted = 0

        def count(more: int) -> None:
            nonlocal counted
            counted += more
            progress(more)

        try:
            record = read_record(task.target, shard.name, task.plan)
            if record is not None and not (task.strict and record.rejected) and _stands(task.target, record):
                count(len(shard.entries))
                return
            record = make(task, shard, count, patient=pause is not None)
            text = json.dumps(vars(record), allow_nan=False)
            atomic.write_text(task.target / RECORDS / f"{shard.name}.json", text, task.check_claim)
            return
        except OSError as error:
            if pause is None or error.errno in FOR_GOOD:
                raise
            progress(-counted)
            time.sleep(pause)


def _stands(folder: Path, record: Record) -> bool:
    return not record.samples or intact(folder, record.file, record.bytes, record.sha256, record.idx_sha256)


class _Writer:
    """A few sample slots, filled again and again; what the shard's samples told."""

    def __init__(self, task: Task, shard: Shard, layout: SampleLayout, patient: bool) -> None:
        self.task, self.shard, self.layout, self.patient = task, shard, layout, patient
        self.schema = task.source.schema
        self.slots = np.empty((min(SLOTS, max(1, SLOT_BYTES // layout.sample_bytes)), layout.sample_bytes), np.uint8)
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
                self._raise_passing(rejection)
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

    def _raise_passing(self, rejection: Rejected) -> None:
        """Raises the error behind a rejection where it is the file system's, and may pass."""
        error: BaseException = rejection
        while behind := error.__cause__ or error.__context__:
            error = behind
            if isinstance(error, OSError) and error.errno in FOR_A_WHILE | ({errno.EIO} if self.patient else set()):
                raise error

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
