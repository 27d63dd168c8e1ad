"""Longitude and latitude from UTM coordinates: Krüger's series, without a projection library in the workers.

Karney, "Transverse Mercator with an accuracy of a few nanometers", J. Geodesy 85 (2011), equations 7 to 14 and 36, to
the fourth order in n: better than a micrometre inside a zone. Scalar arithmetic, so that a sample's numbers do not
depend on which batch it stands in.
"""

import math

A, F = 6378137.0, 1 / 298.257223563
K0, EASTING, NORTHING = 0.9996, 500_000.0, 10_000_000.0
LIMIT = 2.1e7
"""Half the Earth's circumference in metres, and a little more."""
N = F / (2 - F)
RADIUS = A / (1 + N) * (1 + N**2 / 4 + N**4 / 64)
E2 = math.sqrt(F * (2 - F))
BETA = (
    N / 2 - 2 * N**2 / 3 + 37 * N**3 / 96 - N**4 / 360,
    N**2 / 48 + N**3 / 15 - 437 * N**4 / 1440,
    17 * N**3 / 480 - 37 * N**4 / 840,
    4397 * N**4 / 161280,
)


def zone_of(epsg: int) -> tuple[int, bool] | None:
    """EPSG code of WGS 84 / UTM → (zone, whether south); None for any other."""
    south, zone = divmod(epsg - 32600, 100)
    return (zone, bool(south)) if south in (0, 1) and 1 <= zone <= 60 else None


def lon_lat(epsg: int, x: float, y: float) -> tuple[float, float]:
    """Easting and northing in metres → WGS 84 degrees, rounded to 1e-7 (a centimetre).

    Systems other than WGS 84 / UTM go to rasterio (PROJ). Raises ValueError where there is no such place.
    """
    if not max(abs(x), abs(y)) < LIMIT:
        raise ValueError(f"({x:g}, {y:g}) is not on the Earth")
    zone = zone_of(epsg)
    if zone is None:
        return _with_proj(epsg, x, y)
    number, south = zone
    xi = (y - (NORTHING if south else 0.0)) / (K0 * RADIUS)
    eta = (x - EASTING) / (K0 * RADIUS)
    xi_, eta_ = xi, eta
    for j, beta in enumerate(BETA, 1):
        xi_ -= beta * math.sin(2 * j * xi) * math.cosh(2 * j * eta)
        eta_ -= beta * math.cos(2 * j * xi) * math.sinh(2 * j * eta)
    conformal = math.sin(xi_) / math.hypot(math.sinh(eta_), math.cos(xi_))
    tau = conformal
    for _ in range(3):  # Newton's iteration for tan(latitude)
        sigma = math.sinh(E2 * math.atanh(E2 * tau / math.hypot(1, tau)))
        guess = tau * math.hypot(1, sigma) - sigma * math.hypot(1, tau)
        slope = (1 + (1 - E2**2) * tau**2) / ((1 - E2**2) * math.hypot(1, guess) * math.hypot(1, tau))
        tau += (conformal - guess) / math.hypot(1, conformal) * math.hypot(1, guess) * slope
    longitude = math.degrees(math.atan2(math.sinh(eta_), math.cos(xi_))) + 6 * number - 183
    return round(longitude, 7), round(math.degrees(math.atan(tau)), 7)


def _with_proj(epsg: int, x: float, y: float) -> tuple[float, float]:
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    try:
        lons, lats = transform(f"EPSG:{epsg}", "EPSG:4326", [x], [y])
    except CRSError as error:
        raise ValueError(str(error)) from None
    if not (math.isfinite(lons[0]) and math.isfinite(lats[0])):
        raise ValueError(f"({x:g}, {y:g}) lies outside EPSG:{epsg}")
    return round(lons[0], 7), round(lats[0], 7)
