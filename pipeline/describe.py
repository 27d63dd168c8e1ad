"""What was drawn for a view, in words."""

from collections.abc import Sequence

import numpy as np

from pipeline.draws import Draws


def describe(draws: Draws, n: int, bands: Sequence[str]) -> list[str]:
    """What sample n of these draws undergoes, in the order in which it does, a phrase each; what does not apply is
    not told. The date is not among them: its name is the source's."""
    told = []
    size = draws.end[n] - draws.start[n]
    if size.min() < 1:
        told.append(f"crop {size.prod():.0%}")
    flips = [name for name, flipped in zip(("upside down", "mirrored"), draws.flip[n], strict=True) if flipped]
    told += flips
    if draws.turns[n]:
        told.append(f"turned {90 * int(draws.turns[n])}°")
    if draws.blur_sigma[n] > 0:
        told.append(f"blur {draws.blur_sigma[n]:.1f} px")
    if (draws.gain[n] != 1).any():
        told.append(f"gain {_range(draws.gain[n], '.2f')}")
    for name in ("brightness", "contrast", "saturation"):
        factor = getattr(draws, name)[n]
        if factor != 1:
            told.append(f"{name} {factor:.2f}")
    if draws.hue[n]:
        told.append(f"hue {360 * draws.hue[n]:+.0f}°")
    if draws.solarised[n]:
        told.append("solarised")
    if draws.offset[n].any():
        told.append(f"offset {_range(draws.offset[n], '+.2f')} sd")
    if draws.noise_sigma[n]:
        told.append(f"noise {draws.noise_sigma[n]:.2f} sd")
    if draws.grey[n]:
        told.append("grey")
    if draws.dropped[n].any():
        told.append("without " + " ".join(band for band, lost in zip(bands, draws.dropped[n], strict=True) if lost))
    holes = [f"{(hole[2:] - hole[:2]).prod():.0%}" for hole in draws.holes[n] if hole.any()]
    if holes:
        told.append(f"cutout {' + '.join(holes)}")
    return told or ["as it is"]


def _range(values: np.ndarray, form: str) -> str:
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"
