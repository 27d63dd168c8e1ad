"""Draws without a picture: what they follow, and what they depend on."""

import hashlib
from itertools import combinations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from pipeline.draws import DRAWS_VERSION, Draws, draw, noise_tile
from pipeline.hashing import combine, uniform
from pipeline.views import ViewRecipe

EVERYTHING = ViewRecipe(
    size=32, blur=0.5, jitter=0.8, gain=0.2, brightness=0.4, contrast=0.5, saturation=0.6, hue=0.1, solarise=0.3,
    offset=0.1, noise=0.3, grey=0.2, band_dropout=0.4, band_dropout_max=3, cutout=0.6, cutout_area=(0.05, 0.3),
    cutout_max=3,
)  # fmt: skip
N = 120_000
UNLIKELY = 1e-4
"""Of a p value; everything is deterministic, so that a test fails always or never."""


@pytest.fixture(scope="module")
def drawn() -> Draws:
    return draw(EVERYTHING, 0, 0, np.arange(N), 0, 12)


def follows_uniform(values, low, high):
    assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > UNLIKELY


def happens(flags, probability):
    assert stats.binomtest(int(flags.sum()), len(flags), probability).pvalue > UNLIKELY


def even(counts):
    assert stats.chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("aspect", [1.0, 1.6])
def test_crop_windows_follow_the_recipe(aspect):
    windows = draw(EVERYTHING, 0, 0, np.arange(N), 0, 1, aspect)
    size = windows.end.astype(np.float64) - windows.start
    assert windows.start.min() >= 0 and windows.end.max() <= 1 + 1e-6
    area, ratio = size.prod(1), size[:, 1] / size[:, 0] * aspect
    assert area.min() >= 0.2 - 1e-5 and area.max() <= 1 + 1e-6
    assert ratio.min() >= 3 / 4 - 1e-5 and ratio.max() <= 4 / 3 + 1e-5
    fits_any = area < 0.74 / aspect  # with every ratio: there, nothing was drawn anew
    follows_uniform(area[fits_any], 0.2, 0.74 / aspect)
    follows_uniform(np.log(ratio[fits_any]), np.log(3 / 4) - 1e-6, np.log(4 / 3) + 1e-6)
    moves = (size < 0.99).all(1)
    for axis in range(2):
        follows_uniform(windows.start[moves, axis] / (1 - size[moves, axis]), 0, 1)


def test_flips_turns_blur_and_noise_follow_the_recipe(drawn):
    for flags, probability in (
        (drawn.flip[:, 0], 0.5),
        (drawn.flip[:, 1], 0.5),
        (drawn.blur_sigma > 0, 0.5),
        (drawn.solarised, 0.3),
        (drawn.grey, 0.2),
        (drawn.dropped.any(1), 0.4),
        (drawn.holes.any((1, 2)), 0.6),
    ):
        happens(flags, probability)
    even(np.bincount(drawn.turns, minlength=4))
    even(np.bincount(drawn.flip @ [8, 4] + drawn.turns))  # sixteen ways to eight headings, two to each
    follows_uniform(drawn.blur_sigma[drawn.blur_sigma > 0], 0.1, 2.0)
    follows_uniform(drawn.offset.ravel(), -0.1, 0.1)
    follows_uniform(drawn.noise_sigma, 0, 0.3)
    for axis in range(2):
        even(np.bincount(drawn.noise_position[:, axis], minlength=129))


def test_jitter_follows_the_recipe(drawn):
    """All of it or nothing of it, and each factor even over its range."""
    given = drawn.brightness != 1
    happens(given, 0.8)
    for factor in (drawn.contrast, drawn.saturation, drawn.gain[:, 0], drawn.gain[:, 11]):
        np.testing.assert_array_equal(factor != 1, given)
    np.testing.assert_array_equal(drawn.hue != 0, given)
    follows_uniform(drawn.brightness[given], 0.6, 1.4)
    follows_uniform(drawn.contrast[given], 0.5, 1.5)
    follows_uniform(drawn.saturation[given], 0.4, 1.6)
    follows_uniform(drawn.hue[given], -0.1, 0.1)
    follows_uniform(drawn.gain[given].ravel(), 0.8, 1.2)
    always = draw(ViewRecipe(gain=0.2), 0, 0, np.arange(N), 0, 12)
    np.testing.assert_array_equal(always.gain[given], drawn.gain[given])
    assert (always.gain != 1).all() and (always.brightness == 1).all() and (always.hue == 0).all()


def test_dropped_bands_follow_the_recipe(drawn):
    dropped = drawn.dropped.sum(1)
    assert dropped.max() == 3
    even(np.bincount(dropped)[1:])
    even(drawn.dropped.sum(0))
    pairs = drawn.dropped[dropped == 2].astype(int)
    even((pairs.T @ pairs)[np.triu_indices(12, 1)])
    few = draw(EVERYTHING.model_copy(update={"band_dropout": 1.0}), 0, 0, np.arange(N), 0, 3)
    assert few.dropped.sum(1).max() == 2 and few.dropped.any(1).all()  # one band always stays


@pytest.mark.parametrize("aspect", [1.0, 1.6])
def test_cutouts_follow_the_recipe(aspect):
    recipe = EVERYTHING.model_copy(update={"size": None})
    holes = draw(recipe, 0, 0, np.arange(N), 0, 1, aspect).holes.astype(np.float64)
    there = holes.any(2)
    even(np.bincount(there.sum(1))[1:])
    assert (there[:, :-1] >= there[:, 1:]).all()
    assert holes.min() >= 0 and holes.max() <= 1 + 1e-6
    size = holes[there][:, 2:] - holes[there][:, :2]
    area, ratio = size.prod(1), size[:, 1] / size[:, 0] * aspect
    follows_uniform(area, 0.05, 0.3)
    fits_any = area * 3 * aspect < 1
    assert fits_any.sum() > N / 3
    follows_uniform(np.log(ratio[fits_any]), -np.log(3), np.log(3))
    for axis in range(2):
        moves = size[:, axis] < 0.99
        follows_uniform(holes[there][moves, axis] / (1 - size[moves, axis]), 0, 1)


@pytest.mark.parametrize("size", [(32, 32), (20, 33), (8, 8)])
def test_cutouts_in_pixels_are_what_was_drawn(drawn, size):
    corner, extent = drawn.rectangles(size)
    there = drawn.holes.any(2)
    assert (extent[there] >= 1).all() and not extent[~there].any()
    assert (corner >= 0).all() and (corner + extent <= size).all()
    assert (corner == corner.round()).all() and (extent == extent.round()).all()
    exact = drawn.holes * np.float32([*size, *size])
    assert (
        np.abs(corner - exact[..., :2])[there].max() <= 0.5
        and np.abs(corner + extent - exact[..., 2:])[there].max() <= 1
    )


def test_dates_are_drawn_evenly_and_those_of_a_pair_are_never_the_same():
    everywhere = np.arange(N)

    def dates(seasons, view, number=4, samples=everywhere):
        return draw(EVERYTHING, 0, 0, samples, view, 1, dates=number, seasons=seasons).date

    assert not dates("first", 0).any() and not dates("first", 1).any()
    same = dates("same", 0)
    np.testing.assert_array_equal(same, dates("same", 1))
    even(np.bincount(same, minlength=4))
    first, second, third, fourth, fifth = (dates("different", view) for view in range(5))
    assert (first != second).all()
    even(np.bincount(first * 4 + second, minlength=16)[[1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]])
    np.testing.assert_array_equal(np.sort([first, second, third, fourth], 0), np.arange(4)[:, None].repeat(N, 1))
    np.testing.assert_array_equal(first, fifth)
    for number in (2, 3, 7):
        assert (dates("different", 0, number) != dates("different", 1, number)).all()
    np.testing.assert_array_equal(dates("different", 1, samples=np.array([77])), second[77:78])


INDEPENDENT = ViewRecipe(
    size=32, crop_scale=(0.2, 0.7), blur=1, gain=0.2, brightness=0.4, contrast=0.5, saturation=0.6, hue=0.1,
    solarise=0.5, offset=0.1, noise=0.3, grey=0.5, band_dropout=1, band_dropout_max=5, cutout=1,
)  # fmt: skip
"""Nothing is drawn anew until it fits, and everything always happens: no draw should tell anything of another."""


def columns(seed, epoch, shift, view, count):
    """(names, table (count, names)) of what is drawn for samples from `shift` on."""
    d = draw(INDEPENDENT, seed, epoch, np.arange(shift, count + shift), view, 12, dates=4, seasons="different")
    size, hole = d.end - d.start, d.holes[:, 0]
    extent = hole[:, 2:] - hole[:, :2]
    told = {
        "date": d.date, "area": size.prod(1), "ratio": size[:, 1] / size[:, 0],
        "top": d.start[:, 0] / (1 - size[:, 0]), "left": d.start[:, 1] / (1 - size[:, 1]),
        "flip y": d.flip[:, 0], "flip x": d.flip[:, 1], "turns": d.turns, "blur": d.blur_sigma,
        "gain 0": d.gain[:, 0], "gain 1": d.gain[:, 1], "brightness": d.brightness, "contrast": d.contrast,
        "saturation": d.saturation, "hue": d.hue, "solarised": d.solarised, "offset 0": d.offset[:, 0],
        "offset 1": d.offset[:, 1], "noise": d.noise_sigma, "noise y": d.noise_position[:, 0],
        "noise x": d.noise_position[:, 1], "grey": d.grey, "dropped": d.dropped.sum(1),
        "hole area": extent.prod(1), "hole ratio": extent[:, 1] / extent[:, 0],
        "hole top": hole[:, 0] / (1 - extent[:, 0]), "hole left": hole[:, 1] / (1 - extent[:, 1]),
    }  # fmt: skip
    return list(told), np.column_stack(list(told.values())).astype(np.float64)


NEIGHBOURS = {"itself": (0, 0, 0, 0), "seed": (1, 0, 0, 0), "epoch": (0, 1, 0, 0), "sample": (0, 0, 1, 0),
              "view": (0, 0, 0, 1), "seed and epoch": (2, 3, 0, 0)}  # fmt: skip


@pytest.fixture(scope="module")
def neighbours():
    return {name: columns(*numbers, N) for name, numbers in NEIGHBOURS.items()}


def test_draws_of_neighbouring_samples_epochs_views_seeds_and_names_are_uncorrelated(neighbours):
    names = next(iter(neighbours.values()))[0]
    table = np.concatenate([values for _, values in neighbours.values()], 1)
    correlation = np.corrcoef(table.T) - np.eye(table.shape[1])
    dates = [number * len(names) for number in range(len(neighbours))]
    correlation[dates[0], dates[4]] = correlation[dates[4], dates[0]] = 0  # two views' dates exclude each other
    assert np.abs(correlation).max() < 5.5 / np.sqrt(N)


def test_no_draw_tells_anything_of_another(neighbours):
    """Chi-squared on tables of eight by eight: dependence that no correlation shows."""

    def binned(values):
        kinds = np.unique(values[:1000])
        edges = kinds[1:] if len(kinds) <= 8 else np.quantile(values, np.arange(1, 8) / 8)
        return np.searchsorted(edges, values, side="right")

    def p_value(one, other):
        counts = np.bincount(one * 8 + other, minlength=64).reshape(8, 8)
        return stats.chi2_contingency(counts[counts.any(1)][:, counts.any(0)], correction=False).pvalue

    names = neighbours["itself"][0]
    bins = {name: [binned(column) for column in values.T] for name, (_, values) in neighbours.items()}
    found = {(names[a], names[b]): p_value(bins["itself"][a], bins["itself"][b])
             for a, b in combinations(range(len(names)), 2)}  # fmt: skip
    for other in list(neighbours)[1:]:
        found |= {
            (name, other): p_value(bins["itself"][a], bins[other][a])
            for a, name in enumerate(names)
            if (name, other) != ("date", "view")
        }
    worst = min(found, key=lambda pair: found[pair])
    assert found[worst] > UNLIKELY / len(found), (worst, found[worst])
    assert stats.kstest(list(found.values()), stats.uniform.cdf).pvalue > UNLIKELY


def test_turning_on_one_augmentation_leaves_the_draws_of_the_others():
    plain, more = (draw(r, 3, 1, np.arange(99), 0, 12) for r in (ViewRecipe(), EVERYTHING))
    for name in ("start", "end", "flip", "turns"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(more, name))


def test_a_draw_does_not_know_its_batch():
    together = draw(EVERYTHING, 3, 1, np.arange(50), 1, 12, dates=4, seasons="different")
    alone = draw(EVERYTHING, 3, 1, np.array([17]), 1, 12, dates=4, seasons="different")
    for name in Draws.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(together, name)[17:18], getattr(alone, name))


def test_the_same_integers_draw_the_same_as_ever():
    """A change of this digest is a change of every run's views: raise DRAWS_VERSION with it."""
    drawn = draw(EVERYTHING, 7, 3, np.arange(2000), 1, 13, dates=3, seasons="different")
    text = "".join(
        f"{name} {np.round(getattr(drawn, name).astype(np.float64), 4).sum(0).round(2).tolist()}\n"
        for name in Draws.__dataclass_fields__
    )
    assert (DRAWS_VERSION, hashlib.sha256(text.encode()).hexdigest()[:16]) == (2, "f4da2ed84bb70574")


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
        {"brightness": 1.0},
        {"contrast": -0.1},
        {"saturation": 1.2},
        {"hue": 0.6},
        {"cutout": 2},
        {"cutout_area": (0.0, 0.1)},
        {"cutout_area": (0.5, 1.2)},
        {"cutout_ratio": (2.0, 1.0)},
        {"cutout_max": 0},
        {"size": 4},
        {"blurr": 0.5},
    ],
)
def test_recipes_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        ViewRecipe(**wrong)
