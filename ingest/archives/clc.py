"""CORINE Land Cover (CLC) classes and the 19-class nomenclature of BigEarthNet.

BigEarthNet labels a patch with CLC level-3 classes of 2018. Version 1 has 43 of the 44 names ("Glaciers and perpetual
snow" does not occur), some spelt otherwise than in CLC itself. The 19-class nomenclature joins or drops them: Sumbul et
al., "BigEarthNet-MM", IEEE GRSM 2021, table 2, and `label_indices.json` of the authors' BigEarthNet-S2 19-class models;
version 2 (reBEN: Clasen et al., arXiv 2407.03653) is published in the 19 classes, with CLC codes in its reference maps.

The order of `CLASSES` is the authors' (and torchgeo's), which follows the CLC codes. It is not alphabetical; ConfigILM
and the models released with reBEN sort the same names alphabetically, so classes are to be matched by name.
"""

from collections.abc import Iterable

import numpy as np

IGNORE = 255
"""The mask value of a pixel whose CLC class is in none of the 19."""

CLASSES = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)
"""The 19 classes, in the order of label vectors and mask values."""

# CLC code: (name as BigEarthNet v1 spells it, its class among the 19 or None where it was dropped)
_TABLE: dict[int, tuple[str, str | None]] = {
    111: ("Continuous urban fabric", "Urban fabric"),
    112: ("Discontinuous urban fabric", "Urban fabric"),
    121: ("Industrial or commercial units", "Industrial or commercial units"),
    122: ("Road and rail networks and associated land", None),
    123: ("Port areas", None),
    124: ("Airports", None),
    131: ("Mineral extraction sites", None),
    132: ("Dump sites", None),
    133: ("Construction sites", None),
    141: ("Green urban areas", None),
    142: ("Sport and leisure facilities", None),
    211: ("Non-irrigated arable land", "Arable land"),
    212: ("Permanently irrigated land", "Arable land"),
    213: ("Rice fields", "Arable land"),
    221: ("Vineyards", "Permanent crops"),
    222: ("Fruit trees and berry plantations", "Permanent crops"),
    223: ("Olive groves", "Permanent crops"),
    231: ("Pastures", "Pastures"),
    241: ("Annual crops associated with permanent crops", "Permanent crops"),
    242: ("Complex cultivation patterns", "Complex cultivation patterns"),
    243: (
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    ),
    244: ("Agro-forestry areas", "Agro-forestry areas"),
    311: ("Broad-leaved forest", "Broad-leaved forest"),
    312: ("Coniferous forest", "Coniferous forest"),
    313: ("Mixed forest", "Mixed forest"),
    321: ("Natural grassland", "Natural grassland and sparsely vegetated areas"),
    322: ("Moors and heathland", "Moors, heathland and sclerophyllous vegetation"),
    323: ("Sclerophyllous vegetation", "Moors, heathland and sclerophyllous vegetation"),
    324: ("Transitional woodland/shrub", "Transitional woodland, shrub"),
    331: ("Beaches, dunes, sands", "Beaches, dunes, sands"),
    332: ("Bare rock", None),
    333: ("Sparsely vegetated areas", "Natural grassland and sparsely vegetated areas"),
    334: ("Burnt areas", None),
    335: ("Glaciers and perpetual snow", None),
    411: ("Inland marshes", "Inland wetlands"),
    412: ("Peatbogs", "Inland wetlands"),
    421: ("Salt marshes", "Coastal wetlands"),
    422: ("Salines", "Coastal wetlands"),
    423: ("Intertidal flats", None),
    511: ("Water courses", "Inland waters"),
    512: ("Water bodies", "Inland waters"),
    521: ("Coastal lagoons", "Marine waters"),
    522: ("Estuaries", "Marine waters"),
    523: ("Sea and ocean", "Marine waters"),
}

CLC_NAMES: dict[int, str] = {code: name for code, (name, _) in _TABLE.items()}
"""The 44 CLC level-3 codes and their names, spelt as in BigEarthNet v1."""

CLC_TO_CLASS: dict[int, int] = {code: CLASSES.index(joined) for code, (_, joined) in _TABLE.items() if joined}
"""CLC code → index into `CLASSES`; the twelve codes that are in no class are absent."""

V1_NAMES: tuple[str, ...] = tuple(name for code, name in CLC_NAMES.items() if code != 335)
"""The 43 label names of BigEarthNet v1."""

NAME_TO_CLASS: dict[str, int | None] = {CLC_NAMES[code]: CLC_TO_CLASS.get(code) for code in _TABLE if code != 335}
"""v1 label name → index into `CLASSES`, None where the name was dropped."""


def multi_hot(indices: Iterable[int]) -> np.ndarray:
    """Class indices → uint8 multi-hot (19,)."""
    hot = np.zeros(len(CLASSES), np.uint8)
    hot[list(indices)] = 1
    return hot


def code_table() -> np.ndarray:
    """Lookup from CLC code to mask value: uint8 (65536,), `IGNORE` for whatever is in no class."""
    table = np.full(1 << 16, IGNORE, np.uint8)
    for code, index in CLC_TO_CLASS.items():
        table[code] = index
    return table
