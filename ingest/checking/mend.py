"""A shard set put right again, file by file: only what is damaged is made anew, and only as it was.

Whatever is made anew is held to the manifest's checksum before it takes the place of what lies there. Indexes and the
catalogue come from the shards, shards and the list of rejected inputs from the archive.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ingest.building.engine import Engine
from ingest.building.plan import Plan, Shard
from ingest.building.shard import CLAIM, RECORDS, SLOTS, Record, Task, make, tally_of
from ingest.building.workplace import OURS, REJECTED
from ingest.source import Rejected
from shards import atomic, catalogue
from shards.errors import BandstreamError
from shards.layout import SampleLayout
from shards.manifest import FILE, LabelSpec, Manifest, ShardSpec
from shards.shardset import json_bytes
from shards.verify import Problem, sha256

KINDS: dict[str, type] = {"str": str, "int": int, "float": float}


@dataclass(frozen=True)
class Archive:
    """What the set was made of, and who works: the task and the plan are those of the set's manifest."""

    task: Task
    plan: Plan
    engine: Engine


@dataclass(frozen=True)
class Mended:
    """Names of the files that were made anew or removed, those that could not be without the archive, and how many
    samples and inputs were gone through for it."""

    made: list[str]
    removed: list[str]
    left: list[str]
    inputs: int = 0

    def told(self) -> str:
        """In a line; "" where nothing was done."""
        done = [f"made anew: {', '.join(self.made)}"] if self.made else []
        done += [f"removed: {', '.join(self.removed)}"] if self.removed else []
        return "; ".join(done)


def mend(target: Path, manifest: Manifest, problems: list[Problem], archive: Archive | None = None) -> Mended:
    """Make anew what `problems` name, of a set whose manifest is sound.

    Raises BandstreamError where that would not leave the bytes that the manifest states: the file stays as it is.
    """
    specs = {spec.file: (split, spec) for split, each in manifest.splits.items() for spec in each.shards}
    damaged = {problem.file for problem in problems}
    shards = sorted(damaged & set(specs))
    made: list[str] = []
    left: list[str] = []
    inputs = 0
    removed = [name for name in sorted(damaged) if _is_stray(name, specs)]
    for name in removed:
        (target / name).unlink()
    if archive is None:
        left += shards
    else:
        inputs = _make_shards(target, {name: specs[name][1] for name in shards}, archive)
        made += shards
    for name in sorted({Path(name).with_suffix(".idx").name for name in specs} & damaged):
        tar = Path(name).with_suffix(".tar").name
        if tar in left:
            left.append(name)
        elif tar not in made:
            _make_index(target, manifest, specs[tar][1])
            made.append(name)
            inputs += specs[tar][1].samples
    if REJECTED in damaged:
        if not manifest.rejected:
            _replace(target, manifest, REJECTED, b"")
        elif archive is not None:
            _replace(target, manifest, REJECTED, lines_of(_rejections(target, manifest, archive)).encode())
            inputs += archive.plan.total
        (made if archive or not manifest.rejected else left).append(REJECTED)
    if catalogue.FILE in damaged:
        columns = archive.task.source.schema.columns if archive else kinds(manifest)
        if columns is None or any(name in specs for name in left):
            left.append(catalogue.FILE)
        else:
            _make_catalogue(target, manifest, columns)
            made.append(catalogue.FILE)
            inputs += sum(spec.samples for _, spec in specs.values())
    return Mended(made, removed, left, inputs)


def lines_of(rejected: list[Rejected]) -> str:
    """The content of the list of rejected inputs."""
    ordered = sorted(rejected, key=lambda rejection: rejection.args)
    return "".join(json.dumps({"path": r.path, "reason": r.reason, "detail": r.detail}) + "\n" for r in ordered)


def kinds(manifest: Manifest) -> dict[str, type] | None:
    """The catalogue's columns beside its own; None in manifests of early writers."""
    if manifest.columns is None:
        return None
    return {name: KINDS[kind] for name, kind in manifest.columns.items()}


def _is_stray(name: str, specs: Mapping[str, Any]) -> bool:
    """Whether a file is one that an ingest wrote and the manifest does not know. Others are the user's."""
    path = Path(name)
    return path.suffix in (".tar", ".idx") and path.with_suffix(".tar").name not in specs and bool(OURS.fullmatch(name))


def _make_shards(target: Path, specs: Mapping[str, ShardSpec], archive: Archive) -> int:
    """Make shards anew beside the set, and move them in if they are what they were; how many inputs were read."""
    if not specs:
        return 0
    place = target / RECORDS / "mended"
    (place / RECORDS).mkdir(parents=True, exist_ok=True)
    task = Task(archive.task.source, place, archive.task.plan, False, archive.task.inputs)
    atomic.write_json(place / RECORDS / CLAIM, {"plan": task.plan})
    wanted = (archive.plan[number] for number, name in enumerate(archive.plan.names) if f"{name}.tar" in specs)
    inputs = 0
    for record, count in archive.engine.map(partial(_make, task), wanted):
        spec = specs[record.file]
        if (record.sha256, record.idx_sha256) != (spec.sha256, spec.idx_sha256):
            raise BandstreamError(
                f"{target / spec.file} is damaged, and the archive no longer gives what it held: "
                "bring the archive back as it was, or ingest into a new folder"
            )
        for name in (spec.file, Path(spec.file).with_suffix(".idx").name):
            (place / name).replace(target / name)
        inputs += count
    atomic.sync_folder(target)
    return inputs


def _make(task: Task, shard: Shard) -> tuple[Record, int]:
    return make(task, shard), len(shard.entries)


def _make_index(target: Path, manifest: Manifest, spec: ShardSpec) -> None:
    path = target / spec.file
    if sha256(path) != spec.sha256:
        raise BandstreamError(f"{path} was changed while it was read: run the same command again")
    layout = _layout(path, manifest)
    keys = [layout.key(sample) for samples in _samples(path, layout, spec.samples) for sample in samples]
    text = layout.index(keys).encode()
    if hashlib.sha256(text).hexdigest() != spec.idx_sha256:
        raise BandstreamError(f"{path}: its index cannot be made from it: ingest again")
    atomic.write_bytes(path.with_suffix(".idx"), text)


def _make_catalogue(target: Path, manifest: Manifest, columns: Mapping[str, type]) -> None:
    labels = [catalogue.label_column(name, next(iter(manifest.labels))) for name in manifest.labels]
    place = target / RECORDS / "mended"
    place.mkdir(parents=True, exist_ok=True)
    with catalogue.writing(place, columns, labels) as add:
        for split, each in manifest.splits.items():
            for spec in each.shards:
                path = target / spec.file
                add(rows_of(path, split, spec.samples, _layout(path, manifest), manifest.labels, columns))
    _check(target, manifest, catalogue.FILE, sha256(place / catalogue.FILE))
    (place / catalogue.FILE).replace(target / catalogue.FILE)
    atomic.sync_folder(target)


def _replace(target: Path, manifest: Manifest, name: str, content: bytes) -> None:
    _check(target, manifest, name, hashlib.sha256(content).hexdigest())
    atomic.write_bytes(target / name, content)


def _check(target: Path, manifest: Manifest, name: str, found: str) -> None:
    """Raises BandstreamError where a file made anew has not the checksum that the manifest states, if it does."""
    spec = (manifest.files or {}).get(name)
    if spec is not None and spec.sha256 != found:
        import pyarrow

        why = f"was it written with another pyarrow than {pyarrow.__version__}?"
        raise BandstreamError(
            f"{target / name} is damaged, and made anew it has other bytes than {FILE} states "
            f"({why if name == catalogue.FILE else 'has the archive changed?'}): ingest into a new folder"
        )


def _rejections(target: Path, manifest: Manifest, archive: Archive) -> list[Rejected]:
    """All inputs that were not taken: what the listing refused, and what is in no shard, read again to hear why."""
    specs = {spec.file: spec for split in manifest.splits.values() for spec in split.shards}
    rejected = list(archive.plan.rejected)
    for shard in archive.plan:
        keys: set[str] = set()
        if spec := specs.get(shard.file):
            if spec.samples == len(shard.entries):
                continue
            path = target / spec.file
            layout = archive.task.layout()
            keys = {layout.key(sample) for samples in _samples(path, layout, spec.samples) for sample in samples}
        rejected += refused(archive.task, shard, keys)
    return rejected


def refused(task: Task, shard: Shard, keys: set[str]) -> list[Rejected]:
    """Why the entries of a shard that are not among its `keys` were not taken. Raises BandstreamError where one would
    be taken now."""
    layout = task.layout()
    slot = layout.template.copy()
    views = {member.name: layout.view(slot, member.name) for member in layout.members}
    rejected = []
    for entry in shard.entries:
        if entry.key in keys:
            continue
        try:
            task.source.read(entry, views)
        except Rejected as rejection:
            rejected.append(rejection)
            continue
        raise BandstreamError(
            f"{entry.path} was rejected when {task.target} was made and can be read now: "
            "bring the archive back as it was, or ingest into a new folder"
        )
    return rejected


def record_of(task: Task, shard: Shard, samples: int) -> Record:
    """The record of a shard that lies there whole, for an ingest whose records are gone."""
    path = task.target / shard.file
    schema, layout = task.source.schema, task.layout()
    rows = rows_of(path, shard.split, samples, layout, schema.labels, schema.columns)
    tally = tally_of(schema)
    numbers = {band.name: number for number, band in enumerate(schema.bands)}
    for pieces in _samples(path, layout, samples) if shard.split == "train" else ():
        for member, array in schema.arrays.items():
            pixels = layout.view(pieces, member)
            for index, band in enumerate(array.bands):
                tally.add(numbers[band], pixels[:, index])
    return Record(
        plan=task.plan,
        name=shard.name,
        split=shard.split,
        samples=samples,
        bytes=path.stat().st_size,
        sha256=sha256(path),
        idx_sha256=sha256(path.with_suffix(".idx")),
        rows=rows,
        rejected=[list(rejection.args) for rejection in refused(task, shard, set(rows["key"]))],
        statistics=tally.pack() if shard.split == "train" else "",
    )


def rows_of(
    path: Path,
    split: str,
    count: int,
    layout: SampleLayout,
    labels: Mapping[str, LabelSpec],
    columns: Mapping[str, type],
) -> dict[str, list[Any]]:
    """A shard's rows of the catalogue, from its labels and its json, which hold all that stands there."""
    rows: dict[str, list[Any]] = {name: [] for name in (*catalogue.COLUMNS, *columns)}
    label_columns = {name: catalogue.label_column(name, next(iter(labels))) for name in labels}
    rows |= {column: [] for column in label_columns.values()}
    for samples in _samples(path, layout, count):
        for sample in samples:
            content = json.loads(bytes(layout.view(sample, "json")))
            if missing := [name for name in columns if name not in content]:
                raise BandstreamError(
                    f"{path}: the json of its samples does not hold {', '.join(missing)} of the catalogue: "
                    "ingest into a new folder"
                )
            known = content.get("crs", "") != ""
            rows["key"].append(layout.key(sample))
            rows["lon"].append(content["lon"] if known else None)
            rows["lat"].append(content["lat"] if known else None)
            rows["date"].append(content["date"] if "date" in content else next(iter(content.get("dates", [])), ""))
            for name in columns:
                rows[name].append(content[name])
            for name, label in labels.items():
                stored = layout.view(sample, label.member)
                present = np.flatnonzero(stored).tolist() if label.kind == "multilabel" else [int(bytes(stored))]
                rows[label_columns[name]].append(present)
    rows |= {"split": [split] * count, "shard": [path.name] * count, "position": list(range(count))}
    return rows


def _layout(path: Path, manifest: Manifest) -> SampleLayout:
    with path.open("rb") as file:
        return SampleLayout.of(manifest, json_bytes(file.fileno(), manifest))


def _samples(path: Path, layout: SampleLayout, count: int) -> Iterator[np.ndarray]:
    """The samples of a sound shard, some at a time: uint8 (n, sample_bytes)."""
    with path.open("rb") as file:
        for start in range(0, count, SLOTS):
            size = min(SLOTS, count - start) * layout.sample_bytes
            raw = os.pread(file.fileno(), size, start * layout.sample_bytes)
            yield np.frombuffer(raw, np.uint8).reshape(-1, layout.sample_bytes)
