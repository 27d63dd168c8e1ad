"""A small writer of classic TIFFs (TIFF 6.0) that can lay one out in the ways that rasterio does not."""

import struct
import zlib

import numpy as np

LETTERS = {2: "s", 3: "H", 4: "I", 12: "d"}


def tiff(
    pixels: np.ndarray,
    order: str = "<",
    rows: int = 0,
    counts_kind: int = 4,
    offsets_kind: int = 4,
    gap: int = 0,
    backwards: bool = False,
    values_last: bool = False,
    deflate: bool = False,
    predictor: int = 1,
    place: tuple[int, float, float, float] | None = (32633, 10.0, 400000.0, 5300000.0),
    nodata: str | None = None,
    extra: dict[int, tuple[int, tuple[int, ...]]] | None = None,
) -> bytes:
    """Bytes of a TIFF of `pixels` (H, W).

    `rows`: rows a strip (0: all); `gap`: bytes between strips; `backwards`: the last strip comes first; `values_last`:
    tag values behind the pixels; `place`: EPSG code, pixel size, left, top; `extra`: more tags, tag → (kind, values).
    """
    height, width = pixels.shape
    rows = rows or height
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    if predictor == 2:
        stored = stored.copy()
        stored[:, 1:] = np.diff(pixels, axis=1).astype(stored.dtype)
    strips = [stored[top : top + rows].tobytes() for top in range(0, height, rows)]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    tags: dict[int, tuple[int, tuple]] = {
        256: (3, (width,)),
        257: (3, (height,)),
        258: (3, (8 * pixels.dtype.itemsize,)),
        259: (3, (8 if deflate else 1,)),
        262: (3, (1,)),
        273: (offsets_kind, (0,) * len(strips)),
        277: (3, (1,)),
        278: (3, (rows,)),
        279: (counts_kind, tuple(map(len, strips))),
        339: (3, ({"u": 1, "i": 2, "f": 3}[pixels.dtype.kind],)),
    }
    if predictor != 1:
        tags[317] = (3, (predictor,))
    if place:
        epsg, size, left, top = place
        tags[33550] = (12, (size, size, 0.0))
        tags[33922] = (12, (0.0, 0.0, 0.0, left, top, 0.0))
        tags[34735] = (3, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, epsg))
    if nodata is not None:
        tags[42113] = (2, (nodata.encode() + b"\0",))
    tags |= extra or {}

    def encode(kind: int, values: tuple) -> tuple[int, bytes]:
        if kind == 2:
            return len(values[0]), values[0]
        return len(values), struct.pack(f"{order}{len(values)}{LETTERS[kind]}", *values)

    directory_end = 8 + 2 + 12 * len(tags) + 4
    outside = sum(
        len(data) + len(data) % 2 for kind, values in tags.values() if len(data := encode(kind, values)[1]) > 4
    )
    position = directory_end if values_last else directory_end + outside
    placed: dict[int, int] = {}
    sequence = list(enumerate(strips))
    for number, strip in reversed(sequence) if backwards else sequence:
        placed[number] = position
        position += len(strip) + gap
    tags[273] = (offsets_kind, tuple(placed[number] for number in range(len(strips))))
    values_at = position if values_last else directory_end
    entries, values = b"", b""
    for tag, (kind, content) in sorted(tags.items()):
        count, data = encode(kind, content)
        if len(data) > 4:
            inline = struct.pack(order + "I", values_at + len(values))
            values += data + bytes(len(data) % 2)
        else:
            inline = data.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, count) + inline
    magic = b"II*\0" if order == "<" else b"MM\0*"
    out = bytearray(max(position, values_at + len(values)))
    out[:8] = magic + struct.pack(order + "I", 8)
    out[8:directory_end] = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    out[values_at : values_at + len(values)] = values
    for number, strip in enumerate(strips):
        out[placed[number] : placed[number] + len(strip)] = strip
    return bytes(out)
