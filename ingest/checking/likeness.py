"""Which patches are the same picture: exact copies by their bytes, near ones by a perceptual signature.

A signature is the signs of the 64 lowest frequencies, without the mean, of the cosine transform of three bands brought
down to 16 x 16, 192 bits (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, for the
idea): a gain, an offset, a little noise or a shift by a pixel turns few of them. Pairs that share one of several
pieces of it are candidates (locality-sensitive hashing, Indyk and Motwani, STOC 1998), found by sorting, and are then
compared by their pixels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

LOOKED_AT_NM = (665, 833, 1614, 560, 492)
"""Signatures are made of the bands nearest to the first three that a set has: red, near and short-wave infrared."""
SIDE, FREQUENCIES = 16, 64
THUMB = 24
"""Patches are compared on a grid of so many cells, in which a shift by a pixel is small and noise averages out."""
FLAT = 0.005
"""Patches whose cells vary by less than this share of their mean, in every band, have no picture to compare."""
DISTANCE = 0.25
"""Candidates differ in at most this share of their bits; patches that have nothing to do with each other in half."""
CORRELATION, LEVEL = 0.9, 0.05
"""Near: the cells of each band correlate by at least this, and the bands' means differ by at most this share."""
PIECES = 16
"""More of them find more, for more sorting."""
NEIGHBOURS = 64
"""Of patches that share a piece each is compared with so many; only where more are alike does this leave any out."""


def looked_at(wavelengths: list[int]) -> list[int]:
    """Numbers of the (at most three) bands that signatures are made of."""
    found: list[int] = []
    for wanted in LOOKED_AT_NM:
        nearest = min(range(len(wavelengths)), key=lambda number: abs(wavelengths[number] - wanted))
        if nearest not in found and len(found) < 3:
            found.append(nearest)
    return found


def cells(planes: np.ndarray, side: int) -> np.ndarray:
    """Means over a grid of at most side x side cells: (n, H, W) of any dtype → float32 (n, h, w)."""
    rows, columns = (_averaging(size, min(side, size)) for size in planes.shape[1:])
    means: np.ndarray = rows @ planes.astype(np.float32) @ columns.T
    return means


@cache
def _averaging(size: int, count: int) -> np.ndarray:
    """What makes `count` means of `size` numbers, each of the same number of neighbours but for one: float32 (count,
    size)."""
    ends = np.arange(count + 1) * size // count
    numbers = np.arange(size)
    inside = (numbers >= ends[:-1, None]) & (numbers < ends[1:, None])
    shares: np.ndarray = inside / inside.sum(1, keepdims=True)
    return shares.astype(np.float32)


@cache
def _transform(size: int) -> np.ndarray:
    """The cosine transform (DCT-II) of `size` numbers, orthonormal: float32 (size, size)."""
    k, x = np.arange(size)[:, None], np.arange(size)
    matrix = np.sqrt(2 / size) * np.cos(np.pi * k * (2 * x + 1) / (2 * size))
    matrix[0] /= np.sqrt(2)
    rows: np.ndarray = matrix.astype(np.float32)
    return rows


def signatures(bands: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Signatures, uint64 (n, bands), and which patches are flat, bool (n,), of one to three bands (n, H, W) each."""
    count = len(bands[0])
    bits = np.zeros((count, len(bands), FREQUENCIES), bool)
    flat = np.ones(count, bool)
    for number, planes in enumerate(bands):
        small = cells(planes, SIDE)
        flat &= small.std((1, 2)) < FLAT * np.abs(small.mean((1, 2))).clip(1e-6)
        height, width = small.shape[1:]
        spectrum = _transform(height) @ small @ _transform(width).T
        order = np.add.outer(np.arange(height), np.arange(width)).ravel().argsort(kind="stable")[1 : FREQUENCIES + 1]
        bits[:, number, : len(order)] = spectrum.reshape(count, -1)[:, order] > 0
    return np.ascontiguousarray(np.packbits(bits.reshape(count, -1), axis=1, bitorder="little")).view("<u8"), flat


def exact_groups(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of samples with one hash, ascending, for each hash, uint64 (n, 2), that occurs more than once."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    same = (hashes[order[1:]] == hashes[order[:-1]]).all(1)
    starts = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)) == 1)
    ends = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)) == -1)
    for start, end in zip(starts, ends, strict=True):
        yield np.sort(order[start : end + 1])


@dataclass(frozen=True)
class Candidates:
    """Pairs of numbers, int64 (m, 2), first < second, nearest first; `crowded`: patches that share a piece with more
    than NEIGHBOURS others, so that pairs may be missing."""

    pairs: np.ndarray
    crowded: int


def pieces(count: int, words: int) -> np.ndarray:
    """Which bits of signatures of so many words make each piece: int (PIECES, width). Among more signatures pieces are
    wider, so that a few share one by chance."""
    width = min(max(math.ceil(math.log2(max(count, 2))) - 2, 12), 32)
    rng = np.random.Generator(np.random.PCG64(0))
    each = 64 * words // width  # that have no bit in common
    drawn = [rng.permutation(64 * words)[: each * width].reshape(each, width) for _ in range(-(-PIECES // each))]
    return np.concatenate(drawn)[:PIECES]


def candidates(bits: np.ndarray) -> Candidates:
    """Pairs of signatures, uint64 (n, words), that share a piece and differ in at most a share DISTANCE of bits."""
    count, size = len(bits), 64 * bits.shape[1]
    found: list[np.ndarray] = [np.empty(0, np.uint64)]
    crowded = np.zeros(count, bool)
    for places in pieces(count, bits.shape[1]):
        key = np.zeros(count, np.uint32)
        for place in places.tolist():
            key = key << np.uint32(1) | (bits[:, place // 64] >> np.uint64(place % 64) & np.uint64(1)).astype(np.uint32)
        order = np.lexsort((*bits.T, key))
        key = key[order]
        for step in range(1, min(NEIGHBOURS + 1, count - 1) + 1):
            same = np.flatnonzero(key[step:] == key[:-step])
            if not len(same):
                break
            first, second = order[same], order[same + step]
            if step > NEIGHBOURS:
                crowded[first] = crowded[second] = True
                break
            near = np.bitwise_count(bits[first] ^ bits[second]).sum(1) <= DISTANCE * size
            low, high = np.minimum(first, second)[near], np.maximum(first, second)[near]
            found.append(low.astype(np.uint64) << np.uint64(32) | high.astype(np.uint64))
        if sum(map(len, found)) > 1 << 24:
            found = [np.unique(np.concatenate(found))]
    packed = np.unique(np.concatenate(found))
    pairs = np.stack([packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)], 1).astype(np.int64)
    distance = np.bitwise_count(bits[pairs[:, 0]] ^ bits[pairs[:, 1]]).sum(1)
    return Candidates(pairs[np.argsort(distance, kind="stable")], int(crowded.sum()))


def likeness(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """How alike two patches are, by their cells, float32 (h, w) a band: the least correlation of a band, and 0 where
    a band's level is another or where there is no picture to correlate."""
    least = 1.0
    for a, b in zip(one, other, strict=True):
        mean_a, mean_b = float(a.mean()), float(b.mean())
        if abs(mean_a - mean_b) > LEVEL * max(abs(mean_a), abs(mean_b)):
            return 0.0
        da, db = (a - mean_a).ravel().astype(np.float64), (b - mean_b).ravel().astype(np.float64)
        scale = math.sqrt(float(da @ da) * float(db @ db))
        least = min(least, float(da @ db) / scale if scale > 0 else 0.0)
    return max(least, 0.0)
