"""Where a sample lies, as its json and the catalogue say it."""

from collections.abc import Sequence
from typing import Any

from ingest.reading.utm import lon_lat
from ingest.source import Rejected


def placed(
    path: str, epsg: int, transform: Sequence[float] | None, bounds: Sequence[float]
) -> tuple[tuple[float, float] | None, dict[str, Any]]:
    """Longitude and latitude of a sample's centre, and the part of its json that tells its place.

    `epsg`: 0 where the system has no code; `transform`: (a, b, c, d, e, f) of the finest array, None where it has no
    place; `bounds`: left, bottom, right, top. Raises Rejected where there is no such place on the Earth.
    """
    centre: tuple[float, float] | None = None
    if epsg and transform:
        left, bottom, right, top = bounds
        try:
            centre = lon_lat(epsg, (left + right) / 2, (bottom + top) / 2)
        except (ValueError, OverflowError) as error:
            raise Rejected(path, "misplaced", str(error)) from None
    lon, lat = centre or (0.0, 0.0)
    return centre, {
        "crs": f"EPSG:{epsg}" if epsg else "",
        "transform": list(transform or (0.0,) * 6),
        "bounds": list(bounds),
        "lon": lon,
        "lat": lat,
    }
