"""What users would otherwise run: rasterio reads the bands, a library of theirs writes the samples. One process' work.

    python -m bench.plain_ingest webdataset|litdata|lmdb|zarr|streaming SRC DST

- webdataset: `webdataset.ShardWriter`, a file of shards a split
- litdata: `litdata.optimize` with one worker, chunks of 64 MB
- lmdb: a database of safetensors, a tensor a band, as rico-hdl lays BigEarthNet out (Clasen et al., arXiv 2407.03653)
- zarr: Zarr v3 arrays (patches, bands, height, width), a chunk a patch, a shard 1,024 patches, uncompressed
- streaming: MosaicML's MDS, shards of 64 MB, uncompressed

The same patches, arrays, labels, masks and (nearly the same) json as our ingest writes; no statistics, checksums,
index, catalogue, global permutation or restart.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ingest.archives import clc

GROUPS = {
    "10m": ("B02", "B03", "B04", "B08"),
    "20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "60m": ("B01", "B09"),
}
CODES = clc.code_table()
SHARD = 1024


def listed(archive: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every patch folder of a version 2 archive, with its row of the metadata."""
    rows = {row["patch_id"]: row for row in pq.read_table(archive / "metadata.parquet").to_pylist()}
    for tile in sorted((archive / "BigEarthNet-S2").iterdir()):
        for patch in sorted(tile.iterdir()):
            yield patch, rows[patch.name]


def read(archive: Path, patch: Path, row: dict[str, Any]) -> dict[str, Any]:
    """A sample: arrays by GSD, mask, labels, json."""
    import rasterio

    sample: dict[str, Any] = {}
    for group, bands in GROUPS.items():
        planes = []
        for band in bands:
            with rasterio.open(patch / f"{patch.name}_{band}.tif") as source:
                planes.append(source.read(1))
                crs, transform = source.crs, source.transform
        sample[group] = np.stack(planes)
    tile = patch.parent.name
    with rasterio.open(archive / "Reference_Maps" / tile / patch.name / f"{patch.name}_reference_map.tif") as source:
        sample["mask"] = CODES[source.read(1)]
    sample["labels"] = clc.multi_hot(clc.CLASSES.index(name) for name in row["labels"])
    sample["json"] = {"id": patch.name, "crs": str(crs), "transform": list(transform), "country": row["country"]}
    return sample


def to_webdataset(archive: Path, target: Path) -> None:
    import webdataset

    writers = {
        split: webdataset.ShardWriter(str(target / f"{split}-%06d.tar"), maxcount=SHARD, maxsize=1e12, verbose=0)
        for split in ("train", "validation", "test")
    }
    for patch, row in listed(archive):
        sample = read(archive, patch, row)
        members = {f"{name}.npy": value for name, value in sample.items() if name != "json"}
        writers[row["split"]].write({"__key__": patch.name, **members, "json": sample["json"]})
    for writer in writers.values():
        writer.close()


def _litdata_sample(archive: Path, item: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    sample = read(archive, *item)
    return {**sample, "json": json.dumps(sample["json"])}


def to_litdata(archive: Path, target: Path) -> None:
    import litdata

    litdata.optimize(
        fn=partial(_litdata_sample, archive),
        inputs=list(listed(archive)),
        output_dir=str(target),
        chunk_bytes="64MB",
        num_workers=1,
        start_method="spawn",
        verbose=False,
    )


def to_lmdb(archive: Path, target: Path) -> None:
    import lmdb
    from safetensors.numpy import save

    with lmdb.open(str(target), map_size=1 << 40) as database:
        items = list(listed(archive))
        for start in range(0, len(items), SHARD):
            with database.begin(write=True) as transaction:
                for patch, row in items[start : start + SHARD]:
                    sample = read(archive, patch, row)
                    bands = {
                        band: plane
                        for group, names in GROUPS.items()
                        for band, plane in zip(names, sample[group], strict=True)
                    }
                    tensors = {**bands, "mask": sample["mask"], "labels": sample["labels"]}
                    transaction.put(patch.name.encode(), save(tensors, {"json": json.dumps(sample["json"])}))


def to_zarr(archive: Path, target: Path) -> None:
    import zarr

    items = list(listed(archive))
    group = zarr.open_group(target, mode="w", zarr_format=3)
    arrays: dict[str, Any] = {}
    for start in range(0, len(items), SHARD):
        samples = [read(archive, *item) for item in items[start : start + SHARD]]
        for name in (*GROUPS, "mask", "labels"):
            block = np.stack([sample[name] for sample in samples])
            if name not in arrays:
                shape = block.shape[1:]
                arrays[name] = group.create_array(
                    name,
                    shape=(len(items), *shape),
                    dtype=block.dtype,
                    chunks=(1, *shape),
                    shards=(SHARD, *shape),
                    compressors=None,
                )
            arrays[name][start : start + len(block)] = block
    group.attrs["samples"] = [item[0].name for item in items]


def to_streaming(archive: Path, target: Path) -> None:
    import streaming

    columns = {"mask": "ndarray", "labels": "ndarray", "json": "str"} | dict.fromkeys(GROUPS, "ndarray")
    with streaming.MDSWriter(out=str(target), columns=columns) as writer:
        for item in listed(archive):
            sample = read(archive, *item)
            writer.write({**sample, "json": json.dumps(sample["json"])})


FORMATS: dict[str, Callable[[Path, Path], None]] = {
    "webdataset": to_webdataset,
    "litdata": to_litdata,
    "lmdb": to_lmdb,
    "zarr": to_zarr,
    "streaming": to_streaming,
}

if __name__ == "__main__":
    Path(sys.argv[3]).mkdir(parents=True, exist_ok=True)
    FORMATS[sys.argv[1]](Path(sys.argv[2]).resolve(), Path(sys.argv[3]))
