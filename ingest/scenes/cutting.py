"""Scenes to patches: block rows of a scene, each cut by one worker into one file of records.

A JPEG 2000 tile is decoded whole, so a scene is read in blocks of whole patch rows and full width, about BLOCK_ROWS
pixels of 10 m high: of a border between blocks the tiles are decoded twice, all others once. A worker holds one band of
a block at a time, of a full tile 4,096 x 10,980 pixels of 16 bit, 90 MB, and GDAL's cache of decoded tiles beside it:
0.3 GB in all, and 2 minutes of one core for a tile of twelve bands.

A file of records is a sparse array: record k, of patch k of the block (row by row), begins at byte `k * stride` and
holds the patch's planes as a sample stores them, offset removed; patches left out leave holes. Behind the records
stands a JSON line of what was found, then its length in 8 bytes. It appears by rename, so a run that goes on after
it was killed finds it whole or not at all.
"""

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ingest.reading.geotiff import RasterError
from ingest.scenes.model import Grid, Scene
from ingest.scenes.raster import cloudy, read_rows
from ingest.source import Array, Rejected, Unfinished
from shards import atomic
from shards.errors import BandstreamError

BLOCK_ROWS = 4096
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Cut:
    """How scenes are cut: patches of `size` pixels of the finest grid, the arrays of a sample, and the most nodata and
    cloud that a patch may have (`max_cloud` None: whatever it has)."""

    size: int
    arrays: dict[str, Array]
    max_nodata: float
    max_cloud: float | None

    @property
    def stride(self) -> int:
        """Bytes of a record."""
        return sum(2 * len(array.bands) * array.size[0] * array.size[1] for array in self.arrays.values())

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Band → where its plane begins in a record, and how many pixels wide it is; the coarsest bands first."""
        found, at = {}, 0
        for array in self.arrays.values():
            for band in array.bands:
                found[band] = (at, array.size[0])
                at += 2 * array.size[0] * array.size[1]
        return dict(sorted(found.items(), key=lambda item: item[1][1]))


@dataclass(frozen=True, slots=True)
class Block:
    """Patch rows `first` to `last` (not included) of a scene, to be cut into a file inside `folder`."""

    scene: Scene
    grid: Grid
    cut: Cut
    first: int
    last: int
    folder: Path

    @property
    def columns(self) -> int:
        """Patches in a row."""
        return self.grid.columns // self.cut.size

    @property
    def file(self) -> str:
        """Named after all that decides its content."""
        told = repr((self.scene, self.grid, self.cut, self.first, self.last))
        return f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.records"

    def __str__(self) -> str:
        return f"patch rows {self.first} to {self.last - 1} of {self.scene.product}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a block holds: of each patch, row by row, the share of nodata and that of valid pixels which were 0 once
    the offset was removed (both of the band that has most), the share of cloud (-1 where nothing tells), and why it was
    left out ("" where it was not); `refused`: the scene is not to be taken."""

    nodata: list[float]
    clipped: list[float]
    cloud: list[float]
    reasons: list[str]
    refused: Rejected | None = None


def blocks_of(scene: Scene, grid: Grid, cut: Cut, folder: Path) -> list[Block]:
    """The blocks of a scene, from the top."""
    rows, step = grid.rows // cut.size, max(1, BLOCK_ROWS // cut.size)
    return [Block(scene, grid, cut, first, min(first + step, rows), folder) for first in range(0, rows, step)]


def cut_block(block: Block) -> Found:
    """Leave the block's file, unless an earlier run did. Raises Unfinished where there is no room for it."""
    path = block.folder / block.file
    known = _read_found(path)
    if known is not None:
        return known
    try:
        with atomic.replacing(path) as file:
            found = _cut(block, file)
            if found.refused is not None:
                raise found.refused
            line = json.dumps([found.nodata, found.clipped, found.cloud, found.reasons]).encode()
            file.seek((block.last - block.first) * block.columns * block.cut.stride)
            file.write(line + len(line).to_bytes(8, "big"))
        return found
    except Rejected as rejection:
        return Found([], [], [], [], rejection)
    except OSError as error:
        if error.errno in FULL:
            raise Unfinished(
                f"no room is left in {block.folder} for {block} ({error.strerror}): make room there or name another "
                "folder with --scratch, and run the same command again, it goes on from there"
            ) from None
        raise


def _read_found(path: Path) -> Found | None:
    try:
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            size = int.from_bytes(file.read(8), "big")
            file.seek(-8 - size, os.SEEK_END)
            return Found(*json.loads(file.read(size)))
    except (OSError, ValueError, TypeError):
        return None


def _cut(block: Block, file: BinaryIO) -> Found:
    """Write the records of the patches that are kept."""
    cut, grid, scene = block.cut, block.grid, block.scene
    height, columns = block.last - block.first, block.columns
    top, bottom, right = block.first * cut.size, block.last * cut.size, columns * cut.size
    count = height * columns
    reasons = np.zeros(count, object)
    reasons[:] = ""
    cloud, nodata, clipped = np.full(count, -1.0), np.zeros(count), np.zeros(count)
    try:
        if scene.clouds is not None:
            mask, n = cloudy(scene.clouds, grid, top, bottom, right)
            side = cut.size // n
            cloud = mask.reshape(height, side, columns, side).mean((1, 3)).reshape(-1)
            if cut.max_cloud is not None:
                reasons[cloud > cut.max_cloud] = "cloud"
        for band, (at, side) in cut.places.items():
            raster, ratio = scene.bands[band], cut.size // side
            pixels = read_rows(raster, top // ratio, bottom // ratio, right // ratio)
            patches = pixels.reshape(height, side, columns, side)
            share = (patches == 0).mean((1, 3)).reshape(-1)
            nodata = np.maximum(nodata, share)
            reasons[(reasons == "") & (share > cut.max_nodata)] = "nodata"
            taken = scene.taken[band]
            if taken:
                low = (patches <= taken).mean((1, 3)).reshape(-1) - share
                clipped = np.maximum(clipped, low)
                np.maximum(pixels, taken, out=pixels)
                np.subtract(pixels, taken, out=pixels)
            for number in np.flatnonzero(reasons == ""):
                row, column = divmod(int(number), columns)
                _write(file, int(number) * cut.stride + at, patches[row, :, column])
            del pixels, patches
    except RasterError as error:
        name = raster.name if "raster" in locals() else "cloud mask"
        told = f"{scene.product}/{name}"
        raise Rejected(told, error.reason, f"{error.detail}: the scene is left out, download it again") from None
    return Found(_shares(nodata), _shares(clipped), _shares(cloud), list(reasons))


def _shares(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _write(file: BinaryIO, at: int, plane: np.ndarray) -> None:
    data = np.ascontiguousarray(plane, "<u2").data.cast("B")
    while data:
        written = os.pwrite(file.fileno(), data, at)
        data, at = data[written:], at + written


class Records:
    """Reads records; keeps a few files open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, int] = {}

    def read(self, name: str, number: int, stride: int) -> bytes:
        """Record `number` of a file. Raises OSError, BandstreamError where the file was cut off."""
        descriptor = self._open.get(name)
        if descriptor is None:
            if len(self._open) >= 64:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
            self._open[name] = descriptor
        data = os.pread(descriptor, stride, number * stride)
        if len(data) != stride:
            raise BandstreamError(f"{self.folder / name} was cut off while it was in use: remove it, run it again")
        return data
