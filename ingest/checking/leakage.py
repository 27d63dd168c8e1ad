"""Which samples of different splits show the same ground: overlaps of footprints, whatever their dates.

Centres are points in space (WGS 84, ECEF metres), so that neither zones nor the date line part what lies together;
those near each other are found by cells of a grid and sorting. In one coordinate system the overlap is exact; across
systems, as where two UTM zones meet, footprints are taken to be aligned with the meridian: a share is then off by a
few hundredths.
"""

from dataclasses import dataclass, field

import numpy as np

LEAST = 0.01
"""Share of the smaller footprint from which on two overlap: neighbours that touch do not."""
DEGREE_M = 111_320.0
A, E2 = 6378137.0, 6.69437999014e-3
NEIGHBOURS = 4096
"""Samples around one place that each is compared with; only where more lie does this leave any out."""
KEPT = 1_000_000
"""So many pairs are kept to be listed; all are counted."""


@dataclass
class Footprints:
    """Where samples lie. `crs`: number of the coordinate system, int16 (n,), −1 where the place is unknown; `bounds`:
    in it, float64 (n, 4) left, bottom, right, top; `centres`: degrees, float64 (n, 2) longitude, latitude; `metres`:
    of a unit of each system, 0 for degrees."""

    crs: np.ndarray
    bounds: np.ndarray
    centres: np.ndarray
    metres: list[float] = field(default_factory=list)

    def half_sizes(self) -> np.ndarray:
        """Half width and half height in metres, float64 (n, 2)."""
        sizes = np.stack([self.bounds[:, 2] - self.bounds[:, 0], self.bounds[:, 3] - self.bounds[:, 1]], 1) / 2
        unit = np.array([*self.metres, 0.0])[self.crs]  # of unknown places the last
        scale = np.stack([DEGREE_M * np.cos(np.radians(self.centres[:, 1])), np.full(len(sizes), DEGREE_M)], 1)
        metres: np.ndarray = np.abs(sizes) * np.where(unit[:, None] > 0, unit[:, None], scale)
        return metres


@dataclass
class Overlaps:
    """`pairs`: int64 (m, 2); `shares`: of the smaller footprint, float32 (m,), the first KEPT; `total`: all;
    `touched`: bool (n, splits), whether a sample overlaps one of that other split; `crowded`: samples that lie among
    more than NEIGHBOURS others."""

    pairs: np.ndarray
    shares: np.ndarray
    total: int
    touched: np.ndarray
    crowded: int


def overlaps(places: Footprints, split: np.ndarray, splits: int) -> Overlaps:
    """Overlaps of footprints across splits. `split`: number of each sample's split, uint8 (n,)."""
    touched = np.zeros((len(split), splits), bool)
    known = np.flatnonzero(places.crs >= 0)
    nothing = Overlaps(np.empty((0, 2), np.int64), np.empty(0, np.float32), 0, touched, 0)
    if len(np.unique(split[known])) < 2:
        return nothing
    half = places.half_sizes()
    reach = float(np.hypot(*half[known].T).max())
    key, owner = _cells(_ecef(places.centres[known]), max(reach, 5.0))
    owner = known[owner]
    order = np.argsort(key, kind="stable")
    key, owner = key[order], owner[order]
    packed: list[np.ndarray] = [np.empty(0, np.uint64)]
    shares: list[np.ndarray] = [np.empty(0, np.float32)]
    crowded = np.zeros(len(split), bool)
    for step in range(1, min(NEIGHBOURS + 1, len(key) - 1) + 1):
        same = np.flatnonzero(key[step:] == key[:-step])
        if not len(same):
            break
        first, second = owner[same], owner[same + step]
        if step > NEIGHBOURS:
            crowded[first] = crowded[second] = True
            break
        across = split[first] != split[second]
        first, second = first[across], second[across]
        share = _shares(places, half, first, second)
        over = share >= LEAST
        low, high = np.minimum(first, second)[over], np.maximum(first, second)[over]
        touched[low, split[high]] = touched[high, split[low]] = True
        packed.append(low.astype(np.uint64) << np.uint64(32) | high.astype(np.uint64))
        shares.append(share[over].astype(np.float32))
    every, where = np.unique(np.concatenate(packed), return_index=True)
    pairs = np.stack([every >> np.uint64(32), every & np.uint64(0xFFFFFFFF)], 1).astype(np.int64)
    share = np.concatenate(shares)[where]
    return Overlaps(pairs[:KEPT], share[:KEPT], len(every), touched, int(crowded.sum()))


def _ecef(centres: np.ndarray) -> np.ndarray:
    """Degrees (n, 2) → metres in space, float64 (n, 3), on the ellipsoid."""
    lon, lat = np.radians(centres).T
    radius = A / np.sqrt(1 - E2 * np.sin(lat) ** 2)
    flat = radius * np.cos(lat)
    return np.stack([flat * np.cos(lon), flat * np.sin(lon), radius * (1 - E2) * np.sin(lat)], 1)


def _cells(points: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Cells that a box of ± `reach` around each point meets: (keys uint64 (m,), numbers of the points (m,)). Two points
    within 2 x reach of each other share one."""
    size = 4 * reach
    low = np.floor((points - reach) / size).astype(np.int64)
    high = np.floor((points + reach) / size).astype(np.int64)
    keys, owners = [], []
    for corner in np.ndindex(2, 2, 2):
        own = np.flatnonzero(((high > low) | (np.array(corner) == 0)).all(1))
        cell = np.where(np.array(corner) == 1, high[own], low[own]) + (1 << 20)
        keys.append((cell[:, 0] << 42 | cell[:, 1] << 21 | cell[:, 2]).astype(np.uint64))
        owners.append(own)
    return np.concatenate(keys), np.concatenate(owners)


def _shares(places: Footprints, half: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlaps as shares of the smaller footprint, float64 (m,)."""
    a, b = places.bounds[first], places.bounds[second]
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (a, b)]
    smaller = np.minimum(*areas)
    other = np.flatnonzero(places.crs[first] != places.crs[second])
    if len(other):
        i, j = first[other], second[other]
        apart = np.abs(places.centres[i] - places.centres[j])
        apart[:, 0] = np.minimum(apart[:, 0], 360 - apart[:, 0])  # across the date line
        apart *= DEGREE_M
        apart[:, 0] *= np.cos(np.radians(places.centres[i, 1]))
        over = np.minimum(half[i], half[j]) * 2
        over = np.minimum(over, half[i] + half[j] - apart)
        width[other], height[other] = over.T
        smaller[other] = np.minimum(half[i].prod(1), half[j].prod(1)) * 4
    shares: np.ndarray = np.clip(width, 0, None) * np.clip(height, 0, None) / np.maximum(smaller, 1e-18)
    return shares
