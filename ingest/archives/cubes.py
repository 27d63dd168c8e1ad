"""Zipped Zarr groups of SSL4EO-S12 version 1.1: opened, held against what they should be, and what they say."""

import io
import math
import re
import zipfile
from typing import Any

import numpy as np

from ingest.archives.dates import in_order, taken
from ingest.reading.native import LEVELS
from ingest.reading.product import date_of
from ingest.source import Rejected
from shards.errors import BandstreamError

SIDE = 264
LARGEST = 1 << 26
"""A zipped place of more bytes is none."""
TOLD = 1 << 24
"""Bytes of the largest array beside the pixels."""


class damage:
    """A context in which whatever a library raises about damaged bytes is raised as Rejected."""

    def __init__(self, told: str) -> None:
        self.told = told

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, Rejected | BandstreamError):
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise Rejected(self.told, "unreadable", f"not as zipped Zarr ({text})") from error


def open_group(data: bytes) -> Any:
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


def check(group: Any, level: str, samples: tuple[int, ...], told: str) -> None:
    """Raises Rejected where `bands` is not what it should be: int16 (*samples, time, band, 264, 264), and whole."""
    bands = group["bands"]
    shape, count = bands.shape, len(LEVELS[level])
    if bands.dtype != np.int16:
        raise Rejected(told, "wrong-type", f"{bands.dtype}, not int16")
    rank = len(samples) + 4
    if len(shape) != rank or shape[-2:] != (SIDE, SIDE) or shape[: len(samples)] != samples or shape[-4] > 32:
        raise Rejected(told, "wrong-size", f"bands of shape {shape}, not (.., time, band, {SIDE}, {SIDE})")
    if int(np.prod(bands.chunks)) > max((1, *samples)) * 32 * count * SIDE * SIDE:
        raise Rejected(told, "wrong-size", f"chunks of shape {bands.chunks}")
    if bands.nchunks_initialized != bands.nchunks:  # which the library would fill with zeros
        raise Rejected(told, "missing-pixels", f"{bands.nchunks_initialized} of {bands.nchunks} chunks are there")


def columns_of(group: Any, level: str, told: str) -> list[int]:
    """Numbers of the bands, in our order."""
    names = strings(values_of(group, "band"))
    missing = [band for band in LEVELS[level] if names.count(band) != 1]
    if missing:
        raise Rejected(told, "missing-band", f"{missing[0]} is not among {' '.join(names)[:100]}")
    return [names.index(band) for band in LEVELS[level]]


def values_of(group: Any, name: str) -> np.ndarray:
    """An array that tells of the pixels, which is small. Raises ValueError where its metadata say otherwise."""
    array = group[name]
    for what in (array.shape, array.chunks):
        if math.prod(what) * array.dtype.itemsize > TOLD:
            raise ValueError(f"{name} of shape {what} and type {array.dtype}"[:150])
    return np.asarray(array[...])


def strings(values: np.ndarray) -> list[str]:
    return [str(value) for value in values.reshape(-1)]


def dates_of(products: list[str], dates: int, told: str) -> list[int]:
    """Numbers of the dates that are taken, in the order of sensing. Raises Rejected."""
    for product in products:
        if not date_of(product) or not re.fullmatch(r"[A-Za-z0-9_.]{1,80}", product):
            raise Rejected(told, "bad-name", f"{product[:80]!r} does not begin with the time of sensing")
    unique = in_order((date_of(product), number) for number, product in enumerate(products))
    if len(unique) < dates:
        raise Rejected(told, "too-few-dates", f"{len(unique)} dates, the set has {dates} of each place")
    return taken(unique, dates)


def head_of(group: Any, axes: tuple[str, str], at: tuple[int, ...]) -> dict[str, Any]:
    """Where a place lies: EPSG code, longitude, latitude, and (left, top, width, height) of the patch, zeros where that
    is not told."""
    x, y = (np.asarray(values_of(group, axis)[at or ...], np.float64) for axis in axes)
    box = [0.0, 0.0, 0.0, 0.0]
    across, down = float(x[1] - x[0]), float(y[1] - y[0])
    if abs(across) > 1 and x.shape == y.shape == (SIDE,):
        box = [float(x[0]) - across / 2, float(y[0]) - down / 2, across * SIDE, down * SIDE]
    lon, lat = (float(values_of(group, name)[at or ...]) for name in ("center_lon", "center_lat"))
    if not (abs(lon) <= 180 and abs(lat) <= 90 and np.isfinite(box).all()):
        raise ValueError(f"a place at {lon:g}, {lat:g}")
    return {"epsg": int(values_of(group, "crs")[at or ...]), "lon": round(lon, 7), "lat": round(lat, 7), "box": box}
