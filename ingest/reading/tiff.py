"""The tags of a TIFF (TIFF 6.0) and of a GeoTIFF (OGC 19-008r4), as far as plain strips of one band need them.

`parse` takes a file only where every tag that bears on pixels or place is one that it knows; any other is for rasterio.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

ASCII, SHORT, LONG, DOUBLE = 2, 3, 4, 12
SIZES = {1: 1, ASCII: 1, SHORT: 2, LONG: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, DOUBLE: 8}
WIDTH, HEIGHT, BITS, COMPRESSION, FILL_ORDER, OFFSETS = 256, 257, 258, 259, 266, 273
SAMPLES, ROWS, COUNTS, PREDICTOR, FORMAT = 277, 278, 279, 317, 339
PIXEL_SCALE, TIE_POINT, GEO_KEYS, NODATA = 33550, 33922, 34735, 42113
# Tags that do not change what a pixel is or where it lies; a file with any other tag is left to rasterio.
HARMLESS = {254, 262, 269, 270, 271, 272, 274, 282, 283, 284, 296, 305, 306, 315, 33432, 34736, 34737, 42112}
TAGS = {WIDTH, HEIGHT, BITS, COMPRESSION, FILL_ORDER, OFFSETS, SAMPLES, ROWS, COUNTS, PREDICTOR, FORMAT} | {
    PIXEL_SCALE,
    TIE_POINT,
    GEO_KEYS,
    NODATA,
}
KINDS = {OFFSETS: (SHORT, LONG), COUNTS: (SHORT, LONG), PIXEL_SCALE: (DOUBLE,), TIE_POINT: (DOUBLE,)}
KINDS |= {GEO_KEYS: (SHORT,), NODATA: (ASCII,)}
NONE, DEFLATE, OLD_DEFLATE = 1, 8, 32946


@dataclass(frozen=True, slots=True)
class Header:
    """Where a raster lies and what it calls nodata.

    `epsg` is 0 where the file names no EPSG code; `transform` is (a, b, c, d, e, f) of x = a·column + b·row + c and
    y = d·column + e·row + f, in metres or degrees, pixel corners; None where the file has none. `nodata` None where
    undeclared.
    """

    epsg: int
    transform: tuple[float, float, float, float, float, float] | None
    nodata: float | None

    def bounds(self, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of a raster of (height, width) in its own coordinates; zeros where it has none."""
        if self.transform is None:
            return 0.0, 0.0, 0.0, 0.0
        a, _, c, _, e, f = self.transform
        return c, f + e * shape[0], c + a * shape[1], f

    def window(self, row: int, column: int) -> "Header":
        """That of a part of the raster whose upper left pixel is (row, column)."""
        if self.transform is None:
            return self
        a, b, c, d, e, f = self.transform
        return Header(self.epsg, (a, b, c + a * column, d, e, f + e * row), self.nodata)


@dataclass(frozen=True, slots=True)
class Strips:
    """A parsed file: what is needed to take its pixels."""

    header: Header
    order: str
    shape: tuple[int, int]
    type: tuple[int, int]
    compression: int
    predictor: int
    rows: int
    strips: tuple[tuple[int, int], ...]
    scale: tuple[float, float]
    tie: int
    """Where the six numbers of the tie point lie, 0 where there is none."""
    tables: tuple[tuple[int, str], ...]
    """Of compressed strips, whose places and sizes differ from file to file: where these lie, and their format."""
    holes: tuple[tuple[int, int], ...]
    """Where the bytes of tie point and tables begin and end; empty where other tags share them."""
    values_end: int
    """Where the values of the tags end, as far as they lie outside the pixels."""
    start: int
    end: int
    """Where the first strip begins and the last one ends."""
    dtype: str
    """NumPy's name of the pixels where they are one run of bytes as they are wanted, else empty."""


def _values(data: bytes, order: str, entry: int) -> tuple[tuple[Any, ...], int, int]:
    """Values of the tag at `entry`, where they lie, where they end. Raises ValueError where that is outside."""
    _, kind, count = struct.unpack_from(order + "HHI", data, entry)
    size = SIZES.get(kind, 0) * count
    at = entry + 8 if size <= 4 else struct.unpack_from(order + "I", data, entry + 8)[0]
    if not size or at + size > len(data):
        raise ValueError("a tag's values lie outside the file")
    if kind == ASCII:
        return (data[at : at + size],), at, at + size
    letter = {1: "B", SHORT: "H", LONG: "I", DOUBLE: "d"}.get(kind)
    if letter is None:
        return (), at, at + size
    return struct.unpack_from(f"{order}{count}{letter}", data, at), at, at + size


def parse(data: bytes) -> Strips | None:
    """Parse a whole file; None where it is for rasterio to read. Raises ValueError where the tags lie outside it."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return None
    (directory,) = struct.unpack_from(order + "I", data, 4)
    if directory + 2 > len(data):
        raise ValueError("its directory of tags lies outside the file")
    (entries,) = struct.unpack_from(order + "H", data, directory)
    end = directory + 2 + 12 * entries
    if end + 4 > len(data):
        raise ValueError("its directory of tags lies outside the file")
    if data[end : end + 4] != bytes(4):
        return None
    tags: dict[int, tuple[Any, ...]] = {}
    spans: dict[int, tuple[int, int]] = {0: (0, 8), -1: (directory, end + 4)}
    for entry in range(directory + 2, end, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in tags or (tag not in TAGS and tag not in HARMLESS) or kind not in KINDS.get(tag, (kind,)):
            return None
        tags[tag], at, stop = _values(data, order, entry)
        if stop - at > 4:
            spans[tag] = at, stop
    return _strips(data, order, tags, spans)


def _strips(
    data: bytes, order: str, tags: dict[int, tuple[Any, ...]], spans: dict[int, tuple[int, int]]
) -> Strips | None:
    """The tags of a file put together; None where they describe something else than plain strips.

    `spans`: where the values of tags lie that are not in the directory, and (0 and -1) where the directory lies.
    """

    def number(tag: int, default: int) -> int:
        value = tags.get(tag, (default,))
        return value[0] if len(value) == 1 and isinstance(value[0], int) else -1

    width, height = number(WIDTH, -1), number(HEIGHT, -1)
    compression, predictor = number(COMPRESSION, NONE), number(PREDICTOR, 1)
    rows = min(number(ROWS, height), height)
    if number(SAMPLES, 1) != 1 or number(FILL_ORDER, 1) != 1 or number(284, 1) != 1 or number(274, 1) != 1:
        return None
    if compression not in (NONE, DEFLATE, OLD_DEFLATE) or predictor not in (1, 2) or min(width, height, rows) < 1:
        return None
    if compression == NONE and predictor != 1:
        return None
    offsets, counts = tags.get(OFFSETS, ()), tags.get(COUNTS, ())
    bits, kind = number(BITS, 1), number(FORMAT, 1)
    if bits not in (8, 16, 32, 64):
        return None
    pieces = -(-height // rows)
    if len(offsets) != pieces or len(counts) != pieces or not all(offsets) or not all(counts):
        return None
    if compression == NONE:
        for index, count in enumerate(counts):
            if count != min(rows, height - index * rows) * width * bits // 8:
                return None
    tie = spans[TIE_POINT][0] if len(tags.get(TIE_POINT, ())) == 6 else 0
    placed = _place(data, order, tags, tie)
    if placed is None:
        return None
    header, scale = placed
    strips = tuple(zip(offsets, counts, strict=True))
    ends = [offset + count for offset, count in strips]
    in_one_run = compression == NONE and list(offsets[1:]) == ends[:-1]
    differing = (TIE_POINT,) if compression == NONE else (TIE_POINT, OFFSETS, COUNTS)
    apart = all(one[1] <= other[0] for one, other in pairwise(sorted(spans.values())))
    holes = tuple(sorted(spans[tag] for tag in differing)) if apart and spans.keys() >= set(differing) else ()
    tables = tuple(
        (at, f"{order}{pieces}{'H' if stop - at == 2 * pieces else 'I'}")
        for at, stop in (spans[tag] for tag in differing[1:] if holes)
    )
    return Strips(
        header,
        order,
        (height, width),
        (bits, kind),
        compression,
        predictor,
        rows,
        strips,
        scale,
        tie,
        tables,
        holes,
        max(stop for _, stop in spans.values()),
        min(offsets),
        max(ends),
        f"{order}u2" if in_one_run else "",
    )


def _place(
    data: bytes, order: str, tags: dict[int, tuple[Any, ...]], tie: int
) -> tuple[Header, tuple[float, float]] | None:
    """EPSG code, transform and nodata of plain GeoTIFF keys (OGC 19-008r4); None where they are not plain."""
    nodata = None
    if NODATA in tags:
        text = tags[NODATA][0].split(b"\0")[0]
        if not text.isdigit() or int(text[:6]) > 65535:
            return None
        nodata = float(text)
    if not tags.keys() & {PIXEL_SCALE, TIE_POINT, GEO_KEYS}:
        return Header(0, None, nodata), (0.0, 0.0)
    keys, scale = tags.get(GEO_KEYS, ()), tags.get(PIXEL_SCALE, ())
    if not tie or len(keys) < 4 or len(keys) < 4 + 4 * keys[3] or len(scale) != 3 or not min(scale[:2]) > 0:
        return None
    inline = {keys[4 + 4 * i]: keys[7 + 4 * i] for i in range(keys[3]) if keys[5 + 4 * i] == 0}
    # model type 1: projected, EPSG code in key 3072; 2: longitude, latitude, in 2048; raster type 1: a pixel is an area
    epsg = inline.get({1: 3072, 2: 2048}.get(inline.get(1024, 0), 0), 0)
    if inline.get(1025) != 1 or not 1024 <= epsg < 32767:
        return None
    size = (scale[0], scale[1])
    return Header(epsg, _transform(data, order, tie, size), nodata), size


def _transform(
    data: bytes, order: str, tie: int, scale: tuple[float, float]
) -> tuple[float, float, float, float, float, float]:
    column, row, _, x, y, _ = struct.unpack_from(order + "6d", data, tie)
    return scale[0], 0.0, x - column * scale[0], 0.0, -scale[1], y + row * scale[1]


def moved(parsed: Strips, data: bytes) -> Header:
    """The header of a file that differs from a parsed one in its holes alone."""
    return Header(parsed.header.epsg, _transform(data, parsed.order, parsed.tie, parsed.scale), parsed.header.nodata)


def strip_table(parsed: Strips, data: bytes) -> tuple[tuple[int, int], ...]:
    """The strips (offset, count) of a file that differs from a parsed one in its holes alone."""
    if not parsed.tables:
        return parsed.strips
    offsets, counts = (struct.unpack_from(form, data, at) for at, form in parsed.tables)
    return tuple(zip(offsets, counts, strict=True))


def kind_of(data: bytes, holes: tuple[tuple[int, int], ...], end: int) -> tuple[bytes, ...]:
    """The bytes before `end` that lie outside the holes: the same for all files of a kind."""
    pieces, at = [], 0
    for begin, stop in holes:
        pieces.append(data[at:begin])
        at = stop
    pieces.append(data[at:end])
    return tuple(pieces)
