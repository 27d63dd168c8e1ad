"""Single-band GeoTIFFs: tags parsed here and strips taken as they lie; whatever else a TIFF can be goes to rasterio.

BigEarthNet's bands are classic TIFFs (TIFF 6.0) of uncompressed strips, its reference maps strips of Deflate with the
horizontal predictor. Opening one through GDAL takes 1 ms, reading its bytes 0.02 ms. The fast path takes a file only
where every tag that bears on pixels or place is one that it knows; `tests/ingest/test_geotiff.py` holds it to rasterio.
"""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ingest.reading.tiff import NONE, Header, Strips, kind_of, moved, parse, strip_table

CHUNK = 1 << 16
"""Bytes asked for at once: more than any band of 120 x 120 takes."""
KNOWN = 4096
"""Headers that are remembered, of 400 bytes each in BigEarthNet: a few for each of Europe's UTM zones."""
SLACK = 1 << 20
"""A file larger than its pixels by more than this is left to rasterio, which need not read all of it."""
MAX_BLOCK = 1 << 24
"""Pixels of the largest block that rasterio is let to allocate."""


class RasterError(Exception):
    """A raster that cannot be taken: `reason` is a code (truncated, wrong-size, ...), `detail` says it to a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


Layout = tuple[tuple[tuple[int, int], ...], int]
"""Where the bytes of a header lie that differ between files of a kind, and where its tags end."""


@dataclass(slots=True)
class _Usual:
    """How files of a shape usually begin: layout, the last one's bytes before its pixels, its header, a buffer."""

    layout: Layout
    front: bytes
    header: Header
    head: bytearray


class Reader:
    """Reads files of few kinds in large numbers: remembers what it has parsed, apart from what each has of its own."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[bytes, tuple[int, ...]], Layout] = {}
        self._known: dict[tuple[bytes, ...], Strips] = {}
        self._usual: dict[tuple[int, ...], _Usual] = {}
        self._beyond = bytearray(1)

    def __reduce__(self) -> tuple[type["Reader"], tuple[()]]:
        return Reader, ()  # what it remembers does not travel

    def read(self, path: str, out: np.ndarray) -> Header:
        """Read the one band of `path` into `out`, uint16 (H, W).

        Raises FileNotFoundError where there is no such file and RasterError where it cannot be taken: `truncated`,
        `wrong-size`, `wrong-type`, `wrong-bands` or `unreadable`.
        """
        try:
            usual = self._read_usual(path, out)
            if usual is not None:
                return usual
            data = _contents(path, out.nbytes)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RasterError("unreadable", error.strerror or str(error)) from None
        return read_rasterio(path, out) if data is None else self.take(data, out, lambda: path)

    def take(self, data: bytes | memoryview, out: np.ndarray, path: Callable[[], str]) -> Header:
        """The same from the whole file's bytes; `path` tells what GDAL calls the file."""
        data = bytes(data)
        usual = self._take_usual(data, out)
        if usual is not None:
            return usual
        parsed = self._known.get(kind_of(data, *self._layouts.get((data[:10], out.shape), ((), 0))))
        strips = strip_table(parsed, data) if parsed is not None else ()
        if parsed is not None and all(map(all, strips)):
            header = moved(parsed, data)
        else:
            parsed = self._parse(data)
            if parsed is None:
                return read_rasterio(path(), out)
            self._remember(parsed, data)
            header, strips = parsed.header, parsed.strips
        end = max(offset + count for offset, count in strips)
        if end > len(data):
            raise RasterError("truncated", f"{len(data)} bytes, its strips end at {end}")
        if parsed.shape != out.shape:
            raise RasterError("wrong-size", f"{_size(parsed.shape)} pixels, not {_size(out.shape)}")
        if parsed.type != (16, 1):
            raise RasterError("wrong-type", f"{_type_name(*parsed.type)}, not uint16")
        _take(parsed, strips, data, out)
        return header

    def _read_usual(self, path: str, out: np.ndarray) -> Header | None:
        """Read a file that is like the last one of its shape in one call, its pixels to where they belong.

        None where it is another after all; `out` then holds nothing of worth. Rasters of one shape that lie in one
        place have the same Header, not only an equal one.
        """
        usual = self._usual.get(out.shape)
        if usual is None:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.preadv(descriptor, (usual.head, out.data.cast("B"), self._beyond), 0)
        finally:
            os.close(descriptor)
        if size != len(usual.head) + out.nbytes:
            return None
        return self._header(usual, usual.head, out)

    def _take_usual(self, data: bytes, out: np.ndarray) -> Header | None:
        """The same from a file's bytes."""
        usual = self._usual.get(out.shape)
        if usual is None or len(data) != len(usual.front) + out.nbytes:
            return None
        begin = len(usual.front)
        header = self._header(usual, data[:begin], out)
        if header is not None:
            out.data.cast("B")[:] = memoryview(data)[begin:]
        return header

    def _header(self, usual: _Usual, head: bytes | bytearray, out: np.ndarray) -> Header | None:
        """The header of a file that begins with `head`; None where it is of another kind."""
        if head != usual.front:
            front = bytes(head)
            parsed = self._known.get(kind_of(front, *usual.layout))
            if parsed is None or (parsed.dtype, parsed.shape, parsed.start) != ("<u2", out.shape, len(front)):
                return None
            usual.front, usual.header = front, moved(parsed, front)
        return usual.header

    def _parse(self, data: bytes) -> Strips | None:
        if len(data) < 8:
            raise RasterError("truncated", f"{len(data)} bytes, too short for a TIFF")
        try:
            return parse(data)
        except ValueError as error:
            raise RasterError("truncated", f"{len(data)} bytes, and {error}") from None

    def _remember(self, parsed: Strips, data: bytes) -> None:
        if parsed.type != (16, 1) or not parsed.holes or not parsed.values_end <= parsed.start < CHUNK:
            return
        if len(self._known) >= KNOWN:
            self._known.clear()
        layout = parsed.holes, parsed.values_end
        self._layouts[data[:10], parsed.shape] = layout
        self._known[kind_of(data, *layout)] = parsed
        if parsed.dtype == "<u2" and len(data) == parsed.end:
            front = data[: parsed.start]
            self._usual[parsed.shape] = _Usual(layout, front, parsed.header, bytearray(front))


def _contents(path: str, pixels: int) -> bytes | None:
    """All bytes of a file; None where it is so large that it should not be read whole."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, CHUNK)
        if len(data) < CHUNK:
            return data
        size = os.fstat(descriptor).st_size
        if size > pixels + SLACK:
            return None
        pieces = [data]
        while piece := os.read(descriptor, CHUNK):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def _take(parsed: Strips, strips: tuple[tuple[int, int], ...], data: bytes, out: np.ndarray) -> None:
    """Copy the strips into `out`, uint16 (H, W), decompressed where they must be."""
    if parsed.dtype:
        out[...] = np.frombuffer(data, parsed.dtype, out.size, parsed.start).reshape(out.shape)
        return
    height, width = parsed.shape
    pieces = []
    for index, (offset, count) in enumerate(strips):
        strip = data[offset : offset + count]
        if parsed.compression != NONE:
            strip = _inflated(index, strip, 2 * width * parsed.rows)
        size = 2 * width * min(parsed.rows, height - index * parsed.rows)
        if len(strip) < size:
            raise RasterError("truncated", f"strip {index} holds {len(strip)} of {size} bytes")
        pieces.append(strip[:size])
    pixels = np.frombuffer(b"".join(pieces), parsed.order + "u2").reshape(out.shape)
    if parsed.predictor == 2:  # each pixel is stored as its difference from its left neighbour, modulo 2^16
        np.add.accumulate(pixels, axis=1, dtype=np.uint16, out=out)
    else:
        out[...] = pixels


def _inflated(index: int, strip: bytes, most: int) -> bytes:
    """The content of a zlib stream of at most `most` bytes, its checksum compared (which GDAL leaves undone)."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(strip, most + 1)
    except zlib.error as error:
        raise RasterError("unreadable", f"strip {index} does not decompress ({error})") from None
    if len(content) > most:
        raise RasterError("unreadable", f"strip {index} holds more than its rows")
    if not stream.eof:
        raise RasterError("truncated", f"strip {index} ends too early")
    return content


def read_rasterio(path: str, out: np.ndarray) -> Header:
    """The same as `Reader.read` through GDAL, for every TIFF that is not plain strips."""
    import rasterio
    from rasterio.errors import RasterioError

    from ingest.reading.deflate import check_raster  # which imports this module

    try:
        with (
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1"),
            rasterio.open(path, driver="GTiff") as source,
        ):
            if source.count != 1:
                raise RasterError("wrong-bands", f"{source.count} bands in one file, not 1")
            if source.shape != out.shape:
                raise RasterError("wrong-size", f"{_size(source.shape)} pixels, not {_size(out.shape)}")
            if source.dtypes[0] != out.dtype:
                raise RasterError("wrong-type", f"{source.dtypes[0]}, not {out.dtype}")
            if int(np.prod(source.block_shapes[0])) > MAX_BLOCK:
                raise RasterError("unreadable", f"blocks of {_size(source.block_shapes[0])} pixels")
            source.read(1, out=out)
            check_raster(source, path)
            code = source.crs.to_epsg() if source.crs else None
            placed = bool(source.crs) or not source.transform.is_identity
            transform = tuple(float(value) for value in source.transform[:6]) if placed else None
            return Header(code or 0, transform, source.nodata)  # type: ignore[arg-type]
    except RasterioError as error:
        text = " ".join(str(error).split())
        raise RasterError("unreadable", text.replace(path, "it").replace(os.path.basename(path), "it")) from None


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _type_name(bits: int, kind: int) -> str:
    return f"{ {1: 'uint', 2: 'int', 3: 'float', 5: 'complex'}.get(kind, 'type') }{bits}"
