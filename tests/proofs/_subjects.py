"""The archives that are damaged: small ones of every source, and what an independent reader finds in each.

A subject lies as a folder (its plain form), from which its tars, zips and Parquet files are packed. The files of a
plain form belong to a group (a patch, a place, a product) or to all of them; a group whose files are as they were is
untouched. Independent readers are rasterio, Pillow, NumPy, zarr and pyarrow on the plain form, damaged.
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import zarr
from PIL import Image, ImageOps, TiffImagePlugin
from zarr.storage import ZipStore

from ingest import clc, ssl4eo_zarr
from ingest.foreign import parse_options
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

Found = dict[str, Any]
"""Member of the set, or `labels NAME`, to what an independent reader finds for it."""
PATCH = 48
"""Of scenes."""


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


def plane(path: Path, number: int | None = 1) -> np.ndarray:
    """A band as rasterio reads it, all with None. Raises ValueError where a Deflate stream's own checksum is wrong."""
    with rasterio.open(path) as source:
        pixels: np.ndarray = source.read(number)
    if pixels.nbytes < 1 << 24:
        _check_deflate(path)
    return pixels


def _check_deflate(path: Path) -> None:
    data = path.read_bytes()
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return
    with path.open("rb") as file:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
    if tags.get(259) in (8, 32946):
        offsets, counts = (tags.get(273) or tags.get(324), tags.get(279) or tags.get(325))
        for at, count in zip(offsets, counts, strict=True):
            try:
                zlib.decompress(data[at : at + count])
            except zlib.error as error:
                raise ValueError(str(error)) from None


def stacked(paths: dict[str, Path], manifest: Manifest) -> Found:
    """Every array by the files of its bands."""
    return {member: np.stack([plane(paths[band]) for band in array.bands]) for member, array in manifest.arrays.items()}


def hot(names: list[str], classes: list[str]) -> np.ndarray:
    return np.array([name in names for name in classes], np.uint8)


def picture(path: Path) -> np.ndarray:
    """Red, green and blue of a picture as Pillow shows it. Raises where a checksum of a PNG is wrong."""
    with Image.open(path) as image:
        if image.format == "PNG":
            with Image.open(path) as again:
                again.verify()
        shown = ImageOps.exif_transpose(image)
        if "A" in shown.mode or "transparency" in shown.info:
            layer = shown.convert("RGBA")
            shown = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
        return np.asarray(shown.convert("RGB")).transpose(2, 0, 1)


# BigEarthNet


def read_patch(root: Path, sample: Sample, manifest: Manifest) -> Found:
    folder = next(path for path in root.rglob(sample.key) if "Reference_Maps" not in path.parts)
    found = stacked({band: folder / f"{sample.key}_{band}.tif" for band in manifest.band_names}, manifest)
    if manifest.source["version"] == "1":
        names = json.loads((folder / f"{sample.key}_labels_metadata.json").read_bytes())["labels"]
        names = [clc.CLASSES[number] for name in names if (number := clc.NAME_TO_CLASS[name]) is not None]
    else:
        codes = plane(next(root.rglob(f"{sample.key}_reference_map.tif")))
        numbers = {code: clc.CLC_TO_CLASS.get(code, clc.IGNORE) for code in np.unique(codes).tolist()}
        found["mask.npy"] = np.vectorize(numbers.get, otypes=[np.uint8])(codes)
        table = pq.read_table(next(root.rglob("metadata.parquet"))).to_pylist()
        names = next(row["labels"] for row in table if row["patch_id"] == sample.key)
    return found | {"labels land_cover": hot(names, list(clc.CLASSES))}


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


def read_tile(root: Path, sample: Sample, manifest: Manifest) -> Found:
    title = sample.key.partition("_")[0]
    (path,) = (path for path in root.rglob(f"{sample.key}.*") if path.parent.name == title)
    label = {"labels land_use": eurosat_source.CLASSES.index(title)}
    if path.suffix == ".jpg":
        return label | {"rgb.npy": picture(path)}
    return label | {"10m.npy": plane(path, None)[[*range(8), 12, *range(8, 12)]]}


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


def read_raster(root: Path, sample: Sample, manifest: Manifest) -> Found:
    found = {"10m.npy": plane(root / "msi" / f"{sample.key}.tif", None)[[1, 0, 2]]}
    for level in levels.LEVELS:
        found[f"{level}.mask.npy"] = plane(root / level / f"{sample.key}.tif")
    return found


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


def read_picture(root: Path, sample: Sample, manifest: Manifest) -> Found:
    path = root / sample.json["file"]
    if not path.exists():
        path = root / "pictures" / sample.json["file"]
    if path.suffix == ".tif":
        _check_deflate(path)
    return {"rgb.npy": picture(path), "labels class": "abc".index(path.parent.name)}


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


def read_foreign(root: Path, sample: Sample, manifest: Manifest) -> Found:
    stem = root / "set" / sample.json["source_shard"].rpartition("/")[2].removesuffix(".tar")
    path = str(stem / sample.json["source_key"])
    fine, coarse = np.load(f"{path}.s2.npy"), np.load(f"{path}.s2_20m.npy").transpose(2, 0, 1)
    with Image.open(f"{path}.seg.png") as image:
        mask = np.array(image)
        image.close()
    with Image.open(f"{path}.seg.png") as image:
        image.verify()
    content = json.loads(Path(f"{path}.json").read_bytes())
    told = [name if isinstance(name, str) else foreign.CLASSES[name] for name in content["tags"]]
    return {
        "s2.npy": fine[[1, 2, 3, 0]],
        "s2_20m.npy": coarse[[1, 2, 3, 4, 5, 0]],
        "coarse.npy": plane(Path(f"{path}.coarse.tif"), None)[[2, 0]],
        "mask.npy": mask,
        "labels class": int(Path(f"{path}.cls").read_text()),
        "labels tags": hot(told, foreign.CLASSES),
    }


# SSL4EO-S12


def make_seasons(root: Path) -> None:
    for number in range(2):
        seasons.write_place(root / "archive" / "s2c", number)


def read_place(root: Path, sample: Sample, manifest: Manifest) -> Found:
    found = {}
    place = next(root.rglob(f"s2c/{sample.key}"))
    for member, array in manifest.arrays.items():
        when = sample.json["dates"][array.time].replace("-", "").replace(":", "")
        (folder,) = place.glob(f"{when}_*")
        found[member] = np.stack([plane(folder / f"{band.replace('B0', 'B')}.tif") for band in array.bands])
    return found


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


def read_zipped(root: Path, sample: Sample, manifest: Manifest) -> Found:
    chunks = sample.key.isdecimal()
    name = zipped_seasons.name_of(int(sample.key), digits=6) if chunks else sample.key
    with ZipStore(next(root.rglob(f"{name}.zarr.zip")), mode="r") as store:
        group: Any = zarr.open_group(store, mode="r", zarr_format=2)
        names = [str(name) for name in np.asarray(group["band"][...]).reshape(-1)]
        told = [str(name) for name in np.asarray(group["file_id"][...]).reshape(-1)]
        bands = np.asarray(group["bands"][...])
    bands = np.maximum(bands[0], 1000) - 1000 if chunks else bands
    order = [told.index(product) for product in sample.json["products"]]
    columns = [names.index(band) for band in manifest.band_names]
    return {member: bands[order[array.time]][columns] for member, array in manifest.arrays.items()}


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
        bands = {band: (inner / f"{band}.tif").read_bytes() for band in grid_cells.L2A}
        rows.append({"product_id": product, "grid_cell": cell, **bands})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.Table.from_pylist(rows).schema, write_page_checksum=True) as writer:
        for row in rows:
            writer.write_table(pa.Table.from_pylist([row]))
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


def read_cell(root: Path, sample: Sample, manifest: Manifest) -> Found:
    (product,) = sample.json["products"]
    folder = next(root.rglob(f"{sample.json['grid_cell']} {product}"))
    offset = 1000 if "_N0509_" in product else 0
    found = stacked({band: folder / f"{band}.tif" for band in manifest.band_names}, manifest)
    return {member: np.maximum(array, offset) - np.uint16(offset) for member, array in found.items()}


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


def read_scene(root: Path, sample: Sample, manifest: Manifest) -> Found:
    row, column = (int(part[1:]) for part in sample.key.split("_")[-2:])
    product, found = root / sample.json["product"], {}
    if not product.exists():
        (product,) = (path for path in root.iterdir() if sample.json["product"] in path.name)
    group: Any = None
    if zarrs := list(product.glob("*.zarr")):
        group = zarr.open_group(str(zarrs[0]), mode="r")
    for member, array in manifest.arrays.items():
        _, height, width = array.shape
        planes = []
        for band in array.bands:
            gsd = PATCH * 10 // height
            if group is not None:
                pixels = np.asarray(group[f"measurements/reflectance/r{gsd}m/{band.lower()}"][...])
            else:
                pixels = plane(next(product.rglob(f"*{band}_{gsd}m.jp2"), product / f"{band}.tif"))
            planes.append(pixels[row * height :, column * width :][:height, :width])
        removed = np.uint16(sample.json["offset_removed"])
        found[member] = np.maximum(np.stack(planes), removed) - removed
    return found


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
