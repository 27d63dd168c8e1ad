"""Draws without a picture: what they follow, and what they depend on."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from pipeline.draws import Draws, draw, noise_tile
from pipeline.hashing import combine, uniform
from pipeline.views import ViewRecipe

EVERYTHING = ViewRecipe(
    size=32, blur=0.5, gain=0.2, offset=0.1, noise=0.3, grey=0.2, band_dropout=0.4, band_dropout_max=3
)
N = 40_000


@pytest.fixture(scope="module")
def drawn() -> Draws:
    return draw(EVERYTHING, 0, 0, np.arange(N), 0, 12)


def test_draws_follow_the_recipe(drawn):
    size = drawn.end - drawn.start
    assert drawn.start.min() >= 0 and drawn.end.max() <= 1 + 1e-6
    area, ratio = size.prod(1), size[:, 1] / size[:, 0]
    assert area.min() >= 0.2 - 1e-6 and area.max() <= 1 + 1e-6
    assert ratio.min() >= 3 / 4 - 1e-3 and ratio.max() <= 4 / 3 + 1e-3
    assert stats.kstest(area[area < 0.7], stats.uniform(0.2, 0.5).cdf).pvalue > 1e-4
    for flags, probability in (
        (drawn.flip[:, 0], 0.5),
        (drawn.flip[:, 1], 0.5),
        (drawn.blur_sigma > 0, 0.5),
        (drawn.grey, 0.2),
        (drawn.dropped.any(1), 0.4),
    ):
        assert stats.binomtest(int(flags.sum()), N, probability).pvalue > 1e-4
    assert stats.chisquare(np.bincount(drawn.turns, minlength=4)).pvalue > 1e-4
    dropped = drawn.dropped.sum(1)
    assert stats.chisquare(np.bincount(dropped)[1:]).pvalue > 1e-4 and dropped.max() == 3
    assert stats.chisquare(drawn.dropped.sum(0)).pvalue > 1e-4
    assert stats.kstest(drawn.gain.ravel(), stats.uniform(0.8, 0.4).cdf).pvalue > 1e-4
    assert stats.kstest(drawn.offset.ravel(), stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-4
    assert stats.kstest(drawn.noise_sigma, stats.uniform(0, 0.3).cdf).pvalue > 1e-4
    assert stats.kstest(drawn.blur_sigma[drawn.blur_sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4
    assert stats.chisquare(np.bincount(drawn.noise_position[:, 0])).pvalue > 1e-4


def test_draws_of_neighbouring_samples_epochs_views_seeds_and_bands_are_uncorrelated():
    columns = [
        draw(EVERYTHING, seed, epoch, np.arange(shift, N + shift), view, 12)
        for seed, epoch, shift, view in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    ]
    table = np.concatenate(
        [
            np.column_stack([d.start, d.end - d.start, d.gain, d.offset, d.noise_sigma, d.turns, d.flip])
            for d in columns
        ],
        1,
    )
    correlation = np.corrcoef(table.T) - np.eye(table.shape[1])
    block = table.shape[1] // len(columns)
    for name in range(len(columns)):  # within one draw, a window's corner depends on its size, as it should
        correlation[name * block : name * block + 4, name * block : name * block + 4] = 0
    assert np.abs(correlation).max() < 5.5 / np.sqrt(N)


def test_turning_on_one_augmentation_leaves_the_draws_of_the_others():
    plain, more = (draw(r, 3, 1, np.arange(99), 0, 12) for r in (ViewRecipe(), EVERYTHING))
    for name in ("start", "end", "flip", "turns"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(more, name))


def test_a_draw_does_not_know_its_batch():
    together = draw(EVERYTHING, 3, 1, np.arange(50), 1, 12)
    alone = draw(EVERYTHING, 3, 1, np.array([17]), 1, 12)
    for name in Draws.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(together, name)[17:18], getattr(alone, name))


def test_folded_windows_are_flips_and_turns():
    draws = draw(ViewRecipe(crop_scale=None), 0, 0, np.arange(200), 0, 1)
    start, end, transposed = draws.window
    image = np.arange(16).reshape(4, 4)
    for n in range(200):
        view = image[:: 1 if start[n, 0] < end[n, 0] else -1, :: 1 if start[n, 1] < end[n, 1] else -1]
        flipped = np.flip(image, [axis for axis in range(2) if draws.flip[n, axis]])
        np.testing.assert_array_equal(view.T if transposed[n] else view, np.rot90(flipped, draws.turns[n]))


def test_hashes_are_uniform_and_unlike():
    values = uniform("x", 0, np.arange(200_000))
    assert stats.kstest(values, stats.uniform.cdf).pvalue > 1e-4
    hashes = combine("x", np.arange(1000)[:, None], np.arange(1000)[None, :])
    assert len(np.unique(hashes)) == hashes.size
    assert combine("x", 1, 2) != combine("x", 2, 1) != combine("y", 2, 1)
    flips = combine("x", np.arange(20_000)) ^ combine("x", np.arange(20_000) ^ 1)
    bits = np.unpackbits(flips.view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.01


def test_the_noise_tile_is_white_and_unit():
    tile = noise_tile(3, (64, 64))
    assert stats.kstest(tile.ravel()[:50_000], stats.norm.cdf).pvalue > 1e-4
    assert abs((tile[:, 1:] * tile[:, :-1]).mean()) < 0.01
    np.testing.assert_array_equal(tile, noise_tile(3, (64, 64)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"blur": 1.5},
        {"gain": 1.0},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.0, 1.0)},
        {"blur_sigma": (0.0, 1.0)},
        {"size": 4},
        {"blurr": 0.5},
    ],
)
def test_recipes_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        ViewRecipe(**wrong)
