"""Where and when the made-up patches lie: tiles, products, countries, splits, in the words of BigEarthNet v2.

The tiles are real ones of the Sentinel-2 grid in the ten countries of BigEarthNet (Sumbul et al., IGARSS 2019); their
corners follow from their names. A patch is the cell (column, row) of 1,200 m of its tile's grid, as in the archive:
S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_75_43 lies at 300,000 + 75 · 1,200 m east, 5,400,000 - 43 · 1,200 m north.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache

import numpy as np

GRID = 91
"""Patches along a side of a tile: 109.8 km / 1.2 km, whole ones."""
PATCH_M = 1200
BLOCK = 13
"""Patches along a side of the blocks that are dealt out to splits, so that neighbours share a split."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of the Sentinel-2 grid; `passes` are the days since 1 June 2017 on which it was sensed."""

    name: str
    country: str
    biome: str
    coastal: bool
    orbit: int
    time: str
    passes: tuple[int, ...]


TILES = (
    Tile("33UUP", "Austria", "central", False, 22, "101031", (12, 82, 137, 322)),
    Tile("31UFS", "Belgium", "atlantic", False, 8, "105031", (16, 86, 121, 311)),
    Tile("35VPK", "Finland", "nordic", False, 136, "093020", (25, 60, 115, 345)),
    Tile("29SNB", "Portugal", "mediterranean", False, 37, "112501", (33, 108, 203, 303)),
    Tile("29UPU", "Ireland", "atlantic", False, 80, "113321", (16, 96, 161, 331)),
    Tile("34TEQ", "Serbia", "central", False, 36, "093041", (30, 75, 140, 325)),
    Tile("32TLT", "Switzerland", "central", False, 108, "103021", (14, 84, 129, 319)),
    Tile("34UEG", "Lithuania", "nordic", True, 93, "095031", (21, 76, 111, 341)),
    Tile("29SND", "Portugal", "mediterranean", False, 37, "112501", (18, 93, 203, 313)),
    Tile("31UGR", "Luxembourg", "central", False, 8, "104031", (26, 91, 126, 316)),
    Tile("29SMC", "Portugal", "mediterranean", True, 37, "112501", (23, 98, 203, 308)),
    Tile("34VDM", "Finland", "nordic", True, 50, "100031", (35, 65, 105, 350)),
    Tile("34TEN", "Kosovo", "central", False, 36, "093041", (40, 85, 145, 330)),
    Tile("29UNT", "Ireland", "atlantic", True, 80, "114401", (26, 106, 166, 336)),
    Tile("33TWN", "Austria", "central", False, 122, "100031", (19, 79, 134, 329)),
    Tile("35ULA", "Lithuania", "nordic", False, 93, "094031", (31, 71, 116, 346)),
    Tile("31UES", "Belgium", "atlantic", True, 51, "105031", (36, 101, 131, 321)),
    Tile("34TDR", "Serbia", "central", False, 79, "094041", (22, 87, 142, 327)),
)
CAPACITY = len(TILES) * GRID * GRID
"""Patches that an archive can have at most."""
FIRST_DAY = date(2017, 6, 1)


@dataclass(frozen=True, slots=True)
class Place:
    """A patch's identity: its tile, the day, its cell in the grid and its split."""

    tile: Tile
    column: int
    row: int
    day: date
    satellite: str
    split: str

    @property
    def product(self) -> str:
        return f"{self.satellite}_MSIL2A_{self._time}_N9999_R{self.tile.orbit:03d}_T{self.tile.name}"

    @property
    def patch_id(self) -> str:
        return f"{self.product}_{self.column:02d}_{self.row:02d}"

    @property
    def v1_name(self) -> str:
        return f"{self.satellite}_MSIL2A_{self._time}_{self.column}_{self.row}"

    @property
    def s1_name(self) -> str:
        """Name of the Sentinel-1 patch of the same cell (which is not made up), sensed the same day."""
        cell = f"{self.tile.name}_{self.column}_{self.row}"
        return f"S1{self.satellite[2]}_IW_GRDH_1SDV_{_stamp(self.day)}T165043_{cell}"

    @property
    def _time(self) -> str:
        return f"{_stamp(self.day)}T{self.tile.time}"

    @property
    def zone(self) -> int:
        return int(self.tile.name[:2])

    @property
    def corner(self) -> tuple[int, int]:
        """Easting and northing in metres of the patch's upper left corner."""
        east, north = tile_corner(self.tile.name)
        return east + self.column * PATCH_M, north - self.row * PATCH_M


@lru_cache
def _stamp(day: date) -> str:
    return f"{day:%Y%m%d}"


@lru_cache
def tile_corner(name: str) -> tuple[int, int]:
    """Upper left corner in metres of a northern tile named as in MGRS (33UUP → (300000, 5400000)).

    The 100 km squares are lettered as in DMA TM 8358.1; the Sentinel-2 grid moves each corner outwards to a multiple of
    60 m, so that 10, 20 and 60 m pixels fit. Rows repeat every 2,000 km: the latitude band says which one is meant.
    """
    zone, band, column, row = int(name[:2]), name[2], name[3], name[4]
    east = 100_000 * ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")[(zone - 1) % 3].index(column) + 100_000
    letters = "ABCDEFGHJKLMNPQRSTUV"
    north = 100_000 * ((letters.index(row) - (0 if zone % 2 else 5)) % 20)
    lowest = 8 * ("CDEFGHJKLMNPQRSTUVWX".index(band) - 10) * 110_600
    while north + 100_000 < lowest:
        north += 2_000_000
    return east // 60 * 60, -(-(north + 100_000) // 60) * 60


@lru_cache(maxsize=2)
def _deal(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Order of the cells of each tile (tiles, 8281), and split of each of its blocks (tiles, 49)."""
    rng = np.random.default_rng([seed, 0xCE11])
    cells = np.stack([rng.permutation(GRID * GRID) for _ in TILES])
    shares = np.repeat(np.arange(3), (25, 12, 12))  # 50 : 25 : 25, as in reBEN
    return cells, np.stack([rng.permutation(shares) for _ in TILES])


def place(seed: int, index: int) -> Place:
    """Patch `index` of the archive with this seed: no two of them lie in the same place."""
    turn, number = divmod(index, len(TILES))
    tile = TILES[number]
    cells, splits = _deal(seed)
    row, column = divmod(int(cells[number, turn]), GRID)
    block = (row // BLOCK) * (GRID // BLOCK) + column // BLOCK
    days = tile.passes[(turn + number) % len(tile.passes)]
    # the two satellites pass five days apart, each every ten
    satellite = "S2A" if days // 5 % 2 == 0 else "S2B"
    return Place(tile, column, row, FIRST_DAY + timedelta(days), satellite, SPLITS[splits[number, block]])
