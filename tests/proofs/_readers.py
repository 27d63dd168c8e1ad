"""What independent readers find in the files of a sample, on the plain form of an archive: rasterio, Pillow, NumPy,
zarr and pyarrow. Checksums that a format has are compared, which not all of these do. They may raise anything.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import rasterio
import zarr
from PIL import Image, ImageOps, TiffImagePlugin
from zarr.storage import ZipStore

from ingest.archives import clc
from ingest.sources import eurosat as eurosat_source
from shards.manifest import Manifest
from shards.shardset import Sample
from tests.ingest import foreign, levels

Found = dict[str, Any]
"""Member of the set, or `labels NAME`, to what an independent reader finds for it."""
PATCH = 48
"""Of scenes."""
ADDED = re.compile(r"<BOA_ADD_OFFSET [^>]*>(-?\d+)<")


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
        offsets, counts = (tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ())
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


def read_patch(root: Path, sample: Sample, manifest: Manifest) -> Found:
    folder = next(path for path in root.rglob(sample.key) if "Reference_Maps" not in path.parts)
    found = stacked({band: folder / f"{sample.key}_{band}.tif" for band in manifest.band_names}, manifest)
    if manifest.source["version"] == "1":
        names = json.loads((folder / f"{sample.key}_labels_metadata.json").read_bytes())["labels"]
        names = [clc.CLASSES[number] for name in names if (number := clc.NAME_TO_CLASS[name]) is not None]
        return found | {"labels land_cover": hot(names, list(clc.CLASSES))}
    if manifest.masks:  # without any maps, or metadata, a set has none
        codes = plane(next(root.rglob(f"{sample.key}_reference_map.tif")))
        numbers = {code: clc.CLC_TO_CLASS.get(code, clc.IGNORE) for code in np.unique(codes).tolist()}
        found["mask.npy"] = np.vectorize(numbers.get, otypes=[np.uint8])(codes)
    if manifest.labels:
        table = pq.read_table(next(root.rglob("metadata.parquet"))).to_pylist()
        names = next(row["labels"] for row in table if row["patch_id"] == sample.key)
        found["labels land_cover"] = hot(names, list(clc.CLASSES))
    return found


def read_tile(root: Path, sample: Sample, manifest: Manifest) -> Found:
    title = sample.key.partition("_")[0]
    (path,) = (path for path in root.rglob(f"{sample.key}.*") if path.parent.name == title)
    label = {"labels land_use": eurosat_source.CLASSES.index(title)}
    if path.suffix == ".jpg":
        return label | {"rgb.npy": picture(path)}
    return label | {"10m.npy": plane(path, None)[[*range(8), 12, *range(8, 12)]]}


def read_raster(root: Path, sample: Sample, manifest: Manifest) -> Found:
    found = {"10m.npy": plane(root / "msi" / f"{sample.key}.tif", None)[[1, 0, 2]]}
    for level in levels.LEVELS:
        found[f"{level}.mask.npy"] = plane(root / level / f"{sample.key}.tif")
    return found


def read_picture(root: Path, sample: Sample, manifest: Manifest) -> Found:
    path = root / sample.json["file"]
    if not path.exists():
        path = root / "pictures" / sample.json["file"]
    if path.suffix == ".tif":
        _check_deflate(path)
    return {"rgb.npy": picture(path), "labels class": "abc".index(path.parent.name)}


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


def read_place(root: Path, sample: Sample, manifest: Manifest) -> Found:
    found = {}
    place = next(root.rglob(f"s2c/{sample.key}"))
    for member, array in manifest.arrays.items():
        when = sample.json["dates"][array.time].replace("-", "").replace(":", "")
        (folder,) = place.glob(f"{when}_*")
        found[member] = np.stack([plane(folder / f"{band.replace('B0', 'B')}.tif") for band in array.bands])
    return found


def read_zipped(root: Path, sample: Sample, manifest: Manifest) -> Found:
    if not sample.key.isdecimal():  # a place a file, which names it
        return _zipped(next(root.rglob(f"{sample.key}.zarr.zip")), sample, manifest) or {}
    found = (_zipped(path, sample, manifest, sample.key) for path in root.rglob("*.zarr.zip"))
    return next(arrays for arrays in found if arrays)


def _zipped(path: Path, sample: Sample, manifest: Manifest, key: str = "") -> Found | None:
    """What a zipped Zarr holds; with `key`, of a file that names its one place inside, None where that is another or
    it cannot be read."""
    try:
        with ZipStore(path, mode="r") as store:
            group: Any = zarr.open_group(store, mode="r", zarr_format=2)
            told = {name: np.asarray(group[name][...]) for name in ("band", "file_id", "sample", "bands")}
    except Exception:
        if key:
            return None
        raise
    if key and told["sample"].reshape(-1).tolist() != [key]:
        return None
    bands = np.maximum(told["bands"][0], 1000) - 1000 if key else told["bands"]
    products, names = ([str(name) for name in told[what].reshape(-1)] for what in ("file_id", "band"))
    order = [products.index(product) for product in sample.json["products"]]
    columns = [names.index(band) for band in manifest.band_names]
    return {member: bands[order[array.time]][columns] for member, array in manifest.arrays.items()}


def read_cell(root: Path, sample: Sample, manifest: Manifest) -> Found:
    (product,) = sample.json["products"]
    folder = next(root.rglob(f"{sample.json['grid_cell']} {product}"))
    offset = 1000 if "_N0509_" in product else 0
    found = stacked({band: folder / f"{band}.tif" for band in manifest.band_names}, manifest)
    return {member: np.maximum(array, offset) - np.uint16(offset) for member, array in found.items()}


def _offset(product: Path, sample: Sample, group: Any) -> int:
    """What is to be taken from a scene's numbers, as its own metadata say."""
    if group is not None:
        told = dict(group["measurements/reflectance/r10m/b02"].attrs)
        told = told.get("_eopf_attrs", {}) | told
        return -round(float(told.get("add_offset", 0)) / float(told["scale_factor"]))
    added = [int(text) for path in product.rglob("MTD_MSIL2A.xml") for text in ADDED.findall(path.read_text("latin1"))]
    assert len(set(added)) <= 1
    named = sample.json["product"].split("_")[3]  # a SAFE product's
    assert not named.startswith("N05") or added, "a product of this baseline has an offset"
    return -added[0] if added else 0


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
        removed = np.uint16(_offset(product, sample, group))
        found[member] = np.maximum(np.stack(planes), removed) - removed
    return found
