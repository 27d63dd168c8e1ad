"""The bands, by name: central wavelengths and ground sampling distances of the Sentinel-2 MSI.

Wavelengths are S2A's central ones, rounded to the nanometre, as ESA's Sentinel-2 User Handbook tabulates them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shards.errors import BandstreamError


@dataclass(frozen=True)
class Band:
    """A spectral band: name, central wavelength in nanometres, ground sampling distance (GSD) in metres."""

    name: str
    wavelength_nm: int
    gsd_m: int


SENTINEL2: dict[str, Band] = {
    band.name: band
    for band in (
        Band("B01", 443, 60),
        Band("B02", 492, 10),
        Band("B03", 560, 10),
        Band("B04", 665, 10),
        Band("B05", 704, 20),
        Band("B06", 740, 20),
        Band("B07", 783, 20),
        Band("B08", 833, 10),
        Band("B8A", 865, 20),
        Band("B09", 945, 60),
        Band("B10", 1373, 60),
        Band("B11", 1614, 20),
        Band("B12", 2202, 20),
    )
}
"""All thirteen bands, in ESA's order, which is the channel order of every view and every encoder."""

PICTURE: dict[str, Band] = {
    "red": Band("red", 665, 10),
    "green": Band("green", 560, 10),
    "blue": Band("blue", 492, 10),
}
"""The channels of an 8-bit picture, which show what B04, B03 and B02 show."""

SAME_LIGHT = {"red": "B04", "green": "B03", "blue": "B02"}

Fallback = Literal["none", "wavelength", "zero"]
"""What becomes of a band that an encoder never saw: it is an error; the nearest one by wavelength stands in for it; or
it gets weights of zero. See models/stem.py."""


def esa_order(names: Iterable[str]) -> list[str]:
    """Sort band names into ESA's order. Raises BandstreamError on a name that is no Sentinel-2 band."""
    names = list(names)
    unknown = [name for name in names if name not in SENTINEL2]
    if unknown:
        raise BandstreamError(f"unknown band {', '.join(unknown)}: Sentinel-2 has {', '.join(SENTINEL2)}")
    return [name for name in SENTINEL2 if name in names]


def true_colour(names: Iterable[str]) -> tuple[str, str, str] | None:
    """The (red, green, blue) among these bands, or None where one is missing."""
    return _pick(names, ("B04", "B03", "B02"))


def false_colour(names: Iterable[str]) -> tuple[str, str, str] | None:
    """The (near infrared, red, green) among these bands, vegetation in red, or None where one is missing."""
    return _pick(names, ("B08", "B04", "B03")) or _pick(names, ("B8A", "B04", "B03"))


def _pick(names: Iterable[str], wanted: tuple[str, str, str]) -> tuple[str, str, str] | None:
    found = {SAME_LIGHT.get(name, name): name for name in names}
    first, second, third = wanted
    if first in found and second in found and third in found:
        return found[first], found[second], found[third]
    return None
