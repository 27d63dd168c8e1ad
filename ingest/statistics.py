"""Exact statistics of a split: histograms of the stored numbers, added up over shards in integers."""

import base64
import zlib

import numpy as np

from shards.manifest import BandStatistics

VALUES = 1 << 16


def add(counts: np.ndarray, planes: np.ndarray) -> None:
    """Add the stored numbers of uint16 (..., H, W) to a histogram, int64 (65536,)."""
    found = np.bincount(planes.reshape(-1))
    counts[: len(found)] += found


def pack(counts: np.ndarray) -> str:
    """Histograms, int64 (bands, 65536), as text for a shard's record."""
    return base64.b64encode(zlib.compress(counts.astype("<i8").tobytes(), 1)).decode()


def unpack(text: str, bands: int) -> np.ndarray:
    """The histograms that `pack` wrote, int64 (bands, 65536). Raises ValueError where the text is none."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").reshape(bands, VALUES)
    except zlib.error as error:
        raise ValueError(str(error)) from None


def summary(counts: np.ndarray, nodata: int | None) -> BandStatistics:
    """Statistics of one band from its histogram, int64 (65536,), with at least one pixel.

    Mean and (population) standard deviation from exact integer sums; p02 and p98 are the smallest stored numbers that
    at least 2 and 98 % of the pixels do not exceed.
    """
    present = np.flatnonzero(counts)
    pairs = [(int(value), int(counts[value])) for value in present]
    total = sum(count for _, count in pairs)
    first = sum(value * count for value, count in pairs)
    second = sum(value * value * count for value, count in pairs)
    reached = np.cumsum(counts[present])

    def percentile(share: int) -> int:
        return int(present[int(np.searchsorted(reached * 100, share * total))])

    return BandStatistics(
        mean=first / total,
        std=float((total * second - first * first) ** 0.5) / total,
        min=float(present[0]),
        max=float(present[-1]),
        p02=percentile(2),
        p98=percentile(98),
        count=total,
        nodata=0.0 if nodata is None else int(counts[nodata]) / total,
    )
