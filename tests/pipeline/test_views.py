"""Views from the graph, against NumPy and SciPy from the same draws. All of them: tests/proofs/view_parity.py."""

import colorsys
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import stats

from pipeline import augmentations as augment
from pipeline import graph
from pipeline.draws import draw
from pipeline.loader import Loader
from pipeline.views import ViewRecipe
from shards.errors import BandstreamError
from shards.manifest import Manifest
from tests.pipeline import reference
from tests.pipeline.making import BANDS, make_set
from tests.proofs import view_parity
from tests.proofs.view_parity import ALONE, LAYOUTS, OFF, parity, recipes_for


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    made: dict[str, Path] = {}

    def of(layout: str, dates: int = 1) -> Path:
        name = f"{layout} {dates}"
        if name not in made:
            folder = tmp_path_factory.mktemp("views") / "set"
            made[name] = make_set(folder, {"train": 8}, dates=dates, **LAYOUTS[layout])
        return made[name]

    return of


@pytest.fixture(scope="module", params=["uint16, 12 bands", "float32, odd", "uint8, 3 bands"])
def any_set(request, sets):
    return sets(request.param)


EACH = [("uint16, 12 bands", name) for name in ALONE] + [("uint8, 3 bands", name) for name in view_parity.OF_PICTURES]
ALL = [(layout, name) for layout in LAYOUTS for name in recipes_for(LAYOUTS[layout]) if name.startswith("everything")]


@pytest.mark.parametrize(("layout", "name"), list(dict.fromkeys(EACH + ALL)))
def test_a_view_equals_numpy_and_scipy(sets, layout, name):
    recipe = recipes_for(LAYOUTS[layout])[name]
    loader = Loader(sets(layout), "train", 8, [recipe], seed=5, threads=1)
    parity(loader).check(LAYOUTS[layout]["dtype"], name)
    loader.close()


@pytest.mark.parametrize("name", ["crop", "contrast", "everything"])
@pytest.mark.parametrize("layout", ["uint16, 12 bands", "uint8, 3 bands"])
def test_float16_is_within_its_rounding(sets, layout, name):
    recipe = ViewRecipe(size=32, **ALONE[name])

    def loader(dtype):
        return Loader(sets(layout), "train", 8, [recipe], seed=5, dtype=dtype)

    parity(loader("float16")).check(LAYOUTS[layout]["dtype"], layout)
    full, half = (next(iter(loader(dtype))).views[0] for dtype in ("float32", "float16"))
    assert half.dtype == torch.float16
    step = torch.from_numpy(np.spacing(half.abs().numpy()))
    assert ((half.double() - full.double()).abs() <= step.double() / 2).all()


@pytest.mark.parametrize("layout", ["uint16, 12 bands", "int16, 13 bands"])
def test_resampling_to_whole_numbers_is_off_by_half_of_one_at_most(sets, layout):
    found = parity(Loader(sets(layout), "train", 8, [ViewRecipe(size=45, **ALONE["crop"])]))
    found.check(LAYOUTS[layout]["dtype"], layout)
    assert found.geometry > 0.45


def test_recipes_of_several_sizes_make_one_batch(sets):
    recipes = ViewRecipe(size=40, **ALONE["everything"]).multi_crop(3, 24, (0.05, 0.2))
    loader = Loader(sets("uint16, 12 bands"), "train", 8, recipes, seed=5)
    parity(loader).check("uint16", "multi-crop")
    views = next(iter(Loader(sets("uint16, 12 bands"), "train", 8, recipes, seed=5))).views
    assert [tuple(view.shape) for view in views] == [(8, 12, 40, 40)] * 2 + [(8, 12, 24, 24)] * 3
    draws = loader.draws(np.arange(8))
    areas = [(each.end - each.start).prod(1) for each in draws]
    assert min(area.min() for area in areas[:2]) > 0.19
    assert max(area.max() for area in areas[2:]) < 0.21
    assert len({tuple(area) for area in areas}) == 5


def test_each_view_has_its_own_recipe(sets):
    first, second = (ViewRecipe(size=40, **ALONE[name]) for name in ("everything", "blur"))
    unlike, alike = (
        [Loader(sets("float32, 12 bands"), "train", 8, recipes, seed=5) for recipes in ([first, second], [first] * 2)]
        for _ in range(2)
    )
    parity(unlike[0]).check("float32", "a recipe a view")
    a, b = (next(iter(loader)).views for loader in alike)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


@pytest.mark.parametrize(("seasons", "count"), [("same", 1), ("same", 2), ("different", 2), ("different", 5)])
def test_views_of_drawn_dates_show_those_dates(sets, seasons, count):
    folder = sets("float32, 12 bands", dates=3)
    loader = Loader(folder, "train", 8, [ViewRecipe(size=24, gain=0.2)] * count, seed=5, seasons=seasons)
    parity(loader).check("float32", seasons)
    dates = np.stack([each.date for each in loader.draws(np.arange(8))], 1)
    assert len(np.unique(dates[:, 0])) == 3
    assert np.array_equal(dates, dates[:, :1].repeat(count, 1)) == (seasons == "same")
    if seasons == "different":
        assert (dates[:, 0] != dates[:, 1]).all() and (dates[:, 3:] == dates[:, : count - 3]).all()
    first = Loader(folder, "train", 8, [ViewRecipe(size=24, gain=0.2)] * count, seed=5)
    parity(first).check("float32", "first")
    assert not np.any([each.date for each in first.draws(np.arange(8))])


def test_a_mask_goes_with_any_date_of_its_place(tmp_path):
    folder = make_set(tmp_path / "set", {"train": 6}, dates=2, mask=ramp_classes, image=ramp, dtype="float32")
    loader = Loader(folder, "train", 6, [ViewRecipe(size=56)], masks="land_cover", seasons="same")
    alone = Loader(folder, "train", 6, [ViewRecipe(size=56)], masks="land_cover")
    assert torch.equal(next(iter(loader)).mask, next(iter(alone)).mask)


@pytest.mark.parametrize(
    ("dates", "views", "seasons", "message"),
    [
        (1, 2, "different", "holds one date of each place, of which none can be drawn: take seasons = 'first'"),
        (1, 2, "same", "holds one date of each place"),
        (2, 1, "different", "different dates take a pair of views"),
        (2, 2, "diferent", "seasons = 'diferent': there are 'first', 'same', 'different'"),
    ],
)
def test_dates_that_cannot_be_drawn_are_refused(sets, dates, views, seasons, message):
    with pytest.raises(BandstreamError, match=message):
        Loader(sets("uint8, 3 bands", dates), "train", 8, [ViewRecipe(size=32)] * views, seasons=seasons)


def test_dates_of_other_shapes_are_refused(tmp_path):
    folder = make_set(tmp_path / "set", {"train": 2}, arrays={"10m.npy": (["B02"], 24)}, dates=2)
    content = json.loads((folder / "dataset.json").read_text())
    content["arrays"]["t1.10m.npy"]["shape"] = [1, 12, 48]
    with pytest.raises(BandstreamError, match="date 1 in other shapes, types or order than date 0"):
        graph.planes_of_dates(Manifest.model_validate(content), ["B02"])


@pytest.mark.parametrize("name", ["saturation", "hue", "solarise"])
def test_colours_of_bands_that_are_no_picture_are_refused(sets, name):
    recipe = ViewRecipe(size=32, **{name: 0.1})
    with pytest.raises(BandstreamError, match=f"{name} is for pictures of red, green and blue: set it to 0 for B01, "):
        Loader(sets("float32, 12 bands"), "train", 8, [recipe])
    with pytest.raises(BandstreamError, match="set it to 0 for B02, B03, B08"):
        Loader(sets("float32, 12 bands"), "train", 8, [recipe], bands=["B02", "B03", "B08"])
    picture = Loader(sets("float32, 12 bands"), "train", 8, [recipe], bands=["B03", "B04", "B02"])
    parity(picture).check("float32", name)


def test_colour_matrices_are_those_of_the_field():
    """Saturation and grey as Pillow has them (by its 8-bit numbers), hue turning red to green as HSV does."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 180, (20, 20, 3)).astype(np.uint8)
    one, none, no = np.array([1.0]), np.array([0.0]), np.array([False])
    for factor in (0.4, 1.5):
        matrix = augment.colour_matrix(np.array([factor]), none, no)[0]
        truth = np.asarray(ImageEnhance.Color(Image.fromarray(pixels)).enhance(factor)).astype(float)
        assert np.abs(pixels @ matrix.T - truth).max() <= 1 + factor  # Pillow rounds its greys, then its result
    grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(float)
    matrix = augment.colour_matrix(one, none, ~no)[0]
    assert np.abs(pixels @ matrix.T - grey[..., None]).max() <= 0.51
    for turn in (-1 / 3, -0.1, 0.05, 1 / 3):
        matrix = augment.colour_matrix(one, np.array([turn]), no)[0]
        np.testing.assert_allclose(matrix @ np.ones(3), 1, atol=1e-12)
        np.testing.assert_allclose(augment.RGB_TO_YIQ[0] @ matrix, augment.RGB_TO_YIQ[0], atol=1e-12)
        for start in np.linspace(0, 1, 12, endpoint=False):
            pale = matrix @ (0.5 + 0.1 * np.array(colorsys.hsv_to_rgb(start, 1, 1)))
            moved = (colorsys.rgb_to_hsv(*pale)[0] - start - turn + 0.5) % 1 - 0.5
            assert abs(moved) < 0.09  # of a full turn: the planes of YIQ and HSV are not round alike
    assert np.allclose(augment.colour_matrix(one, one, no), np.eye(3))


PATCH = np.arange(144, dtype=np.uint16).reshape(1, 12, 12)
"""A patch without symmetry."""


def test_flips_and_turns_are_all_eight_headings_of_a_square(tmp_path):
    """The graph's views of a whole patch are the group of the square, each as likely, and nothing else."""
    folder = make_set(tmp_path / "set", {"train": 400}, arrays={"10m.npy": (["B02"], 12)}, image=lambda *_: PATCH)
    recipe = ViewRecipe(size=12, crop_scale=None)
    loader = Loader(folder, "train", 400, [recipe], statistics={"B02": (0.0, 1.0)})
    views = next(iter(loader)).views[0][:, 0].numpy()
    group = [np.rot90(side, turns) for side, turns in product((PATCH[0], PATCH[0].T), range(4))]
    matches = np.array([[np.array_equal(view, heading) for heading in group] for view in views])
    assert (matches.sum(1) == 1).all() and matches.any(0).all()
    assert stats.chisquare(matches.sum(0)).pvalue > 1e-3


def test_what_is_off_is_not_in_the_graph(sets):
    def operators(**fields):
        made = Loader(sets("uint8, 3 bands"), "train", 8, [ViewRecipe(size=32, **OFF | fields)])._graph
        return {type(op._op).__name__ for op in made.pipe._ops}, made.input_count

    plain, inputs = operators()
    for name, fields in (ALONE | view_parity.OF_PICTURES).items():
        found, count = operators(**fields)
        free = name in ("plain", "crop", "flips", "gain", "brightness", "offset")  # nothing is free but what is folded
        assert (found == plain and count == inputs) == free, name


@pytest.mark.parametrize(
    ("layout", "fields"),
    [("uint16, 12 bands", ALONE["everything"]), ("uint8, 3 bands", view_parity.OF_PICTURES["everything of pictures"])],
)
@pytest.mark.parametrize("mask", [None, "mask.npy"])
def test_the_graph_for_a_gpu_keeps_pixels_there(sets, tmp_path, monkeypatch, layout, fields, mask):
    """Its definition alone, which needs no GPU: pixels go there as bytes, and nothing is fetched back for arguments."""
    folder = make_set(tmp_path / "set", {"train": 8}, mask=ramp_classes, **LAYOUTS[layout]) if mask else sets(layout, 2)
    dates = "first" if mask else "different"
    loader = Loader(folder, "train", 8, [ViewRecipe(size=32, **fields)] * (1 if mask else 2), seasons=dates)
    monkeypatch.setattr(graph, "_device_number", lambda: 0)
    monkeypatch.setattr("nvidia.dali.Pipeline.build", lambda self: None)
    made = graph.ViewGraph(
        loader.shard_set.manifest, loader.shard_set.layout, loader.views, loader.bands, loader.statistics,
        batch_size=8, source=lambda: (), mask=mask, device="cuda", threads=1, dtype="float16", seasons=dates,
    )  # fmt: skip
    made.pipe._build_graph()
    devices: dict[str, set[str]] = {}
    for op in made.pipe._ops:
        devices.setdefault(type(op._op).__name__, set()).add(op._op.device)
    assert {name for name, where in devices.items() if where != {"gpu"}} == {"ExternalSource", "Split"}
    assert ("Squeeze" in devices) == bool(mask)
    assert devices["ExternalSource"] == {"cpu"}


def test_the_two_views_of_a_sample_differ(any_set):
    loader = Loader(any_set, "train", 8, [ViewRecipe(size=32)] * 2)
    batch = next(iter(loader))
    assert ((batch.views[0] - batch.views[1]).abs().amax((1, 2, 3)) > 0.1).all()


def test_standardised_values_are_never_clipped(any_set):
    loader = Loader(any_set, "train", 8, [ViewRecipe.plain(32)])
    tight = Loader(any_set, "train", 8, [ViewRecipe.plain(32)], statistics=dict.fromkeys(loader.bands, (1.0, 1e-3)))
    wide, far = next(iter(loader)).views[0], next(iter(tight)).views[0]
    manifest = loader.shard_set.manifest
    mean, std = (
        torch.tensor([getattr(manifest.statistics[b], k) for b in loader.bands])[:, None, None] for k in ("mean", "std")
    )
    assert far.max() > 1e4
    torch.testing.assert_close(far, (wide * std + mean - 1.0) / 1e-3, rtol=1e-4, atol=1.0)


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
    every = Loader(any_set, "train", 8, [ViewRecipe.plain(32)])
    wanted = every.bands[::-1][:3]
    some = Loader(any_set, "train", 8, [ViewRecipe.plain(32)], bands=wanted)
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
