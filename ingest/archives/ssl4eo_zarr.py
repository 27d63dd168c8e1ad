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

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ingest.archives.cells import Grid, recorded
from ingest.archives.cubes import (
    LARGEST,
    SIDE,
    check,
    columns_of,
    damage,
    dates_of,
    head_of,
    open_group,
    strings,
    values_of,
)
from ingest.archives.dates import json_of, member, schema_of
from ingest.reading.files import Files, open_files
from ingest.reading.native import LEVELS
from ingest.reading.place import placed
from ingest.reading.product import date_of, tile_of
from ingest.reading.spool import mark_of
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from shards.errors import BandstreamError

FOLDERS = {"S2L1C": "L1C", "S2L2A": "L2A"}
NAME = re.compile(r"(ssl4eos12_(train|val)_seasonal_data_\d{6,7})\.zarr\.zip")
OFFSET = 1000
MEMBER = "10m.npy"
PLACES = 1024
"""A file of more places is none."""


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
        return Grid({MEMBER: Array(LEVELS[self.level], (SIDE, SIDE), "int16")}, SIDE, SIDE)

    @property
    def schema(self) -> Schema:
        return schema_of(self.level, self.grid.arrays, self.dates, {"tile": str, "processing_baseline": str})

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
        with damage(entry.path):
            group = open_group(bytes(data))
            check(group, self.level, (), entry.path)
            products = strings(values_of(group, "file_id"))
            order = dates_of(products, self.dates, entry.path)
            columns = columns_of(group, self.level, entry.path)
            for plane, time in zip(planes, order, strict=True):
                plane[...] = group["bands"][time][columns]
            head = head_of(group, ("x", "y"), ())
        return self._facts(entry, head | {"products": [products[time] for time in order]})

    def _facts(self, entry: Entry, head: Mapping[str, Any]) -> Facts:
        left, top, width, height = head["box"]
        transform = [width / SIDE, 0.0, left, 0.0, height / SIDE, top] if width else None
        bounds = [left, top + height, left + width, top]
        centre, located = placed(entry.path, head["epsg"], transform, bounds)
        if centre is None:
            centre = head["lon"], head["lat"]
            located |= {"lon": centre[0], "lat": centre[1]}
        products = head["products"]
        dates = [date_of(product) for product in products]
        content = {
            "id": entry.key,
            **json_of(dates, products, [""] * self.dates, [OFFSET if self.chunks else 0] * self.dates),
            **located,
            "tile": tile_of(products[0]),
        }
        columns = {name: content[name] for name in ("tile", "processing_baseline")}
        return Facts({}, content, centre, dates[0], columns)


def _entry(name: str, where: str) -> Entry | Rejected:
    found = NAME.fullmatch(name)
    if not found:
        return Rejected(name, "bad-name", "no ssl4eos12_train_seasonal_data_0000001.zarr.zip")
    return Entry(found[1], name, found[2], where=where)


def _spooled(grid: Grid, level: str, dates: int, scratch: Path, path: Path) -> tuple[Path, list[list[str]]]:
    """Write the places of a file of chunks to scratch, unless an earlier run did: where, and of each place [key], or
    [key, reason, detail] where it cannot be taken."""
    import zarr

    def fill(out: BinaryIO) -> list[list[str]]:
        places: list[list[str]] = []
        try:
            with damage(path.name), zarr.storage.ZipStore(path, mode="r") as store:
                _write(grid, level, dates, zarr.open_group(store, mode="r", zarr_format=2), out, places, path.name)
        except Rejected as rejection:
            return [["", rejection.reason, rejection.detail]]
        return places

    records = scratch / f"places-{mark_of(path, grid, dates)}"
    return records, recorded(records, fill)


def _write(grid: Grid, level: str, dates: int, group: Any, out: Any, places: list[list[str]], told: str) -> None:
    keys = strings(values_of(group, "sample"))
    if len(keys) > PLACES:
        raise Rejected(told, "wrong-size", f"{len(keys)} places in one file")
    check(group, level, (len(keys),), told)
    columns = columns_of(group, level, told)
    products = values_of(group, "file_id").astype(str)
    orders: list[list[int]] = []
    for index, key in enumerate(keys):
        try:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", key):
                raise Rejected(told, "bad-name", f"a place called {key[:80]!r}")
            orders.append(dates_of([str(product) for product in products[index]], dates, told))
            places.append([key])
        except Rejected as rejection:
            orders.append([])
            places.append([key[:80].encode("ascii", "replace").decode(), rejection.reason, rejection.detail])
    for time in range(group["bands"].shape[1]):
        planes = group["bands"][:, time]  # (sample, band, y, x): a chunk
        for index, order in enumerate(orders):
            if time in order:
                head = head_of(group, ("x_", "y_"), (index,)) | {"product": str(products[index, time])}
                pixels = np.maximum(planes[index][columns], OFFSET) - np.int16(OFFSET)
                grid.write(out, index * dates + order.index(time), head, {MEMBER: pixels})
    out.truncate(len(keys) * dates * grid.cell_bytes)
