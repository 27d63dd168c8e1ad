"""Surface reflectance of materials in the bands of Sentinel-2, and how season and samples change it.

Reflectances are rounded values for the band centres, read by eye after laboratory and field spectra: USGS Spectral
Library Version 7 (Kokaly et al., USGS Data Series 1035, 2017) for grass, conifer and deciduous leaves, straw, concrete,
asphalt, roofs and sand; the ECOSTRESS library (Meerdink et al., Remote Sensing of Environment 230, 2019) for soils and
rock; canopies as PROSAIL gives them for closed stands (Jacquemoud et al., RSE 113, 2009); water after Lee et al.
(Applied Optics 38, 1999).
"""

import numpy as np

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
GROUPS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("B02", "B03", "B04", "B08"), 120),
    (("B05", "B06", "B07", "B8A", "B11", "B12"), 60),
    (("B01", "B09"), 20),
)
"""Bands that share a grid, and its pixels along a side."""
GROUPED = np.array([BANDS.index(band) for bands, _ in GROUPS for band in bands])
"""Where in BANDS the bands of the groups stand, one group behind the other."""
MATERIALS = (
    "grass",
    "leaves",
    "needles",
    "straw",
    "dark soil",
    "bright soil",
    "sand",
    "asphalt",
    "bright roof",
    "tiles",
    "water",
    "turbid water",
    "heath",
    "wood",
    "rock",
)
GRASS, LEAVES, NEEDLES, STRAW, DARK, BRIGHT, SAND, ASPHALT, ROOF, TILES, WATER, TURBID, HEATH, WOOD, ROCK = range(15)

# percent, in the order of BANDS
_PERCENT = (
    (2.2, 3.2, 7.2, 3.6, 11.0, 33.0, 41.0, 43.0, 45.0, 45.0, 23.0, 11.0),
    (1.6, 2.3, 5.2, 2.6, 8.6, 29.0, 36.0, 38.0, 40.0, 40.0, 18.5, 8.3),
    (1.3, 1.8, 3.5, 2.1, 5.4, 17.5, 21.5, 23.0, 24.5, 25.0, 11.0, 5.0),
    (5.8, 8.0, 12.0, 15.5, 18.5, 22.0, 24.5, 26.5, 28.0, 29.0, 33.0, 24.0),
    (3.2, 4.2, 6.2, 8.2, 9.6, 10.7, 11.7, 12.8, 13.8, 14.6, 19.5, 16.5),
    (7.5, 9.6, 14.2, 19.5, 22.2, 24.2, 25.8, 27.2, 28.8, 30.0, 37.5, 33.5),
    (14.5, 18.5, 25.5, 31.5, 34.0, 35.5, 37.0, 38.0, 39.0, 39.5, 46.0, 42.0),
    (8.6, 9.9, 11.8, 13.2, 14.2, 14.9, 15.5, 16.0, 16.6, 17.1, 19.5, 18.3),
    (23.0, 26.5, 30.5, 33.0, 34.5, 35.5, 36.5, 37.0, 38.0, 38.5, 40.0, 37.0),
    (5.6, 6.8, 10.2, 18.5, 21.5, 23.5, 24.8, 26.0, 28.0, 29.0, 36.0, 32.0),
    (3.2, 2.9, 2.2, 1.1, 0.9, 0.7, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
    (4.8, 6.3, 9.0, 7.6, 6.6, 3.8, 3.5, 2.8, 2.4, 1.8, 0.5, 0.3),
    (2.2, 3.0, 4.9, 5.2, 8.2, 14.2, 17.0, 19.0, 21.0, 22.0, 21.0, 13.5),
    (4.2, 5.0, 6.6, 8.4, 10.6, 13.4, 15.0, 16.8, 18.4, 19.4, 23.0, 16.0),
    (10.5, 12.5, 15.5, 18.0, 19.2, 20.0, 20.8, 21.5, 22.5, 23.0, 26.5, 24.0),
)
REFLECTANCE = np.array(_PERCENT, np.float64) / 100
"""(15 materials, 12 bands)."""

_WAVELENGTH = np.array((443, 492, 560, 665, 704, 740, 783, 833, 865, 945, 1614, 2202), np.float64)
TILT = np.log(_WAVELENGTH / 800) / 0.6
"""(12,): the slope along which samples of one material differ, about 800 nm."""
HAZE = 0.1 * (_WAVELENGTH / 443) ** -2.2
"""(12,): path reflectance of unit haze; between Rayleigh (-4) and coarse aerosol (-1) (Chavez, RSE 24, 1988)."""
NOISE = np.array((3, 8, 8, 9, 7, 8, 9, 14, 9, 6, 6, 6), np.float32)
"""(12,): standard deviation of the sensor's noise in stored numbers; order of magnitude of the signal-to-noise ratios
in ESA's Sentinel-2 L1C Data Quality Report (S2-PDGS-MPC-DQR)."""


def samples(rng: np.random.Generator) -> np.ndarray:
    """The materials of one patch: reflectance (15, 12), each brighter or darker, redder or bluer than usual."""
    level, slope = rng.normal(0, (0.1,), (2, len(MATERIALS), 1))
    drawn: np.ndarray = REFLECTANCE * np.exp(level + slope * TILT)
    return drawn


def foliage(day_of_year: int, latitude_cold: float) -> float:
    """Share of leaves on broad-leaved trees, 0 to 1: double logistic in the day of the year (Fisher & Mustard, RSE 109,
    2007); spring comes later and autumn earlier by `latitude_cold` (0 Mediterranean … 1 Nordic).
    """
    spring, autumn = 95 + 40 * latitude_cold, 318 - 38 * latitude_cold
    return float(1 / (1 + np.exp((spring - day_of_year) / 8)) - 1 / (1 + np.exp((autumn - day_of_year) / 9)))
