"""Band order held against physics, whatever names say.

B8A (865 nm, 21 nm wide) lies inside B08 (833 nm, 106 nm wide) and must track it. B10 (1373 nm) lies where water vapour
lets next to no light from the ground through, so that it is darker than B09 beside it, except under thick cirrus.
"""

import numpy as np

from ingest.building.plan import Plan
from ingest.building.shard import layout_of
from ingest.source import Rejected, Source
from shards.bands import SENTINEL2
from shards.errors import BandstreamError

LOOKED_AT = 64
"""Samples that are read for it, at most."""
PIXELS = 1 << 20
"""Pixels a band, at B8A's resolution, that are enough: of samples that are scenes, or many dates, fewer are read."""
TRACKS, LAGS = 0.9, 0.1
"""A set is refused where another band correlates with B08 by at least TRACKS and B8A by at least LAGS less."""
UNCLEAR = 0.5
"""Below this correlation of B08 and B8A, with no better candidate, a warning."""

DARK = 0.02
"""Reflectance that B10's median may reach in any case."""


def correlations(planes: dict[str, np.ndarray]) -> dict[str, float]:
    """Correlation of each band with B08 over all pixels, float (n, h, w) a band; constant bands are left out."""
    reference = planes["B08"].ravel() - planes["B08"].mean()
    result = {}
    for band, values in planes.items():
        centred = values.ravel() - values.mean()
        scale = float(np.sqrt((centred @ centred) * (reference @ reference)))
        if scale > 0 and band != "B08":
            result[band] = float(centred @ reference) / scale
    return result


def judge(found: dict[str, float], what: str) -> list[str]:
    """Warnings about a set by its correlations, as far as they are of 20 m bands.

    Raises BandstreamError where its band order cannot be right.
    """
    if "B8A" not in found:
        return []
    # bands of another native resolution may have been sampled elsewhere (products that were made smaller pick other
    # pixels of each), and then B08's own neighbours are ahead of every 20 m band for no fault of the order
    alike = [band for band in found if band in SENTINEL2 and SENTINEL2[band].gsd_m == SENTINEL2["B8A"].gsd_m]
    best = max(alike, key=lambda band: found[band])
    if found[best] >= TRACKS and found["B8A"] <= found[best] - LAGS:
        raise BandstreamError(
            f"{what}: the band order cannot be right: B08 correlates with {best} by {found[best]:.2f} but with B8A, "
            f"which lies inside it, by {found['B8A']:.2f}: check the names of the archive's files"
        )
    if found["B8A"] < UNCLEAR:
        return [f"{what}: B8A correlates with B08 by only {found['B8A']:.2f}: are these Sentinel-2 bands?"]
    return []


def judge_cirrus(medians: dict[str, float], scale: float, what: str) -> None:
    """Hold B10 against B09 by their medians, stored numbers. Raises BandstreamError where the order cannot be right."""
    if {"B09", "B10"} <= medians.keys() and medians["B10"] > max(medians["B09"], DARK / scale):
        raise BandstreamError(
            f"{what}: the band order cannot be right: the median of B10, which sees hardly any ground, is "
            f"{medians['B10'] * scale:.3f}, that of B09 {medians['B09'] * scale:.3f}: check the order of the "
            "archive's bands (EuroSAT stores B8A last)"
        )


def check(source: Source, plan: Plan) -> list[str]:
    """Read a few samples, the first of the plan, and judge their bands; warnings. Of several dates, the first."""
    schema = source.schema
    names = {band.name for band in schema.bands}
    if not ({"B08", "B8A"} <= names or {"B09", "B10"} <= names):
        return []
    layout = layout_of(schema)
    slot = layout.template.copy()
    views = {member.name: layout.view(slot, member.name) for member in layout.members}
    arrays = {member: array for member, array in schema.arrays.items() if array.time == 0}
    grid = next((array.size for array in arrays.values() if "B8A" in array.bands), schema.finest)
    planes: dict[str, list[np.ndarray]] = {}
    medians: dict[str, list[float]] = {}
    entries = (entry for shard in plan for entry in shard.entries)
    for entry, _ in zip(entries, range(LOOKED_AT), strict=False):
        if len(planes.get("B8A", ())) * grid[0] * grid[1] >= PIXELS:
            break
        try:
            source.read(entry, views)
        except Rejected:
            continue
        for member, array in arrays.items():
            bands, size = array.bands, array.size
            for band, plane in zip(bands, views[member], strict=True) if "B10" in names else ():
                medians.setdefault(band, []).append(float(np.median(plane)))
            if size[0] % grid[0] or size[1] % grid[1]:
                continue
            pixels = views[member].astype(np.float64)
            fine = pixels.reshape(len(bands), grid[0], size[0] // grid[0], grid[1], size[1] // grid[1]).mean((2, 4))
            for band, plane in zip(bands, fine, strict=True):
                planes.setdefault(band, []).append(plane)
    judge_cirrus({band: float(np.median(own)) for band, own in medians.items()}, schema.reflectance.scale, source.name)
    if "B08" not in planes or "B8A" not in planes:
        return []
    return judge(correlations({band: np.stack(stack) for band, stack in planes.items()}), source.name)
