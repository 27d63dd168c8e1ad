"""Textures of land cover: periodic pictures made once, of which patches cut turned, warped and scaled windows.

Every pattern is uint8 (SIDE, SIDE): `cell << 3 | face`. The cell (0..31) is the field, stand or block that a pixel
belongs to, the face (0..7) what part of it: tree row or soil between, roof or street, lit crown or shade. `appearance`
says what each is made of. Two classes may consist of the same materials in the same shares and differ by pattern alone.
"""

from collections.abc import Callable
from functools import cache
from statistics import NormalDist

import numpy as np

PERIOD = 480
MARGIN = 240
SIDE = PERIOD + MARGIN
"""A window of up to MARGIN x MARGIN pixels may begin at any of PERIOD x PERIOD places."""
SEED = 20170613


def noise(rng: np.random.Generator, wavelength: float, width: float = 0.35, stretch: float = 1.0) -> np.ndarray:
    """Periodic Gaussian noise (PERIOD, PERIOD) of unit variance around one wavelength in pixels.

    `width` is the spread in log wavelength; `stretch` elongates it along the rows' direction.
    """
    y = np.fft.fftfreq(PERIOD)[:, None]
    x = np.fft.rfftfreq(PERIOD)[None] * stretch
    radius = np.hypot(x, y) * wavelength
    radius[0, 0] = 1e-9
    field = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((PERIOD, PERIOD))) * np.exp(-((np.log(radius) / width) ** 2) / 2)
    )
    field -= field.mean()
    scaled: np.ndarray = field / field.std()
    return scaled


def levels(field: np.ndarray, count: int) -> np.ndarray:
    """Gaussian field → equally frequent levels 0..count-1, uint8."""
    level: np.ndarray = np.digitize(field, [NormalDist().inv_cdf(i / count) for i in range(1, count)]).astype(np.uint8)
    return level


def parcels(rng: np.random.Generator, shortest: int, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rectangular parcels by repeated splitting: identity, distance to the nearest edge in pixels, and whether it is
    longer in y, each (PERIOD, PERIOD).
    """
    identity = np.zeros((PERIOD, PERIOD), np.int32)
    edge = np.zeros((PERIOD, PERIOD), np.float32)
    upright = np.zeros((PERIOD, PERIOD), bool)
    stack, number = [(0, 0, PERIOD, PERIOD)], 0
    while stack:
        y, x, height, width = stack.pop()
        if max(height, width) > longest or (max(height, width) >= 2 * shortest and rng.random() < 0.5):
            tall = height > width
            side = height if tall else width
            cut = int(rng.integers(max(1, min(shortest, side // 2)), max(side - shortest, side // 2) + 1))
            if tall:
                stack += [(y, x, cut, width), (y + cut, x, height - cut, width)]
            else:
                stack += [(y, x, height, cut), (y, x + cut, height, width - cut)]
            continue
        where = slice(y, y + height), slice(x, x + width)
        identity[where], upright[where] = number, height > width
        to_y = np.minimum(np.arange(height), np.arange(height)[::-1])
        to_x = np.minimum(np.arange(width), np.arange(width)[::-1])
        edge[where] = np.minimum(to_y[:, None], to_x[None])
        number += 1
    return identity, edge, upright


def points(
    rng: np.random.Generator, spacing: int, jitter: float = 0.5, skip: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points in a jittered lattice: index of the nearest, distance to it, and distance to the border between it and the
    next, in pixels, each (PERIOD, PERIOD). `skip` is the share of lattice places without a point.
    """
    count = PERIOD // spacing
    if count * spacing != PERIOD:
        raise ValueError(f"spacing {spacing} does not divide {PERIOD}")
    place = (0.5 + jitter * rng.uniform(-1, 1, (2, count, count))) * spacing
    gone = rng.random((count, count)) < skip
    grid = np.arange(PERIOD)
    cell, inside = grid // spacing, grid % spacing
    nearest = np.full((PERIOD, PERIOD), np.inf)
    second = np.full((PERIOD, PERIOD), np.inf)
    identity = np.zeros((PERIOD, PERIOD), np.int32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            cy, cx = (cell + dy) % count, (cell + dx) % count
            at = np.ix_(cy, cx)
            distance = np.hypot(
                place[0][at] + dy * spacing - inside[:, None], place[1][at] + dx * spacing - inside[None]
            )
            distance[gone[at]] = 4 * spacing
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            identity = np.where(closer, cy[:, None] * count + cx[None], identity)
            nearest = np.minimum(nearest, distance)
    return identity, nearest, (second - nearest) / 2


def _joined(rng: np.random.Generator, identity: np.ndarray, face: np.ndarray) -> np.ndarray:
    """The pattern of faces uint8 and of cells that are drawn for each identity."""
    cell: np.ndarray = rng.integers(0, 32, int(identity.max()) + 1, dtype=np.uint8)[identity.astype(np.intp)]
    pattern: np.ndarray = cell << 3 | face
    return pattern


def arable(rng: np.random.Generator, shortest: int, longest: int) -> np.ndarray:
    """Large rectangular fields of one crop each; faint tramlines (faces 0, 1), a track along some edges (7)."""
    identity, edge, upright = parcels(rng, shortest, longest)
    y, x = np.mgrid[:PERIOD, :PERIOD]
    face = (np.where(upright, x, y) // 3 % 2).astype(np.uint8)
    face[(edge < 1) & (rng.random(identity.max() + 1) < 0.2)[identity]] = 7
    return _joined(rng, identity, face)


def pasture(rng: np.random.Generator, spacing: int) -> np.ndarray:
    """Irregular meadows, mottled (faces 0..5), with hedges between them (7)."""
    identity, _, border = points(rng, spacing, 0.45)
    face = levels(noise(rng, 11, 0.3), 6)
    face[border < 0.9] = 7
    return _joined(rng, identity, face)


def rows(rng: np.random.Generator, period: int, shortest: int, longest: int) -> np.ndarray:
    """Vines or fruit in rows along their parcels: row (faces 2, 3), soil between (0, 1), paths (7)."""
    identity, edge, upright = parcels(rng, shortest, longest)
    y, x = np.mgrid[:PERIOD, :PERIOD]
    phase = np.where(upright, x, y) % period
    face = np.where(phase < period // 2, 3, 0).astype(np.uint8)
    face[edge < 1] = 7
    return _joined(rng, identity, face)


def groves(rng: np.random.Generator, spacing: int) -> np.ndarray:
    """Olive or fruit trees in a regular lattice: crown (3), its rim (2), ground (0)."""
    identity, _, _ = parcels(rng, 24, 60)
    _, distance, _ = points(rng, spacing, 0.06)
    face = np.where(distance < 0.3 * spacing, 3, np.where(distance < 0.4 * spacing, 2, 0)).astype(np.uint8)
    return _joined(rng, identity, face)


def gardens(rng: np.random.Generator, shortest: int, longest: int) -> np.ndarray:
    """A patchwork of tiny plots (cells), some with trees (6)."""
    identity, _, _ = parcels(rng, shortest, longest)
    face = np.where((rng.random(identity.max() + 1) < 0.1)[identity], 6, 0).astype(np.uint8)
    return _joined(rng, identity, face)


def fields_and_copses(rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """Fields (0, 1) into which natural vegetation grows in rounded patches (4 shade, 5, 6 crowns)."""
    identity, _, _ = parcels(rng, 10, 22)
    natural = noise(rng, wavelength, 0.25) > 0.3
    face = np.where(natural, 4 + levels(noise(rng, 4), 3), 0).astype(np.uint8)
    return _joined(rng, identity, face)


def scattered(rng: np.random.Generator, spacing: int, radius: float, jitter: float, skip: float) -> np.ndarray:
    """Single trees (4 crown, 5 its shadow) over ground that is mottled slightly (0..3)."""
    identity, distance, _ = points(rng, spacing, jitter, skip)
    size = radius * rng.uniform(0.75, 1.25, identity.max() + 1)[identity]
    face = levels(noise(rng, 24, 0.4), 4)
    face[distance < size] = 4
    shadow = np.roll(distance < size, (-2, -1), (0, 1)) & (distance >= size)
    face[shadow] = 5
    return _joined(rng, identity, face)


def shrubs(rng: np.random.Generator) -> np.ndarray:
    """Young trees in clumps of all sizes (4 crown, 5 shadow) over grass and shrub (0..3)."""
    clumps = noise(rng, 40, 0.5)
    small = noise(rng, 5.5, 0.25) + 0.8 * clumps
    trees = small > 0.75
    face = levels(noise(rng, 16, 0.5), 4)
    face[np.roll(trees, (-1, -1), (0, 1)) & ~trees] = 5
    face[trees] = 4
    return _joined(rng, (levels(clumps, 32)), face)


def crowns(rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """Closed broad-leaved canopy: rounded crowns from shade (0) to light (5)."""
    face = levels(noise(rng, wavelength, 0.22), 6)
    return _joined(rng, levels(noise(rng, 50, 0.4), 24), face)


def stands(rng: np.random.Generator, period: int) -> np.ndarray:
    """Planted conifers: rectangular compartments of one age, planting rows (0..3), straight rides between (7)."""
    identity, edge, upright = parcels(rng, 18, 42)
    y, x = np.mgrid[:PERIOD, :PERIOD]
    row = np.where(upright, x, y) % period < period // 2
    face = (2 * row + (noise(rng, 3) > 0)).astype(np.uint8)
    face[edge < 1] = 7
    return _joined(rng, identity, face)


def mixed(rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """Groups of conifers (4..7) among broad-leaved crowns (0..3)."""
    face = levels(noise(rng, 4.5, 0.3), 4)
    face[noise(rng, wavelength, 0.25) > 0] += 4
    return _joined(rng, levels(noise(rng, 50, 0.4), 24), face)


def streaks(rng: np.random.Generator, wavelength: float, stretch: float) -> np.ndarray:
    """Bands along one direction, 6 levels: slopes, dune ridges, swell."""
    face = levels(noise(rng, wavelength, 0.25, stretch) + 0.15 * noise(rng, 4), 6)
    return _joined(rng, levels(noise(rng, 60, 0.4), 24), face)


def network(rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """Shrubs in rounded cushions (high faces) with a net of open ground between (low faces), 6 levels."""
    field = np.abs(noise(rng, wavelength, 0.3))
    face = np.digitize(field, (0.21, 0.43, 0.67, 0.97, 1.38)).astype(np.uint8)
    return _joined(rng, levels(noise(rng, 40, 0.4), 24), face)


def strings(rng: np.random.Generator) -> np.ndarray:
    """Peat bog or marsh: wavy strings of moss (0..4) with elongated pools between them (7)."""
    field = noise(rng, 12, 0.22, 2.6)
    face = levels(field, 6)
    face[field > 0.95] = 7
    return _joined(rng, levels(noise(rng, 60, 0.4), 24), face)


def creeks(rng: np.random.Generator) -> np.ndarray:
    """Salt marsh: branching creeks (7), mud along them (6), plateaus of grass between (0..3)."""
    wide, narrow = noise(rng, 44, 0.3), noise(rng, 20, 0.3)
    near = np.minimum(np.abs(wide) * 9, np.abs(narrow) * 6 + 0.35 * np.maximum(np.abs(wide) * 6 - 2, 0))
    face = levels(noise(rng, 20, 0.4), 4)
    face[near < 1.5] = 6
    face[near < 0.8] = 7
    return _joined(rng, levels(wide, 24), face)


def salines(rng: np.random.Generator) -> np.ndarray:
    """Evaporation ponds (cells) between straight dams (7)."""
    identity, edge, _ = parcels(rng, 8, 18)
    face = np.where(edge < 1, 7, 0).astype(np.uint8)
    return _joined(rng, identity, face)


def town(rng: np.random.Generator, shortest: int, longest: int, spacing: int) -> np.ndarray:
    """Blocks (cells) between streets (0); houses with tiled (1) or grey roofs (3) in gardens (2) with trees (4)."""
    identity, edge, _ = parcels(rng, shortest, longest)
    house, distance, _ = points(rng, spacing, 0.2)
    kind = rng.choice(np.array((1, 1, 3, 2), np.uint8), house.max() + 1)[house]
    face = np.where(distance < 0.42 * spacing, kind, np.where(noise(rng, 6) > 0.8, 4, 2)).astype(np.uint8)
    face[edge < 1] = 0
    return _joined(rng, identity, face)


def works(rng: np.random.Generator, shortest: int, longest: int) -> np.ndarray:
    """Plots (cells) with one large roof each (1, 3 grey, 5 tiled) on paved (0), open (2) or mixed ground (4)."""
    identity, edge, _ = parcels(rng, shortest, longest)
    count = int(identity.max()) + 1
    roof = rng.choice(np.array((1, 3, 5), np.uint8), count)[identity]
    ground = rng.choice(np.array((0, 2, 2, 4), np.uint8), count)[identity]
    inset = rng.integers(2, 5, count)[identity]
    face = np.where(edge >= inset, roof, ground).astype(np.uint8)
    face[edge < 1] = 0
    return _joined(rng, identity, face)


def plain(rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """Nothing but slow change, 6 levels."""
    face = levels(noise(rng, wavelength, 0.4), 6)
    return _joined(rng, levels(noise(rng, 60, 0.4), 24), face)


_Maker = Callable[[np.random.Generator], np.ndarray]
MAKERS: dict[str, tuple[_Maker, ...]] = {
    "arable": (lambda r: arable(r, 12, 34), lambda r: arable(r, 20, 56), lambda r: arable(r, 9, 40)),
    "pasture": (lambda r: pasture(r, 20), lambda r: pasture(r, 30)),
    "rows": (lambda r: rows(r, 6, 18, 44), lambda r: rows(r, 8, 24, 60)),
    "groves": (lambda r: groves(r, 6), lambda r: groves(r, 8)),
    "gardens": (lambda r: gardens(r, 4, 9), lambda r: gardens(r, 5, 12)),
    "fields_and_copses": (lambda r: fields_and_copses(r, 22), lambda r: fields_and_copses(r, 28)),
    "scattered": (lambda r: scattered(r, 8, 2.1, 0.3, 0.1), lambda r: scattered(r, 10, 2.4, 0.35, 0.1)),
    "shrubs": (shrubs, shrubs),
    "crowns": (lambda r: crowns(r, 7), lambda r: crowns(r, 9)),
    "stands": (lambda r: stands(r, 4), lambda r: stands(r, 6)),
    "mixed": (lambda r: mixed(r, 18), lambda r: mixed(r, 26)),
    "streaks": (lambda r: streaks(r, 9, 5), lambda r: streaks(r, 12, 5)),
    "network": (lambda r: network(r, 18), lambda r: network(r, 24)),
    "ridges": (lambda r: streaks(r, 10, 3),),
    "swell": (lambda r: streaks(r, 7, 4), lambda r: streaks(r, 10, 6)),
    "strings": (strings, strings),
    "creeks": (creeks,),
    "salines": (salines,),
    "town": (lambda r: town(r, 10, 22, 4), lambda r: town(r, 14, 30, 5)),
    "works": (lambda r: works(r, 12, 26), lambda r: works(r, 18, 40)),
    "plain": (lambda r: plain(r, 30),),
}


def _extended(tile: np.ndarray) -> np.ndarray:
    """(PERIOD, PERIOD) → (SIDE, SIDE), going on at the edges."""
    return np.pad(tile, ((0, MARGIN), (0, MARGIN)), mode="wrap")


@cache
def pattern(name: str, variant: int) -> np.ndarray:
    """Pattern `name` (a key of MAKERS) in one of its variants, repeated to uint8 (SIDE * SIDE,)."""
    makers = MAKERS[name]
    rng = np.random.default_rng([SEED, sorted(MAKERS).index(name), variant])
    return _extended(makers[variant](rng)).ravel()


@cache
def relief() -> np.ndarray:
    """Slow noise of unit variance, for warps, slopes and haze: float32 (SIDE, SIDE)."""
    rng = np.random.default_rng([SEED, 1001])
    field = noise(rng, 90, 0.35) + 0.5 * noise(rng, 35, 0.35) + 0.22 * noise(rng, 14, 0.3)
    return _extended((field / field.std()).astype(np.float32))


@cache
def bend() -> np.ndarray:
    """Very slow noise of unit variance, by which straight lines curve: float32 (SIDE, SIDE)."""
    field = noise(np.random.default_rng([SEED, 1003]), 170, 0.3)
    return _extended(field.astype(np.float32))


@cache
def grain() -> np.ndarray:
    """Pixel noise of unit variance: float32 (1 << 20,)."""
    return np.random.default_rng([SEED, 1002]).standard_normal(1 << 20, dtype=np.float32)


def prepare() -> None:
    """Make all patterns now, so that processes forked from this one share them."""
    relief(), bend(), grain()
    for name, makers in MAKERS.items():
        for variant in range(len(makers)):
            pattern(name, variant)
