"""A process that reads a set: `python -m tests.pipeline.reading PLACE CACHE GB [WINDOW SEED EPOCHS PAUSE]`.

It prints a line a sample, its number and the hash of its bytes, in the order of a plan that goes through windows of
whole shards (0: through all at once), and pauses after each batch. It ends as a command does: an error is one line on
stderr and exit code 1.
"""

import sys
import time
from collections.abc import Iterator

import numpy as np
import xxhash

from pipeline.reader import Reader
from shards.errors import BandstreamError
from shards.shardset import ShardSet

BATCH = 8
SPLIT = "train"


def plan(shard_set: ShardSet, window: int, seed: int) -> list[np.ndarray]:
    """Sample numbers (n,) of each batch of an epoch, each sample once."""
    draw = np.random.default_rng(seed)
    counts = np.array([shard.samples for shard in shard_set.manifest.splits[SPLIT].shards])
    firsts = np.cumsum(counts) - counts
    shards = draw.permutation(len(counts))
    order = []
    for start in range(0, len(shards), window or len(shards)):
        chosen = shards[start : start + (window or len(shards))]
        order.append(draw.permutation(np.concatenate([firsts[n] + np.arange(counts[n]) for n in chosen])))
    flat = np.concatenate(order)
    return [flat[start : start + BATCH] for start in range(0, len(flat), BATCH)]


def samples(shard_set: ShardSet, window: int, seed: int, pause: float = 0) -> Iterator[tuple[int, str]]:
    """(number, hash) of each sample of an epoch."""
    reader = Reader(shard_set, SPLIT, shard_set.layout.sample_bytes, threads=2)
    batches = reader.batches(plan(shard_set, window, seed))
    try:
        for indices, raw, done in batches:
            yield from ((int(number), xxhash.xxh3_64_hexdigest(row)) for number, row in zip(indices, raw, strict=True))
            done()
            time.sleep(pause)
    finally:
        batches.close()
        reader.close()


def truth(folder: str) -> dict[int, str]:
    """Of every sample of a folder, read with none of our code but the place of its shards."""
    shard_set = ShardSet.open(folder)
    stride = shard_set.manifest.sample_bytes
    content = [path.read_bytes()[:-1024] for path in shard_set.paths(SPLIT)]
    rows = [shard[start : start + stride] for shard in content for start in range(0, len(shard), stride)]
    return {number: xxhash.xxh3_64_hexdigest(row) for number, row in enumerate(rows)}


def main(
    place: str, cache: str, gb: str, window: str = "0", seed: str = "0", epochs: str = "1", pause: str = "0"
) -> int:
    try:
        opened = ShardSet.open(place, cache, float(gb))
        for epoch in range(int(epochs)):
            for number, told in samples(opened, int(window), int(seed) + epoch, float(pause)):
                print(number, told, flush=True)
    except BandstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
