"""The rasters of one date of an SSL4EO-S12 place: the part that is taken of them, their product, and where they lie."""

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ingest.reading.files import Files, Folder
from ingest.reading.geotiff import RasterError, read_rasterio
from ingest.reading.tiff import Header
from ingest.source import Rejected

NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")
LARGEST = 1 << 22
Place = tuple[int, float, float, float, float]
"""EPSG code, left, top, width and (negative) height of a patch."""


def cropped(path: str, plane: np.ndarray, step: int) -> tuple[Header, tuple[int, int]]:
    """The middle of a larger raster, to the pixel of 60 m, and the raster's size in these. Raises RasterError."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path, driver="GTiff") as source:
            shape = source.shape
        if any(size % step for size in shape) or shape[0] < plane.shape[0] or shape[1] < plane.shape[1]:
            raise RasterError("wrong-size", f"{shape[1]} x {shape[0]} pixels, not {plane.shape[1]} x {plane.shape[0]}")
        if max(shape) > 4 * max(plane.shape):
            raise RasterError("wrong-size", f"{shape[1]} x {shape[0]} pixels, more than four times the patch")
    except RasterioError as error:
        raise RasterError("unreadable", " ".join(str(error).split()).replace(path, "it")) from None
    whole = np.empty(shape, np.uint16)
    header = read_rasterio(path, whole)
    top, left = ((size - own) // step // 2 * step for size, own in zip(shape, plane.shape, strict=True))
    plane[...] = whole[top : top + plane.shape[0], left : left + plane.shape[1]]
    return header.window(top, left), (shape[0] // step, shape[1] // step)


def product_of(files: Files, folder: str, content: Mapping[str, memoryview | None]) -> str:
    """The product's name by the date's `metadata.json`; "" where there is none."""
    try:
        if isinstance(files, Folder):
            data = files.read_folder(folder, ["metadata.json"], LARGEST).get("metadata.json")
        else:
            data = content.get("metadata.json")
        properties = json.loads(bytes(data)) if data is not None else {}
        product = properties.get("PRODUCT_ID", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return product if isinstance(product, str) and NAME.fullmatch(product) else ""


def place_of(rasters: Sequence[tuple[str, Header, tuple[int, int]]], told: str) -> Place:
    """Where a date's patch lies; zeros and ones where it has no place.

    Raises Rejected where its bands do not lie in one place.
    """
    first = rasters[0][1]
    if first.transform is None:
        if any(header.transform is not None for _, header, _ in rasters):
            raise Rejected(told, "misplaced", "some of its bands have a place and some have none")
        return 0, 0.0, 0.0, 1.0, -1.0
    for band, header, _ in rasters:
        if header.transform is not None and not (
            np.isfinite(header.transform).all() and header.transform[0] * header.transform[4]
        ):
            raise Rejected(told, "misplaced", f"{band} has a transform of {header.transform}")
    tolerance = 0.05 * abs(first.transform[0])
    for shift in (0.0, 0.5):  # corners agree, or the centres of the first pixels
        boxes = [_box(header, size, shift) for _, header, size in rasters]
        apart = [
            band
            for (band, header, _), box in zip(rasters, boxes, strict=True)
            if header.epsg != first.epsg
            or max(abs(one - other) for one, other in zip(box, boxes[0], strict=True)) > tolerance
        ]
        if not apart:
            return first.epsg, *boxes[0]
    raise Rejected(told, "misplaced", f"{apart[0]} lies elsewhere than the date's other bands")


def _box(header: Header, shape: tuple[int, int], shift: float) -> tuple[float, float, float, float]:
    """Left, top, width and (negative) height, moved by `shift` pixels; infinite where the raster has no place."""
    if header.transform is None:
        return (float("inf"),) * 4
    a, _, c, _, e, f = header.transform
    return c + shift * a, f + shift * e, a * shape[1], e * shape[0]
