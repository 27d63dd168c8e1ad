"""SSL4EO-S12 (Wang et al., IEEE GRSM 2023, arXiv 2211.07044), version 1.0: Sentinel-2 at four seasons of a place.

`s2c` (L1C, 13 bands) and `s2a` (L2A, 12 bands) are folders, or the archives `s2_l1c.tar.gz` and `s2_l2a.tar.gz`, of
PLACE/DATE/B1.tif ... B8A.tif ... B12.tif: PLACE is a number of seven digits, DATE the product's name at Google Earth
Engine (`20200323T162931_20200323T163750_T15QXA`, sensing first), each band uint16 at its own resolution, 264 x 264
pixels at 10 m. All dates of a place become one sample, in the order of sensing. Where four are asked for and a place
has more, those are taken that lie evenly by rank.

Place: the authors' downloader (github.com/zhu-xlab/SSL4EO-S12, `save_geotiff`) writes longitude and latitude, and takes
half a pixel off each band's corner, so that not the corners of a date's bands agree but the centres of their first
pixels. Where that is so, half a pixel is added again; `transform` and `bounds` of the json are then of the true corner.
It cut each date out of its own product, so dates may lie a few pixels apart: a tenth of the patch at most is taken.

Radiometry: Earth Engine's names tell no processing baseline. Where a date's `metadata.json` (its Earth Engine
properties) names the product, that tells it. Without it, products sensed before baseline 04.00 began (25 January 2022,
as all of the published dataset) carry no offset, and of later ones it cannot be known: they are rejected.

Version 1.1 is another format of files: `ingest.archives.ssl4eo_zarr`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest.archives.dates import in_order, json_of, member, schema_of, taken
from ingest.archives.seasons import LARGEST, NAME, Place, cropped, place_of, product_of
from ingest.archives.ssl4eo_zarr import SSL4EOZarr, find
from ingest.commands import source_command
from ingest.reading.files import Files, Folder, open_files
from ingest.reading.folders import joined
from ingest.reading.geotiff import RasterError, Reader, read_rasterio
from ingest.reading.native import LEVELS, native_arrays
from ingest.reading.place import placed
from ingest.reading.product import baseline_of, date_of, offset_of, remove_offset, tile_of
from ingest.reading.tiff import Header
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from shards.errors import BandstreamError
from shards.layout import KEY

FOLDERS = {"s2c": "L1C", "s2a": "L2A"}
SIDE = 264
STEPS = {"10m.npy": 6, "20m.npy": 3, "60m.npy": 1}
"""Pixels of a member in one of 60 m: patches are cropped in these."""
BASELINE_4 = "2022-01-25"
APART = 0.1
"""How far dates of a place may lie apart, in sides of the patch."""


@source_command
@click.option("--level", type=click.Choice(list(FOLDERS.values())), help="Which of both, where SRC has both.")
@click.option(
    "--dates",
    type=click.IntRange(1, 16),
    default=4,
    show_default=True,
    help="Dates a sample; places with fewer are rejected, of more those are taken that lie evenly.",
)
def command(src: tuple[Path, ...], level: str | None, dates: int) -> "SSL4EO | SSL4EOZarr":
    """Convert SSL4EO-S12 (Sentinel-2) into the shard set DST, all seasons of a place in one sample.

    Version 1.0: SRC is the folder that holds s2c or s2a, one of these itself, or the archive as it was downloaded
    (.tar, .tar.gz, .tar.zst). A tenth of the places goes to val and a tenth to test, by the seed, unless a split file
    says otherwise. Version 1.1: SRC is the folder that holds train and val, one of these, or one or more files of
    S2L1C or S2L2A; its splits are kept.
    """
    found, files = find(src, level or "")
    return SSL4EOZarr(files, found, dates) if files else SSL4EO(src, level or "", dates)


def looks_like(names: Sequence[str]) -> bool:
    """Whether files are bands in folders of dates, in numbered folders of places (1.0), or are called as 1.1's are."""
    return any(re.search(r"(^|/)\d{7}/[^/]+/B\d[0A-Z]?\.tif$|(^|/)ssl4eos12_[^/]*\.(tar|zip)$", name) for name in names)


class SSL4EO:
    """The archive in one or more folders or tars. `level`: L1C, L2A, or "" for the only one; `dates` a sample."""

    def __init__(self, src: Path | Sequence[Path], level: str = "", dates: int = 4) -> None:
        self.inputs = (src,) if isinstance(src, Path) else tuple(src)
        self.level = level
        self.dates = dates
        self.name = "ssl4eo-s12"
        self._files: list[Files] = []
        self._tops: list[str] = []
        self._reader = Reader()

    @property
    def _arrays(self) -> dict[str, Array]:
        """Of one date."""
        return native_arrays(LEVELS[self.level], SIDE)

    @property
    def schema(self) -> Schema:
        return schema_of(self.level, self._arrays, self.dates, {"tile": str, "processing_baseline": str})

    def describe(self) -> dict[str, Any]:
        return {"kind": "ssl4eo", "version": "1.0", "level": self.level, "dates": self.dates}

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        self._files, self._tops = [], []
        wanted = self.level
        for path in self.inputs:
            files = open_files(path, listening, _wanted)
            top, level = _top(files, path, wanted)
            if self._files and level != self.level:
                raise BandstreamError(f"{path} holds {level}, what was named before it {self.level}: ingest them apart")
            self.level = level
            self._files.append(files)
            self._tops.append(top)
        for number, (files, top) in enumerate(zip(self._files, self._tops, strict=True)):
            yield from files.refused()
            for place in files.inside(top):
                try:
                    yield self._entry(files, number, place, files.inside(joined(top, place)))
                except Rejected as rejection:
                    yield rejection

    def _entry(self, files: Files, number: int, place: str, found: list[str]) -> Entry:
        """A place as listed. Raises Rejected."""
        if not KEY.fullmatch(place):
            raise Rejected(place, "bad-name", "a place's name has 1 to 80 letters, digits and _ + = -")
        for name in found:
            if not date_of(name) or not NAME.fullmatch(name):
                raise Rejected(place, "bad-name", f"{name[:80]!r} does not begin with the time of sensing")
        dates = in_order((date_of(name), name) for name in found)
        if len(dates) < self.dates:
            raise Rejected(place, "too-few-dates", f"{len(dates)} dates, the set has {self.dates} of each place")
        return Entry(place, place, extra={"dates": " ".join(taken(dates, self.dates))}, where=str(number))

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        files, top = self._files[int(entry.where)], self._tops[int(entry.where)]
        names = entry.extra["dates"].split(" ")
        places, products = [], []
        for time, name in enumerate(names):
            rasters, product = self._date(files, joined(top, entry.path, name), f"{entry.path}/{name}", time, views)
            places.append(place_of(rasters, f"{entry.path}/{name}"))
            products.append(product)
        for name, (epsg, left, top_, *_) in zip(names, places, strict=True):
            first, x, y, width, height = places[0]
            if epsg != first or max(abs((left - x) / width), abs((top_ - y) / height)) > APART:
                raise Rejected(f"{entry.path}/{name}", "misplaced", f"it lies elsewhere than {names[0]}")
        removed = []
        for time, (name, product) in enumerate(zip(names, products, strict=True)):
            offset = _offset(product, name, f"{entry.path}/{name}")
            removed.append(offset)
            for group in self._arrays:
                remove_offset(views[member(group, time)], offset)
        return _facts(entry, names, products, removed, places[0])

    def _date(
        self, files: Files, folder: str, told: str, time: int, views: Mapping[str, np.ndarray]
    ) -> tuple[list[tuple[str, Header, tuple[int, int]]], str]:
        """Read all bands of a date: (band, header, (height, width) of what was taken), and the product's name."""
        content: dict[str, memoryview | None] = {}
        try:
            if not isinstance(files, Folder):
                content = files.read_folder(folder, files.names(folder), LARGEST)
            product = product_of(files, folder, content)
        except OSError as error:
            raise Rejected(told, "unreadable", str(error)) from None
        rasters: list[tuple[str, Header, tuple[int, int]]] = []
        whole: set[tuple[int, int]] = set()
        for group, array in self._arrays.items():
            for band, plane in zip(array.bands, views[member(group, time)], strict=True):
                name = f"{band.replace('B0', 'B')}.tif"
                try:
                    header, size = self._raster(files, f"{folder}/{name}", name, content, plane, STEPS[group])
                except (FileNotFoundError, KeyError):
                    raise Rejected(told, "missing-band", f"{name} is not there") from None
                except RasterError as error:
                    raise Rejected(f"{told}/{name}", error.reason, error.detail) from None
                whole.add(size)
                if len(whole) > 1:
                    raise Rejected(f"{told}/{name}", "wrong-size", "it covers more or less than the date's other bands")
                rasters.append((band, header, plane.shape))
        return rasters, product

    def _raster(
        self,
        files: Files,
        path: str,
        name: str,
        content: Mapping[str, memoryview | None],
        plane: np.ndarray,
        step: int,
    ) -> tuple[Header, tuple[int, int]]:
        """Read one file into `plane`, cropped to its centre where it is larger; its size in pixels of 60 m."""
        try:
            if isinstance(files, Folder):
                header = self._reader.read(files.gdal(path), plane)
            elif (data := content[name]) is None:
                header = read_rasterio(files.gdal(path), plane)
            else:
                header = self._reader.take(data, plane, lambda: files.gdal(path))
            return header, (SIDE // 6, SIDE // 6)
        except RasterError as error:
            if error.reason != "wrong-size":
                raise
        return cropped(files.gdal(path), plane, step)


def _wanted(path: str) -> bool:
    """What is spooled of a compressed archive."""
    return path.endswith((".tif", "/metadata.json"))


def _top(files: Files, path: Path, wanted: str) -> tuple[str, str]:
    """The folder that holds the places, and its level."""
    at = ""
    for _ in range(4):
        inside = files.inside(at)
        found = [name for name, level in FOLDERS.items() if name in inside and wanted in ("", level)]
        if len(found) > 1:
            raise BandstreamError(f"{path} holds both L1C and L2A: say which with --level")
        if found:
            return joined(at, found[0]), FOLDERS[found[0]]
        for place in inside[:16]:
            for date in files.inside(joined(at, place)):
                names = files.names(joined(at, place, date))
                if "B2.tif" in names:
                    level = "L1C" if "B10.tif" in names else "L2A"
                    if wanted not in ("", level):
                        raise BandstreamError(f"{path} holds {level}, not {wanted}: name the folder of {wanted}")
                    return at, level
        if len(inside) != 1:
            break
        at = joined(at, inside[0])
    raise BandstreamError(f"{path} holds no {wanted or 'Sentinel-2'} of SSL4EO-S12: expected s2c/PLACE/DATE/B1.tif")


def _offset(product: str, date: str, told: str) -> int:
    """What is taken from each number of a date. Raises Rejected where that cannot be known."""
    baseline = baseline_of(product)
    if not baseline and date_of(date) >= BASELINE_4:
        raise Rejected(
            told, "unknown-offset", "sensed after processing baseline 04.00 began, with no metadata.json that names it"
        )
    return offset_of(baseline)


def _facts(
    entry: Entry,
    names: list[str],
    products: list[str],
    removed: list[int],
    place: Place,
) -> Facts:
    epsg, left, top, width, height = place if place[0] else (0, 0.0, 0.0, 0.0, 0.0)
    x, y = left + width / 2, top + height / 2
    if epsg == 4326 and not (abs(x) <= 180 and abs(y) <= 90):
        raise Rejected(entry.path, "misplaced", f"({x:g}, {y:g}) is not on the Earth")
    transform = [width / SIDE, 0.0, left, 0.0, height / SIDE, top]
    centre, located = placed(entry.path, epsg, transform, [left, top + height, left + width, top])
    dates = [date_of(name) for name in names]
    called = [product or name for product, name in zip(products, names, strict=True)]
    content = {
        "id": entry.key,
        **json_of(dates, called, list(map(baseline_of, products)), removed),
        **located,
        "tile": tile_of(names[0]),
    }
    columns = {name: content[name] for name in ("tile", "processing_baseline")}
    return Facts({}, content, centre, dates[0], columns)
