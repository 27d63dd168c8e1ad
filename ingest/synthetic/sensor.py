"""From reflectance on the ground at 10 m to what the twelve bands store: light, air, optics, detector.

Slopes and the sun scale all bands alike; haze takes contrast and adds path reflectance, most in the blue; the optics
blur; 20 m and 60 m pixels are means of the 10 m ground they cover; the detector adds noise.
"""

import numpy as np

from ingest.synthetic import patterns, spectra

SCALE = 10_000
"""Stored number of reflectance 1."""
BLUR = 0.15
"""Share that a pixel takes from each neighbour along a line: modulation 1 - 4 · 0.15 = 0.4 at Nyquist."""
_NOISE = spectra.NOISE[spectra.GROUPED]
_HAZE = spectra.HAZE[spectra.GROUPED]


def blur(planes: np.ndarray) -> None:
    """Point spread of the optics, in place: planes (n, side, side)."""
    for axis in (1, 2):
        first = planes.swapaxes(1, axis)
        middle = first[:, 2:] + first[:, :-2]
        middle *= np.float32(BLUR / (1 - 2 * BLUR))
        middle += first[:, 1:-1]
        middle *= np.float32(1 - 2 * BLUR)
        first[:, 1:-1] = middle


def mean_of(planes: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of factor x factor pixels: (n, side, side) → (n, side / factor, side / factor)."""
    rows = planes[:, ::factor].copy()
    for step in range(1, factor):
        rows += planes[:, step::factor]
    total: np.ndarray = rows[:, :, ::factor].copy()
    for step in range(1, factor):
        total += rows[:, :, step::factor]
    total *= np.float32(1 / factor**2)
    return total


def sense(rng: np.random.Generator, ground: np.ndarray) -> dict[str, np.ndarray]:
    """Reflectance (12, 14400) float32 in the order of GROUPED, overwritten → a band uint16 (side, side), nowhere 0."""
    slow, grain = patterns.relief(), patterns.grain()
    a, b, c, d = rng.integers(0, patterns.PERIOD, 4)
    light = float(np.exp(rng.normal(-0.05, 0.17)))
    slope = light * float(rng.beta(1.2, 12))
    start = int(rng.integers(0, len(grain) - 120 * 120))
    shade = slow[a : a + 120, b : b + 120].ravel() * np.float32(slope)
    shade += grain[start : start + 120 * 120] * np.float32(0.035 * light)
    shade += np.float32(light)
    np.maximum(shade, np.float32(0.2), out=shade)
    shade *= np.float32(SCALE)
    ground *= shade
    haze = float(rng.gamma(0.8, 0.13))
    uneven = slow[c : c + 120, d : d + 120] * np.float32(0.25)
    tint = rng.normal(0, 0.03, len(spectra.BANDS))[spectra.GROUPED]

    planes = ground.reshape(-1, 120, 120)
    bands: dict[str, np.ndarray] = {}
    first = 0
    for names, side in spectra.GROUPS:
        group = slice(first, first + len(names))
        first += len(names)
        image = planes[group]
        if side < 120:
            image = mean_of(image, 2)
        if side < 60:
            image = mean_of(image, 3)
        else:
            blur(image)
        _through_air(image, haze * _HAZE[group], uneven[:: 120 // side, :: 120 // side], tint[group])
        start = int(rng.integers(0, len(grain) - image.size))
        image += grain[start : start + image.size].reshape(image.shape) * _NOISE[group, None, None]
        np.maximum(image, np.float32(1.5), out=image)
        np.minimum(image, np.float32(20_000), out=image)
        bands.update(zip(names, image.astype(np.uint16), strict=True))
    return bands


def _through_air(image: np.ndarray, path: np.ndarray, uneven: np.ndarray, tint: np.ndarray) -> None:
    """Calibration of the bands, loss by haze and its path reflectance (n,), in place: image (n, side, side)."""
    gain = (1 - 1.2 * path) * np.exp(tint)
    image *= gain.astype(np.float32)[:, None, None]
    image += (SCALE * path).astype(np.float32)[:, None, None] * (uneven + np.float32(1))
