"""What the parts of each pattern are made of: for a CLC class in one patch, a spectrum per (cell, face).

The farmed classes take their greenness from the same distribution in a patch (`Scene.green`, `Scene.contrast`): fields,
mottled meadows, tree rows and tiny plots have about the same mean and spread in every band, and differ in where the
green stands. Forests overlap by age and closeness, towns and works by what lies between their roofs, the waters wholly.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ingest.synthetic import spectra
from ingest.synthetic.geography import Place

COLD = {"mediterranean": 0.0, "atlantic": 0.35, "central": 0.5, "nordic": 1.0}


@dataclass
class Scene:
    """What all classes of a patch share: season, soil, samples of the materials; spectra are (12,)."""

    rng: np.random.Generator
    biome: str
    leafy: float = field(init=False)
    green: float = field(init=False)
    contrast: float = field(init=False)

    def start(self, day_of_year: int) -> "Scene":
        rng, cold = self.rng, COLD[self.biome]
        self.material = spectra.samples(rng)
        self.leafy = spectra.foliage(day_of_year, cold)
        # grass and crops stay green in mild winters and dry out in Mediterranean summers
        drought = (1 - cold) * np.exp(-(((day_of_year - 215) / 45) ** 2))
        winter = cold * (1 - self.leafy)
        vigour = float(np.clip(1 - 0.5 * winter - 0.6 * drought + rng.normal(0, 0.1), 0.25, 1))
        self.green = float(rng.uniform(0.3, 0.7))
        self.contrast = float(rng.uniform(0.34, 0.46))
        share = rng.dirichlet((1.5, 1.2, 1.5))
        self.soil = share[0] * self[spectra.DARK] + share[1] * self[spectra.BRIGHT] + share[2] * self[spectra.STRAW]
        self.grass = vigour * self[spectra.GRASS] + (1 - vigour) * self[spectra.STRAW]
        bare = 0.65 * self[spectra.WOOD] + 0.2 * self[spectra.STRAW]
        self.crown = self.leafy * self[spectra.LEAVES] + (1 - self.leafy) * bare
        self.evergreen = 0.75 * self[spectra.NEEDLES] + 0.25 * self[spectra.LEAVES]
        turbidity = rng.beta(0.7, 0.9)
        self.water = turbidity * self[spectra.TURBID] + (1 - turbidity) * self[spectra.WATER]
        return self

    def __getitem__(self, material: int) -> np.ndarray:
        spectrum: np.ndarray = self.material[material]
        return spectrum

    def farmed(self, greenness: np.ndarray) -> np.ndarray:
        """Greenness (...) → spectra (..., 12) between soil and crop."""
        share = np.clip(greenness, 0.02, 0.98)[..., None]
        mix: np.ndarray = share * self.grass + (1 - share) * self.soil
        return mix

    def apart(self, size: int = 32) -> np.ndarray:
        """Draws of mean 0 that lie rather at -1 and 1 than between."""
        draws: np.ndarray = self.rng.beta(0.5, 0.5, size) * 2 - 1
        return draws


def mix(first: np.ndarray, second: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Share (...) of `first` (12,) and the rest of `second` → (..., 12)."""
    part = np.asarray(share)[..., None]
    between: np.ndarray = part * first + (1 - part) * second
    return between


def _faces(*values: float) -> np.ndarray:
    return np.array(values + (0.0,) * (8 - len(values)))


RAMP = _faces(-1.3, -0.75, -0.25, 0.25, 0.75, 1.3)
"""Six levels of unit mean square, roughly."""
STEPS4 = _faces(-1.2, -0.4, 0.4, 1.2)


def _fields(s: Scene) -> np.ndarray:
    x = s.green + s.contrast * 1.15 * s.apart()[:, None] + 0.03 * _faces(-1, 1)
    table = s.farmed(x)
    table[:, 7] = s.farmed(np.full(32, 0.15))
    return table


def _meadows(s: Scene) -> np.ndarray:
    x = s.green + 0.2 * s.contrast * s.apart()[:, None] + 0.95 * s.contrast * RAMP
    table = s.farmed(x)
    table[:, 7] = 0.7 * s.crown
    return table


def _orchard(s: Scene) -> np.ndarray:
    x = s.green + 0.25 * s.contrast * s.apart()[:, None] + 1.1 * s.contrast * _faces(-1, -0.3, 0.6, 1)
    table = s.farmed(x)
    # crops and crowns alike are green: half of a row is crown, so that it is no material of its own
    table[:, 2:4] = 0.5 * table[:, 2:4] + 0.5 * mix(s.crown, s.grass, 0.5)
    table[:, 7] = s.farmed(np.full(32, 0.15))
    return table


def _plots(s: Scene) -> np.ndarray:
    table = s.farmed(np.repeat(s.green + 1.15 * s.contrast * s.apart()[:, None], 8, 1))
    table[:, 6] = 0.8 * s.crown
    return table


def _copses(s: Scene) -> np.ndarray:
    x = s.green + 1.0 * s.contrast * s.apart()[:, None] + np.zeros(8)
    table = s.farmed(x)
    table[:, 4:7] = np.array((0.35, 0.65, 0.9))[:, None] * mix(s.crown, s.grass, 0.8)
    return table


def _dehesa(s: Scene) -> np.ndarray:
    x = s.green + 0.2 * s.contrast * s.apart()[:, None] + 0.2 * s.contrast * STEPS4
    table = s.farmed(x)
    table[:, 4] = 0.75 * s.evergreen
    table[:, 5] = 0.5 * table[:, 0]
    return table


def _broad(s: Scene) -> np.ndarray:
    age = s.rng.uniform(0.55, 0.95)
    light = age * np.clip(0.72 + 0.24 * RAMP, 0.2, 1.1)
    cells = 1 + 0.07 * s.rng.standard_normal((32, 1, 1))
    table: np.ndarray = cells * (light[:, None] * mix(s.crown, s.evergreen, s.rng.uniform(0.6, 1)))[None]
    return table


def _needle(s: Scene) -> np.ndarray:
    grown = np.clip(s.rng.beta(1.5, 1.0, (32, 1)), 0.1, 1)
    light = np.clip(0.95 - 0.28 * grown + 0.16 * _faces(-1.2, -0.8, 0.8, 1.2), 0.3, 1.2)
    under = mix(s.grass, s.soil, 0.6)
    table: np.ndarray = light[..., None] * mix(
        s.evergreen, mix(s.crown, under, 0.6), np.broadcast_to(0.55 + 0.4 * grown, (32, 8))
    )
    cut = s.rng.random(32) < 0.08
    table[cut] = mix(under, s[spectra.STRAW], 0.6)
    table[:, 7] = 0.9 * under
    return table


def _both(s: Scene) -> np.ndarray:
    light = s.rng.uniform(0.65, 1.0) * (0.75 + 0.2 * STEPS4[:4])
    cells = 1 + 0.07 * s.rng.standard_normal((32, 1, 1))
    broad, needle = light[:, None] * s.crown, (0.05 + light)[:, None] * s.evergreen
    table: np.ndarray = cells * np.concatenate((broad, needle))[None]
    return table


def _grassland(s: Scene) -> np.ndarray:
    x = s.green + 0.15 * s.contrast * s.apart()[:, None] + 0.8 * s.contrast * RAMP
    return mix(s.grass, mix(s[spectra.STRAW], s.soil, 0.6), np.clip(x, 0, 1))


def _sparse(s: Scene) -> np.ndarray:
    x = s.green - 0.1 + 0.15 * s.contrast * s.apart()[:, None] + 0.8 * s.contrast * RAMP
    return mix(s.grass, mix(s[spectra.ROCK], s.soil, 0.5), np.clip(x, 0, 1))


def _heath(s: Scene) -> np.ndarray:
    open_ground = mix(s.grass, s[spectra.STRAW], s.rng.uniform(0.2, 0.6))
    x = np.clip(0.5 + 0.6 * RAMP + 0.08 * s.apart()[:, None], 0, 1)
    return mix(s[spectra.HEATH], open_ground, x)


def _maquis(s: Scene) -> np.ndarray:
    x = np.clip(0.5 + 0.6 * RAMP + 0.08 * s.apart()[:, None], 0, 1)
    return mix(mix(s.evergreen, s[spectra.HEATH], 0.5), mix(s.soil, s[spectra.STRAW], 0.5), x)


def _young(s: Scene) -> np.ndarray:
    x = s.green + 0.1 + 0.35 * s.contrast * STEPS4 + 0.1 * s.apart()[:, None]
    table = mix(s.grass, mix(s[spectra.HEATH], s[spectra.STRAW], 0.6), np.clip(x, 0, 1))
    tree = mix(s.crown, s.evergreen, s.rng.random(32))
    table[:, 4], table[:, 5] = 0.85 * tree, 0.5 * table[:, 1]
    return table


def _sand(s: Scene) -> np.ndarray:
    plants = np.clip(s.rng.uniform(0.05, 0.2) - 0.12 * RAMP + 0.05 * s.apart()[:, None], 0, 0.6)
    bright = s.rng.uniform(0.75, 1.1)
    return bright * mix(s.grass, s[spectra.SAND], plants)


def _bog(s: Scene) -> np.ndarray:
    x = np.clip(0.5 + 0.45 * RAMP + 0.06 * s.apart()[:, None], 0, 1)
    moss = mix(s.grass, s[spectra.STRAW], s.rng.uniform(0.2, 0.6))
    table = 0.9 * mix(moss, mix(s[spectra.HEATH], s[spectra.DARK], 0.6), x)
    table[:, 7] = mix(s.water, s[spectra.DARK], 0.7)
    return table


def _marsh(s: Scene) -> np.ndarray:
    x = np.clip(s.green + 0.12 * STEPS4 + 0.06 * s.apart()[:, None], 0, 1)
    table = 0.85 * mix(s.grass, mix(s[spectra.STRAW], s[spectra.DARK], 0.5), x)
    table[:, 6] = 0.8 * mix(s[spectra.DARK], s.water, 0.6)
    table[:, 7] = s.water
    return table


def _ponds(s: Scene) -> np.ndarray:
    table = np.repeat(mix(s.water, s[spectra.SAND], 0.45 + 0.55 * s.rng.random(32))[:, None], 8, 1)
    table[:, 7] = mix(s.soil, s[spectra.SAND], 0.5)
    return table


def _still(s: Scene) -> np.ndarray:
    return np.broadcast_to(s.water * (1 + 0.04 * RAMP)[:, None], (32, 8, 12))


def _swell(s: Scene) -> np.ndarray:
    """Sun glint on the swell's crests (Kay et al., Remote Sensing 1, 2009): grey, on top of the water."""
    glint = s.rng.uniform(0.004, 0.02) * np.clip(0.6 + 0.5 * RAMP, 0, 1.4)
    return np.broadcast_to(s.water + glint[:, None], (32, 8, 12))


def _built(s: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tiled roofs, grey roofs, paved ground and open ground (32, 12): towns and works build with the same."""
    worn = s.rng.uniform(0.1, 0.6)
    tiled = mix(s[spectra.TILES], s.soil, s.rng.uniform(0.4, 1, 32)) * (1 + 0.12 * s.apart()[:, None])
    grey = mix(s[spectra.ASPHALT], s[spectra.ROOF], np.clip(1 - worn + 0.25 * s.apart(), 0, 1))
    paved = mix(s[spectra.ASPHALT], s.soil, s.rng.uniform(0.4, 1))
    ground = mix(s.grass, s.soil, np.clip(s.rng.uniform(0.35, 0.85) + 0.15 * s.apart(), 0, 1))
    return tiled, grey, np.broadcast_to(paved, (32, 12)), ground


def _town(s: Scene) -> np.ndarray:
    tiled, grey, paved, ground = _built(s)
    return np.stack((paved, tiled, ground, grey, 0.7 * np.broadcast_to(s.crown, (32, 12)), paved, paved, paved), 1)


def _works(s: Scene) -> np.ndarray:
    tiled, grey, paved, ground = _built(s)
    table = np.stack((paved, grey, ground, grey, 0.5 * (ground + paved), tiled, paved, paved), 1)
    # wide roofs and yards fill whole pixels, narrow houses and streets never do: without this the extremes tell
    blended: np.ndarray = 0.6 * table + 0.4 * np.mean((tiled, grey, paved, ground, ground), axis=(0, 1))
    return blended


def _quarry(s: Scene) -> np.ndarray:
    x = np.clip(0.6 + 0.4 * RAMP + 0.1 * s.apart()[:, None], 0, 1)
    return mix(s[spectra.BRIGHT], s[spectra.ROCK], x)


def _lawn(s: Scene) -> np.ndarray:
    table = s.farmed(np.clip(0.8 + 0.15 * s.apart()[:, None] + np.zeros(8), 0, 1))
    table[:, 4], table[:, 5] = 0.8 * s.crown, 0.5 * table[:, 0]
    return table


def _rock(s: Scene) -> np.ndarray:
    return s[spectra.ROCK] * (0.9 + 0.15 * RAMP[:, None] + 0.1 * s.apart()[:, None, None])


def _mud(s: Scene) -> np.ndarray:
    x = np.clip(0.5 + 0.4 * RAMP + 0.1 * s.apart()[:, None], 0, 1)
    return mix(mix(s[spectra.DARK], s[spectra.SAND], 0.6), s.water, x)


Palette = Callable[[Scene], np.ndarray]
LOOKS: dict[int, tuple[str, Palette]] = {
    111: ("town", _town),
    112: ("town", _town),
    121: ("works", _works),
    131: ("ridges", _quarry),
    142: ("scattered", _lawn),
    211: ("arable", _fields),
    212: ("arable", _fields),
    213: ("arable", _fields),
    221: ("rows", _orchard),
    222: ("rows", _orchard),
    223: ("groves", _orchard),
    231: ("pasture", _meadows),
    241: ("groves", _orchard),
    242: ("gardens", _plots),
    243: ("fields_and_copses", _copses),
    244: ("scattered", _dehesa),
    311: ("crowns", _broad),
    312: ("stands", _needle),
    313: ("mixed", _both),
    321: ("streaks", _grassland),
    322: ("network", _heath),
    323: ("network", _maquis),
    324: ("shrubs", _young),
    331: ("ridges", _sand),
    332: ("ridges", _rock),
    333: ("streaks", _sparse),
    411: ("strings", _bog),
    412: ("strings", _bog),
    421: ("creeks", _marsh),
    422: ("salines", _ponds),
    423: ("plain", _mud),
    511: ("plain", _still),
    512: ("plain", _still),
    521: ("plain", _still),
    522: ("swell", _swell),
    523: ("swell", _swell),
}
"""CLC code → its pattern, and the spectra (32 cells, 8 faces, 12 bands) of the pattern's parts in a scene."""


def scene(rng: np.random.Generator, place: Place) -> Scene:
    """The scene of a patch."""
    return Scene(rng, place.tile.biome).start(place.day.timetuple().tm_yday)
