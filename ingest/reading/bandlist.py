"""Bands as a user names them, in the order in which a file stores them; the order in which a set has them."""

import re
from collections.abc import Sequence

from shards.bands import PICTURE, SENTINEL2, Band
from shards.errors import BandstreamError

KNOWN = {**SENTINEL2, **PICTURE}
NAME = re.compile(r"[A-Za-z0-9_-]{1,16}")


def parse_bands(text: str) -> tuple[Band, ...]:
    """Bands from `B02,B03,...`; another sensor's as `NAME:WAVELENGTH_NM:GSD_M`. Raises BandstreamError."""
    bands: list[Band] = []
    for item in (part.strip() for part in text.split(",")):
        name, *numbers = item.split(":")
        if not numbers and name in KNOWN:
            band = KNOWN[name]
        else:
            band = _other(item, name, numbers)
        if any(band.name == known.name for known in bands):
            raise BandstreamError(f"--bands names {band.name} twice")
        bands.append(band)
    return tuple(bands)


def _other(item: str, name: str, numbers: Sequence[str]) -> Band:
    if not numbers:
        raise BandstreamError(
            f"--bands: {item!r} is none of {' '.join(KNOWN)}: write another sensor's band as NAME:WAVELENGTH_NM:GSD_M"
        )
    try:
        wavelength, gsd = int(numbers[0]), float(numbers[1])
    except (ValueError, IndexError):
        wavelength, gsd = 0, 0.0
    if len(numbers) != 2 or not NAME.fullmatch(name) or wavelength < 1 or not 0 < gsd < 1e6:
        raise BandstreamError(f"--bands: {item!r} is not NAME:WAVELENGTH_NM:GSD_M, such as nir:842:3")
    whole = int(gsd) if gsd == int(gsd) else gsd
    if name in KNOWN and (KNOWN[name].wavelength_nm, KNOWN[name].gsd_m) != (wavelength, whole):
        raise BandstreamError(
            f"--bands: {name} is a known band of {KNOWN[name].wavelength_nm} nm and {KNOWN[name].gsd_m} m, and "
            "encoders know bands by name: call this one otherwise"
        )
    return Band(name, wavelength, whole)  # type: ignore[arg-type]  # the manifest takes a fraction of a metre


def channel_order(stored: Sequence[Band]) -> tuple[tuple[Band, ...], tuple[int, ...]]:
    """Bands in the order of views and encoders, and of each its number in the file, from 1.

    Sentinel-2's stand in ESA's order, then red green blue, then others as they were given.
    """
    ranks = {name: rank for rank, name in enumerate(KNOWN)}
    order = sorted(range(len(stored)), key=lambda number: ranks.get(stored[number].name, len(ranks)))
    return tuple(stored[number] for number in order), tuple(number + 1 for number in order)
