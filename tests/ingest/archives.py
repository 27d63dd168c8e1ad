"""Small archives in both versions' layouts, written with the tests' own TIFF writer."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.archives import clc
from tests.ingest.tiff import tiff

SIZES = {"B02": 120, "B03": 120, "B04": 120, "B08": 120, "B01": 20, "B09": 20}
SIZES |= dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 60)
V2_TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
CODES = np.array([111, 112, 124, 211, 231, 311, 312, 332, 423, 512, 523, 999], np.uint16)


def place(number: int, size: int) -> tuple[int, float, float, float]:
    """EPSG code, pixel size, left and top of patch `number`."""
    return 32633, 1200 / size, 300000.0 + 1200 * (number % 80), 5300040.0 - 1200 * (number // 80)


def bands(number: int) -> dict[str, np.ndarray]:
    """All bands of a patch: one scene of patches of brightness, seen by each band with its own noise."""
    rng = np.random.default_rng(number)
    scene = rng.integers(300, 6000, (4, 4)).repeat(30, 0).repeat(30, 1)
    planes = {}
    for index, (band, size) in enumerate(sorted(SIZES.items())):
        step = 120 // size
        coarse = scene.reshape(size, step, size, step).mean((1, 3))
        factor = 1.0 if band in ("B08", "B8A") else 0.3 + 0.05 * index
        planes[band] = (coarse * factor + rng.integers(0, 40, (size, size))).astype(np.uint16)
    return planes


def write_patch(folder: Path, number: int) -> None:
    """The twelve TIFFs of a patch; its name is the folder's."""
    folder.mkdir(parents=True)
    for band, plane in bands(number).items():
        content = tiff(plane, rows=34 if plane.shape[0] == 120 else 0, place=place(number, plane.shape[0]), nodata="0")
        (folder / f"{folder.name}_{band}.tif").write_bytes(content)


def reference(number: int) -> np.ndarray:
    """CLC codes of a patch, uint16 (120, 120)."""
    rng = np.random.default_rng(1000 + number)
    return rng.choice(CODES, (3, 3)).repeat(40, 0).repeat(40, 1)


def labels_of(number: int) -> list[str]:
    codes = set(reference(number).ravel().tolist()) & clc.CLC_TO_CLASS.keys()
    return sorted({clc.CLASSES[clc.CLC_TO_CLASS[code]] for code in codes}) or ["Pastures"]


def patch_name(number: int) -> str:
    return f"{V2_TILE}_{number // 80}_{number % 80}"


def make_v2(root: Path, patches: int, metadata: bool = True, maps: bool = True) -> Path:
    """A version 2 archive; split by number: of ten, seven train, one validation, two test."""
    for number in range(patches):
        name = patch_name(number)
        write_patch(root / "BigEarthNet-S2" / V2_TILE / name, number)
        if maps:
            folder = root / "Reference_Maps" / V2_TILE / name
            folder.mkdir(parents=True)
            content = tiff(reference(number), rows=34, deflate=True, predictor=2, place=place(number, 120), nodata="0")
            (folder / f"{name}_reference_map.tif").write_bytes(content)
    if metadata:
        rows = {
            "patch_id": [patch_name(number) for number in range(patches)],
            "labels": [labels_of(number) for number in range(patches)],
            "split": [
                ("train", "validation", "test", "test", *["train"] * 6)[number % 10] for number in range(patches)
            ],
            "country": ["Austria"] * patches,
        }
        pq.write_table(pa.table(rows), root / "metadata.parquet")
    return root


def v1_name(number: int) -> str:
    return f"S2B_MSIL2A_20170924T93020_{number // 80}_{number % 80}"


def make_v1(root: Path, labels: list[list[str]]) -> Path:
    """A version 1 archive: a patch a list of label names."""
    for number, names in enumerate(labels):
        folder = root / v1_name(number)
        write_patch(folder, number)
        content = {
            "labels": names,
            "coordinates": {},
            "projection": "",
            "tile_source": "S2B_MSIL1C_20170924T93020_N0205_R136_T35VPK_20170924T093132.SAFE",
            "acquisition_date": "2017-09-24 09:30:20",
        }
        (folder / f"{folder.name}_labels_metadata.json").write_text(json.dumps(content))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
