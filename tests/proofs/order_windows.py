"""What an order in windows costs in mixing: how far samples move, and who meets whom in a batch.

    python -m tests.proofs order_windows      a minute; numbers alone, no shards

A set as large as BigEarthNet v2. Two samples of one neighbourhood (1,000 that follow each other in the archive, as
patches cut from one scene do) are likely to look alike: in a contrastive batch they are negatives that should be none.
In a set that was permuted at ingest, as ours are, the samples of a shard come from anywhere; in one that was not, a
shard is a neighbourhood: there, pairs of one shard are pairs of neighbours.
"""

from typing import Any

import numpy as np

from pipeline.order import Order, Windows, permutation

SAMPLES, SHARD, BATCH = 549_488, 1000, 512
WINDOWS = (1, 4, 16, 64, None)
SEED = 0
ANOTHER_SEED = 1
"""Of the permutation at ingest, which has nothing to do with the order's."""


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    """The samples of an epoch's full batches, int64 (batches, BATCH)."""
    return np.stack([order.batch(epoch, start) for start in order.starts()])


def pairs_alike(groups: np.ndarray) -> float:
    """Mean number of pairs of one group in a batch, for the groups of batches (b, n)."""
    pairs = 0
    for batch in groups:
        counts = np.unique(batch, return_counts=True)[1]
        pairs += int((counts * (counts - 1) // 2).sum())
    return pairs / len(groups)


def distance_of_mates(shards: np.ndarray) -> float:
    """Mean distance in an epoch between two samples of one shard, as a share of the epoch; shards (m,) in order."""
    places = np.argsort(shards, kind="stable")
    total = pairs = 0.0
    for own in np.split(places, np.flatnonzero(np.diff(shards[places])) + 1):
        n = len(own)
        total += float((own * (2 * np.arange(n) - n + 1)).sum())  # the sum of all differences of sorted numbers
        pairs += n * (n - 1) / 2
    return total / pairs / len(shards)


def met_again(first: np.ndarray, second: np.ndarray) -> float:
    """The share of the pairs in batches (b, n) of an epoch that stand in one batch of the next epoch again."""
    batch_of = np.full(SAMPLES, -1)
    batch_of[second.ravel()] = np.repeat(np.arange(len(second)), second.shape[1])
    later = np.where(batch_of[first] < 0, -1 - np.arange(first.shape[1]), batch_of[first])
    return pairs_alike(later) / (first.shape[1] * (first.shape[1] - 1) / 2)


def measured(window: int | None) -> dict[str, float | int | None]:
    """The numbers of one order."""
    sizes = np.diff([*range(0, SAMPLES, SHARD), SAMPLES])
    order = Order(SAMPLES, BATCH, SEED, True, windows=None if window is None else Windows(sizes, window))
    first, second = epoch_of(order, 0), epoch_of(order, 1)
    assert len(np.unique(first)) == first.size == SAMPLES - SAMPLES % BATCH
    archive = permutation(
        np.arange(SAMPLES), SAMPLES, ANOTHER_SEED, 0
    )  # sample of a permuted set → place in the archive
    flat = first.ravel()
    return {
        "window": window,
        "moved": float(np.abs(np.arange(len(flat)) - flat).mean() / SAMPLES),
        "distance_of_shard_mates": distance_of_mates(flat // SHARD),
        "pairs_of_one_shard": pairs_alike(first // SHARD),
        "pairs_of_neighbours_in_a_permuted_set": pairs_alike(archive[first] // SHARD),
        "pairs_met_again_next_epoch": met_again(first, second),
        "shards_read_from_in_a_batch": float(np.mean([len(np.unique(batch)) for batch in first // SHARD])),
    }


def main(windows: tuple[int | None, ...] = WINDOWS) -> dict[str, Any]:
    """All windows, the global shuffle last, and what a truly random order would give."""
    pairs = BATCH * (BATCH - 1) / 2
    random = {
        "moved": 1 / 3,
        "distance_of_shard_mates": 1 / 3,
        "pairs_of_one_shard": pairs * (SHARD - 1) / (SAMPLES - 1),
        "pairs_met_again_next_epoch": (BATCH - 1) / (SAMPLES - 1),
    }
    found = [measured(window) for window in windows]
    told = {str(each["window"] or "all"): each for each in found}
    for name, value in random.items():
        assert abs(found[-1][name] / value - 1) < 0.05, f"global shuffle: {name} {found[-1][name]}, not {value}"
    for each in found:
        near = each["pairs_of_neighbours_in_a_permuted_set"]
        assert abs(near / random["pairs_of_one_shard"] - 1) < 0.1, (
            f"window {each['window']}: {near} pairs of neighbours"
        )
    unpermuted = ", ".join(f"{each['pairs_of_one_shard']:,.0f} ({name})" for name, each in told.items())
    return {
        "outcome": f"pairs of neighbours in a batch of {BATCH}: {random['pairs_of_one_shard']:.0f} by chance, and in "
        f"any window of a set permuted at ingest; not permuted, in windows of so many shards: {unpermuted}",
        "samples": SAMPLES,
        "shard_samples": SHARD,
        "batch": BATCH,
        "pairs_in_a_batch": pairs,
        "random": random,
        "windows": told,
    }
