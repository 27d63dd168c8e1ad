"""A scene: the rasters of one product, what its metadata says of them, and the grid that they share.

Sentinel-2 rasters come at 10, 20 and 60 m on one origin (S2-PDGS-TAS-DI-PSD, section on tiling). A product that was
resampled holds all of them at one pixel size instead; both are taken, anything between is refused by name.
"""

import hashlib
import re
from dataclasses import dataclass

from ingest.reading.product import FIRST_WITH_OFFSET, REPROCESSED
from ingest.source import Rejected
from shards.bands import SENTINEL2

LARGEST = 1 << 15
"""Most rows or columns of a raster: three times a tile's. What claims more is not believed."""
COARSEST = 6
"""Pixels of 10 m along one of 60 m."""
PRODUCT = re.compile(r"S2[A-D]_MSIL(1C|2A)_\d{8}T\d{6}_N\d{4}_R\d{3}_T\d{2}[A-Z]{3}_\d{8}T\d{6}")
"""How ESA names a product."""
LONGEST = 66
"""Characters of a product's name in keys, which have 80 and end in the patch's row and column."""

Polygon = tuple[tuple[tuple[float, float], ...], ...]
"""Rings of ground coordinates: the outer one, then holes."""


@dataclass(frozen=True, slots=True)
class Raster:
    """A raster of a product: `name` inside the product, what the library that reads it calls it (`where`; of Zarr the
    store, the array being `array`), (height, width), EPSG code, (a, b, c, d, e, f) of pixel → ground, how many planes
    it has, and the stored number that means nodata."""

    name: str
    where: str
    shape: tuple[int, int]
    epsg: int
    transform: tuple[float, ...]
    array: str = ""
    count: int = 1
    nodata: int = 0


@dataclass(frozen=True, slots=True)
class Clouds:
    """What tells clouds from clear sky: a raster, and `kind`, what its numbers mean (`ingest.scenes.raster.CLOUDY`); or
    polygons."""

    kind: str
    raster: Raster | None = None
    polygons: tuple[Polygon, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """A product. `taken`: what is to be taken from each band's stored numbers; `identity`: changes when a file of it
    does; `warnings`: what looks odd in it."""

    product: str
    level: str
    baseline: str
    date: str
    tile: str
    scale: float
    taken: dict[str, int]
    bands: dict[str, Raster]
    clouds: Clouds | None
    identity: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a scene lies: upper left corner in ground units, the size `unit` of its finest pixels and how many there
    are; how many of them each band's pixels measure (`ratios`); `single`: all rasters have one pixel size."""

    epsg: int
    left: float
    top: float
    unit: float
    rows: int
    columns: int
    ratios: dict[str, int]
    single: bool


def key_of(name: str) -> str:
    """What a product is called in keys: shortened where it must be, by a hash of the whole."""
    key = re.sub(r"[^A-Za-z0-9_+=-]", "-", name)
    if key == name and len(key) <= LONGEST:
        return key
    return f"{key[: LONGEST - 9]}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def grid_of(product: str, rasters: dict[str, Raster]) -> Grid:
    """The grid that a product's bands make together. Raises Rejected naming the raster that does not fit."""
    for raster in rasters.values():
        _check(product, raster)
    sizes = {band: raster.transform[0] for band, raster in rasters.items()}
    scales = {band: size / SENTINEL2[band].gsd_m for band, size in sizes.items()}
    least = min(scales.values())
    single = not _near(scales.values(), least) and _near(sizes.values(), min(sizes.values()))
    if not single and not _near(scales.values(), least):
        told = ", ".join(f"{band} {size:g} m" for band, size in sizes.items())
        raise Rejected(
            product,
            "wrong-resolution",
            f"pixels are neither 10, 20 and 60 m as the bands have them nor all alike: {told}",
        )
    unit = min(sizes.values()) if single else 10 * least
    ratios = {band: 1 if single else SENTINEL2[band].gsd_m // 10 for band in rasters}
    first = next(iter(rasters.values()))
    left, top = first.transform[2], first.transform[5]
    heights = {band: raster.shape[0] * ratios[band] for band, raster in rasters.items()}
    widths = {band: raster.shape[1] * ratios[band] for band, raster in rasters.items()}
    rows, columns = min(heights.values()), min(widths.values())
    slack = 0 if single else COARSEST - 1
    for band, raster in rasters.items():
        place = raster.transform[2], raster.transform[5]
        if raster.epsg != first.epsg:
            what = f"it is in EPSG:{raster.epsg}, {first.name} in EPSG:{first.epsg}"
        elif max(abs(place[0] - left), abs(place[1] - top)) > unit / 100:
            what = f"its corner is {place}, that of {first.name} {(left, top)}"
        elif max(heights[band] - rows, widths[band] - columns) > slack:
            what = (
                f"it covers {heights[band]} rows and {widths[band]} columns of {unit:g} m, others {rows} and {columns}"
            )
        else:
            continue
        raise Rejected(f"{product}/{raster.name}", "misplaced", what)
    return Grid(first.epsg, left, top, unit, rows, columns, ratios, single)


def check_mask(product: str, mask: Raster, grid: Grid) -> None:
    """Raises Rejected where a mask does not lie on a scene's grid."""
    _check(product, mask)
    ratio = mask.transform[0] / grid.unit
    n = round(ratio)
    if mask.epsg != grid.epsg or max(abs(mask.transform[2] - grid.left), abs(mask.transform[5] - grid.top)) > (
        grid.unit / 100
    ):
        what = "it lies elsewhere than the bands"
    elif not (n in (1, 2, 3, 6) and _near((ratio,), n)):
        what = f"its pixels of {mask.transform[0]:g} m do not fit those of the bands"
    elif min(mask.shape[0] * n - grid.rows, mask.shape[1] * n - grid.columns) < 0:
        what = f"{mask.shape[1]} x {mask.shape[0]} pixels of it do not cover the bands"
    else:
        return
    raise Rejected(f"{product}/{mask.name}", "misplaced", what)


def _near(values: object, value: float) -> bool:
    return all(abs(each - value) <= 1e-6 * value for each in values)  # type: ignore[attr-defined]


def _check(product: str, raster: Raster) -> None:
    """Raises Rejected where a raster is too large to be believed or lies askew or nowhere."""
    where = f"{product}/{raster.name}"
    a, b, _, d, e, _ = raster.transform
    if not 0 < min(raster.shape) <= max(raster.shape) <= LARGEST:
        raise Rejected(where, "wrong-size", f"{raster.shape[1]} x {raster.shape[0]} pixels; up to {LARGEST} are taken")
    if not raster.epsg or (a, e) == (1, 1):
        raise Rejected(where, "misplaced", "it has no coordinate system")
    if b or d or not a > 0 or not _near((-e,), a):
        raise Rejected(where, "misplaced", f"its pixels are no squares with north up: {raster.transform}")


def decide_offset(
    name: str, named: str, stated: str, offsets: dict[str, int] | None, bands: tuple[str, ...], asked: int | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """What to take from each band's stored numbers, and warnings.

    `named`: the baseline in the product's name; `stated`: that of its metadata, "" where it has none; `offsets`: band →
    what its metadata adds, None where it does not say; `asked`: what the user says of products that do not say it
    themselves. Metadata goes before the name. Raises Rejected where nothing tells.
    """
    warnings: list[str] = []
    if stated and named and stated != named:
        warnings.append(f"{name}: its name says {named}, its metadata {stated}: the metadata is believed")
    if offsets is not None:
        missing = [band for band in bands if band not in offsets]
        if missing:
            raise Rejected(name, "no-offset", f"its metadata has offsets, but none of {', '.join(missing)}")
        for band in bands:
            if not -(1 << 15) < offsets[band] <= 0:
                raise Rejected(
                    name, "no-offset", f"its metadata adds {offsets[band]} to {band}: -1000 or 0 is expected"
                )
        return {band: -offsets[band] for band in bands}, tuple(warnings)
    baseline = stated or named
    if asked is not None:
        without = baseline and not has_offset(baseline)
        return dict.fromkeys(bands, 0 if without else asked), tuple(warnings)
    if stated and has_offset(stated):
        raise Rejected(
            name, "no-offset", f"{stated} has an offset, but its metadata names none: say with --offset what to take"
        )
    if not baseline:
        raise Rejected(name, "no-offset", "nothing says whether it has an offset: say with --offset what to take")
    return dict.fromkeys(bands, 1000 if has_offset(baseline) else 0), tuple(warnings)


def has_offset(baseline: str) -> bool:
    """Whether products of a baseline carry an offset."""
    return FIRST_WITH_OFFSET <= int(baseline[1:]) < REPROCESSED
