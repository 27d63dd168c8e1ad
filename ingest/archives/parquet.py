"""Major TOM's Parquet files: a row a grid cell and product, whose bands are GeoTIFFs, a column a band."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ingest.archives.cells import Grid, recorded
from ingest.reading.geotiff import RasterError, Reader
from ingest.reading.native import LEVELS
from ingest.reading.spool import mark_of
from ingest.reading.tiff import Header
from ingest.source import Array, Rejected
from shards.errors import BandstreamError

LOOKED_AT = 16
"""Rows of a file that are looked at, at most, to know how large its cells are."""
METADATA = "metadata.parquet"
NAMES = ("grid_cell", "product_id")
LARGEST = 1 << 26
"""A GeoTIFF of more bytes is none of a cell's band."""


def files_of(inputs: Iterable[Path]) -> tuple[list[Path], Path | None]:
    """The Parquet files with images, and the one with metadata, None where there is none."""
    images: list[Path] = []
    metadata: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise BandstreamError(f"{path} does not exist: name the folder with images/*.parquet")
        if path.is_dir():
            inside = sorted(path.glob("*.parquet")) + sorted(path.glob("images/*.parquet"))
        else:
            inside = [path]
        metadata += [file for file in inside if file.name == METADATA]
        images += [file for file in inside if file.name != METADATA]
    if not images:
        raise BandstreamError(f"{' '.join(map(str, inputs))} holds no images/*.parquet of Major TOM")
    if len(metadata) > 1:
        raise BandstreamError(f"{metadata[0]} and {metadata[1]}: name one {METADATA}")
    return images, metadata[0] if metadata else None


def parquet(path: Path) -> Any:
    """The file as a `pyarrow.parquet.ParquetFile`, which is a context manager. Raises OSError, pa.ArrowException."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, page_checksum_verification=True)


def with_clouds(rows: Any, metadata: Path) -> Any:
    """The table of rows with a column `cloud`, null where the metadata tells none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(metadata, columns=["grid_cell", "product_id", "cloud_cover"])
        table = pa.table(
            {
                "cell": table["grid_cell"].cast(pa.string()),
                "product": table["product_id"].cast(pa.string()),
                "cloud": table["cloud_cover"].cast(pa.float64()),
            }
        )
    except (OSError, pa.ArrowException, KeyError) as error:
        raise BandstreamError(f"{metadata} cannot be read as Major TOM's metadata ({short(error)})") from None
    table = table.group_by(["cell", "product"]).aggregate([("cloud", "max")])
    table = table.select(["cell", "product", "cloud_max"]).rename_columns(["cell", "product", "cloud"])
    return rows.join(table, ["cell", "product"], join_type="left outer")


def grouped(rows: Any) -> Iterator[tuple[str, list[tuple[str, int, int, float | None]]]]:
    """(cell, [(product, file, row, cloud cover)]) of a sorted table."""
    current = None
    found: list[tuple[str, int, int, float | None]] = []
    for batch in rows.to_batches(8192):
        clouds = batch["cloud"].to_pylist() if "cloud" in rows.column_names else [None] * len(batch)
        columns = [batch[name].to_pylist() for name in ("cell", "product", "file", "row")]
        for cell, product, file, row, cloud in zip(*columns, clouds, strict=True):
            if cell != current:
                if found:
                    yield current or "", found
                current, found = cell, []
            found.append((product, file, row, cloud))
    if found:
        yield current or "", found


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
    if not data:  # which rasterio takes for a file to be written
        return 0
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
            if header.transform is not None and not np.isfinite(header.transform).all():
                raise Rejected(f"{told}/{band}", "misplaced", f"a transform of {header.transform}")
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
    """(left, bottom, right, top) to the centimetre; None where the raster has no place."""
    if header.transform is None:
        return None
    return tuple(round(value, 2) for value in header.bounds(shape))


def short(error: Exception) -> str:
    """What an error says, in one line of moderate length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def look(path: Path) -> Any:
    """Table of a file's rows (cell, product, row), its level, and the side of most of its first cells (0: none is
    sound); or why it cannot be taken."""
    import pyarrow as pa

    try:
        with parquet(path) as file:
            level = "L1C" if "B10" in file.schema_arrow.names else "L2A"
            missing = {"grid_cell", "product_id", *LEVELS[level]} - set(file.schema_arrow.names)
            if missing:
                return Rejected(path.name, "another-kind", f"it has no column {', '.join(sorted(missing))}")
            table = file.read(columns=["grid_cell", "product_id"])
            sides: Counter[int] = Counter()
            for number in range(min(len(table), LOOKED_AT)):
                _, tiffs = next(rows_of(file, ["B02"], [number]))
                if side := side_of(tiffs.get("B02", b"")):
                    sides[side] += 1
                if sides and max(sides.values()) >= 2:  # one alone may be damaged
                    break
            side = sides.most_common(1)[0][0] if sides else 0
            if side % 6:
                return Rejected(path.name, "another-kind", f"cells of {side} pixels, no multiple of 6")
            cells, products = (table[name].cast(pa.string()).fill_null("") for name in ("grid_cell", "product_id"))
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        return Rejected(path.name, "unreadable", f"not as Parquet ({short(error)})")
    numbers = pa.array(np.arange(len(table), dtype=np.int32))
    return pa.table({"cell": cells, "product": products, "row": numbers}), level, side


def cut_rows(grid: Grid, level: str, scratch: Path, work: tuple[Path, list[int]]) -> tuple[Path, list[Any]]:
    """Cut some rows of a file into records on scratch, unless an earlier run did: where they lie, and of damaged ones
    (row, what is told of it)."""
    import pyarrow as pa

    path, rows = work
    if not rows:
        return scratch / "none", []

    def fill(out: BinaryIO) -> list[tuple[int, list[str]]]:
        damaged: list[tuple[int, list[str]]] = []
        reader, planes = Reader(), grid.empty()
        with parquet(path) as file:
            for number, row in enumerate(rows):
                name = f"{path.name}, row {row}"
                try:
                    names, tiffs = next(rows_of(file, LEVELS[level], [row]))
                    name = f"{names['grid_cell']}/{names['product_id']}"
                    header = decode(reader, tiffs, planes, grid.arrays, name)
                except Rejected as rejection:
                    damaged.append((row, list(rejection.args)))
                except (OSError, pa.ArrowException, ValueError) as error:
                    if isinstance(error, OSError) and error.errno:
                        raise  # the file system's; Arrow's about damage have no number
                    damaged.append((row, [name, "unreadable", f"{path.name} cannot be read ({short(error)})"]))
                else:
                    grid.write(out, number, {"epsg": header.epsg, "transform": header.transform}, planes)
        out.truncate(len(rows) * grid.cell_bytes)
        return damaged

    records = scratch / f"cells-{mark_of(path, grid, rows)}"
    return records, recorded(records, fill)
