"""Loaders side by side on the same patches: ours, and what users would otherwise run, a file a format.

Every format's module has `batches(folder, batch_size, workers, finish, **knobs)`: endless shuffled batches in a torch
DataLoader; `finish` takes the collated arrays, one uint16 (N, c, h, w) a resolution in the order of the shard set's
manifest, in the process that collated them.
"""

from dataclasses import dataclass, field
from typing import Any

Knobs = dict[str, list[Any]]


@dataclass(frozen=True)
class Peer:
    """What users would otherwise run.

    `format` is its module here, `folder` its data beside ours, `package` what it needs, `reader` its name in tables of
    reading alone (None: another peer reads the same way), `views` a class of bench.loaders.views; the knobs, each with
    the values that are tried, are those of its `batches` and of its views; `absent` says why our lock leaves it out.
    """

    name: str
    format: str
    folder: str
    package: str
    reader: str | None
    views: str = "KorniaViews"
    reading_knobs: Knobs = field(default_factory=dict)
    views_knobs: Knobs = field(default_factory=lambda: {"crop": ["slice", "resample"]})
    absent: str = ""


OURS = "bandstream"
PEERS = {
    "geotiff": Peer("GeoTIFF + rasterio + Kornia", "geotiff", "archive", "rasterio", "GeoTIFF + rasterio"),
    "webdataset": Peer("WebDataset + Kornia", "webdataset", OURS, "webdataset", "WebDataset"),
    "grid_sample": Peer(
        "WebDataset + grid_sample", "webdataset", OURS, "webdataset", None, "GridSampleViews", views_knobs={}
    ),
    "litdata": Peer(
        "litdata + Kornia", "litdata", "litdata", "litdata", "litdata", reading_knobs={"batch_decode": ["auto", 1]}
    ),
    "lmdb": Peer("LMDB/safetensors + Kornia", "lmdb", "lmdb", "lmdb", "LMDB/safetensors"),
    "zarr": Peer(
        "Zarr v3 shards + Kornia", "zarr", "zarr", "zarr", "Zarr v3 shards",
        reading_knobs={"fetch": ["sample", "batch"]},
    ),
    "streaming": Peer(
        "mosaicml-streaming + Kornia", "streaming", "streaming", "streaming", "mosaicml-streaming",
        absent="mosaicml-streaming 0.13 wants numpy < 2.2, huggingface-hub < 1 and the clients of four clouds, which "
        "would hold back every other package; it runs where it is installed by hand, beside the lock",
    ),
}  # fmt: skip
