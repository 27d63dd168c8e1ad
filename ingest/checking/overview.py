"""What `bandstream info` says about a shard set: its manifest, and sums over its catalogue, read bit by bit."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shards import catalogue
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet

DIFFERENT = 1000
"""A text column with more different values than these, such as a product's name, is not counted."""
SHOWN = 12
"""Values of a text column that a person is shown."""
BASELINE, OFFSET = "processing_baseline", "offset_removed"
"""A catalogue column of Sentinel-2 sources, and what their samples' json says of each."""


def summary(place: Path | str) -> dict[str, Any]:
    """All that is told, as JSON takes it. Raises BandstreamError where there is no sound shard set."""
    opened = ShardSet.open(place)
    manifest = opened.manifest
    sums = _Sums(manifest)
    for batch in batches(opened, None):
        sums.add(batch)
    source = {key: value for key, value in manifest.source.items() if key != "plan"}
    return {
        "name": manifest.name,
        "samples": sum(split.samples for split in manifest.splits.values()),
        "bytes": sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
        "sample_bytes": manifest.sample_bytes,
        "created_by": manifest.created_by,
        "seed": manifest.seed,
        "source": source,
        "splits": {
            name: {"samples": split.samples, "shards": len(split.shards)} for name, split in manifest.splits.items()
        },
        "arrays": {name: array.model_dump(mode="json") for name, array in manifest.arrays.items()},
        "bands": [
            {**band.model_dump(), **(manifest.statistics[band.name].model_dump() if manifest.statistics else {})}
            for band in manifest.bands
        ],
        "reflectance": manifest.reflectance.model_dump(),
        "labels": {
            name: {
                "kind": label.kind,
                "classes": {
                    title: dict(zip(manifest.splits, sums.labels[name][:, number].tolist(), strict=True))
                    for number, title in enumerate(label.classes)
                },
            }
            for name, label in manifest.labels.items()
        },
        "masks": {
            name: {"classes": mask.classes, "ignore_index": mask.ignore_index} for name, mask in manifest.masks.items()
        },
        "dates": sums.dates(),
        "places": sums.places(),
        "columns": {name: _counted(counts) for name, counts in sums.texts.items()},
        "offsets_removed": _offsets(opened, sums.first),
        "rejected": manifest.rejected,
    }


def batches(opened: ShardSet, columns: list[str] | None) -> Iterator[Any]:
    """The catalogue, a `pyarrow.RecordBatch` at a time. Raises BandstreamError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened.catalogue() as path, pq.ParquetFile(path) as file:
            if columns is not None:
                columns = [name for name in columns if name in file.schema_arrow.names]
            yield from file.iter_batches(catalogue.ROWS, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise BandstreamError(
            f"{opened.place}/{catalogue.FILE} cannot be read ({error}): bandstream verify {opened.place} --repair"
        ) from None


class _Sums:
    """What the rows of the catalogue add up to. `labels`: samples by label set, int64 (splits, classes); `first`: where
    the first sample of each processing baseline lies."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.splits = list(manifest.splits)
        self.labels = {
            name: np.zeros((len(self.splits), len(label.classes)), np.int64) for name, label in manifest.labels.items()
        }
        self.months: Counter[str] = Counter()
        self.span: list[str] = []
        self.box: list[float] = []
        self.nowhere = self.undated = 0
        self.texts: dict[str, Counter[str] | None] = {}
        self.first: dict[str, tuple[str, str, int]] = {}

    def add(self, batch: Any) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        split = pc.index_in(batch["split"], pa.array(self.splits)).to_numpy(zero_copy_only=False)
        first = next(iter(self.labels), "")
        for name, counts in self.labels.items():
            column = batch[catalogue.label_column(name, first)]
            of = np.repeat(split, pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False))
            cells = of * counts.shape[1] + pc.list_flatten(column).to_numpy(zero_copy_only=False)
            counts += np.bincount(cells.astype(np.int64), minlength=counts.size).reshape(counts.shape)
        dated = batch["date"].filter(pc.greater(pc.utf8_length(pc.fill_null(batch["date"], "")), 0))
        self.undated += len(batch) - len(dated)
        if len(dated):
            self.months.update(_count(pc.utf8_slice_codeunits(dated, 0, 7)))
            ends = pc.min_max(dated).as_py()
            self.span = [min([ends["min"], *self.span[:1]]), max([ends["max"], *self.span[1:]])]
        placed = [batch[name].drop_null().to_numpy() for name in ("lon", "lat")]
        self.nowhere += len(batch) - len(placed[0])
        if len(placed[0]):
            low, high = [float(values.min()) for values in placed], [float(values.max()) for values in placed]
            if self.box:
                low, high = np.minimum(low, self.box[:2]).tolist(), np.maximum(high, self.box[2:]).tolist()
            self.box = [*low, *high]
        for name in batch.schema.names:
            if name not in (*catalogue.COLUMNS, "id") and pa.types.is_string(batch.schema.field(name).type):
                self._count_text(name, batch)

    def _count_text(self, name: str, batch: Any) -> None:
        counts = self.texts.setdefault(name, Counter())
        if counts is None:
            return
        found = _count(batch[name])
        for value in found.keys() - counts.keys() if name == BASELINE else ():
            at = batch[name].index(value).as_py()
            self.first[value] = tuple(batch[column][at].as_py() for column in ("split", "shard", "position"))
        counts.update(found)
        if len(counts) > DIFFERENT:
            self.texts[name] = None

    def dates(self) -> dict[str, Any]:
        return {"span": self.span, "months": dict(sorted(self.months.items())), "unknown": self.undated}

    def places(self) -> dict[str, Any]:
        box = dict(zip(("west", "south", "east", "north"), self.box, strict=bool(self.box)))
        return {**box, "unknown": self.nowhere}


def _count(column: Any) -> dict[str, int]:
    import pyarrow.compute as pc

    found = pc.value_counts(pc.fill_null(column, ""))
    return dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True))


def _counted(counts: Counter[str] | None) -> dict[str, int] | None:
    """By number, then name; None: too many different values."""
    return None if counts is None else dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _offsets(opened: ShardSet, first: dict[str, tuple[str, str, int]]) -> dict[str, int] | None:
    """What was taken from the stored numbers, by processing baseline: the product's baseline decides it, so a sample of
    each tells. None for a remote set, of which that would fetch a shard for each."""
    found: dict[str, int] = {}
    if opened.remote is not None:
        return None
    for baseline, (split, shard, position) in sorted(first.items()):
        specs = opened.manifest.splits[split].shards
        before = sum(spec.samples for spec in specs[: [spec.file for spec in specs].index(shard)])
        content = opened.read(split, before + position).json
        if OFFSET in content:
            found[baseline] = content[OFFSET]
    return found


def overview(place: Path | str) -> Iterator[str]:
    """Lines for a person. Raises BandstreamError where there is no sound shard set."""
    return lines(summary(place))


def lines(told: dict[str, Any]) -> Iterator[str]:
    """A summary in lines."""
    yield (
        f"{told['name']}: {told['samples']:,} samples, {told['bytes'] / 1e6:,.1f} MB, "
        f"{told['sample_bytes']:,} bytes a sample"
    )
    source = ", ".join(f"{key} {value}" for key, value in told["source"].items())
    yield f"source: {source}; seed {told['seed']}; by {told['created_by']}"
    yield "splits: " + ", ".join(
        f"{name} {split['samples']:,} in {split['shards']} shards" for name, split in told["splits"].items()
    )
    yield from _times_and_places(told)
    several = any(array["time"] for array in told["arrays"].values())
    for member, array in told["arrays"].items():
        date = f" (date {array['time']})" if several else ""
        size = " x ".join(map(str, array["shape"]))
        yield f"array {member}: {array['dtype']} {size}, {' '.join(array['bands'])}{date}"
    light = told["reflectance"]
    yield f"reflectance = stored x {light['scale']:g} + {light['offset']:g}, level {light['level']}"
    if told["offsets_removed"] is None:
        yield "  offsets removed: in the shards, which are not fetched for this"
    for baseline, offset in (told["offsets_removed"] or {}).items():
        samples = (told["columns"][BASELINE] or {}).get(baseline, 0)
        first = " at date 0" if several else ""
        yield f"  baseline {baseline or 'unknown'}: {samples:,} samples, offset removed {offset}{first}"
    if "mean" in told["bands"][0]:
        heads = "".join(f"{head:>8}" for head in ("min", "p02", "p98", "max", "nodata", "satur."))
        yield f"{'band':<6}{'nm':>6}{'m':>5}{'mean':>10}{'std':>10}{heads}"
        for band in told["bands"]:
            yield (
                f"{band['name']:<6}{band['wavelength_nm']:>6}{band['gsd_m']:>5}{band['mean']:>10.1f}{band['std']:>10.1f}"
                f"{band['min']:>8.0f}{band['p02']:>8.0f}{band['p98']:>8.0f}{band['max']:>8.0f}"
                f"{band['nodata']:>8.2%}{band['saturated']:>8.2%}"
            )
    for name, label in told["labels"].items():
        classes = label["classes"]
        wide = max(map(len, classes))
        yield f"labels {name}: {label['kind']}, {len(classes)} classes, samples by split"
        yield f"      {'':<{wide}}" + "".join(f"{split:>10}" for split in told["splits"])
        for number, (title, counts) in enumerate(classes.items()):
            yield f"  {number:>3} {title:<{wide}}" + "".join(f"{count:>10,}" for count in counts.values())
    for name, mask in told["masks"].items():
        yield f"mask {name}: {len(mask['classes'])} classes, {mask['ignore_index']} is ignored"
    total = sum(told["rejected"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in told["rejected"].items())
    yield f"rejected: {f'{total:,}: {reasons}' if total else 'nothing'}"


def _times_and_places(told: dict[str, Any]) -> Iterator[str]:
    dates, places = told["dates"], told["places"]
    if dates["span"]:
        unknown = f"; of {dates['unknown']:,} unknown" if dates["unknown"] else ""
        yield f"dates: {dates['span'][0]} to {dates['span'][1]}{unknown}"
        years: dict[str, list[str]] = {}
        for month, count in dates["months"].items():
            years.setdefault(month[:4], []).append(f"{month[5:]}: {count:,}")
        for year, counts in years.items():
            yield f"  {year}  {'  '.join(counts)}"
    else:
        yield "dates: unknown"
    if "west" in places:
        unknown = f"; of {places['unknown']:,} unknown" if places["unknown"] else ""
        south, north = (_degrees(places[name], "NS") for name in ("south", "north"))
        west, east = (_degrees(places[name], "EW") for name in ("west", "east"))
        yield f"places: {south} to {north}, {west} to {east}{unknown}"
    else:
        yield "places: unknown"
    for name, counts in told["columns"].items():
        if counts is None:
            yield f"  {name}: more than {DIFFERENT:,} different"
        elif set(counts) != {""}:
            shown = ", ".join(f"{value or 'unknown'} {count:,}" for value, count in list(counts.items())[:SHOWN])
            more = f", and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
            yield f"  {name}: {shown}{more}"


def _degrees(value: float, ends: str) -> str:
    return f"{abs(value):.2f}°{ends[value < 0]}"
