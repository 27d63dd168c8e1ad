"""Views from the graph, against NumPy and SciPy from the same draws."""

import numpy as np
import pytest
import torch

from pipeline.draws import draw, noise_tile
from pipeline.loader import Loader
from pipeline.views import ViewRecipe
from tests.pipeline import reference
from tests.pipeline.making import BANDS, SENTINEL2_ARRAYS, make_set

OFF = {"crop_scale": None, "flip_horizontal": 0, "flip_vertical": 0, "rotate90": 0}
AUGMENTATIONS = {
    "plain": OFF,
    "crop": OFF | {"crop_scale": (0.2, 1.0)},
    "flips": OFF | {"flip_horizontal": 0.5, "flip_vertical": 0.5},
    "rotate90": OFF | {"rotate90": 0.75},
    "blur": OFF | {"blur": 0.7},
    "gain": OFF | {"gain": 0.3},
    "offset": OFF | {"offset": 0.5},
    "noise": OFF | {"noise": 0.5},
    "grey": OFF | {"grey": 0.5},
    "band_dropout": OFF | {"band_dropout": 0.8, "band_dropout_max": 3},
    "everything": {
        "blur": 0.5,
        "gain": 0.2,
        "offset": 0.1,
        "noise": 0.1,
        "grey": 0.3,
        "band_dropout": 0.5,
    },
}
PICTURES = {"rgb.npy": (["red", "green", "blue"], 50)}
LAYOUTS = {
    "float32, 12 bands": (SENTINEL2_ARRAYS, "float32"),
    "uint16, 12 bands": (SENTINEL2_ARRAYS, "uint16"),
    "int16, 13 bands": ({"10m.npy": ([*BANDS[:10], "B10", *BANDS[10:]], 64)}, "int16"),
    "uint8, pictures": (PICTURES, "uint8"),
    "float32, odd size": ({"10m.npy": (BANDS, 37)}, "float32"),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def any_set(request, tmp_path_factory):
    arrays, dtype = LAYOUTS[request.param]
    return make_set(tmp_path_factory.mktemp("views") / "set", {"train": 8}, arrays=arrays, dtype=dtype), dtype


def expected(loader, recipe, seed, batch, view, integers):
    """Views (N, C, S, S) by NumPy and SciPy, and the draws that made them."""
    manifest = loader.shard_set.manifest
    mean, std = (np.array([getattr(manifest.statistics[b], k) for b in loader.bands]) for k in ("mean", "std"))
    draws = draw(recipe, seed, 0, batch.indices.numpy(), view, len(loader.bands))
    tile = noise_tile(len(loader.bands), (recipe.size, recipe.size))
    views = []
    for n, index in enumerate(batch.indices.tolist()):
        sample = loader.shard_set.read("train", index)
        arrays = [
            (sample.arrays[name], [loader.bands.index(b) for b in spec.bands]) for name, spec in manifest.arrays.items()
        ]
        views.append(reference.view_of(arrays, draws, n, recipe, mean, std, tile, integers=integers))
    return np.stack(views), draws, std


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_equals_numpy_and_scipy(any_set, name):
    folder, dtype = any_set
    recipe = ViewRecipe(size=45, **AUGMENTATIONS[name])
    loader = Loader(folder, "train", 8, [recipe, recipe], seed=5)
    batch = next(iter(loader))
    integers = dtype in ("uint16", "int16")
    for view in range(2):
        truth, draws, std = expected(loader, recipe, 5, batch, view, integers)
        found = batch.views[view].numpy()
        tolerance = 2e-4
        if integers:  # a resampled value half-way between two stored numbers may be rounded either way
            tolerance += draws.gain.max() / std.min()
            assert np.mean(np.abs(found - truth) > 2e-4) < 0.05
        np.testing.assert_allclose(found, truth, atol=tolerance)
    loader.close()


def test_the_two_views_of_a_sample_differ(any_set):
    folder, _ = any_set
    loader = Loader(folder, "train", 8, [ViewRecipe(size=32)] * 2)
    batch = next(iter(loader))
    assert ((batch.views[0] - batch.views[1]).abs().amax((1, 2, 3)) > 0.1).all()


def test_standardised_values_are_never_clipped(any_set):
    folder, _ = any_set
    loader = Loader(folder, "train", 8, [ViewRecipe.plain(32)])
    tight = Loader(folder, "train", 8, [ViewRecipe.plain(32)], statistics=dict.fromkeys(loader.bands, (1.0, 1e-3)))
    wide, far = next(iter(loader)).views[0], next(iter(tight)).views[0]
    manifest = loader.shard_set.manifest
    mean, std = (
        torch.tensor([getattr(manifest.statistics[b], k) for b in loader.bands])[:, None, None] for k in ("mean", "std")
    )
    assert far.max() > 1e4
    torch.testing.assert_close(far, (wide * std + mean - 1.0) / 1e-3, rtol=1e-4, atol=1.0)


def test_float16_is_float32_rounded(any_set):
    folder, _ = any_set
    recipe = ViewRecipe(size=32, **AUGMENTATIONS["everything"])
    full, half = (
        next(iter(Loader(folder, "train", 8, [recipe], dtype=dtype))).views[0] for dtype in ("float32", "float16")
    )
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, full.half(), rtol=1e-3, atol=1e-6)


def ramp(number, bands, shape, dtype):
    """The same tilted plane on the ground in every band, whatever its GSD: 1,000 + 2 x + 3 y (metres)."""
    pixel = 1200 / shape[1]
    y, x = (np.arange(shape[1]) + 0.5) * pixel, (np.arange(shape[2]) + 0.5) * pixel
    return np.broadcast_to(1000 + 2 * x[None, :] + 3 * y[:, None], shape).astype(dtype)


def ramp_classes(number, grid):
    """Classes cut from the ramp: 19 bands of equal height, 255 at the top."""
    height = ramp(number, ["B02"], (1, *grid), "float32")[0]
    classes = ((height - 1000) / 300).astype(np.uint8)
    return np.where(classes > 18, 255, classes)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_bands_of_all_resolutions_stay_aligned(tmp_path, dtype):
    folder = make_set(tmp_path / "set", {"train": 40}, image=ramp, dtype=dtype)
    recipe = ViewRecipe(size=56)
    loader = Loader(folder, "train", 40, [recipe] * 2, statistics=dict.fromkeys(BANDS, (0.0, 1.0)))
    batch = next(iter(loader))
    for number, view in enumerate(batch.views):
        draws = draw(recipe, 0, 0, batch.indices.numpy(), number, 12)
        for n in range(len(view)):
            # away from the patch's border, where the mean of repeated pixels bends every ramp
            inside = reference.resample(
                np.pad(np.ones((1, 18, 18)), ((0, 0), (1, 1), (1, 1))), draws.start[n], draws.end[n], (56, 56)
            )[0]
            inside = reference.heading(inside, draws.flip[n], int(draws.turns[n])) > 1 - 1e-6
            assert inside.any()
            planes = view[n].numpy()[:, inside]
            spread = planes.max(0) - planes.min(0)
            # the ramp rises by 3.6 a metre: two metres, a fifth of the finest pixel, is the antialiasing filter's error
            assert spread.max() < 2 * 3.6, (n, spread.max())


def test_masks_stay_aligned_with_images(tmp_path):
    folder = make_set(tmp_path / "set", {"train": 40}, image=ramp, mask=ramp_classes, dtype="float32")
    recipe = ViewRecipe(size=56)
    loader = Loader(
        folder, "train", 40, [recipe], masks="land_cover", statistics=dict.fromkeys(BANDS, (0.0, 1.0)), bands=["B03"]
    )
    batch = next(iter(loader))
    height = batch.views[0][:, 0].numpy()
    classes = ((height - 1000) / 300).astype(int)
    classes[classes > 18] = 255
    # nearest neighbour moves an edge by at most half a pixel of the patch: 5 m, that is 25 of the ramp's 5,000
    near_edge = np.abs((height - 1000 + 150) % 300 - 150) < 26
    assert near_edge.mean() < 0.25
    np.testing.assert_array_equal(batch.mask.numpy()[~near_edge], classes[~near_edge])
    for n, index in enumerate(batch.indices.tolist()):
        draws = draw(recipe, 0, 0, np.array([index]), 0, 1)
        mask = loader.shard_set.read("train", index).masks["land_cover"]
        truth = reference.heading(
            reference.nearest(mask, draws.start[0], draws.end[0], (56, 56)), draws.flip[0], int(draws.turns[0])
        )
        assert (truth != batch.mask[n].numpy()).mean() < 1e-3


def test_headings_of_a_whole_patch_are_exact_for_image_and_mask(tmp_path):
    def classes(number, grid):
        return np.random.default_rng(number).integers(0, 19, grid, np.uint8)

    folder = make_set(tmp_path / "set", {"train": 40}, mask=classes)
    recipe = ViewRecipe(size=120, crop_scale=None)
    batch = next(
        iter(Loader(folder, "train", 40, [recipe], masks="land_cover", statistics=dict.fromkeys(BANDS, (0.0, 1.0))))
    )
    loader = Loader(folder, "train", 40, [recipe])
    for n, index in enumerate(batch.indices.tolist()):
        draws = draw(recipe, 0, 0, np.array([index]), 0, 12)
        sample = loader.shard_set.read("train", index)
        turned = [reference.heading(x, draws.flip[0], int(draws.turns[0])) for x in
                  (sample.arrays["10m.npy"], sample.masks["land_cover"])]  # fmt: skip
        np.testing.assert_array_equal(batch.views[0][n][[1, 2, 3, 7]].numpy(), turned[0])
        np.testing.assert_array_equal(batch.mask[n].numpy(), turned[1])


def test_bands_come_by_name_in_the_order_asked_for(any_set):
    folder, _ = any_set
    every = Loader(folder, "train", 8, [ViewRecipe.plain(32)])
    wanted = every.bands[::-1][:3]
    some = Loader(folder, "train", 8, [ViewRecipe.plain(32)], bands=wanted)
    channels = [every.bands.index(band) for band in wanted]
    torch.testing.assert_close(next(iter(some)).views[0], next(iter(every)).views[0][:, channels], rtol=0, atol=0)


def test_the_set_own_size_resamples_nothing_of_the_finest_bands(tmp_path):
    folder = make_set(tmp_path / "set", {"train": 5})
    loader = Loader(
        folder, "train", 5, [ViewRecipe.plain()], training=False, statistics=dict.fromkeys(BANDS, (0.0, 1.0))
    )
    view = next(iter(loader)).views[0]
    for n in range(5):
        np.testing.assert_array_equal(view[n][[1, 2, 3, 7]], loader.shard_set.read("train", n).arrays["10m.npy"])
