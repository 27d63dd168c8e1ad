"""`samples.parquet`: a row a sample, in the order of splits, shards and positions."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards import atomic
from shards.errors import BandstreamError

FILE = "samples.parquet"
COLUMNS = ("key", "split", "shard", "position", "lon", "lat", "date")
"""What every catalogue has; one column of class indices a label set follows, then what the source adds."""


def label_column(name: str, first: str) -> str:
    """The column of a label set: `labels` for the manifest's first, `labels_NAME` for further ones."""
    return "labels" if name == first else f"labels_{name}"


def write(folder: Path, columns: Mapping[str, Sequence[Any]], lists: Sequence[str] = ()) -> None:
    """Write the catalogue atomically.

    `columns` maps names to equally long sequences; those named in `lists` hold lists of class indices.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"a catalogue without {missing}")
    types = {"position": pa.int32(), "lon": pa.float64(), "lat": pa.float64()}
    types |= dict.fromkeys(lists, pa.list_(pa.int32()))
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    atomic.write_bytes(folder / FILE, buffer.getvalue())


def read(folder: Path) -> Any:
    """The catalogue as a `pyarrow.Table`. Raises BandstreamError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(folder / FILE)
    except (OSError, pa.ArrowException) as error:
        raise BandstreamError(f"{folder / FILE} cannot be read ({error}): ingest again") from None
