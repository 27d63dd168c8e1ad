"""The tars of a shard set, streamed with `webdataset`: shards drawn at random, samples shuffled in a buffer of 256."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from bench.loaders.mapped import Finish, collating
from shards.shardset import ShardSet


def batches(folder: Path, batch_size: int, workers: int, finish: Finish) -> Iterator[Any]:
    """Endless shuffled batches; as shards are drawn with replacement, there are no epochs."""
    shard_set = ShardSet.open(folder)
    members = list(shard_set.manifest.arrays)

    dataset = webdataset.WebDataset(
        [str(path) for path in shard_set.paths("train")], resampled=True, shardshuffle=False,
        nodesplitter=webdataset.split_by_node,
    )  # fmt: skip
    dataset = dataset.shuffle(256).map(partial(_decoded, members))
    dataset = dataset.batched(batch_size, collation_fn=collating(finish), partial=False)
    return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=workers))


def _decoded(members: list[str], sample: dict[str, Any]) -> list[np.ndarray]:
    return [np.load(io.BytesIO(sample[member])) for member in members]
