"""What `bandstream info` says about a shard set."""

from collections.abc import Iterator
from pathlib import Path

from shards.shardset import ShardSet


def overview(folder: Path) -> Iterator[str]:
    """Lines for a person. Raises BandstreamError where the folder is no sound shard set."""
    opened = ShardSet.open(folder)
    manifest = opened.manifest
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    total = sum(split.samples for split in manifest.splits.values())
    yield f"{manifest.name}: {total:,} samples, {size / 1e6:,.1f} MB, {manifest.sample_bytes:,} bytes a sample"
    source = ", ".join(f"{key} {value}" for key, value in manifest.source.items() if key != "plan")
    yield f"source: {source}; seed {manifest.seed}; by {manifest.created_by}"
    yield "splits: " + ", ".join(
        f"{name} {split.samples:,} in {len(split.shards)} shards" for name, split in manifest.splits.items()
    )
    for member, array in manifest.arrays.items():
        date = f" (date {array.time})" if len({each.time for each in manifest.arrays.values()}) > 1 else ""
        yield f"array {member}: {array.dtype} {' x '.join(map(str, array.shape))}, {' '.join(array.bands)}{date}"
    light = manifest.reflectance
    yield f"reflectance = stored x {light.scale:g} + {light.offset:g}, level {light.level}"
    if manifest.statistics:
        heads = "".join(f"{head:>8}" for head in ("min", "p02", "p98", "max", "nodata"))
        yield f"{'band':<6}{'nm':>6}{'m':>5}{'mean':>10}{'std':>10}{heads}"
    for band in manifest.bands:
        if band.name in manifest.statistics:
            s = manifest.statistics[band.name]
            yield (
                f"{band.name:<6}{band.wavelength_nm:>6}{band.gsd_m:>5}{s.mean:>10.1f}{s.std:>10.1f}"
                f"{s.min:>8.0f}{s.p02:>8.0f}{s.p98:>8.0f}{s.max:>8.0f}{s.nodata:>8.2%}"
            )
    for name, label in manifest.labels.items():
        counts = {split: opened.labels(split, name) for split in manifest.splits}
        yield f"labels {name}: {label.kind}, {len(label.classes)} classes; samples by split ({', '.join(counts)})"
        for index, title in enumerate(label.classes):
            hits = [
                int(values[:, index].sum() if label.kind == "multilabel" else (values == index).sum())
                for values in counts.values()
            ]
            yield f"  {index:>3} {title:<88}" + "".join(f"{hit:>10,}" for hit in hits)
    for name, mask in manifest.masks.items():
        yield f"mask {name}: {len(mask.classes)} classes, {mask.ignore_index} is ignored"
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected.items())
    yield f"rejected: {rejected or 'nothing'}"
