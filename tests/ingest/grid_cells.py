"""Major TOM's cells, made up, smaller than true ones, in Parquet files of its layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.io import MemoryFile
from rasterio.transform import Affine

SIDE = 156  # of a cell at 10 m: 26 pixels of 60 m, so that two patches of 72 leave a margin of one on each side
L2A = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
L1C = [*L2A[:10], "B10", *L2A[10:]]
STEP = {"B01": 6, "B09": 6, "B10": 6} | dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 2)
CELLS = ["451U_946L", "451U_947L", "12D_5R", "0U_0R"]
TIMES = ["20200415T181919", "20230715T181919", "20231015T181919"]
BASELINES = ["N0214", "N0509", "N9999"]


def product(number: int, level: str = "L2A", tile: str = "T12TVK") -> str:
    return f"S2B_MSI{level}_{TIMES[number]}_{BASELINES[number]}_R127_{tile}_20231115T211527"


def pixels_of(cell: str, number: int, band: str, side: int = SIDE) -> np.ndarray:
    scene = np.random.default_rng([CELLS.index(cell), number]).integers(200, 5000, (13, 13)).repeat(12, 0).repeat(12, 1)
    step = STEP.get(band, 1)
    coarse = scene.reshape(SIDE // step, step, SIDE // step, step).mean((1, 3))[: side // step, : side // step]
    own = np.random.default_rng([CELLS.index(cell), number, *band.encode()])
    gain = {"B08": 1.0, "B8A": 1.0, "B10": 0.01}.get(band, own.uniform(0.3, 0.8))
    return (coarse * gain + own.integers(0, 50, coarse.shape)).astype(np.uint16)


def tif(pixels: np.ndarray, step: int, left: float, epsg: int = 32612, **options: Any) -> bytes:
    profile = {
        "driver": "GTiff", "dtype": pixels.dtype.name, "count": 1, "width": pixels.shape[1], "height": pixels.shape[0],
        "crs": f"EPSG:{epsg}", "transform": Affine(10.0 * step, 0, left, 0, -10.0 * step, 4494792.138317),
        "compress": "deflate",
    } | options  # fmt: skip
    with MemoryFile() as memory:
        with memory.open(**profile) as target:
            target.write(pixels, 1)
        return bytes(memory.getbuffer())


def row(cell: str, number: int, bands: list[str] = L2A, **options: Any) -> dict[str, Any]:
    level = "L1C" if "B10" in bands else "L2A"
    left = 434635.0219440222 + 10_000 * CELLS.index(cell)
    values: dict[str, Any] = {"product_id": product(number, level), "grid_cell": cell, "thumbnail": b"png"}
    for band in bands:
        step = STEP.get(band, 1)
        values[band] = tif(pixels_of(cell, number, band), step, left, **options)
    return values | {"cloud_mask": b"tif"}


def write(path: Path, rows: list[dict[str, Any]], group: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def write_metadata(root: Path, clouds: dict[tuple[str, int], float], level: str = "L2A") -> None:
    rows = [
        {"grid_cell": cell, "product_id": product(number, level), "cloud_cover": cloud, "nodata": 0.0, "parquet_row": 0}
        for (cell, number), cloud in clouds.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
