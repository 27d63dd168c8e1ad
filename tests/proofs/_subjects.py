"""The archives that are damaged: small ones of every source.

A subject lies as a folder (its plain form), from which its tars, zips and Parquet files are packed. The files of a
plain form belong to a group (a patch, a place, a product) or to all of them; a group whose files are as they were is
untouched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.archives import ssl4eo_zarr
from ingest.archives.foreign import parse_options
from ingest.source import Source
from ingest.sources import eurosat as eurosat_source
from ingest.sources.bigearthnet import BigEarthNet
from ingest.sources.eurosat import EuroSAT
from ingest.sources.images import Images
from ingest.sources.majortom import MajorTOM
from ingest.sources.scene import Scenes
from ingest.sources.ssl4eo import SSL4EO
from ingest.sources.webdataset import WebDataset
from shards.manifest import Manifest
from shards.shardset import Sample
from tests.ingest import archives, eurosat, foreign, grid_cells, levels, pictures, products, seasons, zipped_seasons
from tests.proofs._readers import (
    PATCH,
    Found,
    read_cell,
    read_foreign,
    read_patch,
    read_picture,
    read_place,
    read_raster,
    read_scene,
    read_tile,
    read_zipped,
)


@dataclass(frozen=True)
class Subject:
    """An archive. `source`: of the folder that it lies in, packed; `packs`: folders of the plain form that are packed;
    `group` of a sample; `owner`: the group of a file by its path, "" where it is of all; `read`: an independent
    reader, given the plain form, which may raise anything; `damages` of a thousand."""

    name: str
    make: Callable[[Path], Any]
    source: Callable[[Path], Source]
    group: Callable[[Sample], str]
    owner: Callable[[str], str]
    read: Callable[[Path, Sample, Manifest], Found]
    damages: int
    packs: tuple[str, ...] = ()
    suffix: str = ""


# BigEarthNet


def patch_of(path: str) -> str:
    return "" if path.endswith(".parquet") else path.split("/")[-2]


V1_LABELS = [["Pastures"], ["Mixed forest", "Sea and ocean"], ["Vineyards"], ["Peatbogs"]]


def make_v1(root: Path) -> None:
    archives.make_v1(root / "archive" / "BigEarthNet-v1.0", V1_LABELS)


def make_v2(root: Path) -> None:
    archives.make_v2(root / "archive" / "BigEarthNet", 5)


def bigearthnet(version: int, suffix: str, damages: int) -> Subject:
    return Subject(
        f"bigearthnet v{version} {suffix or 'folder'}",
        (make_v1, make_v2)[version - 1],
        lambda root: BigEarthNet(root / f"archive{suffix}"),
        lambda sample: sample.key,
        patch_of,
        read_patch,
        damages,
        ("archive",) if suffix else (),
        suffix,
    )


# EuroSAT


def make_rgb(root: Path) -> None:
    for number, title in enumerate(eurosat_source.CLASSES[:6]):
        folder = root / "archive" / "2750" / title
        folder.mkdir(parents=True)
        (folder / f"{title}_1.jpg").write_bytes(pictures.encode(pictures.pixels(number, 64, 64), "JPEG"))


def make_ms(root: Path) -> None:
    for number, title in enumerate(eurosat_source.CLASSES[:6]):
        path = root / "archive" / "MS" / title / f"{title}_1.tif"
        eurosat.write(path, number, compress=(None, "deflate")[number % 2])


def eurosat_of(kind: str, suffix: str, damages: int) -> Subject:
    return Subject(
        f"eurosat {kind} {suffix or 'folder'}",
        {"MS": make_ms, "RGB": make_rgb}[kind],
        lambda root: EuroSAT(root / f"archive{suffix}"),
        lambda sample: sample.key,
        lambda path: path.rpartition("/")[2].partition(".")[0],
        read_tile,
        damages,
        ("archive",) if suffix else (),
        suffix,
    )


# Rasters with masks


def make_rasters(root: Path) -> None:
    levels.make_levels(root, 6)
    for number, options in enumerate(({"compress": "deflate", "predictor": 2}, {"compress": "lzw"}, {"tiled": True})):
        options |= {"blockxsize": 16, "blockysize": 16} if "tiled" in options else {}
        levels.write(root / "msi" / f"r{number}.tif", levels.pixels(number), at=levels.shifted(number), **options)


# Pictures


def make_pictures(root: Path) -> None:
    forms = (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif"), ("PNG", "PNG"))
    for number in range(12):
        folder = root / "pictures" / ("a", "b", "c")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        form, suffix = forms[number % len(forms)]
        options = {"TIFF": {"compression": "tiff_adobe_deflate"}, "WEBP": {"lossless": True}}.get(form, {})
        data = pictures.encode(pictures.pixels(number, 24, 24), form, **options)
        (folder / f"p{number}.{suffix}").write_bytes(data)


# WebDataset


def make_foreign(root: Path) -> None:
    for shard in range(2):
        for number in range(4 * shard, 4 * shard + 4):
            sample = foreign.sample(number)
            for member in ("s2.npy", "s2_20m.npy", "coarse.tif", "seg.png", "cls", "json"):
                path = root / "set" / f"train-{shard}" / f"{sample['__key__']}.{member}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(sample[member])
    (root / "classes.txt").write_text("\n".join(foreign.CLASSES) + "\n")


def foreign_source(root: Path) -> Source:
    return WebDataset(root / "set", parse_options(**foreign.TEXT, classes=[("", root / "classes.txt")]))


# SSL4EO-S12


def make_seasons(root: Path) -> None:
    for number in range(2):
        seasons.write_place(root / "archive" / "s2c", number)


def seasons_of(suffix: str, damages: int) -> Subject:
    return Subject(
        f"ssl4eo 1.0 {suffix or 'folder'}",
        make_seasons,
        lambda root: SSL4EO(root / f"archive{suffix}", "L1C"),
        lambda sample: sample.key,
        lambda path: path.split("/")[-3],
        read_place,
        damages,
        ("archive",) if suffix else (),
        suffix,
    )


ZIPPED = "train/S2L2A/ssl4eos12_shard_000001"


def make_zipped(root: Path) -> None:
    (root / ZIPPED).mkdir(parents=True)
    for number in (1, 2, 3):
        (root / ZIPPED / f"{zipped_seasons.name_of(number)}.zarr.zip").write_bytes(zipped_seasons.place(number))


def make_chunks(root: Path) -> None:
    for number in (1, 2):
        path = root / "train" / "S2L2A" / f"{zipped_seasons.name_of(number, digits=6)}.zarr.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zipped_seasons.chunk([number]))


def zipped_source(root: Path) -> Source:
    level, files = ssl4eo_zarr.find([root], "")
    return ssl4eo_zarr.SSL4EOZarr(files, level, 4)


# Major TOM


def make_cells(root: Path) -> None:
    """In plain form a folder a Parquet file, and in it one a row with a GeoTIFF a band."""
    for file, rows in enumerate((((0, 0), (1, 1), (2, 0)), ((0, 2), (3, 0)))):
        for cell, number in rows:
            row = grid_cells.row(grid_cells.CELLS[cell], number, **({"compress": None} if cell == 1 else {}))
            folder = root / "images" / f"part_0000{file}" / f"{row['grid_cell']} {row['product_id']}"
            folder.mkdir(parents=True)
            for band in grid_cells.L2A:
                (folder / f"{band}.tif").write_bytes(row[band])


def cells_packed(folder: Path) -> bytes:
    rows = []
    for inner in sorted(folder.iterdir()):
        cell, product = inner.name.split(" ")
        paths = {band: inner / f"{band}.tif" for band in grid_cells.L2A}
        bands = {band: path.read_bytes() if path.exists() else None for band, path in paths.items()}
        rows.append({"product_id": product, "grid_cell": cell, **bands})
    sink = pa.BufferOutputStream()
    text, data = [(name, pa.string()) for name in ("product_id", "grid_cell")], pa.binary()
    schema = pa.schema([*text, *((band, data) for band in grid_cells.L2A)])
    with pq.ParquetWriter(sink, schema, write_page_checksum=True) as writer:
        for row in rows:
            writer.write_table(pa.Table.from_pylist([row], schema))
    return bytes(sink.getvalue())


def cells_unpacked(data: bytes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        for number in range(file.num_row_groups):
            try:
                (row,) = file.read_row_group(number).to_pylist()
                inner = folder / f"{row['grid_cell']} {row['product_id']}"
                inner.mkdir()
                for band in grid_cells.L2A:
                    if row[band] is not None:
                        (inner / f"{band}.tif").write_bytes(row[band])
            except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
                continue


# Scenes


NAMES = products.name_of(), products.name_of(baseline="N0510", date="20180122T133229", made="20240301T101010")


def make_safe(root: Path, checksums: bool = True) -> None:
    for number, name in enumerate(NAMES):
        planes = products.planes_of(size=3 * PATCH, seed=number)
        scl = products.scl_of(3 * PATCH)
        products.write_safe(root / name, name, planes, (0, -1000)[number], scl=scl, manifest=checksums)


def make_cogs(root: Path) -> None:
    for number in range(2):
        properties = {"datetime": "2021-01-22T13:32:29Z", "s2:processing_baseline": "02.14", "proj:epsg": 32722}
        name = f"S2B_22HFD_2021012{number + 1}_0_L2A"
        products.write_cogs(root / name, products.planes_of(size=3 * PATCH, seed=number), None, properties)


def make_eopf(root: Path, version: int) -> None:
    for number, name in enumerate(NAMES):
        planes = products.planes_of(size=3 * PATCH, seed=number)
        properties = {"processing:version": "05.10"}
        products.write_eopf(root / name / f"{name}.zarr", planes, version=version, properties=properties)


def scenes(name: str, make: Callable[[Path], Any], damages: int, suffix: str = "") -> Subject:
    return Subject(
        f"scene {name}",
        make,
        lambda root: Scenes((root,), PATCH),
        lambda sample: sample.json["product"],
        lambda path: path.split("/")[0],
        read_scene,
        damages,
        NAMES if suffix else (),
        suffix,
    )


SUBJECTS = (
    bigearthnet(2, "", 140),
    bigearthnet(2, ".tar", 80),
    bigearthnet(2, ".tar.gz", 30),
    bigearthnet(2, ".tar.zst", 30),
    bigearthnet(1, "", 60),
    bigearthnet(1, ".tar", 30),
    bigearthnet(1, ".tar.gz", 15),
    bigearthnet(1, ".tar.zst", 15),
    eurosat_of("MS", "", 25),
    eurosat_of("MS", ".tar", 25),
    eurosat_of("MS", ".zip", 30),
    eurosat_of("RGB", "", 25),
    eurosat_of("RGB", ".tar", 15),
    eurosat_of("RGB", ".zip", 25),
    Subject(
        "geotiff",
        make_rasters,
        levels.levels,
        lambda sample: sample.key,
        lambda path: "" if path.endswith(".txt") else path.rpartition("/")[2].partition(".")[0],
        read_raster,
        50,
    ),
    Subject(
        "images",
        make_pictures,
        lambda root: Images(root / "pictures"),
        lambda sample: sample.json["file"].rpartition("/")[2],
        lambda path: path.rpartition("/")[2],
        read_picture,
        60,
    ),
    Subject(
        "webdataset",
        make_foreign,
        foreign_source,
        lambda sample: sample.json["source_key"].rpartition("/")[2],
        lambda path: path.rpartition("/")[2].partition(".")[0] if path.startswith("set") else "",
        read_foreign,
        65,
        ("set/train-0", "set/train-1"),
        ".tar",
    ),
    scenes("SAFE", make_safe, 15),
    scenes("SAFE without checksums", partial(make_safe, checksums=False), 40),
    scenes("SAFE .zip", make_safe, 20, ".zip"),
    scenes("COG", make_cogs, 30),
    scenes("EOPF Zarr 2", partial(make_eopf, version=2), 30),
    scenes("EOPF Zarr 3", partial(make_eopf, version=3), 20),
    seasons_of("", 15),
    seasons_of(".tar", 10),
    Subject(
        "ssl4eo 1.1",
        make_zipped,
        zipped_source,
        lambda sample: sample.key,
        lambda path: path.rpartition("/")[2].partition(".")[0],
        read_zipped,
        30,
        (ZIPPED,),
        ".tar",
    ),
    Subject(
        "ssl4eo 1.1 chunks",
        make_chunks,
        zipped_source,
        lambda sample: zipped_seasons.name_of(int(sample.key), digits=6),
        lambda path: path.rpartition("/")[2].partition(".")[0],
        read_zipped,
        20,
    ),
    Subject(
        "majortom",
        make_cells,
        MajorTOM,
        lambda sample: f"{sample.json['grid_cell']} {sample.json['products'][0]}",
        lambda path: path.split("/")[2],
        read_cell,
        50,
        ("images/part_00000", "images/part_00001"),
        ".parquet",
    ),
)
