"""Members of a foreign sample from their bytes: arrays, class maps, labels, fields of a JSON. Nothing is unpickled.

What a header says is held against the bytes that are there before anything of its size is made.
"""

import io
import json
import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from ingest.reading.deflate import blocks, check, deflated
from ingest.reading.geotiff import MAX_BLOCK, RasterError
from ingest.reading.picture import MOST_BYTES, read_indices, read_picture

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp")
RASTERS = ("tif", "tiff")
ARRAYS = ("npy", *RASTERS, *PICTURES)
IGNORE = 255
"""The number of pixels without a class, in masks."""


def suffix_of(member: str) -> str:
    """`npy` of `s2.npy`, and of `npy`."""
    return member.rpartition(".")[2]


def read_array(data: bytes, member: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The array in a `.npy`, a `.tif` (bands, H, W) or a picture (3, H, W); `size` (H, W) to scale pictures to.

    Raises RasterError: `unreadable`, `truncated`, `wrong-type`, `too-large`, and those of `read_picture`.
    """
    suffix = suffix_of(member)
    if suffix == "npy":
        return _read_npy(data)
    if suffix in RASTERS:
        return _read_tif(data)
    return read_picture(data, member, size)


def _read_npy(data: bytes) -> np.ndarray:
    """NumPy's format (NEP 1), versions 1 and 2: a view of `data`."""
    try:
        length = int.from_bytes(data[8:10], "little") + 10 if data[6:7] == b"\1" else -1
        if length < 0:
            length = int.from_bytes(data[8:12], "little") + 12
        shape, fortran, dtype, begin = _npy_header(bytes(data[: min(length, 1 << 16)]))
    except Exception as error:  # whatever NumPy's parser makes of damaged bytes
        raise RasterError("unreadable", f"no npy header of an array ({type(error).__name__})") from None
    if dtype.hasobject or dtype.names or dtype.kind not in "uifb":
        raise RasterError("wrong-type", f"an array of {dtype}, not of numbers")
    count = math.prod(shape)
    if len(data) - begin < count * dtype.itemsize:
        raise RasterError("truncated", f"{len(data) - begin:,} bytes of {count * dtype.itemsize:,}")
    array = np.frombuffer(data, dtype, count, begin)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


@lru_cache(maxsize=256)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran's order, dtype, where the pixels begin. Samples of a set have few different headers."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged text
        shape, fortran, dtype = read(stream)
    if any(side < 0 for side in shape):
        raise ValueError("a negative side")
    return shape, fortran, dtype, stream.tell()


def _read_tif(data: bytes) -> np.ndarray:
    """All bands of a TIFF, (bands, H, W), through GDAL."""
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.io import MemoryFile

    with MemoryFile(data) as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one that lies nowhere
        try:
            with (
                rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1"),
                memory.open(driver="GTiff") as source,
            ):
                if len(set(source.dtypes)) != 1:
                    raise RasterError(
                        "wrong-type", f"bands of different types: {', '.join(sorted(set(source.dtypes)))}"
                    )
                size = source.count * source.height * source.width * np.dtype(source.dtypes[0]).itemsize
                if size > MOST_BYTES or math.prod(source.block_shapes[0]) > MAX_BLOCK:
                    raise RasterError("too-large", f"{source.count} x {source.height} x {source.width} by its header")
                array: np.ndarray = source.read()
                if deflated(source):
                    check(blocks(source), lambda at, count: data[at : at + count])
                return array
        except RasterioError as error:
            # rasterio puts GDAL's words behind its own; the file in memory is called otherwise each time
            text = " ".join(str(error.__cause__ or error).split()).replace(memory.name, "it")
            raise RasterError("unreadable", text.replace(memory.name.rpartition("/")[2], "it")) from None
        except (TypeError, ValueError) as error:  # a data type that NumPy does not have
            raise RasterError("unreadable", str(error)) from None


def read_classes(data: bytes, member: str, classes: int) -> np.ndarray:
    """A class map, integer (H, W), of a `.npy`, `.tif` or the stored numbers of a `.png`. Raises RasterError."""
    array = read_indices(data, member) if suffix_of(member) == "png" else read_array(data, member)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2:
        raise RasterError("wrong-size", f"a class map of shape {array.shape}")
    if array.dtype.kind not in "uib":
        raise RasterError("wrong-type", f"a class map of {array.dtype}")
    wrong = (array < 0) | ((array >= classes) & (array != IGNORE)) if array.dtype.kind != "b" else array & (classes < 2)
    if wrong.any():
        raise RasterError("unknown-class", f"{array[wrong][0]} in a map of {classes} classes ({IGNORE}: without one)")
    return array


@lru_cache(maxsize=4)  # several fields of one sample's are read
def read_json(data: bytes) -> Any:
    """A JSON, not to be changed. Raises RasterError."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RasterError("unreadable", f"no JSON ({type(error).__name__})") from None


def field_of(content: Any, field: str) -> Any:
    """A field of a JSON object; dots lead into objects inside it. Raises RasterError where there is none."""
    value = content
    if isinstance(content, Mapping) and field in content:
        return content[field]
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RasterError("no-metadata", f"it has no field {field}")
        value = value[part]
    return value


def read_label(value: Any, classes: Mapping[str, int]) -> tuple[str, tuple[int, ...]]:
    """Kind (`single`, `multilabel`) and class indices of a label: an index, a class's name, a list of such, or an array
    of 0 and 1. Raises RasterError on what is no class."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        if len(value) != len(classes) or not ((value == 0) | (value == 1)).all():
            raise RasterError("unknown-label", f"an array of {len(value)} numbers, not of {len(classes)} times 0 or 1")
        return "multilabel", tuple(np.flatnonzero(value).tolist())
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "ui":
        value = int(value)
    if isinstance(value, list):
        return "multilabel", tuple(sorted({_index(one, classes) for one in value}))
    return "single", (_index(value, classes),)


def _index(value: Any, classes: Mapping[str, int]) -> int:
    if isinstance(value, str) and value in classes:
        return classes[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes):
        return value
    raise RasterError("unknown-label", f"{str(value)[:80]!r} is none of the {len(classes)} classes")


def read_text(data: bytes, member: str) -> Any:
    """The index in a `cls`, the name in any other text. Raises RasterError."""
    try:
        text = data.decode().strip()
        return int(text) if suffix_of(member) == "cls" else text
    except ValueError:
        what = "an index" if suffix_of(member) == "cls" else "text"
        raise RasterError("unknown-label", f"{data[:40]!r} is not {what}") from None
