"""The classes of a mask: which stored value is which class, from a file that says so."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingest.reading.geotiff import RasterError
from shards.errors import BandstreamError

IGNORE = 255
MOST = 255
"""Classes that a uint8 index can name beside IGNORE."""
LONGEST = 1 << 20
"""Bytes of the longest list of classes."""
WHOLE = 2.0**53
"""Floating-point numbers below it hold whole ones exactly."""
SHOWN = 8
"""Values that a message lists."""


@dataclass(frozen=True)
class Classes:
    """`names`: of the classes, in the order of their indices; `indices`: stored value → index, IGNORE where it is none;
    `explicit`: whether the file names the values, or they are the numbers of its lines."""

    names: tuple[str, ...]
    indices: Mapping[int, int]
    explicit: bool

    def apply(self, stored: np.ndarray, nodata: float | None) -> np.ndarray:
        """Stored values (H, W), whole numbers, as class indices, uint8; `nodata` is what their file declares.

        255, and nodata, are IGNORE unless they are a class's value. Raises RasterError `unknown-class` on any other
        value, `unclear-nodata` where nodata is a class's value only by the number of its line, and `wrong-type` on
        numbers that are not whole.
        """
        if stored.dtype.kind == "f":
            return self._apply_float(stored, nodata)
        known = {IGNORE: IGNORE, **self.indices}
        if nodata is not None and math.isfinite(nodata) and nodata == int(nodata):
            taken = self.indices.get(int(nodata), IGNORE)
            values = stored == int(nodata)
            if taken != IGNORE and not self.explicit and values.any():
                raise RasterError(
                    "unclear-nodata",
                    f"it declares {nodata:g} as nodata, and {self.names[taken]} is class {taken}: say which it is by "
                    f"lines VALUE,NAME in --classes ('{nodata:g},{self.names[taken]}', or '{nodata:g},' to ignore it)",
                )
            known.setdefault(int(nodata), IGNORE)
        values, inverse = np.unique(stored, return_inverse=True)
        unknown = [value for value in values.tolist() if value not in known]
        if unknown:
            more = ", ..." if len(unknown) > SHOWN else ""
            raise RasterError(
                "unknown-class", f"it holds {', '.join(map(str, unknown[:SHOWN]))}{more}, which --classes does not name"
            )
        table = np.array([known[value] for value in values.tolist()], np.uint8)
        return table[inverse].reshape(stored.shape)

    def _apply_float(self, stored: np.ndarray, nodata: float | None) -> np.ndarray:
        missing = np.isnan(stored) if nodata is not None and math.isnan(nodata) else np.zeros(stored.shape, bool)
        whole = np.where(missing, 0, stored)
        if not (np.abs(whole) < WHOLE).all() or (whole != np.rint(whole)).any():
            raise RasterError("wrong-type", f"{stored.dtype} numbers that are not whole: a mask holds classes")
        result = np.full(stored.shape, IGNORE, np.uint8)
        result[~missing] = self.apply(whole[~missing].astype(np.int64), nodata)
        return result


def lines_of(path: Path) -> list[str]:
    """The lines of a list of classes, without space around. Raises BandstreamError where it is no such text."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise BandstreamError(f"{path} is no list of classes: it has more than {LONGEST:,} bytes")
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BandstreamError(f"{path} cannot be read as a list of classes: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.isprintable():
            raise BandstreamError(f"{path}, line {number}: it holds what is no text, is the file damaged?")
    return lines


def read_classes(path: Path) -> Classes:
    """Classes from a file with a line each: NAME (the values are 0, 1, 2, ...), or VALUE,NAME.

    Several values may have one name, and a value with an empty name is ignored. Raises BandstreamError naming the line
    that is wrong.
    """
    lines = lines_of(path)
    rows = [(number, line) for number, line in enumerate(lines, 1) if line]
    valued = [_value(line) is not None for _, line in rows]
    if not rows:
        raise BandstreamError(f"{path} names no classes: expected lines NAME, or VALUE,NAME")
    if any(valued) and not all(valued):
        number = rows[valued.index(not valued[0])][0]
        raise BandstreamError(f"{path}, line {number}: some lines are VALUE,NAME and some are not")
    names: dict[str, int] = {}
    indices: dict[int, int] = {}
    for position, (number, line) in enumerate(rows):
        value, name = _value(line) if all(valued) else None, line
        if value is None:
            value = position
            if name in names:
                raise BandstreamError(f"{path}, line {number}: {name} stands there twice")
        else:
            name = line.partition(",")[2].strip()
        if value in indices:
            raise BandstreamError(f"{path}, line {number}: the value {value} stands there twice")
        indices[value] = names.setdefault(name, len(names)) if name else IGNORE
    if not names:
        raise BandstreamError(f"{path} names no classes: expected lines NAME, or VALUE,NAME")
    if len(names) > MOST:
        raise BandstreamError(f"{path} names {len(names)} classes: a mask holds at most {MOST}")
    return Classes(tuple(names), indices, all(valued))


def _value(line: str) -> int | None:
    """The value of a line VALUE,NAME; None where it is none."""
    text, comma, _ = line.partition(",")
    try:
        return int(text) if comma and text.strip().isascii() and "_" not in text else None
    except ValueError:
        return None
