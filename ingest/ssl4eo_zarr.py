"""SSL4EO-S12 version 1.1 (Blumenstiel et al., arXiv 2503.00168): the same seasons, all bands at 10 m, in zipped Zarr.

It comes in two forms, in folders `train/S2L2A`, `val/S2L2A` and the same of `S2L1C`. As WebDataset,
`ssl4eos12_shard_000001.tar` hold `ssl4eos12_train_seasonal_data_0000001.zarr.zip`, a place each: `bands` int16 (time,
band, y, x). As Zarr chunks, `ssl4eos12_train_seasonal_data_000001.zarr.zip` hold 64 places each: `bands` int16 (sample,
time, band, y, x), a chunk a date of all 64, so that they are spooled, place by place. Beside `bands` are `band`
(names), `file_id` (the products' names at Earth Engine, sensing time first), `crs` (EPSG), `center_lon`, `center_lat`,
and the pixels' centres: `x_` and `y_` of chunks, `x` and `y` of single places. The split is the archive's: there is no
test.

Radiometry (github.com/DLR-MF-DAS/SSL4EO-S12-v1.1, `zarr_dataset.py`): the numbers of the Zarr chunks carry an offset of
1000 whatever their product's baseline, those of the WebDataset none. It is removed.
"""

import hashlib
import io
import json
import math
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ingest.cells import Grid
from ingest.dates import arrays_of, in_order, json_of, member, taken
from ingest.files import Files, open_files
from ingest.product import date_of, tile_of
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from ingest.utm import lon_lat
from shards import atomic
from shards.bands import SENTINEL2
from shards.errors import BandstreamError
from shards.manifest import Reflectance

FOLDERS = {"S2L1C": "L1C", "S2L2A": "L2A"}
NAME = re.compile(r"(ssl4eos12_(train|val)_seasonal_data_\d{6,7})\.zarr\.zip")
SIDE = 264
OFFSET = 1000
MEMBER = "10m.npy"
LARGEST = 1 << 26
"""A zipped place of more bytes is none."""
TOLD = 1 << 24
"""Bytes of the largest array beside the pixels."""
PLACES = 1024
"""A file of more places is none."""


def bands_of(level: str) -> tuple[str, ...]:
    return tuple(band for band in SENTINEL2 if level == "L1C" or band != "B10")


def find(inputs: Sequence[Path], level: str) -> tuple[str, list[Path]]:
    """Level, and sorted files of version 1.1; none where this is another version. Raises BandstreamError."""
    found: dict[str, list[Path]] = {}
    for path in inputs:
        inner = [
            folder for top in (path, path / "train", path / "val") for folder in (top, *map(top.joinpath, FOLDERS))
        ]
        files = [path] if path.is_file() else sorted(file for folder in inner for file in folder.glob("ssl4eos12_*"))
        for file in files:
            if NAME.fullmatch(file.name) or re.fullmatch(r"ssl4eos12_shard_\d+\.tar", file.name):
                for folder in FOLDERS.keys() & set(file.resolve().parts):
                    found.setdefault(FOLDERS[folder], []).append(file)
    if level:
        return level, found.get(level, [])
    if len(found) > 1:
        raise BandstreamError(f"{' '.join(map(str, inputs))} holds both L1C and L2A: say which with --level")
    return next(iter(found.items()), ("", []))


class SSL4EOZarr:
    """Version 1.1 in these files, all of one form. `dates` a sample."""

    def __init__(self, files: Sequence[Path], level: str, dates: int) -> None:
        self.inputs = tuple(files)
        self.level = level
        self.dates = dates
        self.name = "ssl4eo-s12"
        self.chunks = not files[0].name.endswith(".tar")
        self._files: list[Files] = []
        self._spooled: list[Path] = []

    @property
    def grid(self) -> Grid:
        """Of a date, the one patch of a place."""
        return Grid({MEMBER: Array(bands_of(self.level), (SIDE, SIDE), "int16")}, SIDE, SIDE)

    @property
    def schema(self) -> Schema:
        return Schema(
            bands=tuple(SENTINEL2[band] for band in bands_of(self.level)),
            arrays=arrays_of(self.grid.arrays, self.dates),
            reflectance=Reflectance(scale=1e-4, offset=0.0, level=self.level),
            labels={},
            masks={},
            json_bytes=1024 + 256 * self.dates,
            columns={"tile": str, "processing_baseline": str},
            nodata=0,
        )

    def describe(self) -> dict[str, Any]:
        return {"kind": "ssl4eo", "version": "1.1", "level": self.level, "dates": self.dates}

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        if any(path.name.endswith(".tar") == self.chunks for path in self.inputs):
            raise BandstreamError(f"{self.inputs[0]} and others: shards (.tar) and Zarr chunks, ingest them apart")
        if self.chunks:
            yield from self._spool(listening)
            return
        self._files = [open_files(path, listening) for path in self.inputs]
        for number, files in enumerate(self._files):
            yield from files.refused()
            for folder, names in files.folders():
                for name in names:
                    where = f"{number}:{folder}/{name}" if folder else f"{number}:{name}"
                    yield _entry(name, where)

    def _spool(self, listening: Listening) -> Iterator[Entry | Rejected]:
        """Write the places of all files, one by one, to scratch, and list them."""
        room = 64 * len(self.inputs) * self.dates * self.grid.cell_bytes
        listening.say(
            f"spooling {len(self.inputs):,} files to {listening.scratch}: {room / 1e9:,.2f} GB until the set is done, "
            f"{shutil.disk_usage(listening.scratch).free / 1e9:,.1f} GB free"
        )
        self._spooled = []
        spool = partial(_spooled, self.grid, self.level, self.dates, listening.scratch)
        for number, (records, told) in enumerate(listening.map(spool, self.inputs)):
            self._spooled.append(records)
            listening.progress(number + 1, len(self.inputs))
            name = self.inputs[number].name
            split = found[2] if (found := NAME.fullmatch(name)) else ""
            for index, (key, *rejection) in enumerate(told):
                if rejection:
                    yield Rejected(f"{name}/{key}", *rejection)
                else:
                    yield Entry(key, f"{name}/{key}", split, where=f"{number}:{index}")

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        number, _, at = entry.where.partition(":")
        planes = [views[member(MEMBER, time)] for time in range(self.dates)]
        if self.chunks:
            heads = [
                self.grid.read(self._spooled[int(number)], int(at) * self.dates + time, 0, {MEMBER: plane})
                for time, plane in enumerate(planes)
            ]
            return self._facts(entry, heads[0] | {"products": [head["product"] for head in heads]})
        files = self._files[int(number)]
        try:
            folder, _, name = at.rpartition("/")
            data = files.read_folder(folder, [name], LARGEST).get(name)
        except OSError as error:
            raise Rejected(entry.path, "unreadable", str(error)) from error
        if data is None:
            raise Rejected(entry.path, "unreadable", f"more than {LARGEST:,} bytes")
        with _damage(entry.path):
            group = _group(bytes(data))
            _check(group, self.level, (), entry.path)
            products = _strings(_values(group, "file_id"))
            order = _dates(products, self.dates, entry.path)
            columns = _columns(group, self.level, entry.path)
            for plane, time in zip(planes, order, strict=True):
                plane[...] = group["bands"][time][columns]
            head = _head(group, ("x", "y"), ())
        return self._facts(entry, head | {"products": [products[time] for time in order]})

    def _facts(self, entry: Entry, head: Mapping[str, Any]) -> Facts:
        left, top, width, height = head["box"]
        epsg, products = head["epsg"], head["products"]
        centre = head["lon"], head["lat"]
        if epsg and width:
            try:
                centre = lon_lat(epsg, left + width / 2, top + height / 2)
            except (ValueError, OverflowError) as error:
                raise Rejected(entry.path, "misplaced", str(error)) from None
        dates = [date_of(product) for product in products]
        content = {
            "id": entry.key,
            **json_of(dates, products, [""] * self.dates, [OFFSET if self.chunks else 0] * self.dates),
            "crs": f"EPSG:{epsg}" if epsg else "",
            "transform": [width / SIDE, 0.0, left, 0.0, height / SIDE, top],
            "bounds": [left, top + height, left + width, top],
            "lon": centre[0],
            "lat": centre[1],
            "tile": tile_of(products[0]),
        }
        columns = {name: content[name] for name in ("tile", "processing_baseline")}
        return Facts({}, content, centre, dates[0], columns)


def _entry(name: str, where: str) -> Entry | Rejected:
    found = NAME.fullmatch(name)
    if not found:
        return Rejected(name, "bad-name", "no ssl4eos12_train_seasonal_data_0000001.zarr.zip")
    return Entry(found[1], name, found[2], where=where)


class _damage:
    """A context in which whatever a library raises about damaged bytes is raised as Rejected."""

    def __init__(self, told: str) -> None:
        self.told = told

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, Rejected | BandstreamError):
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise Rejected(self.told, "unreadable", f"not as zipped Zarr ({text})") from error


def _group(data: bytes) -> Any:
    """A zipped Zarr group (version 2 of the format) in memory."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    buffer = default_buffer_prototype().buffer
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(info.file_size for info in archive.infolist()) > LARGEST:
            raise ValueError("it holds more than a place does")
        store = MemoryStore({name: buffer.from_bytes(archive.read(name)) for name in archive.namelist()})
    return zarr.open_group(store, mode="r", zarr_format=2)


def _check(group: Any, level: str, samples: tuple[int, ...], told: str) -> None:
    """Raises Rejected where `bands` is not what it should be: int16 (*samples, time, band, 264, 264), and whole."""
    bands = group["bands"]
    shape, count = bands.shape, len(bands_of(level))
    if bands.dtype != np.int16:
        raise Rejected(told, "wrong-type", f"{bands.dtype}, not int16")
    rank = len(samples) + 4
    if len(shape) != rank or shape[-2:] != (SIDE, SIDE) or shape[: len(samples)] != samples or shape[-4] > 32:
        raise Rejected(told, "wrong-size", f"bands of shape {shape}, not (.., time, band, {SIDE}, {SIDE})")
    if int(np.prod(bands.chunks)) > max((1, *samples)) * 32 * count * SIDE * SIDE:
        raise Rejected(told, "wrong-size", f"chunks of shape {bands.chunks}")
    if bands.nchunks_initialized != bands.nchunks:  # which the library would fill with zeros
        raise Rejected(told, "missing-pixels", f"{bands.nchunks_initialized} of {bands.nchunks} chunks are there")


def _columns(group: Any, level: str, told: str) -> list[int]:
    """Numbers of the bands, in our order."""
    names = _strings(_values(group, "band"))
    missing = [band for band in bands_of(level) if names.count(band) != 1]
    if missing:
        raise Rejected(told, "missing-band", f"{missing[0]} is not among {' '.join(names)[:100]}")
    return [names.index(band) for band in bands_of(level)]


def _values(group: Any, name: str) -> np.ndarray:
    """An array that tells of the pixels, which is small. Raises ValueError where its metadata say otherwise."""
    array = group[name]
    for what in (array.shape, array.chunks):
        if math.prod(what) * array.dtype.itemsize > TOLD:
            raise ValueError(f"{name} of shape {what} and type {array.dtype}"[:150])
    return np.asarray(array[...])


def _strings(values: np.ndarray) -> list[str]:
    return [str(value) for value in values.reshape(-1)]


def _dates(products: list[str], dates: int, told: str) -> list[int]:
    """Numbers of the dates that are taken, in the order of sensing. Raises Rejected."""
    for product in products:
        if not date_of(product) or not re.fullmatch(r"[A-Za-z0-9_.]{1,80}", product):
            raise Rejected(told, "bad-name", f"{product[:80]!r} does not begin with the time of sensing")
    unique = in_order((date_of(product), number) for number, product in enumerate(products))
    if len(unique) < dates:
        raise Rejected(told, "too-few-dates", f"{len(unique)} dates, the set has {dates} of each place")
    return taken(unique, dates)


def _head(group: Any, axes: tuple[str, str], at: tuple[int, ...]) -> dict[str, Any]:
    """Where a place lies: EPSG code, longitude, latitude, and (left, top, width, height) of the patch, zeros where that
    is not told."""
    x, y = (np.asarray(_values(group, axis)[at or ...], np.float64) for axis in axes)
    box = [0.0, 0.0, 0.0, 0.0]
    across, down = float(x[1] - x[0]), float(y[1] - y[0])
    if abs(across) > 1 and x.shape == y.shape == (SIDE,):
        box = [float(x[0]) - across / 2, float(y[0]) - down / 2, across * SIDE, down * SIDE]
    lon, lat = (float(_values(group, name)[at or ...]) for name in ("center_lon", "center_lat"))
    if not (abs(lon) <= 180 and abs(lat) <= 90 and np.isfinite(box).all()):
        raise ValueError(f"a place at {lon:g}, {lat:g}")
    return {"epsg": int(_values(group, "crs")[at or ...]), "lon": round(lon, 7), "lat": round(lat, 7), "box": box}


def _spooled(grid: Grid, level: str, dates: int, scratch: Path, path: Path) -> tuple[Path, list[list[str]]]:
    """Write the places of a file of chunks to scratch, unless an earlier run did: where, and of each place [key], or
    [key, reason, detail] where it cannot be taken."""
    import zarr

    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {grid} {dates}"
    records = scratch / f"places-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    told = records.with_suffix(".json")
    if not records.exists():
        places: list[list[str]] = []
        with atomic.replacing(records) as out:
            try:
                with _damage(path.name), zarr.storage.ZipStore(path, mode="r") as store:
                    _write(grid, level, dates, zarr.open_group(store, mode="r", zarr_format=2), out, places, path.name)
            except Rejected as rejection:
                places = [["", rejection.reason, rejection.detail]]
            atomic.write_text(told, json.dumps(places))
    return records, json.loads(told.read_bytes())


def _write(grid: Grid, level: str, dates: int, group: Any, out: Any, places: list[list[str]], told: str) -> None:
    keys = _strings(_values(group, "sample"))
    if len(keys) > PLACES:
        raise Rejected(told, "wrong-size", f"{len(keys)} places in one file")
    _check(group, level, (len(keys),), told)
    columns = _columns(group, level, told)
    products = _values(group, "file_id").astype(str)
    orders: list[list[int]] = []
    for index, key in enumerate(keys):
        try:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", key):
                raise Rejected(told, "bad-name", f"a place called {key[:80]!r}")
            orders.append(_dates([str(product) for product in products[index]], dates, told))
            places.append([key])
        except Rejected as rejection:
            orders.append([])
            places.append([key[:80].encode("ascii", "replace").decode(), rejection.reason, rejection.detail])
    for time in range(group["bands"].shape[1]):
        planes = group["bands"][:, time]  # (sample, band, y, x): a chunk
        for index, order in enumerate(orders):
            if time in order:
                head = _head(group, ("x_", "y_"), (index,)) | {"product": str(products[index, time])}
                pixels = np.maximum(planes[index][columns], OFFSET) - np.int16(OFFSET)
                grid.write(out, index * dates + order.index(time), head, {MEMBER: pixels})
    out.truncate(len(keys) * dates * grid.cell_bytes)
