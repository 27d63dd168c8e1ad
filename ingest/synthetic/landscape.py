"""Where which land cover lies in a patch: a mosaic of regions, then towns, lakes, rivers and coasts over it.

Regions are at least a quarter of the size of CORINE's smallest mapped unit (25 ha, EEA technical guidelines 2019) or
joined to the largest one, so that a label always has something to be seen by.
"""

import numpy as np

from ingest.archives.clc import CLC_TO_CLASS
from ingest.synthetic import appearance, patterns, spectra
from ingest.synthetic.appearance import Scene
from ingest.synthetic.geography import Place

SIZE = 120
SMALLEST = 625
"""Pixels (6.25 ha) of the smallest region."""
MOST = 5
"""Regions a patch has at most."""

LAND: dict[str, dict[int, float]] = {
    "central": {
        **{211: 20, 231: 13, 311: 14, 312: 12, 313: 11, 242: 11, 243: 11, 324: 6, 321: 6, 333: 2, 221: 4, 222: 4},
        **{412: 1, 411: 1, 332: 1, 131: 1},
    },
    "atlantic": {
        **{231: 22, 211: 18, 312: 10, 311: 9, 313: 6, 412: 8, 322: 9, 324: 7, 242: 8, 243: 9, 321: 4, 222: 4, 411: 2},
    },
    "nordic": {
        **{312: 21, 313: 17, 324: 12, 211: 14, 311: 9, 412: 10, 411: 2, 243: 8, 231: 7, 242: 4, 322: 2, 332: 1},
    },
    "mediterranean": {
        **{244: 22, 223: 6, 221: 5, 222: 3, 241: 2, 311: 9, 211: 9, 212: 3, 213: 2, 324: 10, 323: 10, 242: 8, 243: 8},
        **{312: 6, 313: 5, 321: 5, 333: 1, 322: 2},
    },
}
"""Weights of CLC classes in the mosaics of a biome."""
_MIXES = {name: (np.array(list(weights)), np.cumsum(list(weights.values()))) for name, weights in LAND.items()}
_X, _Y = np.meshgrid(np.arange(SIZE, dtype=np.float32) - 59.5, np.arange(SIZE, dtype=np.float32) - 59.5)


class Ground:
    """The regions of a patch while they are laid out: `region` uint8 (120, 120) indexes `codes`."""

    def __init__(self, rng: np.random.Generator, biome: str) -> None:
        self.rng = rng
        self.biome = biome
        self.codes: list[int] = []
        self.region = np.zeros((SIZE, SIZE), np.uint8)
        slow = patterns.relief()
        a, b, c, d = rng.integers(0, patterns.PERIOD, 4)
        self.warp = slow[a : a + SIZE, b : b + SIZE]
        self.other_warp = slow[c : c + SIZE, d : d + SIZE]

    def mosaic(self, count: int) -> None:
        """`count` classes of the biome in warped Voronoi cells."""
        codes, weights = _MIXES[self.biome]
        classes: set[int] = set()
        while len(self.codes) < count:
            code = int(codes[np.searchsorted(weights, self.rng.random() * weights[-1], side="right")])
            if CLC_TO_CLASS.get(code, -1) not in classes:
                classes.add(CLC_TO_CLASS.get(code, -1))
                self.codes.append(code)
        if count == 1:
            return
        x = _X + 13 * self.warp
        y = _Y + 13 * self.other_warp
        seeds = count + int(self.rng.integers(0, 2))
        angle = self.rng.random() * 6.28 + np.arange(seeds) * 6.28 / seeds + self.rng.normal(0, 0.3, seeds)
        reach = self.rng.uniform(22, 52, seeds)
        nearest = np.full((SIZE, SIZE), np.inf, np.float32)
        for number in range(seeds):
            distance = (x - np.float32(reach[number] * np.cos(angle[number]))) ** 2
            distance += (y - np.float32(reach[number] * np.sin(angle[number]))) ** 2
            np.putmask(self.region, distance < nearest, number % count)
            np.minimum(nearest, distance, out=nearest)

    def cover(self, where: np.ndarray, code: int) -> None:
        np.putmask(self.region, where, len(self.codes))
        self.codes.append(code)

    def turned(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along and across a direction drawn at random, in pixels from the middle."""
        angle = self.rng.random() * 6.283
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return cos * _X + sin * _Y, cos * _Y - sin * _X

    def blob(self, radius: tuple[float, float], ragged: float) -> np.ndarray:
        """A rounded area somewhere in the patch; `ragged` pixels of warp."""
        along, across = self.turned()
        a, b = self.rng.uniform(*radius, 2)
        x, y = self.rng.uniform(-38, 38, 2)
        along, across = along - np.float32(x), across - np.float32(y)
        inside: np.ndarray = (along / np.float32(a)) ** 2 + (across / np.float32(b)) ** 2 + self.warp * np.float32(
            2 * ragged / min(a, b)
        ) < 1
        return inside

    def river(self) -> np.ndarray:
        along, across = self.turned()
        rng = self.rng
        length = rng.uniform(50, 110)
        bend = rng.uniform(6, 16) * np.sin(along * np.float32(6.283 / length) + np.float32(rng.random() * 6.28))
        off: np.ndarray = np.abs(across + bend + 5 * self.warp + np.float32(rng.uniform(-25, 25)))
        return off < rng.uniform(3.5, 8)

    def lakes(self) -> np.ndarray:
        """A lake with bays and islands."""
        return self.warp * 0.8 + self.other_warp * 0.6 > self.rng.uniform(0.5, 1.1)

    def coast(self, coastal: str) -> None:
        """The sea, and what lies along it: beaches, salt marshes, salines, mud."""
        rng = self.rng
        across = self.turned()[1] + 9 * self.warp + np.float32(rng.uniform(-40, 30))
        if coastal == "beach":
            self.cover(across < rng.uniform(9, 22), 331)
        elif coastal == "marsh":
            salt = 422 if self.biome == "mediterranean" and rng.random() < 0.4 else 421
            self.cover(across < rng.uniform(22, 50), salt)
        elif coastal == "mud":
            self.cover(across < rng.uniform(9, 20), 423)
        self.cover(across < 0, 523 if rng.random() < 0.8 else 522)


def _layout(ground: Ground, coastal: bool) -> None:
    rng = ground.rng
    sea, town, works, fresh, extra = rng.random(5)
    if coastal and sea < 0.09:
        ground.codes = [523 if sea < 0.07 else 521]
        return
    near_sea = coastal and sea < 0.5
    overlays = int(near_sea) + int(town < 0.2) + int(works < 0.09) + int(fresh < 0.13)
    ground.mosaic(min(int(np.searchsorted((0.24, 0.62, 0.9), rng.random())) + 1, max(1, MOST - 1 - overlays)))
    if town < 0.2:
        ground.cover(ground.blob((22, 55), 9), 111 if town < 0.03 else 112)
    if works < 0.09:
        ground.cover(ground.blob((20, 42), 5), 121)
    if extra < 0.02 and overlays < 3:
        ground.cover(ground.blob((17, 26), 8), 131 if extra < 0.01 else 142)
    if fresh < 0.05:
        ground.cover(ground.river(), 511)
    elif fresh < 0.09:
        ground.cover(ground.blob((18, 50), 12), 512)
    elif fresh < 0.13:
        ground.cover(ground.lakes(), 512)
    if near_sea:
        kind = rng.random()
        ground.coast("beach" if kind < 0.38 else "marsh" if kind < 0.72 else "mud" if kind < 0.77 else "bare")


def _tidy(ground: Ground) -> None:
    """Join regions that are too small to the largest, and drop what is not there."""
    count = len(ground.codes)
    pixels = np.bincount(ground.region.ravel(), minlength=count)
    # a patch must keep a class that the 19 know
    rank = pixels * np.array([CLC_TO_CLASS.get(code, -1) >= 0 for code in ground.codes])
    largest = int(rank.argmax())
    kept = [number for number in range(count) if number == largest or pixels[number] >= SMALLEST]
    # two regions of one class (a mosaic's and an overlay's) stay apart: they have looks of their own
    table = np.full(count, kept.index(largest), np.uint8)
    table[kept] = np.arange(len(kept), dtype=np.uint8)
    ground.region = table[ground.region]
    ground.codes = [ground.codes[number] for number in kept]


def lay_out(rng: np.random.Generator, place: Place) -> tuple[np.ndarray, list[int]]:
    """The regions of a patch: uint8 (120, 120) that indexes a list of CLC codes, one of them at least in the 19."""
    while True:
        ground = Ground(rng, place.tile.biome)
        _layout(ground, place.tile.coastal)
        _tidy(ground)
        if any(code in CLC_TO_CLASS for code in ground.codes):
            return ground.region, ground.codes


def paint(rng: np.random.Generator, scene: Scene, region: np.ndarray, codes: list[int]) -> np.ndarray:
    """Reflectance of the patch at 10 m, before light, air and sensor: float32 (12, 14400) in the order of GROUPED."""
    angle, zoom = rng.random() * 6.283, rng.uniform(0.85, 1.15)
    cos, sin = np.float32(zoom * np.cos(angle)), np.float32(zoom * np.sin(angle))
    slow = patterns.bend()
    a, b = rng.integers(0, patterns.PERIOD, 2)
    warp = np.float32(3.5) * slow[a : a + SIZE, b : b + SIZE]
    middle = np.float32(patterns.MARGIN / 2)
    u = (cos * _X - sin * _Y + (warp + middle)).astype(np.int32)
    v = (sin * _X + cos * _Y + (middle - warp)).astype(np.int32)
    # warps beyond six deviations do not occur in the noise; were the margin left, pixels of another window would do
    flat = (u * patterns.SIDE + v).astype(np.intp)
    tables = np.empty((len(spectra.BANDS), len(codes), 256), np.float32)
    material = np.zeros((SIZE, SIZE), np.intp)
    starts = rng.integers(0, patterns.PERIOD, (len(codes), 2))
    for number, code in enumerate(codes):
        name, palette = appearance.LOOKS[code]
        tile = patterns.pattern(name, int(rng.integers(0, len(patterns.MAKERS[name]))))
        start = int(starts[number, 0]) * patterns.SIDE + int(starts[number, 1])
        parts = tile[start:].take(flat, mode="clip") + np.intp(256 * number)
        if number == 0:
            material = parts
        else:
            np.copyto(material, parts, where=region == number)
        tables[:, number] = palette(scene).reshape(256, -1).T[spectra.GROUPED]
    painted: np.ndarray = tables.reshape(len(spectra.BANDS), -1).take(material.ravel(), axis=1, mode="clip")
    return painted
