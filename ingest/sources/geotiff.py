"""Folders of GeoTIFFs that hold all bands of a place each, of any sensor, with or without masks.

All rasters of a set have the bands that `--bands` names, in that order, one type and one size (or are cut into tiles of
one by `--patch`); what most of a few dozen have decides, and a raster that differs is rejected. Bands go by name into
the order of the set. Pixels are stored as they are, but for nodata that `--nodata-fill` replaces.

Folders `train`, `val` (or `validation`, `valid`) and `test` at the top give the split. Otherwise it is drawn by the
seed, and tiles of one raster stay together, for neighbours in two splits would let a model see its test.
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

from ingest.archives.usual import usual_of
from ingest.commands import source_command
from ingest.reading.bandlist import channel_order, parse_bands
from ingest.reading.classes import Classes, read_classes
from ingest.reading.files import Files, open_files
from ingest.reading.folders import SPLITS, joined, stem, top_of, without_suffix
from ingest.reading.geotiff import RasterError
from ingest.reading.keys import clean, printed, unique
from ingest.reading.masks import UNNAMED, Masks, is_tiff, member_of
from ingest.reading.nodata import Nodata
from ingest.reading.product import baseline_of, date_of, offset_of
from ingest.reading.raster import Raster, inspect, read_bands
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from shards.errors import BandstreamError
from shards.manifest import MaskSpec, Reflectance

SCALES = {"uint8": 1 / 255, "uint16": 1e-4, "int16": 1e-4, "float32": 1.0}
"""Reflectance of the stored number 1, unless `--scale` says it: pictures, products in ten-thousandths, reflectance."""
PROBED = 64
"""Rasters that are looked at to know what most of them are."""
MOST_TILES = 1 << 22
"""Tiles of one raster: a damaged header may speak of any number."""
LONGEST_PATH = 340
"""Of a raster in the archive, as JSON."""
JSON_BYTES = 1024
LEVEL = re.compile(r"([A-Za-z0-9_-]{1,10})=(.+)")
"""A mask or a list of classes with a name."""


class Level(click.ParamType):
    """NAME=PATH, or PATH alone, for the only one: (name or "", path)."""

    name = "[NAME=]PATH"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path]:
        match = LEVEL.fullmatch(value)
        name, path = match.groups() if match else ("", value)
        return name, click.Path(path_type=Path, exists=True).convert(path, param, ctx)


@source_command
@click.option("--bands", required=True, help="Bands of a file in its order: B02,B03,... or NAME:WAVELENGTH_NM:GSD_M.")
@click.option(
    "--masks",
    type=Level(),
    multiple=True,
    help="Folder or archive of label maps that are called as the rasters; several levels as L1=DIR, L2=DIR.",
)
@click.option(
    "--classes",
    type=Level(),
    multiple=True,
    help="Of each mask, a file with its classes: lines NAME (values 0, 1, ...) or VALUE,NAME; as L1=FILE, L2=FILE.",
)
@click.option("--patch", type=click.IntRange(1), help="Cut rasters into tiles of so many pixels; leave remainders out.")
@click.option("--nodata", type=float, help="Stored number that means no data  [default: what the files declare]")
@click.option("--nodata-fill", type=float, help="Number to store for nodata, NaN and infinity.")
@click.option("--max-nodata", type=click.FloatRange(0, 1), help="Leave out samples with a larger share of nodata.")
@click.option(
    "--scale",
    type=float,
    help="Reflectance = stored x SCALE + OFFSET  [default: 1e-4 for 16 bits, 1/255 for 8, 1 for float32]",
)
@click.option("--offset", type=float, default=0.0, show_default=True, help="Such as -0.1 of Sentinel-2 from 2022 on.")
@click.option("--level", default="unknown", show_default=True, help="Processing level, such as L2A.")
def command(src: tuple[Path, ...], bands: str, **options: Any) -> "GeoTiff":
    """Convert folders of multi-band GeoTIFFs into the shard set DST.

    SRC is a folder, searched with its subfolders, or an archive (.tar, .tar.gz, .tar.zst, .zip). Folders train, val and
    test at its top give the split; without them, or a split file, a tenth of the rasters goes to val and a tenth to
    test, by the seed.
    """
    if len(src) != 1:
        raise click.UsageError("name one folder or archive, and DST")
    return GeoTiff(src[0], bands, **options)


class GeoTiff:
    """The rasters below `src`; other parameters are the command's options."""

    name = "geotiff"

    def __init__(
        self,
        src: Path,
        bands: str,
        masks: Sequence[tuple[str, Path]] = (),
        classes: Sequence[tuple[str, Path]] = (),
        patch: int | None = None,
        nodata: float | None = None,
        nodata_fill: float | None = None,
        max_nodata: float | None = None,
        scale: float | None = None,
        offset: float = 0.0,
        level: str = "unknown",
    ) -> None:
        for option, given in (("--masks", masks), ("--classes", classes)):
            names = [name for name, _ in given]
            if len(set(names)) < len(names) or ("" in names and len(names) > 1):
                raise BandstreamError(f"{option} is given several times: name each level, as L1=... and L2=...")
        self.src = src
        self.stored_bands = parse_bands(bands)
        self.bands, self.order = channel_order(self.stored_bands)
        self.mask_paths = dict(masks)
        self.classes: dict[str, Classes] = {name: read_classes(path) for name, path in classes}
        if unknown := self.classes.keys() - self.mask_paths.keys():
            raise BandstreamError(
                f"--classes {', '.join(sorted(unknown)) or 'without a name'}: --masks has no such level"
            )
        self.patch = patch
        self.nodata = (nodata, nodata_fill, max_nodata)
        self.scale, self.offset, self.level = scale, offset, level
        self.inputs = (src, *self.mask_paths.values())
        self._files: Files
        self._top, self._has_splits = "", False
        self._aside: tuple[str, ...] = ()
        self._masks: dict[str, Masks] = {}
        self._usual: Raster
        self._nodata: Nodata

    @property
    def member(self) -> str:
        """Name of the array: by the side of its pixels, where it is known."""
        if [band.name for band in self.bands] == ["red", "green", "blue"]:
            return "rgb.npy"
        return f"{self._usual.gsd_m:g}m.npy" if 0 < self._usual.gsd_m < 1e5 else "bands.npy"

    @property
    def schema(self) -> Schema:
        dtype = self._usual.dtype
        columns: dict[str, type] = {"file": str}
        return Schema(
            bands=self.bands,
            arrays={self.member: Array(tuple(band.name for band in self.bands), self._usual.size, dtype)},
            reflectance=Reflectance(
                scale=SCALES[dtype] if self.scale is None else self.scale, offset=self.offset, level=self.level
            ),
            labels={},
            masks={
                name or UNNAMED: MaskSpec(member=member_of(name), classes=list(self.classes[name].names))
                for name in self._masks
            },
            json_bytes=JSON_BYTES,
            columns=columns | ({"row": int, "column": int} if self.patch else {}),
            nodata=self._nodata.stored,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "geotiff",
            "stored_bands": [band.name for band in self.stored_bands],
            "mask_values": {
                name or UNNAMED: [[value, index] for value, index in classes.indices.items()]
                for name, classes in self.classes.items()
            },
        }

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        self._files = open_files(self.src, listening, is_tiff)
        root = self.src.resolve()
        within = [path.resolve() for path in self.mask_paths.values() if root in path.resolve().parents]
        self._aside = tuple(path.relative_to(root).as_posix() for path in within)
        self._top = top_of(self._files, is_tiff, self._aside)
        self._masks = {
            name: Masks(name, open_files(path, listening, is_tiff)) for name, path in self.mask_paths.items()
        }
        count = sum(1 for _ in self._paths())
        if not count:
            raise BandstreamError(f"{self.src} holds no .tif: name the folder or archive of the rasters")
        self._probe(count, listening)
        yield from self._files.refused()
        yield from unique(self._tiles(listening) if self.patch else self._whole(), listening.scratch)

    def _whole(self) -> Iterator[Entry | Rejected]:
        """Every raster as listed."""
        for path in self._paths():
            yield from self._entries(path, None)

    def _tiles(self, listening: Listening) -> Iterator[Entry | Rejected]:
        """Every tile of every raster."""
        assert self.patch is not None
        left, whole = 0, 0
        for path, found in listening.map(partial(_size_of, self._files, self._top), self._paths()):
            if isinstance(found, Rejected):
                yield found
                continue
            whole += math.prod(found)
            left += math.prod(found) - math.prod(side // self.patch * self.patch for side in found)
            yield from self._entries(path, found)
        if left:
            listening.say(
                f"not all rasters are a multiple of {self.patch} pixels: {left / whole:.1%} of their pixels, at the "
                "right and bottom, are left out"
            )

    def _paths(self) -> Iterator[str]:
        """Paths of all rasters, relative to the top folder; masks may lie among them."""
        aside = tuple(f"{path}/" for path in self._aside)
        for folder, names in self._files.folders():
            if not f"{folder}/".startswith(aside):
                inner = folder[len(self._top) :].lstrip("/")
                yield from (joined(inner, name) for name in names if is_tiff(name))

    def _entries(self, path: str, size: tuple[int, int] | None) -> Iterator[Entry | Rejected]:
        """A raster as listed, or its tiles, where its (height, width) are known."""
        try:
            split, masks = self._admitted(path)
        except Rejected as rejection:
            yield rejection
            return
        name, where = without_suffix(path).replace("/", "_"), json.dumps([joined(self._top, path), masks])
        if size is None or self.patch is None:
            yield Entry(clean(name, path), path, split, where=where)
            return
        rows, columns = size[0] // self.patch, size[1] // self.patch
        if not 0 < rows * columns <= MOST_TILES:
            told = f"less than a tile of {self.patch}" if not rows * columns else f"more than {MOST_TILES:,} tiles"
            yield Rejected(path, "wrong-size", f"{size[1]} x {size[0]} pixels, {told}")
            return
        for row in range(rows):
            for column in range(columns):
                at = {"row": str(row * self.patch), "column": str(column * self.patch)}
                key = clean(f"{name}_{row}_{column}", f"{path} {row} {column}")
                yield Entry(key, path, split, extra=at, where=where, group=path)

    def _admitted(self, path: str) -> tuple[str, dict[str, str]]:
        """Split of a raster, and where its masks lie. Raises Rejected."""
        try:
            path.encode()
        except UnicodeEncodeError:
            raise Rejected(printed(path), "bad-name", "its name is not UTF-8: rename it") from None
        if len(json.dumps(path)) > LONGEST_PATH:
            raise Rejected(path, "bad-name", f"its path takes more than {LONGEST_PATH} bytes of JSON: rename it")
        first = path.partition("/")[0] if "/" in path else ""
        if self._has_splits and first not in SPLITS:
            raise Rejected(path, "no-split", "it lies in none of the folders train, val and test, as others do")
        found = {name: masks.find(path) for name, masks in self._masks.items()}
        for name, mask in found.items():
            if mask is None:
                raise Rejected(path, "no-mask", f"there is no mask {name + ' ' if name else ''}of its name")
        return SPLITS.get(first, "") if self._has_splits else "", {name: mask for name, mask in found.items() if mask}

    def _probe(self, count: int, listening: Listening) -> None:
        """Look at a few rasters, and know what most of them are. Raises BandstreamError where that can be no set."""
        self._has_splits = any(name in SPLITS for name in self._files.inside(self._top))
        wanted = {round(number) for number in np.linspace(0, count - 1, min(count, PROBED))}
        paths = [path for number, path in enumerate(self._paths()) if number in wanted]
        found: list[tuple[str, Raster]] = []
        failed = ""
        for path in paths:
            try:
                found.append((printed(path), inspect(self._files.gdal(joined(self._top, path)))))
            except (RasterError, OSError) as error:
                failed = failed or f"{printed(path)}: {error}"
        if not found:
            raise BandstreamError(f"not one raster of {self.src} can be read, the first: {failed}")
        self._usual, alike = usual_of(found, [band.name for band in self.stored_bands], self.patch)
        self._nodata = Nodata(self._usual.dtype, self._usual.nodata, *self.nodata)
        self._check_set(listening, alike)
        for name, masks in self._masks.items():
            if name not in self.classes:
                raise masks.ask_for_classes(paths)

    def _check_set(self, listening: Listening, paths: Sequence[str]) -> None:
        """Say what looks wrong about the set; `paths`: of rasters that are as most are."""
        if self._nodata.stored is not None and self._nodata.stored < 0 and self.nodata[2] != 0:
            listening.warn(
                f"nodata is {self._nodata.stored:g} and counts in the statistics: leave it out with --max-nodata 0, "
                "or have another number stored with --nodata-fill"
            )
        shifted = [path for path in paths if offset_of(baseline_of(stem(path)))]
        if shifted and self.offset == 0:
            listening.warn(
                f"{shifted[0]}: numbers of its processing baseline are 1000 too large: say --offset -0.1, unless that "
                "was removed"
            )

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        path, masks = json.loads(entry.where)
        at = {name: int(text) for name, text in entry.extra.items()}
        window = (at["row"], at["column"]) if at else None
        told = entry.path + (f" [row {at['row']}, column {at['column']}]" if at else "")
        pixels = views[self.member]
        try:
            whole, raster = read_bands(self._files.gdal(path), pixels, self.order, window)
            self._check(raster)
            self._nodata.apply(raster, pixels)
            place = raster.centre()
            for name, mask in masks.items():
                classes = self.classes[name]
                views[member_of(name)][...] = self._masks[name].read(mask, whole, raster.size, window, classes)
        except RasterError as error:
            raise Rejected(told, error.reason, error.detail) from error.__cause__
        except OSError as error:
            raise Rejected(told, "unreadable", str(error)) from error
        lon, lat = place or (0.0, 0.0)
        date = date_of(stem(entry.path))
        nodata = "" if self._nodata.stored is None else f"{self._nodata.stored:.9g}"
        columns = {"file": entry.path, **at}
        content = {"id": entry.key, "date": date, **raster.place(lon, lat), "nodata": nodata, **columns}
        return Facts({}, content, place, date, columns)

    def _check(self, raster: Raster) -> None:
        """Raises RasterError where a raster is not as the set's others."""
        if self._usual.gsd_m and raster.gsd_m and raster.gsd_m != self._usual.gsd_m:
            raise RasterError("wrong-gsd", f"pixels of {raster.gsd_m:g} m, not {self._usual.gsd_m:g} m")
        if not raster.north_up:
            raise RasterError("not-north-up", "its rows do not run from north to south: gdalwarp mends it")


def _size_of(files: Files, top: str, path: str) -> tuple[str, tuple[int, int] | Rejected]:
    """A raster's path and (height, width), or why it has none."""
    try:
        return path, inspect(files.gdal(joined(top, path))).size
    except RasterError as error:
        return path, Rejected(printed(path), error.reason, error.detail)
    except OSError as error:
        return path, Rejected(printed(path), "unreadable", str(error))
