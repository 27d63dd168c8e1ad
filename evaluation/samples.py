"""What the catalogue says of a split's samples, in the order in which a loader of evaluation serves them."""

from typing import Any

import numpy as np

from shards import catalogue
from shards.errors import BandstreamError
from shards.shardset import ShardSet


def sample_table(shard_set: ShardSet, split: str, columns: list[str]) -> Any:
    """Columns of the catalogue as a `pyarrow.Table`, a row a sample of the split, sorted by sample number.

    A row takes the bytes of its columns, nothing more: a million keys are some 20 MB. Raises BandstreamError where the
    set has no such split, or its catalogue does not list each of its samples once.
    """
    import pyarrow.compute as pc

    samples = shard_set.size(split)
    with shard_set.catalogue() as path:
        table = catalogue.read(path, list(dict.fromkeys(["split", "shard", "position", *columns])))
    table = table.filter(pc.equal(table["split"], split))
    shards = shard_set.manifest.splits[split].shards
    starts = dict(zip((spec.file for spec in shards), np.cumsum([0, *(spec.samples for spec in shards)]), strict=False))
    encoded = table["shard"].combine_chunks().dictionary_encode()
    first = np.array([starts.get(name, -samples) for name in encoded.dictionary.to_pylist()], np.int64)
    numbers = first[encoded.indices.to_numpy()] + table["position"].to_numpy() if len(table) else np.empty(0, np.int64)
    order = np.argsort(numbers, kind="stable")
    if not np.array_equal(numbers[order], np.arange(samples)):
        raise BandstreamError(f"{shard_set.place}/{catalogue.FILE} does not list the samples of {split}: ingest again")
    return table.take(order).select(columns)


def sample_keys(shard_set: ShardSet, split: str) -> np.ndarray:
    """The keys of a split's samples in their order: str (n,)."""
    return np.array(sample_table(shard_set, split, ["key"])["key"].to_pylist(), np.str_)
