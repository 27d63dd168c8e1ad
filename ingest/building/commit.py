"""The end of an ingest: catalogue, list of rejected inputs, and, last, the manifest that makes a folder a shard set."""

from collections import Counter
from pathlib import Path
from typing import Any

from ingest.building.plan import Plan
from ingest.building.shard import Record, layout_of, read_record, tally_of
from ingest.building.workplace import REJECTED
from ingest.checking.mend import lines_of
from ingest.source import Rejected, Source
from shards import atomic, catalogue
from shards.errors import BandstreamError
from shards.manifest import CREATED_BY, ArraySpec, BandSpec, FileSpec, Manifest, ShardSpec, SplitSpec
from shards.verify import sha256


def commit(target: Path, source: Source, described: dict[str, Any], fingerprint: str, plan: Plan) -> Manifest:
    """Write catalogue, rejections and manifest, in this order."""
    schema = source.schema
    tally = tally_of(schema)
    splits: dict[str, list[ShardSpec]] = {}
    rejected = list(plan.rejected)
    labels = [catalogue.label_column(name, next(iter(schema.labels))) for name in schema.labels]
    with catalogue.writing(target, schema.columns, labels) as add:
        for name in plan.names:
            record = read_record(target, name, fingerprint)
            if record is None:
                raise BandstreamError(f"the record of {name} vanished while the set was made: run the ingest again")
            rejected += [Rejected(*args) for args in record.rejected]
            if record.samples:
                add(record.rows)
                splits.setdefault(record.split, []).append(_spec(record))
            if record.statistics:
                tally.merge(record.statistics)
    rejected.sort(key=lambda rejection: rejection.args)
    atomic.write_text(target / REJECTED, lines_of(rejected))
    if not splits:
        (target / catalogue.FILE).unlink()
        first = f", the first: {rejected[0]}" if rejected else ""
        raise BandstreamError(f"not one input could be taken{first}; all are listed in {target / REJECTED}")
    layout = layout_of(schema)
    manifest = Manifest(
        format_version=1,
        name=described["name"],
        source={
            **described["source"],
            **{key: described[key] for key in ("split", "shard_samples", "options")},
            "nodata": schema.nodata,
            "plan": fingerprint,
        },
        seed=described["seed"],
        created_by=CREATED_BY,
        bands=[BandSpec(name=band.name, wavelength_nm=band.wavelength_nm, gsd_m=band.gsd_m) for band in schema.bands],
        sample_bytes=layout.sample_bytes,
        arrays={
            name: ArraySpec(
                bands=list(array.bands),
                shape=(len(array.bands), *array.size),
                dtype=array.dtype,  # type: ignore[arg-type]
                offset=layout[name].data_at,
                time=array.time,
            )
            for name, array in schema.arrays.items()
        },
        reflectance=schema.reflectance,
        labels=schema.labels,
        masks=schema.masks,
        statistics={band.name: tally.summary(number) for number, band in enumerate(schema.bands)}
        if "train" in splits
        else {},
        splits={
            split: SplitSpec(samples=sum(spec.samples for spec in specs), shards=specs)
            for split, specs in splits.items()
        },
        rejected=dict(sorted(Counter(rejection.reason for rejection in rejected).items())),
        columns={name: kind.__name__ for name, kind in schema.columns.items()},  # type: ignore[misc]
        files={name: _file(target / name) for name in (catalogue.FILE, REJECTED)},
    )
    expected = {spec.file for specs in splits.values() for spec in specs}
    for path in (*target.glob("*.tar"), *target.glob("*.idx")):
        if path.with_suffix(".tar").name not in expected:
            path.unlink()
    manifest.write(target)
    return Manifest.read(target)


def _file(path: Path) -> FileSpec:
    return FileSpec(bytes=path.stat().st_size, sha256=sha256(path))


def _spec(record: Record) -> ShardSpec:
    return ShardSpec(
        file=record.file,
        samples=record.samples,
        bytes=record.bytes,
        sha256=record.sha256,
        idx_sha256=record.idx_sha256,
    )
