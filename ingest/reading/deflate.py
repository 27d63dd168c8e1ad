"""Checksums of Deflate-compressed TIFFs: each strip or tile is a zlib stream that ends in an Adler-32 of its content,
which GDAL and Pillow leave uncompared. Damage that still decompresses would come in as other pixels."""

import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ingest.reading.geotiff import RasterError

DEFLATE = (8, 32946)
"""What TIFF calls zlib streams: Adobe's number, and the older one."""
PIECE = 1 << 20
Fetch = Callable[[int, int], bytes]
"""Bytes of a file: (from, how many)."""
WITHIN = re.compile(r"/vsisubfile/(\d+)_(\d+),(.+)")


def check_raster(source: Any, path: str, window: Any = None) -> None:
    """Compare the checksums of an opened rasterio dataset's blocks, of a window those that it takes.

    `path`: as GDAL calls the file, a plain one or a part of one; others are not looked at. Raises RasterError
    `unreadable`.
    """
    if not deflated(source) or (path.startswith("/vsi") and not WITHIN.fullmatch(path)):
        return
    within = WITHIN.fullmatch(path)
    first, name = (int(within[1]), within[3]) if within else (0, path)
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        check(blocks(source, window), lambda at, count: os.pread(descriptor, count, first + at))
    finally:
        os.close(descriptor)


def deflated(source: Any) -> bool:
    """Whether an opened rasterio dataset is compressed by Deflate."""
    return bool(source.profile.get("compress") == "deflate")


def blocks(source: Any, window: Any = None) -> Iterator[tuple[int, int]]:
    """(from, bytes) of the blocks of a rasterio dataset, or of those in a window; those without pixels left out."""
    height, width = source.block_shapes[0]
    top, left, bottom, right = 0, 0, source.height, source.width
    if window is not None:
        top, left = int(window.row_off), int(window.col_off)
        bottom, right = top + int(window.height), left + int(window.width)
    bands = (1,) if source.profile.get("interleave") == "pixel" else source.indexes
    for band in bands:
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                at = source.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=band)
                count = source.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=band)
                if at and count:
                    yield int(at), int(count)


def check(places: Iterable[tuple[int, int]], fetch: Fetch) -> None:
    """Compare the checksums of the zlib streams at these places. Raises RasterError `unreadable`."""
    for number, (at, count) in enumerate(places):
        stream = zlib.decompressobj()
        try:
            for begin in range(at, at + count, PIECE):
                piece: bytes = fetch(begin, min(PIECE, at + count - begin))
                while piece and not stream.eof:
                    stream.decompress(piece, PIECE)
                    piece = stream.unconsumed_tail
        except zlib.error as error:
            raise RasterError("unreadable", f"block {number} does not decompress ({error})") from None


def check_tags(tags: Any, data: Sequence[int] | bytes | memoryview) -> None:
    """The same of a TIFF's tags as Pillow gives them, and all its bytes."""
    if tags.get(259) not in DEFLATE:
        return
    offsets, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    check(zip(offsets, counts, strict=False), lambda at, count: bytes(data[at : at + count]))
