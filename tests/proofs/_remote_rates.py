"""How quickly the reader gives out samples of a local set, and of a remote one in its first and its second epoch."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.order import Order
from pipeline.reader import Reader
from shards.shardset import ShardSet
from tests.pipeline.making import make_set
from tests.storage import BUCKET, served

SAMPLES, SHARD_SAMPLES, BATCH, REPEATS = 4096, 256, 64, 3


def _tiled(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Quick to make, and different in every sample."""
    return np.arange(number, number + int(np.prod(shape)), dtype=dtype).reshape(shape)


def _epoch(reader: Reader, shard_set: ShardSet, epoch: int) -> float:
    """Samples a second of an epoch shuffled over the whole set, every byte of it summed."""
    order = Order(shard_set.size("train"), BATCH, 0, training=True)
    plan = [order.batch(epoch, start) for start in order.starts()]
    begin, total = time.perf_counter(), 0
    for _, raw, done in reader.batches(plan):
        total += int(raw.view(np.uint64).sum(dtype=np.uint64))
        done()
    assert total
    return len(plan) * BATCH / (time.perf_counter() - begin)


def rates(scratch: str | None) -> dict[str, Any]:
    """Medians of samples/s, n = 3, in turns; two threads read, all on this machine."""
    found: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(dir=scratch) as name,
        served(Path(name) / "s3") as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = make_set(Path(name) / "set", {"train": SAMPLES}, image=_tiled, shard_samples=SHARD_SAMPLES)
        server.put_all("set", folder)
        for key, value in server.environment().items():
            patch.setenv(key, value)
        here = ShardSet.open(folder)
        prefix = max(here.layout[member].end for member in here.manifest.arrays)
        local = Reader(here, "train", prefix, threads=2)
        for repeat in range(REPEATS):
            cache = Path(name) / f"cache{repeat}"
            there = ShardSet.open(f"s3://{BUCKET}/set", cache)
            remote = Reader(there, "train", prefix, threads=2)
            again = ShardSet.open(f"s3://{BUCKET}/set", cache)
            runs = {
                "local set": lambda: _epoch(local, here, 1),
                "S3, first epoch": lambda: _epoch(remote, there, 1),  # noqa: B023
                "S3, second epoch": lambda: _epoch(remote, there, 2),  # noqa: B023
                "S3, first epoch of a later run": lambda: _epoch(Reader(again, "train", prefix, 2), again, 1),  # noqa: B023
            }
            for what, run in runs.items():
                found.setdefault(what, []).append(run())
    return {
        "what": f"samples/s of the reader, shuffled over the whole set, {prefix} bytes a sample, two threads; server, "
        "cache and reader on one machine",
        "samples": SAMPLES,
        "shards": SAMPLES // SHARD_SAMPLES,
        "samples_per_s": {
            what: {"n": REPEATS, "median": statistics.median(each), "min": min(each), "max": max(each)}
            for what, each in found.items()
        },
    }
