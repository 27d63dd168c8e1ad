"""Samples that hold several dates of one place: names of their members, and which dates are taken."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ingest.reading.native import LEVELS
from ingest.source import Array, Schema
from shards.bands import SENTINEL2
from shards.manifest import Reflectance

T = TypeVar("T")


def member(name: str, time: int) -> str:
    """What an array member is called at date number `time`: `10m.npy`, `t1.10m.npy`, ..."""
    return f"t{time}.{name}" if time else name


def arrays_of(arrays: Mapping[str, Array], dates: int) -> dict[str, Array]:
    """The array members of so many dates, all of one date together, from those of one."""
    return {member(name, time): replace(array, time=time) for time in range(dates) for name, array in arrays.items()}


def schema_of(level: str, arrays: Mapping[str, Array], dates: int, columns: dict[str, type]) -> Schema:
    """Of samples that hold so many dates of all bands of a level, without labels, as `json_of` tells of them."""
    return Schema(
        bands=tuple(SENTINEL2[band] for band in LEVELS[level]),
        arrays=arrays_of(arrays, dates),
        reflectance=Reflectance(scale=1e-4, offset=0.0, level=level),
        labels={},
        masks={},
        json_bytes=1024 + 256 * dates,
        columns=columns,
        nodata=0,
    )


def in_order(found: Iterable[tuple[str, T]]) -> list[T]:
    """What was sensed when, (ISO 8601, what), in the order of time; of what was sensed at one time the first stays."""
    times: dict[str, T] = {}
    for date, what in found:
        times.setdefault(date, what)
    return [times[date] for date in sorted(times)]


def taken(found: Sequence[T], dates: int) -> list[T]:
    """`dates` of what was found, in order, evenly by rank: 0 and 2 of four, so that two dates of four seasons lie half
    a year apart."""
    return [found[number * len(found) // dates] for number in range(dates)]


def json_of(dates: list[str], products: list[str], baselines: list[str], removed: list[int]) -> dict[str, Any]:
    """What a sample's json says of its dates: lists with an item a date, and of the first what other sets say."""
    return {
        "date": dates[0],
        "processing_baseline": baselines[0],
        "offset_removed": removed[0],
        "dates": dates,
        "products": products,
        "processing_baselines": baselines,
        "offsets_removed": removed,
    }
