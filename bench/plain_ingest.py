"""What users would otherwise run: rasterio reads the bands, `webdataset.ShardWriter` writes the samples. One process.

    python -m bench.plain_ingest SRC DST

The same patches, arrays, labels, masks and (nearly the same) json as our ingest writes; no statistics, checksums,
index, catalogue or restart.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import rasterio
import webdataset

from ingest import clc

GROUPS = {
    "10m.npy": ("B02", "B03", "B04", "B08"),
    "20m.npy": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "60m.npy": ("B01", "B09"),
}


def main(archive: Path, target: Path) -> None:
    """Convert a version 2 archive with metadata and reference maps, split by split."""
    target.mkdir(parents=True)
    codes = clc.code_table()
    rows = {row["patch_id"]: row for row in pq.read_table(archive / "metadata.parquet").to_pylist()}
    writers = {
        split: webdataset.ShardWriter(str(target / f"{split}-%06d.tar"), maxcount=1024, maxsize=1e12, verbose=0)
        for split in ("train", "validation", "test")
    }
    for tile in sorted((archive / "BigEarthNet-S2").iterdir()):
        for patch in sorted(tile.iterdir()):
            row = rows[patch.name]
            sample: dict[str, object] = {"__key__": patch.name}
            for member, bands in GROUPS.items():
                planes = []
                for band in bands:
                    with rasterio.open(patch / f"{patch.name}_{band}.tif") as source:
                        planes.append(source.read(1))
                        crs, transform = source.crs, source.transform
                sample[member] = np.stack(planes)
            with rasterio.open(
                archive / "Reference_Maps" / tile.name / patch.name / f"{patch.name}_reference_map.tif"
            ) as source:
                sample["mask.npy"] = codes[source.read(1)]
            sample["labels.npy"] = clc.multi_hot(clc.CLASSES.index(name) for name in row["labels"])
            sample["json"] = {
                "id": patch.name,
                "crs": str(crs),
                "transform": list(transform),
                "country": row["country"],
            }
            writers[row["split"]].write(sample)
    for writer in writers.values():
        writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
