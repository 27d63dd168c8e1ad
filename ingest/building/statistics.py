"""Exact statistics of a split: histograms of the stored numbers, added up over shards in integers.

uint8, uint16 and int16 have a bin a number, so that everything is exact. float32 has a bin for each of its 16 leading
bits (sign, exponent, 7 bits of the fraction, in ascending order): percentiles are the lower ends of their bins, at most
0.8 % of their size too small; mean and deviation come from sums in float64, in the order of the samples.
"""

import base64
import zlib
from operator import mul

import numpy as np

from shards.manifest import BandStatistics

VALUES = 1 << 16
SATURATED = {"uint8": (255,), "uint16": (65535, 65535 - 1000), "int16": (32767,), "float32": ()}
"""Stored numbers of saturated pixels: in Sentinel-2 products 65535, or that less the offset that was removed."""


class Tally:
    """What the pixels of some bands add up to.

    `counts`: histograms, int64 (bands, 65536); `sums`: of float bands the sum, the sum of squares, minimum, maximum and
    number of nodata pixels, float64 (bands, 5).
    """

    def __init__(self, dtypes: tuple[str, ...], nodata: float | None) -> None:
        self.dtypes = dtypes
        self.nodata = nodata
        self.counts = np.zeros((len(dtypes), VALUES), np.int64)
        self.sums = np.zeros((len(dtypes), 5))
        self.sums[:, 2:4] = np.inf, -np.inf

    def add(self, band: int, planes: np.ndarray) -> None:
        """Add the stored numbers of one band, (..., H, W) of its dtype; floats are finite."""
        found = np.bincount(_bins(planes))
        self.counts[band, : len(found)] += found
        if self.dtypes[band] == "float32":
            values = planes.astype(np.float64).reshape(-1)
            own = self.sums[band]
            own[:2] += values.sum(), values @ values
            own[2:4] = min(own[2], values.min()), max(own[3], values.max())
            own[4] += 0 if self.nodata is None else (values == self.nodata).sum()

    def merge(self, text: str) -> None:
        """Add what another tally packed. Raises ValueError where the text is none."""
        try:
            raw = zlib.decompress(base64.b64decode(text))
        except zlib.error as error:
            raise ValueError(str(error)) from None
        sums, bins = self.sums.nbytes, (len(raw) - self.sums.nbytes) // 12
        other = np.frombuffer(raw[:sums], "<f8").reshape(self.sums.shape)
        present = np.cumsum(np.frombuffer(raw[sums : sums + 4 * bins], "<u4"))
        self.counts.reshape(-1)[present] += np.frombuffer(raw[sums + 4 * bins :], "<i8")
        self.sums[:, [0, 1, 4]] += other[:, [0, 1, 4]]
        self.sums[:, 2] = np.minimum(self.sums[:, 2], other[:, 2])
        self.sums[:, 3] = np.maximum(self.sums[:, 3], other[:, 3])

    def pack(self) -> str:
        """As text for a shard's record: sums, the distances between bins that are not empty, and counts."""
        counts = self.counts.reshape(-1)
        present = np.flatnonzero(counts)
        raw = (self.sums.astype("<f8"), np.diff(present, prepend=0).astype("<u4"), counts[present].astype("<i8"))
        return base64.b64encode(zlib.compress(b"".join(part.tobytes() for part in raw), 1)).decode()

    def summary(self, band: int) -> BandStatistics:
        """Statistics of one band, which must have at least one pixel.

        Mean and (population) standard deviation; p02 and p98 are the smallest stored numbers that at least 2 and 98 %
        of the pixels do not exceed.
        """
        counts, dtype = self.counts[band], self.dtypes[band]
        present = np.flatnonzero(counts)
        total = int(counts.sum())
        reached = np.cumsum(counts[present])

        def percentile(share: int) -> float:
            return _value(int(present[int(np.searchsorted(reached * 100, share * total))]), dtype)

        if dtype == "float32":
            first, second, low, high, missing = (float(value) for value in self.sums[band])
            mean = first / total
            std = max(second / total - mean * mean, 0.0) ** 0.5
            # twelve digits: the last ones of a sum may differ from processor to processor
            mean, std = float(f"{mean:.12g}"), float(f"{std:.12g}")
            p02, p98 = (min(max(percentile(share), low), high) for share in (2, 98))
            return BandStatistics(
                mean=mean, std=std, min=low, max=high, p02=p02, p98=p98, count=total, nodata=missing / total
            )
        values = (present - 0x8000 if dtype == "int16" else present).tolist()  # Python's integers: exact at any size
        weighted = list(map(mul, values, counts[present].tolist()))
        sum_, squares = sum(weighted), sum(map(mul, values, weighted))
        missing_ = 0 if self.nodata is None else sum(counts[present[np.equal(values, self.nodata)]].tolist())
        return BandStatistics(
            mean=sum_ / total,
            std=float((total * squares - sum_ * sum_) ** 0.5) / total,
            min=float(values[0]),
            max=float(values[-1]),
            p02=percentile(2),
            p98=percentile(98),
            count=total,
            nodata=missing_ / total,
            saturated=sum(int(counts[_bin(value, dtype)]) for value in SATURATED[dtype]) / total,
        )


def _bins(planes: np.ndarray) -> np.ndarray:
    """The bin of each number, (n,)."""
    if planes.dtype == np.int16:
        return planes.view(np.uint16).reshape(-1) ^ np.uint16(0x8000)
    if planes.dtype == np.float32:
        bits = (np.ascontiguousarray(planes) + np.float32(0)).view(np.uint32).reshape(-1) >> np.uint32(16)  # no -0
        return np.where(bits & 0x8000, 0xFFFF - bits, bits + 0x8000)
    return planes.reshape(-1)


def _bin(value: int, dtype: str) -> int:
    """The bin of a whole number."""
    return int(_bins(np.array([value], dtype))[0])


def _value(bin_: int, dtype: str) -> float:
    """The smallest number of a bin."""
    if dtype == "int16":
        return float(bin_ - 0x8000)
    if dtype == "float32":
        bits = bin_ - 0x8000 if bin_ >= 0x8000 else 0xFFFF - bin_
        low = 0 if bin_ >= 0x8000 else 0xFFFF  # of negative numbers the largest magnitude is the smallest
        return float(np.array(bits << 16 | low, np.uint32).view(np.float32))
    return float(bin_)
