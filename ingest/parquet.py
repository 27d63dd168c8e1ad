"""GeoTIFFs that are values of a Parquet file's columns, a row a place, a column a band."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ingest.geotiff import RasterError, Reader
from ingest.source import Array, Rejected
from ingest.tiff import Header

NAMES = ("grid_cell", "product_id")
LARGEST = 1 << 26
"""A GeoTIFF of more bytes is none of a cell's band."""


def parquet(path: Path) -> Any:
    """The file as a `pyarrow.parquet.ParquetFile`, which is a context manager. Raises OSError, pa.ArrowException."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def rows_of(file: Any, bands: Sequence[str], rows: Sequence[int]) -> Iterator[tuple[dict[str, str], dict[str, bytes]]]:
    """(names, GeoTIFF a band) of some rows, in ascending order; a band whose value is null is left out.

    Raises OSError, pa.ArrowException and ValueError where the file is damaged.
    """
    ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
    for row in rows:
        group = int(np.searchsorted(ends, row, side="right"))
        if group >= len(ends):
            raise ValueError(f"there is no row {row}")
        within = row - (int(ends[group - 1]) if group else 0)
        batches = file.iter_batches(batch_size=1, row_groups=[group], columns=[*NAMES, *bands])
        for number, batch in enumerate(batches):
            if number == within:
                values = {name: batch.column(name)[0].as_py() for name in batch.schema.names}
                if any(isinstance(values[band], str) for band in bands):
                    raise ValueError("bands that are text")
                names = {name: str(values.pop(name) or "") for name in NAMES}
                yield names, {band: value for band, value in values.items() if value is not None}
                break
        else:
            raise ValueError(f"there is no row {row}")


def side_of(data: bytes) -> int:
    """Side of a square GeoTIFF in pixels; 0 where it is none."""
    from rasterio.errors import RasterioError
    from rasterio.io import MemoryFile

    try:
        with MemoryFile(data) as memory, memory.open(driver="GTiff") as source:
            return int(source.width) if source.width == source.height else 0
    except RasterioError:
        return 0


def decode(
    reader: Reader,
    tiffs: Mapping[str, bytes],
    planes: Mapping[str, np.ndarray],
    arrays: Mapping[str, Array],
    told: str,
) -> Header:
    """Read all bands of a place into `planes`, member → (bands, H, W); the header of the first.

    Raises Rejected where one is missing, cannot be taken, or lies elsewhere than the first.
    """
    first: Header | None = None
    box: tuple[float, ...] | None = None
    for member, array in arrays.items():
        for band, plane in zip(array.bands, planes[member], strict=True):
            data = tiffs.get(band)
            if data is None:
                raise Rejected(told, "missing-band", f"{band} is not there")
            if len(data) > LARGEST:
                raise Rejected(f"{told}/{band}", "unreadable", f"{len(data):,} bytes")
            try:
                header = _take(reader, data, plane)
            except RasterError as error:
                raise Rejected(f"{told}/{band}", error.reason, error.detail) from None
            own = box_of(header, plane.shape)
            first, box = first or header, box if first else own
            if header.epsg != first.epsg or own != box:
                raise Rejected(f"{told}/{band}", "misplaced", "it lies elsewhere than the other bands")
    if first is None:
        raise ValueError("no bands")
    return first


def _take(reader: Reader, data: bytes, plane: np.ndarray) -> Header:
    from rasterio.io import MemoryFile

    with ExitStack() as stack:
        return reader.take(data, plane, lambda: str(stack.enter_context(MemoryFile(data)).name))


def box_of(header: Header, shape: tuple[int, ...]) -> tuple[float, ...] | None:
    """Left, top, right and bottom to the centimetre; None where the raster has no place."""
    if header.transform is None:
        return None
    a, _, c, _, e, f = header.transform
    return tuple(round(value, 2) for value in (c, f, c + a * shape[1], f + e * shape[0]))


def short(error: Exception) -> str:
    """What an error says, in one line of moderate length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
