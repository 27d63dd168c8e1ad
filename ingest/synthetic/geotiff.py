"""GeoTIFFs as BigEarthNet v2 has them, by writing pixels, place and zone into the bytes of a template.

The template is made once by rasterio, so that its tags are GDAL's; `rasterio` takes a millisecond a file, this twenty
microseconds. Bands are uncompressed strips, reference maps Deflate strips with the horizontal predictor (TIFF 6.0,
section 14); both have GDAL's nodata "0" and the keys of WGS 84 / UTM (GeoTIFF 1.1, OGC 19-008).
"""

import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

OFFSETS, COUNTS, TIE_POINT, GEO_KEYS, GEO_TEXT = 273, 279, 33922, 34735, 34737
PROJECTED_CRS = 3072
ZONE = 33
"""The zone of the template."""
SIZES = {2: 1, 3: 2, 4: 4, 12: 8}


@dataclass(frozen=True)
class Template:
    """Header of a raster of size x size pixels and where in it the parts lie that change from file to file."""

    header: bytes
    strips: tuple[tuple[int, int], ...]
    """First row and row behind the last of each strip."""
    tie_point: int
    epsg: int
    zone: int
    offsets: int
    counts: int

    def placed(self, corner: tuple[int, int], zone: int) -> bytearray:
        """The header with the upper left corner (easting, northing in metres) and the northern UTM zone filled in."""
        header = bytearray(self.header)
        struct.pack_into("<2d", header, self.tie_point, *corner)
        struct.pack_into("<H", header, self.epsg, 32600 + zone)
        header[self.zone : self.zone + 2] = b"%02d" % zone
        return header

    def raw(self, pixels: np.ndarray, corner: tuple[int, int], zone: int) -> bytes:
        """The file of an uncompressed raster: pixels uint16 (size, size)."""
        return b"".join((self.placed(corner, zone), pixels.tobytes()))

    def deflated(self, pixels: np.ndarray, corner: tuple[int, int], zone: int) -> bytes:
        """The file of a Deflate raster with predictor 2: pixels uint16 (size, size)."""
        header = self.placed(corner, zone)
        differences = pixels.copy()
        differences[:, 1:] -= pixels[:, :-1]
        parts: list[bytes | bytearray] = [header]
        position = len(header)
        for number, (top, bottom) in enumerate(self.strips):
            packed = zlib.compress(differences[top:bottom].tobytes(), 1)
            struct.pack_into("<I", header, self.offsets + 4 * number, position)
            struct.pack_into("<I", header, self.counts + 4 * number, len(packed))
            parts.append(packed)
            position += len(packed)
        return b"".join(parts)


@cache
def template(size: int, gsd: int, *, deflate: bool = False) -> Template:
    """The template of size x size pixels of `gsd` metres."""
    import rasterio
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine

    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "height": size, "width": size, "nodata": 0}
    if deflate:
        profile |= {"compress": "deflate", "predictor": 2}
    with rasterio.Env(GDAL_NUM_THREADS=1), MemoryFile() as memory:
        place = Affine(gsd, 0, 300000, 0, -gsd, 5400000)
        with memory.open(**profile, crs=f"EPSG:{32600 + ZONE}", transform=place) as raster:
            # different values a row, or GDAL would let strips share or skip their bytes
            raster.write(np.arange(size * size, dtype=np.uint16).reshape(1, size, size))
        data = memory.read()
    tags = _tags(data)
    rows = struct.unpack_from("<H", data, tags[278][2])[0]
    strips = tuple((top, min(top + rows, size)) for top in range(0, size, rows))
    first = _numbers(data, tags[OFFSETS])[0]
    if not deflate and first + 2 * size * size != len(data):
        raise AssertionError("GDAL put something behind the first pixel of the template other than pixels")
    keys = _numbers(data, tags[GEO_KEYS])
    entry = 4 * [keys[i] for i in range(4, len(keys), 4)].index(PROJECTED_CRS) + 4 + 3
    text = tags[GEO_TEXT][2]
    return Template(
        header=data[:first],
        strips=strips,
        tie_point=tags[TIE_POINT][2] + 24,  # behind (column, row, 0)
        epsg=tags[GEO_KEYS][2] + 2 * entry,
        zone=data.index(b"%02dN" % ZONE, text),
        offsets=tags[OFFSETS][2],
        counts=tags[COUNTS][2],
    )


def _tags(data: bytes) -> dict[int, tuple[int, int, int]]:
    """Tag → (type, count, position of its first value) of a little-endian classic TIFF."""
    mark, start = struct.unpack_from("<4sI", data)
    if mark != b"II*\0":
        raise AssertionError("the template is no little-endian classic TIFF")
    found = {}
    for number in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * number
        tag, kind, count, value = struct.unpack_from("<HHII", data, at)
        found[tag] = kind, count, at + 8 if SIZES[kind] * count <= 4 else value
    return found


def _numbers(data: bytes, tag: tuple[int, int, int]) -> tuple[int, ...]:
    kind, count, at = tag
    return struct.unpack_from(f"<{count}{'HI'[kind - 3]}", data, at)
