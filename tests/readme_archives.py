"""The archives that the README's commands name, made up in their true layouts."""

import tarfile
from pathlib import Path

import numpy as np
import zstandard

from tests.ingest import eurosat, foreign, grid_cells, pictures, products, rasters, seasons

CLASSES = {"l1": ["Forest", "Pasture", "Water"], "l2": [f"class {number}" for number in range(14)]}


def make(data: Path) -> None:
    """All of them but BigEarthNet, which a command makes, inside `data`."""
    products.pack(eurosat.make_ms(data / "EuroSAT_MS", 3, step=50), data / "EuroSAT_MS.zip")
    for number in range(20):
        at = rasters.shifted(number)
        planes = rasters.scene(number, 4) * 20
        rasters.write(data / "cerrado" / f"tile_{number}.tif", planes, at=at)
        for level, names in CLASSES.items():
            mask = np.random.default_rng(number).integers(0, len(names), planes.shape[1:]).astype(np.uint8)
            rasters.write(data / level / f"tile_{number}.tif", mask, at=at)
            (data / f"{level}.txt").write_text("\n".join(names))
        picture = data / "pictures" / f"class{number % 2}" / f"{number}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(pictures.encode(pictures.pixels(number), "JPEG"))
    products.write_safe(data / "scenes", products.name_of(), products.planes_of(), scl=products.scl_of())
    for number in range(2):
        seasons.write_place(data / "SSL4EO-S12" / "s2c", number)
    for index, cell in enumerate(grid_cells.CELLS):
        grid_cells.write(data / "Core-S2L2A" / "images" / f"part_{index:05d}.parquet", [grid_cells.row(cell, 0)])
    for number in range(2):
        samples = [foreign.sample(6 * number + own) for own in range(6)]
        foreign.write(data / f"foreign-{number:03d}.tar", samples)
    (data / "classes.txt").write_text("\n".join(foreign.CLASSES))


def pack_bigearthnet(data: Path) -> None:
    """Patches and reference maps of `data/BigEarthNet` as they are downloaded, its metadata beside them."""
    for name in ("BigEarthNet-S2", "Reference_Maps"):
        with (
            (data / f"{name}.tar.zst").open("wb") as file,
            zstandard.ZstdCompressor().stream_writer(file) as compressed,
            tarfile.open(fileobj=compressed, mode="w|") as tar,
        ):
            tar.add(data / "BigEarthNet" / name, name)
    (data / "metadata.parquet").write_bytes((data / "BigEarthNet" / "metadata.parquet").read_bytes())
