"""EuroSAT (Helber et al., IEEE JSTARS 12(7), 2019): 27,000 tiles of 64 x 64 pixels, each of one of ten classes.

Two archives: the multispectral one holds GeoTIFFs of all thirteen L1C bands at 10 m, in folders CLASS/CLASS_N.tif, and
stores **B8A last** (B01 ... B08 B09 B10 B11 B12 B8A); it is put back into ESA's order. The other holds JPEGs of red,
green and blue, CLASS/CLASS_N.jpg, which have no place. SRC may be the archive as downloaded, or a folder.

A tile whose cirrus band is much brighter than B09 or B11 is rejected: so a file in another band order does not slip in
among others.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest.commands import source_command
from ingest.reading.files import Files, open_files
from ingest.reading.folders import joined
from ingest.reading.geotiff import RasterError
from ingest.reading.keys import printed
from ingest.reading.picture import read_picture
from ingest.reading.raster import Raster, inspect, read_bands
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from shards.bands import PICTURE, SENTINEL2
from shards.errors import BandstreamError
from shards.layout import KEY
from shards.manifest import LabelSpec, Reflectance

STORED = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""The bands of a file, in its order."""
BANDS = tuple(SENTINEL2)
ORDER = tuple(STORED.index(band) + 1 for band in BANDS)
CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
LABEL = "land_use"
SIZE = (64, 64)
SUFFIXES = {".tif": "MS", ".jpg": "RGB"}
LISTS = re.compile(r"(?P<set>.*?)[-_]?(?P<split>train|val|validation|test)\.(txt|csv)")
"""Names of lists of tiles; EuroSAT's come as `eurosat-train.txt`, `eurosat-spatial-train.txt`, `train.csv`."""
TILE = re.compile(r"\b([A-Z][A-Za-z]+_\d+)(\.(tif|jpg))?\b")
BLOCK_KM = 25
"""Side of the blocks that `--split spatial` keeps together."""
KM_PER_DEGREE = 111.195
BRIGHTER = 2
"""How many times as bright as B09 or B11 the B10 of a tile may be: over dark water all are little more than noise."""
LARGEST = 1 << 24
"""Bytes of the largest JPEG that is read: a thousand times what one takes."""
JSON_BYTES = 1024


@source_command
@click.option(
    "--split",
    type=click.Choice(["random", "spatial"]),
    help=f"Draw the split by the seed: alike in each class, or (GeoTIFFs) by blocks of {BLOCK_KM} km, so that no block "
    "is in two splits  [default: the archive's lists, random where it has none]",
)
@click.option(
    "--splits",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with lists of tiles such as eurosat-train.txt, eurosat-val.txt, eurosat-test.txt.",
)
def command(src: tuple[Path, ...], split: str | None, splits: Path | None) -> "EuroSAT":
    """Convert EuroSAT, multispectral or RGB, into the shard set DST.

    SRC is the folder that it was unpacked to, or the archive as it was downloaded. A tenth of the tiles each goes to
    val and test unless there are lists, or a split file.
    """
    if len(src) != 1:
        raise click.UsageError("name one folder or archive, and DST")
    if split and splits:
        raise click.UsageError("--split draws the split, --splits reads it from lists: name one of them")
    return EuroSAT(src[0], split, splits)


def looks_like(names: Sequence[str]) -> bool:
    """Whether all tiles lie in folders called as the ten classes, or the archive is called EuroSAT."""
    if len(names) == 1 and re.match(r"EuroSAT.*\.zip$", names[0]):
        return True
    tiles = [name.split("/")[-2:] for name in names if name.lower().endswith(tuple(SUFFIXES))]
    return bool(tiles) and all(len(parts) == 2 and parts[0] in CLASSES for parts in tiles)


class EuroSAT:
    """The archive `src`. `split`: how to draw splits, `random` or `spatial`; `splits`: a folder of lists instead."""

    name = "eurosat"

    def __init__(self, src: Path, split: str | None = None, splits: Path | None = None) -> None:
        self.src = src
        self.split = split
        self.splits = splits
        self.inputs = (src,)
        self.kind = "MS"
        self._files: Files
        self._how = split or ""

    @property
    def schema(self) -> Schema:
        pictures = self.kind == "RGB"
        bands = PICTURE if pictures else SENTINEL2
        array = Array(tuple(bands), SIZE, "uint8" if pictures else "uint16")
        return Schema(
            bands=tuple(bands.values()),
            arrays={"rgb.npy" if pictures else "10m.npy": array},
            reflectance=Reflectance(scale=1 / 255, offset=0.0, level="picture")
            if pictures
            else Reflectance(scale=1e-4, offset=0.0, level="L1C"),
            labels={LABEL: LabelSpec(member="cls", kind="single", classes=list(CLASSES))},
            masks={},
            json_bytes=JSON_BYTES,
            columns={},
            nodata=None,
        )

    def describe(self) -> dict[str, Any]:
        return {"kind": "eurosat", "version": self.kind, "splits": self._how}

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        self._files = open_files(self.src, listening, _wanted)
        found = {SUFFIXES[suffix] for folder, _, suffix in self._tiles() if _name(folder) in CLASSES}
        if not found:
            raise BandstreamError(
                f"{self.src} holds no EuroSAT: name the folder that holds {CLASSES[0]}/ ... of .tif or .jpg"
            )
        if len(found) > 1:
            raise BandstreamError(f"{self.src} holds pictures and multispectral tiles: unpack it, name one's folder")
        self.kind = found.pop()
        if self.split == "spatial" and self.kind == "RGB":
            raise BandstreamError("--split spatial needs places, and EuroSAT's JPEGs have none: take the GeoTIFFs")
        lists = self._lists()
        self._how = {
            "random": "random, alike in each class",
            "spatial": f"blocks of {BLOCK_KM} km",
            "": "the archive's lists" if lists is not None else "random, alike in each class",
        }[self.split or ""]
        yield from self._files.refused()
        tiles = (f"{folder}/{name}" for folder, name, _ in self._tiles())
        if self.split == "spatial":
            for path, block in listening.map(partial(_block, self._files), tiles):
                yield block if isinstance(block, Rejected) else self._entry(path, lists, block)
        else:
            for path in tiles:
                yield self._entry(path, lists, "")

    def _tiles(self) -> Iterator[tuple[str, str, str]]:
        """(folder, file name, suffix) of every tile and picture."""
        for folder, names in self._files.folders():
            for name in names:
                suffix = name[name.rfind(".") :].lower()
                if suffix in SUFFIXES:
                    yield folder, name, suffix

    def _entry(self, path: str, lists: Mapping[str, str] | None, block: str) -> Entry | Rejected:
        folder, _, name = path.rpartition("/")
        key, title = name.rpartition(".")[0], _name(folder)
        told = f"{title}/{name}".lstrip("/")
        if title not in CLASSES:
            return Rejected(printed(told), "unknown-class", "it lies in no folder that is called as a class")
        if not KEY.fullmatch(key):
            return Rejected(printed(told), "bad-name", "a tile's name has 1 to 80 letters, digits and _ + = -")
        named = key.partition("_")[0]
        if named in CLASSES and named != title:
            return Rejected(told, "wrong-class", f"it lies in {title} and is called {named}")
        if lists is not None and key not in lists:
            return Rejected(told, "no-split", "the lists of tiles do not name it")
        split = lists[key] if lists is not None else ""
        stratum = "" if block else title
        labels: dict[str, tuple[int, ...]] = {LABEL: (CLASSES.index(title),)}
        return Entry(key, told, split, labels, where=json.dumps(folder), group=block, stratum=stratum)

    def _lists(self) -> dict[str, str] | None:
        """Tile → split by the lists of `splits`, else of the archive; None where there are none, or none are wanted."""
        if self.split:
            return None
        found: dict[str, dict[str, bytes]] = {}
        if self.splits:
            for path in sorted(self.splits.iterdir()):
                if match := LISTS.fullmatch(path.name):
                    found.setdefault(match["set"], {})[match["split"]] = path.read_bytes()
            if not found:
                raise BandstreamError(f"{self.splits} holds no lists: expected train.txt, val.txt and test.txt in it")
        else:
            for folder, names in self._files.folders():
                for name in names:
                    if match := LISTS.fullmatch(name):
                        content = self._files.read(joined(folder, name))
                        found.setdefault(match["set"], {})[match["split"]] = content
        if not found:
            return None
        chosen = found.get("eurosat") or (next(iter(found.values())) if len(found) == 1 else None)
        if chosen is None:
            raise BandstreamError(
                f"there are lists of several splits ({', '.join(sorted(found))}): name a folder of one's "
                "with --splits, or draw one with --split"
            )
        splits: dict[str, str] = {}
        for name, content in sorted(chosen.items()):
            split = "val" if name == "validation" else name
            for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
                match = TILE.search(line)
                if match is None and line.strip() and number > 1:
                    raise BandstreamError(f"line {number} of the list of {name} names no tile: {line.strip()[:80]!r}")
                if match and splits.setdefault(match[1], split) != split:
                    raise BandstreamError(f"the lists have {match[1]} in {splits[match[1]]} and in {split}: mend them")
        return splits

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        path = f"{json.loads(entry.where)}/{_name(entry.path)}"
        raster = Raster(0, SIZE, "", "", None, 0.0, None)
        try:
            if self.kind == "RGB":
                picture = read_picture(self._content(entry, path), entry.path, None)
                if picture.shape[1:] != SIZE:
                    raise RasterError("wrong-size", f"{picture.shape[2]} x {picture.shape[1]} pixels, not 64 x 64")
                views["rgb.npy"][...] = picture
            else:
                _, raster = read_bands(self._files.gdal(path), views["10m.npy"], ORDER)
                _check_order(views["10m.npy"])
            place = raster.centre()
        except RasterError as error:
            raise Rejected(entry.path, error.reason, error.detail) from None
        lon, lat = place or (0.0, 0.0)
        content = {"id": entry.key, "date": "", **raster.place(lon, lat), "class": CLASSES[entry.labels[LABEL][0]]}
        return Facts(entry.labels, content, place, "", {})

    def _content(self, entry: Entry, path: str) -> bytes:
        folder, _, name = path.rpartition("/")
        try:
            data = self._files.read_folder(folder, [name], LARGEST).get(name, b"")
        except OSError as error:
            raise Rejected(entry.path, "unreadable", error.strerror or str(error)) from error
        if not data:
            what = "it is empty, or not there" if data is not None else f"it has more than {LARGEST:,} bytes"
            raise Rejected(entry.path, "unreadable", what)
        return bytes(data)


def _wanted(path: str) -> bool:
    """What is spooled of a compressed archive."""
    return path.lower().endswith((*SUFFIXES, ".txt", ".csv"))


def _check_order(pixels: np.ndarray) -> None:
    """Raises RasterError where (13, H, W), in ESA's order, cannot be: B10 sees cirrus alone, B09 and B11 see it too."""
    means = dict(zip(BANDS, pixels.reshape(len(BANDS), -1).mean(1).tolist(), strict=True))
    for band in ("B09", "B11"):
        if means["B10"] > BRIGHTER * means[band]:
            raise RasterError(
                "wrong-order",
                f"B10, which sees cirrus alone, is brighter than {band} ({means['B10']:.0f}, {means[band]:.0f}): "
                "are its bands in EuroSAT's order, B8A last?",
            )


def _block(files: Files, path: str) -> tuple[str, str | Rejected]:
    """A tile's path, and the block that its centre lies in, or why it lies in none."""
    told = "/".join(path.split("/")[-2:])
    try:
        place = inspect(files.gdal(path)).centre()
    except (RasterError, OSError) as error:
        reason, detail = (error.reason, error.detail) if isinstance(error, RasterError) else ("unreadable", str(error))
        return path, Rejected(printed(told), reason, detail)
    if place is None:
        return path, Rejected(told, "no-place", "--split spatial needs a tile's place, and it names none")
    return path, block_of(*place)


def block_of(lon: float, lat: float) -> str:
    """The block of BLOCK_KM x BLOCK_KM that a place lies in: rows of latitude, each cut into columns of that width."""
    row = math.floor(lat * KM_PER_DEGREE / BLOCK_KM)
    width = math.cos(math.radians((row + 0.5) * BLOCK_KM / KM_PER_DEGREE)) * KM_PER_DEGREE
    return f"{row} {math.floor(lon * width / BLOCK_KM)}"


def _name(path: str) -> str:
    return path.rpartition("/")[2]
