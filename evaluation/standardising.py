"""What views and features are standardised with: statistics that travel between sets, and scales of features."""

import numpy as np

from models.description import EncoderInfo
from shards.manifest import Reflectance

COLUMNS = 256
"""Features whose deviations are computed at once, in float64."""
Statistics = dict[str, tuple[float, float]]
"""Band → (mean, std) in stored numbers."""


def converted(statistics: Statistics, own: Reflectance, other: Reflectance) -> Statistics:
    """Statistics in stored numbers of one set → the same reflectance in stored numbers of another."""
    if (own.scale, own.offset) == (other.scale, other.offset):
        return statistics
    return {
        band: ((mean * own.scale + own.offset - other.offset) / other.scale, std * own.scale / other.scale)
        for band, (mean, std) in statistics.items()
    }


def of_encoder(info: EncoderInfo, reflectance: Reflectance) -> Statistics:
    """What an encoder was trained with, in the stored numbers of a set with this `reflectance`.

    An encoder that does not say how its numbers were stored is taken to know them as they are.
    """
    statistics = {band.name: (band.mean, band.std) for band in info.bands}
    if not {"scale", "offset"} <= info.reflectance.keys():
        return statistics
    return converted(statistics, Reflectance.model_validate({"level": "", **info.reflectance}), reflectance)


def scaling(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, both float32 (D,), of features (n, D); 1 for a feature that is constant.

    Constant is what varies by rounding alone: divided by that, a test sample that is a little off would count more than
    all other features together.
    """
    parts = np.array_split(features, -(-features.shape[1] // COLUMNS), axis=1)
    mean, std = (np.concatenate([of(part, 0, dtype=np.float64) for part in parts]) for of in (np.mean, np.std))
    scale = np.where(std > 1e-6 * np.abs(mean) + 1e-12, std, 1)
    return mean.astype(np.float32), scale.astype(np.float32)
