"""Statistics that travel between sets are those of the same reflectance; constant features count for nothing."""

import numpy as np
import pytest

from evaluation import probe
from evaluation.clustering import cluster
from evaluation.standardising import of_encoder, scaling
from models.description import EncoderBand, EncoderInfo
from shards.manifest import Reflectance


def info(reflectance: dict[str, object]) -> EncoderInfo:
    return EncoderInfo(
        encoder="cnn", library="smp", num_features=1,
        bands=[EncoderBand(name="B02", wavelength_nm=490, mean=900, std=300)],
        view_size=8, reflectance=reflectance, data={}, recipe={}, scores={}, versions={},
    )  # fmt: skip


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0.0), (1.0, 0.0), (2e-4, -0.1), (1 / 255, 0.0)])
def test_an_encoders_statistics_are_told_in_the_numbers_of_the_set_at_hand(scale: float, offset: float) -> None:
    at_hand = Reflectance(scale=scale, offset=offset, level="L2A")
    mean, std = of_encoder(info({"scale": 1e-4, "offset": 0.0, "level": "L2A"}), at_hand)["B02"]
    for stored in (0.0, 900.0, 5000.0):  # one pixel, in the numbers of either set
        here = (stored * 1e-4 - offset) / scale
        assert (here - mean) / std == pytest.approx((stored - 900) / 300)


def test_an_encoder_that_tells_no_reflectance_is_taken_as_it_is() -> None:
    assert of_encoder(info({}), Reflectance(scale=1.0, offset=0.0, level="L2A")) == {"B02": (900, 300)}


def test_scales_are_numpys_but_for_features_that_vary_by_rounding_alone() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(5, np.geomspace(1e-3, 1e3, 700), (60, 700)).astype(np.float32)
    features[:, 3] = np.float32(0.3) + np.float32(3e-8) * rng.integers(0, 2, 60).astype(np.float32)
    features[:, 4] = 0
    mean, scale = scaling(features)
    assert np.allclose(mean, features.mean(0, dtype=np.float64), rtol=1e-6)
    expected = features.std(0, dtype=np.float64)
    expected[[3, 4]] = 1
    assert np.allclose(scale, expected, rtol=1e-5)


def test_a_feature_that_is_constant_in_train_alone_outweighs_no_other() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(300) % 3
    x = (np.eye(3)[labels] * 3 + rng.normal(size=(300, 3))).astype(np.float32)
    dead = np.float32(0.3) * np.ones((300, 1), np.float32)
    dead[:50] += np.float32(3e-8)  # one unit in the last place
    dead[200:] += rng.normal(0, 0.01, (100, 1)).astype(np.float32)
    whole = np.concatenate([x, dead], 1)
    train, val, test = ((whole[a:b], labels[a:b]) for a, b in ((0, 150), (150, 200), (200, 300)))
    scores = probe.linear_probe(train, val, test[0], 3).scores
    assert (scores.argmax(1) == test[1]).mean() > 0.85
    assert cluster(train[0], test, 3, 0)["purity"] > 0.85
