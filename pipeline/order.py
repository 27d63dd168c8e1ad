"""Which sample comes when: (seed, epoch) → a permutation, computed where it is asked for and stored nowhere.

A Feistel network over the smallest even number of bits that holds n is a bijection; values that fall outside are sent
through it again until they fall inside (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"). So position → sample is a pure function that needs no memory, for ten samples or a thousand million.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.hashing import combine, mix
from shards.errors import BandstreamError

ROUNDS = 8


def permutation(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Positions (m,) of an epoch's order, each in [0, n) → sample numbers (m,), int64. A bijection of [0, n)."""
    half = max(1, -(-max(n - 1, 1).bit_length() // 2))
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [combine("order", seed, epoch, number) for number in range(ROUNDS)]
    value = np.asarray(positions, np.uint64).copy()
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> bits, value[outside] & mask
        for key in keys:
            left, right = right, left ^ (mix(right + key) & mask)
        value[outside] = left << bits | right
        outside = value >= n
    return value.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The batches of an epoch, as one rank of several serves them.

    Training: the epoch's permutation cut into full global batches, each cut evenly over the ranks; the tail of less
    than one global batch is left out. Evaluation: the samples as they stand, batches dealt to the ranks in turn, the
    last as short as it comes, each sample once over all ranks.
    """

    samples: int
    batch_size: int
    seed: int
    training: bool
    rank: int = 0
    world_size: int = 1

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

    @property
    def global_batches(self) -> int:
        """Batches of an epoch over all ranks."""
        return self.samples // self.batch_size if self.training else -(-self.samples // self.batch_size)

    @property
    def local_batch(self) -> int:
        """The most samples that one batch of this rank holds."""
        return self.batch_size // self.world_size if self.training else self.batch_size

    @property
    def left_out(self) -> int:
        """Samples of an epoch's tail that are not served."""
        return self.samples - self.global_batches * self.batch_size if self.training else 0

    def numbers(self, first: int = 0) -> range:
        """Global numbers of this rank's batches, from global batch `first` on."""
        if self.training:
            return range(first, self.global_batches)
        return range(first + (self.rank - first) % self.world_size, self.global_batches, self.world_size)

    def batch(self, epoch: int, number: int) -> np.ndarray:
        """Sample numbers (n,), int64, of this rank's part of a global batch."""
        start = number * self.batch_size
        if not self.training:
            return np.arange(start, min(start + self.batch_size, self.samples))
        start += self.rank * self.local_batch
        return permutation(np.arange(start, start + self.local_batch), self.samples, self.seed, epoch)
