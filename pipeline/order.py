"""Which sample comes when: (seed, epoch) → a permutation, computed where it is asked for and stored nowhere.

A Feistel network over the smallest even number of bits that holds n is a bijection; values that fall outside are sent
through it again until they fall inside (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"). So position → sample is a pure function that needs no memory, for ten samples or a thousand million. Where
any order costs too much (disks, network mounts, a cache smaller than the set), an epoch goes through windows of whole
shards, themselves in a new order every epoch, and permutes the samples of each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.hashing import combine, mix
from shards.errors import BandstreamError

ORDER_VERSION = 1
"""Raised with every change by which the same integers give another order, so that no run is resumed across it."""

ROUNDS = 8


def permutation(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Positions (m,) of an epoch's order, each in [0, n) → sample numbers (m,), int64. A bijection of [0, n)."""
    return _permuted(positions, n, combine("order", seed, epoch, np.arange(ROUNDS)))


def _permuted(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of [0, n), one key a round. Raises IndexError outside of it, where the walk would never end."""
    half = max(1, -(-max(n - 1, 1).bit_length() // 2))
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    value = np.array(positions).astype(np.uint64)
    if (value >= n).any():
        raise IndexError(f"an order of {n} samples has positions 0 to {n - 1}")
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> bits, value[outside] & mask
        for key in keys:
            left, right = right, left ^ (mix(right + key) & mask)
        value[outside] = left << bits | right
        outside = value >= n
    return value.astype(np.int64)


class Windows:
    """An order in windows of whole shards.

    The shards of a split are permuted by (seed, epoch) and cut into windows of `window` shards, of which the last may
    have fewer; the samples of a window are permuted among themselves. An epoch needs a shard for the stretch of its
    window alone. Parameters: `shard_samples`, samples in each shard (k,), in the order of their numbers. Nothing
    longer than k is held.

    What windows cost in mixing, at 549,488 samples in shards of 1,000 and batches of 512 (130,816 pairs):

        shards a window                                     1       4      16      64     all (global)
        pairs of one shard in a batch                 108,364  31,398   8,233   2,139     238
        pairs that meet again in the next epoch        35.1 %   3.0 %  0.29 %  0.10 %  0.09 %
        shards that a batch reads from                    1.5     4.5      16      62     333

    In a set that was permuted at ingest, as ours are, the samples of a shard come from anywhere, and neighbours in the
    archive meet as rarely in every window as in a global shuffle; in one that was not, pairs of one shard are pairs
    of neighbours, which a contrastive loss takes for negatives (`tests/proofs/order_windows.py`).
    """

    def __init__(self, shard_samples: np.ndarray, window: int) -> None:
        if window < 1:
            raise BandstreamError(f"windows of {window} shards: at least 1 is needed")
        self.window = window
        self._sizes = np.asarray(shard_samples, np.int64)
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self.samples = int(self._sizes.sum())
        self._epoch: tuple[int, int, np.ndarray, np.ndarray] | None = None

    def shards(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shard numbers (k,) in the order of an epoch, and the positions (k + 1,) between which each would stand if
        windows were not mixed: window w has shards [w · window, (w + 1) · window) and the positions of these."""
        if self._epoch is None or self._epoch[:2] != (seed, epoch):
            shards = combine("shards", seed, epoch, np.arange(len(self._sizes))).argsort(kind="stable")
            self._epoch = seed, epoch, shards, np.concatenate([[0], np.cumsum(self._sizes[shards])])
        return self._epoch[2:]

    def permutation(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Positions (m,) of an epoch's order → sample numbers (m,), int64. A bijection of the split."""
        shards, begins = self.shards(seed, epoch)
        mixed = np.array(positions, np.int64)
        windows = (np.searchsorted(begins, mixed, side="right") - 1) // self.window
        for number in np.unique(windows).tolist():
            inside = windows == number
            begin, end = begins[number * self.window], begins[min((number + 1) * self.window, len(shards))]
            keys = combine("window", seed, epoch, number, np.arange(ROUNDS))
            mixed[inside] = begin + _permuted(mixed[inside] - begin, int(end - begin), keys)
        place = np.searchsorted(begins, mixed, side="right") - 1
        samples: np.ndarray = self._firsts[shards[place]] + mixed - begins[place]
        return samples


@dataclass(frozen=True)
class Order:
    """The batches of an epoch, as one rank of several serves them.

    Training: the epoch's permutation (of the whole split, or in `windows`) cut into full global batches, each cut
    evenly over the ranks; the tail of less than one global batch is left out. Evaluation: the samples as they stand,
    batches dealt to the ranks in turn, the last as short as it comes, each sample once over all ranks.
    """

    samples: int
    batch_size: int
    seed: int
    training: bool
    rank: int = 0
    world_size: int = 1
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise BandstreamError(f"rank {self.rank} of {self.world_size} ranks")
        if self.batch_size < 1:
            raise BandstreamError(f"batch size {self.batch_size}: at least 1 is needed")
        if self.training and self.batch_size % self.world_size:
            raise BandstreamError(
                f"a global batch of {self.batch_size} does not divide over {self.world_size} ranks: take a multiple"
            )
        if self.training and self.batch_size > self.samples:
            raise BandstreamError(
                f"a global batch of {self.batch_size} from {self.samples} samples: "
                f"training takes full batches only, so take at most {self.samples}"
            )
        if self.windows is not None and self.windows.samples != self.samples:
            raise BandstreamError(f"windows over {self.windows.samples} samples, the order has {self.samples}")

    @property
    def local_batch(self) -> int:
        """The most samples that one batch of this rank holds."""
        return self.batch_size // self.world_size if self.training else self.batch_size

    def left_out(self, cursor: int = 0) -> int:
        """Samples behind position `cursor` that are not served, if the epoch goes on from there."""
        return (self.samples - cursor) % self.batch_size if self.training else 0

    def starts(self, cursor: int = 0) -> range:
        """Where in the epoch this rank's global batches begin, from position `cursor` on."""
        if self.training:
            return range(cursor, self.samples - self.batch_size + 1, self.batch_size)
        return range(cursor + self.rank * self.batch_size, self.samples, self.world_size * self.batch_size)

    def batch(self, epoch: int, start: int) -> np.ndarray:
        """Sample numbers (n,), int64, of this rank's part of the global batch that begins at position `start`."""
        if not self.training:
            return np.arange(start, min(start + self.batch_size, self.samples))
        start += self.rank * self.local_batch
        positions = np.arange(start, start + self.local_batch)
        if self.windows is not None:
            return self.windows.permutation(positions, self.seed, epoch)
        return permutation(positions, self.samples, self.seed, epoch)


@dataclass(frozen=True)
class Plan:
    """Sample numbers (n,) of the batches that begin at `starts`, computed anew each time they are gone through: nothing
    is held, however many they are."""

    batch: Callable[[int], np.ndarray]
    starts: range

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.batch, self.starts)
