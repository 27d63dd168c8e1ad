"""How foreign samples hold arrays: looked at in the first that can be read, and asked of all others."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest.archives import members
from ingest.archives.foreign import ArrayOption
from ingest.reading.geotiff import RasterError
from ingest.source import Array, Rejected
from shards.errors import BandstreamError

FORMATS = ("uint8", "uint16", "int16", "float32")
OPEN = 64
"""Shards that are held open."""


@dataclass(frozen=True)
class Stored:
    """How an array lies in its member: shape, dtype and whether bands are its last axis; planes to take, in order."""

    option: ArrayOption
    shape: tuple[int, ...]
    dtype: str
    last: bool
    planes: tuple[int, ...]

    @property
    def array(self) -> Array:
        height, width = self.shape[:2] if self.last else self.shape[-2:]
        return Array(self.option.kept, (height, width), self.dtype, self.option.time)

    def read(self, path: str, data: bytes, view: np.ndarray, size: tuple[int, int] | None) -> None:
        """Fill `view`, (bands, H, W), from a member of the sample `path`; `size`: to scale pictures to. Raises
        Rejected."""
        told = f"{path}.{self.option.member}"
        with reading(path, self.option.member):
            array = members.read_array(data, self.option.member, size)
        if array.shape != self.shape:
            raise Rejected(told, "wrong-size", f"shape {array.shape}, not {self.shape}")
        if array.dtype.name != self.dtype:
            raise Rejected(told, "wrong-type", f"{array.dtype.name}, not {self.dtype}")
        planes = np.moveaxis(array, -1, 0) if self.last else array.reshape((-1, *array.shape[-2:]))
        view[...] = planes[list(self.planes)]
        if view.dtype.kind == "f" and not np.isfinite(view).all():
            raise Rejected(told, "not-finite", "it holds NaN or infinity")


def look(option: ArrayOption, path: str, data: bytes, size: tuple[int, int] | None) -> Stored:
    """How the first sample holds an array. Raises Rejected, and BandstreamError where it cannot be stored."""
    with reading(path, option.member):
        array = members.read_array(data, option.member, size)
    count, shape = len(option.bands), array.shape
    first, last = len(shape) == 3 and shape[0] == count, len(shape) == 3 and shape[2] == count
    if not (first or last or (len(shape) == 2 and count == 1)) or min(shape) < 1:
        raise BandstreamError(
            f"{path}.{option.member} has shape {shape}, --array names {count} bands: name them all, - for one "
            "that is to be left out"
        )
    if first and last:
        raise BandstreamError(f"{path}.{option.member} has shape {shape}: which axis is that of its bands?")
    if array.dtype.name not in FORMATS:
        raise BandstreamError(
            f"{path}.{option.member} holds {array.dtype.name}: a set stores {', '.join(FORMATS)}, convert it"
        )
    planes = tuple(option.bands.index(band) for band in option.kept)
    return Stored(option, shape, array.dtype.name, last, planes)


@contextmanager
def reading(path: str, member: str) -> Iterator[None]:
    """Turns RasterError into Rejected."""
    try:
        yield
    except RasterError as error:
        raise Rejected(f"{path}.{member}", error.reason, error.detail) from None


class Tars:
    """Plain tars whose members are read by their places; few are held open."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}

    def read(self, number: int, at: int, size: int, told: str) -> bytes:
        """A member of tar `number`; `told`: what to call it. Raises Rejected."""
        try:
            data = os.pread(self._descriptor(number), size, at)
        except OSError as error:
            raise Rejected(told, "unreadable", error.strerror or str(error)) from None
        if len(data) < size:
            raise Rejected(told, "unreadable", "the tar was cut off while it was in use")
        return data

    def _descriptor(self, number: int) -> int:
        file = self._opened.pop(number, None) or self.paths[number].open("rb", buffering=0)
        self._opened[number] = file
        if len(self._opened) > OPEN:
            self._opened.popitem(last=False)[1].close()
        return int(file.fileno())
