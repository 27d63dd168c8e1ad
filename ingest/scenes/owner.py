"""Whose metadata these are: what names of folders, files and STAC items say of an acquisition, held together.

Metadata of another acquisition put another date, place or offset into a scene without a word. Names that say nothing of
an acquisition (a folder that was renamed `may`, files `B02.tif`) are none of our business.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Any

from ingest.reading.product import offset_of
from ingest.scenes.model import Raster
from ingest.source import Rejected

ESA = re.compile(r"(S2[A-D])_MSI(L1C|L2A)_(\d{8}T\d{6})_(?:(N\d{4})_)?R\d{3}_(T\d{2}[A-Z]{3})(?:_|$|\.)")
"""A product as ESA and, without its baseline, as the Planetary Computer names it."""
AWS = re.compile(r"(S2[A-D])_T?(\d{2}[A-Z]{3})_(\d{8})(T\d{6}|_\d+)_(L1C|L2A)(?![A-Za-z0-9])")
"""A scene as Earth Search names it: `S2B_22HFD_20220122_0_L2A`, `S2B_T22HFD_20220122T133417_L2A`."""
FILE = re.compile(r"(T\d{2}[A-Z]{3})_(\d{8}T\d{6})_(?:B\d\d|B8A|SCL)(?![A-Za-z0-9])")
"""A band's file inside a product."""
SLACK_DAYS = 1
"""By how many days two dates may differ: that of a datatake and that of a tile seen after midnight."""

Claim = tuple[str, str]
"""What is said, and its value: satellite, level, tile, day; `datatake`, `scene` where names of one kind have them;
`offset`, what the stored numbers of such a baseline carry."""


def claims_of(name: str) -> Iterator[Claim]:
    """What the name of a folder, file or STAC item says; nothing where it is no name of an acquisition."""
    if found := ESA.search(name):
        satellite, level, datatake, baseline, tile = found.groups()
        yield from {"satellite": satellite, "level": level, "datatake": datatake, "tile": tile}.items()
        yield "day", datatake[:8]
        if baseline:
            yield "offset", str(offset_of(baseline))
    elif found := AWS.search(name):
        satellite, tile, day, rest, level = found.groups()
        scene = f"{satellite}_{tile}_{day}{rest}_{level}"
        yield from {"satellite": satellite, "level": level, "day": day, "tile": f"T{tile}"}.items()
        yield "scene" if rest.startswith("_") else "sensed", scene
    elif found := FILE.search(name):
        yield from {"tile": found[1], "datatake": found[2], "day": found[2][:8]}.items()


def claims_of_item(item: dict[str, Any]) -> Iterator[Claim]:
    """What a STAC item says: its id, its product's name, its properties, and the files that it names."""
    properties = item.get("properties") or {}
    files = (str(asset.get("href") or "") for asset in (item.get("assets") or {}).values() if isinstance(asset, dict))
    for name in (item.get("id"), properties.get("s2:product_uri"), *(file.split("?")[0] for file in files)):
        yield from claims_of(str(name or "").rpartition("/")[2])
    if found := re.fullmatch(r"sentinel-(2[a-d])", str(properties.get("platform") or "").lower()):
        yield "satellite", f"S{found[1].upper()}"
    for key in ("s2:mgrs_tile", "grid:code"):
        if found := re.search(r"(?:^|MGRS-|T)(\d{2}[A-Z]{3})$", str(properties.get(key) or "")):
            yield "tile", f"T{found[1]}"
    if found := re.match(r"(\d{4})-(\d\d)-(\d\d)T", str(properties.get("datetime") or "")):
        yield "day", "".join(found.groups())
    for key in ("s2:product_type", "processing:level"):
        if found := re.search(r"([12][AC])$", str(properties.get(key) or "")):
            yield "level", f"L{found[1]}"


def check_owner(where: str, metadata: Iterable[Claim], files: Iterable[Claim]) -> None:
    """Raises Rejected where metadata say of an acquisition what the names beside them deny."""
    named: dict[str, set[str]] = {}
    for what, value in files:
        named.setdefault(what, set()).add(value)
    for what, value in metadata:
        for other in sorted(named.get(what, ())):
            if other != value and not (what == "day" and _near(value, other)):
                text = f"the metadata in it are of {what} {value}, names in it say {other}: they are of another product"
                raise Rejected(where, "another-product", f"{text}, download it again")


def check_place(where: str, properties: dict[str, Any], asset: dict[str, Any], band: str, raster: Raster) -> None:
    """Raises Rejected where a band lies outside of the extent that its STAC item gives it (`proj:transform` and
    `proj:shape`, of the asset or of all): a window of it may be here, another tile may not."""
    told = properties | asset
    code = str(told.get("proj:code") or told.get("proj:epsg") or "").rpartition(":")[2]
    try:
        a, b, c, d, e, f = (float(number) for number in told["proj:transform"][:6])
        rows, columns = (int(number) for number in told["proj:shape"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return
    if code != str(raster.epsg) or b or d:
        return
    left, top = raster.transform[2], raster.transform[5]
    right, bottom = left + raster.transform[0] * raster.shape[1], top + raster.transform[4] * raster.shape[0]
    if left < c - abs(a) or top > f + abs(a) or right > c + a * columns + abs(a) or bottom < f + e * rows - abs(a):
        text = f"{band} begins at {left:.0f}, {top:.0f}, the STAC item's at {c:.0f}, {f:.0f}: it is of another product"
        raise Rejected(where, "another-product", f"{text}, download it again")


def _near(one: str, other: str) -> bool:
    """Whether two days, `20220122`, are the same or neighbours."""
    try:
        days = [date(int(text[:4]), int(text[4:6]), int(text[6:])) for text in (one, other)]
    except ValueError:
        return False
    return abs((days[0] - days[1]).days) <= SLACK_DAYS
