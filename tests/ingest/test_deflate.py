"""Checksums that GDAL and Pillow leave uncompared: of Deflate in TIFFs, of PNG."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from ingest.archives.members import read_array, read_classes
from ingest.reading.geotiff import RasterError, read_rasterio
from ingest.reading.picture import read_picture
from ingest.reading.raster import read_bands
from ingest.scenes.model import Raster
from ingest.scenes.raster import read_rows
from tests.ingest import pictures, rasters

PIXELS = rasters.scene(0, 2, 64)


def damaged(path: Path, last: bool = False) -> Path:
    """The same with the checksum of its first, or last, block changed."""
    with rasterio.open(path) as source:
        number = (source.height - 1) // source.block_shapes[0][0] if last else 0
        place = (int(source.get_tag_item(f"BLOCK_{what}_0_{number}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
        data = bytearray(path.read_bytes())
        data[sum(place) - 1] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("layout", [{}, {"interleave": "pixel"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_rasters(tmp_path: Path, layout: dict[str, object]) -> None:
    options = {"compress": "deflate", "predictor": 2, "blockysize": 16, **layout}
    whole = rasters.write(tmp_path / "whole.tif", PIXELS, **options)
    out = np.empty((2, 64, 64), np.uint16)
    read_bands(str(whole), out)
    np.testing.assert_array_equal(out, PIXELS)
    np.testing.assert_array_equal(read_array(whole.read_bytes(), "x.tif"), PIXELS)
    path = damaged(whole, last=True)
    within = tmp_path / "archive.tar"
    within.write_bytes(b"before" + path.read_bytes() + b"behind")
    size = path.stat().st_size
    for name in (str(path), f"/vsisubfile/6_{size},{within}"):
        with pytest.raises(RasterError, match="^unreadable: "):  # of some layouts GDAL does compare it
            read_bands(name, out)
        window = np.empty((2, 16, 16), np.uint16)
        read_bands(name, window, window=(0, 0))  # the damage lies in another block
        np.testing.assert_array_equal(window, PIXELS[:, :16, :16])
        with pytest.raises(RasterError, match="^unreadable: "):
            read_bands(name, window, window=(48, 0))
    with pytest.raises(RasterError, match="^unreadable: "):
        read_array(path.read_bytes(), "x.tif")


def test_single_bands(tmp_path: Path) -> None:
    plane = PIXELS[0]
    path = rasters.write(tmp_path / "x.tif", plane, compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    out = np.empty_like(plane)
    raster = Raster("x.tif", str(path), plane.shape, 32633, (10, 0, 0, 0, -10, 0))
    read_rasterio(str(path), out)
    np.testing.assert_array_equal(out, plane)
    np.testing.assert_array_equal(read_rows(raster, 0, 64, 64), plane)
    damaged(path)
    with pytest.raises(RasterError, match="^unreadable: "):
        read_rasterio(str(path), out)
    with pytest.raises(RasterError, match="^unreadable: "):
        read_rows(raster, 0, 16, 64)
    np.testing.assert_array_equal(read_rows(raster, 16, 64, 64), plane[16:])


def test_pictures() -> None:
    pixels = pictures.pixels(0)
    data = pictures.encode(pixels, "TIFF", compression="tiff_adobe_deflate")
    np.testing.assert_array_equal(read_picture(data, "x.tif", None), pixels.transpose(2, 0, 1))
    with Image.open(io.BytesIO(data)) as image:
        at, count = image.tag_v2[273][0], image.tag_v2[279][0]  # type: ignore[attr-defined]
    changed = bytearray(data)
    changed[at + count - 1] ^= 1
    with pytest.raises(RasterError, match="^unreadable: block 0 .*incorrect data check"):
        read_picture(bytes(changed), "x.tif", None)
    png = bytearray(pictures.encode(pixels))
    at = png.index(b"IDAT")
    (count,) = struct.unpack_from(">I", png, at - 4)
    png[at + 4 + count] ^= 1  # of the chunk's checksum
    with pytest.raises(RasterError, match="unreadable"):
        read_picture(bytes(png), "x.png", None)
    mask = bytearray(pictures.encode(np.zeros((8, 8), np.uint8)))
    at = mask.index(b"IDAT")
    (count,) = struct.unpack_from(">I", mask, at - 4)
    mask[at + 4 + count] ^= 1
    with pytest.raises(RasterError, match="unreadable"):
        read_classes(bytes(mask), "x.png", 2)
