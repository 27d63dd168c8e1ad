"""Rasters of products, read in windows of whole rows: JPEG 2000 and GeoTIFF through GDAL, Zarr through `zarr`.

GDAL decodes in one thread here: with several, its OpenJPEG driver gives what it has of a truncated file and says so on
stderr alone; with one, it raises (GDAL 3.10; `tests/ingest/test_scene.py` watches that).
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ingest.reading.deflate import check_raster
from ingest.reading.geotiff import RasterError
from ingest.scenes.model import Clouds, Grid, Raster

DRIVERS = {".jp2": "JP2OpenJPEG", ".tif": "GTiff", ".tiff": "GTiff"}
CACHE_MB = 128
"""Of decoded blocks: more than a row of a tile's JPEG 2000 tiles, 11 of 1024 x 1024, takes."""
MAX_BLOCK = 1 << 24
"""Pixels of the largest block that GDAL is let to allocate."""
CLOUDY = {
    "scl": "classes 3 (shadow), 8, 9 (cloud, medium and high probability), 10 (cirrus) of the L2A scene classification",
    "classi": "bands 1 (opaque) and 2 (cirrus) of MSK_CLASSI_B00",
    "flags": "bits 1 (opaque) and 2 (cirrus) of the L1C classification",
    "gml": "polygons of MSK_CLOUDS_B00",
}
"""What counts as cloud, by the kind of mask."""
SHADOW, CLOUD_MEDIUM, CLOUD_HIGH, CIRRUS = 3, 8, 9, 10


def plain(error: BaseException, *paths: str) -> str:
    """What an error says, in one line and without these paths, which are of this machine."""
    text = " ".join(str(error).split())
    for path in paths:
        text = text.replace(path, "it")
    return text[:300]


@contextmanager
def gdal(where: str) -> Iterator[None]:
    """GDAL set so that nothing is read but what is asked for; its errors as RasterError."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    settings: dict[str, Any] = {
        "GDAL_NUM_THREADS": "1",
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_PAM_ENABLED": "NO",
        "GDAL_CACHEMAX": CACHE_MB << 20,
    }
    try:
        with rasterio.Env(**settings), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # told as an error of one line elsewhere
            yield
    except RasterioError as error:
        behind: BaseException = error
        while behind.__cause__ is not None:
            behind = behind.__cause__
        raise RasterError("unreadable", plain(behind, where).replace(os.path.basename(where), "it")) from None


def look(name: str, where: str, dtype: str, count: int = 1) -> Raster:
    """The raster that GDAL calls `where`. Raises RasterError where it is not what is expected, FileNotFoundError."""
    import rasterio

    driver = DRIVERS.get(os.path.splitext(name)[1].lower(), "")
    with gdal(where), rasterio.open(where, driver=driver) as source:
        if source.count != count:
            raise RasterError("wrong-bands", f"{source.count} bands in one file, not {count}")
        if source.dtypes[0] != dtype:
            raise RasterError("wrong-type", f"{source.dtypes[0]}, not {dtype}")
        if int(np.prod(source.block_shapes[0])) > MAX_BLOCK:
            raise RasterError(
                "unreadable", f"blocks of {source.block_shapes[0][1]} x {source.block_shapes[0][0]} pixels"
            )
        epsg = source.crs.to_epsg() if source.crs else 0
        transform = tuple(float(value) for value in source.transform[:6])
        nodata = int(source.nodata) if source.nodata and 0 < source.nodata <= 65535 else 0
        return Raster(name, where, (source.height, source.width), epsg or 0, transform, count=count, nodata=nodata)


def read_rows(raster: Raster, start: int, stop: int, columns: int) -> np.ndarray:
    """The first `columns` pixels of rows `start` to `stop`: (rows, columns), of several bands (bands, rows, columns).
    Nodata is 0.

    Raises RasterError where they cannot be read whole.
    """
    pixels = _read_zarr(raster, start, stop, columns) if raster.array else _read_gdal(raster, start, stop, columns)
    if raster.nodata:
        pixels[pixels == raster.nodata] = 0
    return pixels


def open_zarr(store: str) -> Any:
    """The group that lies in a folder or, where `store` is a .zip's path, NUL and a folder, in that. Raises whatever
    zarr does where there is none."""
    import zarr

    file, zipped, top = store.partition("\0")
    if not zipped:
        return zarr.open_group(zarr.storage.LocalStore(store, read_only=True), mode="r")
    return zarr.open_group(zarr.storage.ZipStore(file, mode="r"), path=top, mode="r")


def _read_zarr(raster: Raster, start: int, stop: int, columns: int) -> np.ndarray:
    try:
        array = open_zarr(raster.where)[raster.array]
        if array.shape != raster.shape:
            raise RasterError("unreadable", f"{raster.name} was changed while it was read")
        return np.array(array[start:stop, :columns])
    except RasterError:
        raise
    except Exception as error:  # whatever stores and decompressors raise on damaged bytes
        raise RasterError(
            "unreadable",
            f"{type(error).__name__}: {plain(error, raster.where.split(chr(0))[0])}",
        ) from None


def _read_gdal(raster: Raster, start: int, stop: int, columns: int) -> np.ndarray:
    import rasterio
    from rasterio.windows import Window

    driver = DRIVERS[os.path.splitext(raster.name)[1].lower()]
    with gdal(raster.where), rasterio.open(raster.where, driver=driver) as source:
        if source.shape != raster.shape or source.count != raster.count:
            raise RasterError("unreadable", f"{raster.name} was changed while it was read")
        window = Window(0, start, columns, stop - start)
        pixels: np.ndarray = source.read(1 if raster.count == 1 else None, window=window)
        check_raster(source, raster.where, window)
        return pixels


def cloudy(clouds: Clouds, grid: Grid, start: int, stop: int, columns: int) -> tuple[np.ndarray, int]:
    """Whether each pixel is cloud in rows `start` to `stop` of the grid, bool (rows / n, columns / n), and n.

    Both and `columns` are multiples of n. Raises RasterError.
    """
    if clouds.raster is None:
        n = 1 if grid.single else 6
        return _burnt(clouds, grid, start // n, stop // n, columns // n, n), n
    n = round(clouds.raster.transform[0] / grid.unit)
    values: Any = read_rows(clouds.raster, start // n, stop // n, columns // n)
    if clouds.kind == "scl":
        return (values == SHADOW) | ((values >= CLOUD_MEDIUM) & (values <= CIRRUS)), n
    flags: np.ndarray = (values[0] | values[1]) != 0 if clouds.kind == "classi" else (values & 3) != 0
    return flags, n


def _burnt(clouds: Clouds, grid: Grid, start: int, stop: int, columns: int, n: int) -> np.ndarray:
    """Polygons on the grid: a pixel is cloud where its centre lies in one."""
    from rasterio.features import rasterize
    from rasterio.transform import Affine

    size = grid.unit * n
    shapes = [({"type": "Polygon", "coordinates": [list(ring) for ring in rings]}, 1) for rings in clouds.polygons]
    if not shapes:
        return np.zeros((stop - start, columns), bool)
    place = Affine(size, 0, grid.left, 0, -size, grid.top - start * size)
    mask: np.ndarray = rasterize(shapes, (stop - start, columns), transform=place, dtype="uint8") != 0
    return mask
