"""`samples.parquet`: a row a sample, in the order of splits, shards and positions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards import atomic
from shards.errors import BandstreamError

FILE = "samples.parquet"
COLUMNS = ("key", "split", "shard", "position", "lon", "lat", "date")
"""What every catalogue has; one column of class indices a label set follows, then what the source adds."""

Rows = Mapping[str, Sequence[Any]]


def label_column(name: str, first: str) -> str:
    """The column of a label set: `labels` for the manifest's first, `labels_NAME` for further ones."""
    return "labels" if name == first else f"labels_{name}"


ROWS = 1 << 16
"""Rows of a row group: what is held in memory while a catalogue is written."""


@contextmanager
def writing(folder: Path, extra: Mapping[str, type], labels: Sequence[str] = ()) -> Iterator[Callable[[Rows], None]]:
    """Write the catalogue atomically, in memory that does not grow with it: yields a function that takes rows.

    `extra`: the source's columns, name → str, int or float; `labels`: those that hold lists of class indices. Rows are
    equally long sequences by column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    types = {**dict.fromkeys(COLUMNS, pa.string()), "position": pa.int32(), "lon": pa.float64(), "lat": pa.float64()}
    types |= dict.fromkeys(labels, pa.list_(pa.int32())) | {name: arrow[kind] for name, kind in extra.items()}
    schema = pa.schema(list(types.items()))
    with atomic.replacing(folder / FILE) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting = schema.empty_table()

        def add(rows: Rows) -> None:
            nonlocal waiting
            table = pa.table({name: pa.array(rows[name], kind) for name, kind in types.items()}, schema)
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) >= ROWS:
                writer.write_table(waiting.slice(0, ROWS).combine_chunks())
                waiting = waiting.slice(ROWS)

        yield add
        if len(waiting):
            writer.write_table(waiting.combine_chunks())


def read(path: Path, columns: list[str] | None = None) -> Any:
    """The catalogue, or some of its columns, as a `pyarrow.Table`. Raises BandstreamError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise BandstreamError(f"{path} cannot be read ({error}): ingest again") from None
