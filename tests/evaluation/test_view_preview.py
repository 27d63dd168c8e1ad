"""`bandstream preview --views`: what is on the sheet are the patches and the very views that training takes."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli import bandstream
from evaluation.pictures import colour_picture
from evaluation.view_preview import OUTLINES, views_preview
from pipeline.describe import describe
from pipeline.draws import draw
from pipeline.loader import Loader
from pipeline.views import ViewRecipe
from shards.shardset import ShardSet
from tests.pipeline.making import make_set

RECIPE = """
seed = 3
[view]
size = 64
blur = 0.5
gain = 0.2
brightness = 0.2
contrast = 0.2
offset = 0.1
noise = 0.1
grey = 0.1
band_dropout = 0.3
cutout = 0.5
"""


def preview(*words: object) -> np.ndarray:
    told = CliRunner().invoke(bandstream, ["preview", *map(str, words)])
    assert told.exit_code == 0, told.output
    with Image.open(words[words.index("--out") + 1]) as picture:
        return np.asarray(picture.convert("RGB"))


def packed(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def shows(sheet: np.ndarray, picture: np.ndarray, zooms: tuple[int, ...] = (2, 3)) -> bool:
    """Whether a picture (H, W, 3) is on the packed sheet (H, W), enlarged by one of these, pixel by pixel."""
    for zoom in zooms:
        wanted = packed(picture).repeat(zoom, 0).repeat(zoom, 1)
        height, width = wanted.shape
        ends = sheet[height - 1 :, width - 1 :]
        corners = np.argwhere((sheet[: ends.shape[0], : ends.shape[1]] == wanted[0, 0]) & (ends == wanted[-1, -1]))
        if any(np.array_equal(sheet[y : y + height, x : x + width], wanted) for y, x in corners):
            return True
    return False


def test_the_sheet_shows_what_training_takes(shard_set: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    words = [shard_set, "--views", "--recipe", tmp_path / "recipe.toml", "--count", 3, "--out", tmp_path / "views.png"]
    sheet = preview(*words)
    assert sheet.shape[1] < 1300
    opened = ShardSet.open(shard_set)
    manifest = opened.manifest
    chosen = np.random.default_rng(0).permutation(opened.size("train"))[:3]
    view = ViewRecipe(size=64, blur=0.5, gain=0.2, brightness=0.2, contrast=0.2, offset=0.1, noise=0.1, grey=0.1,
                      band_dropout=0.3, cutout=0.5)  # fmt: skip
    loader = Loader(opened, "train", opened.size("train"), [view] * 2, seed=3)
    batch = next(iter(loader))
    mean, std = (values[:, None, None] for values in loader.statistics)
    for index in chosen.tolist():
        at = batch.indices.tolist().index(index)
        for own in batch.views:
            for infrared in (False, True):
                stored = own[at].numpy() * std + mean
                assert shows(
                    packed(sheet), colour_picture(stored, manifest.band_names, manifest.reflectance, infrared=infrared)
                )
    for colour in OUTLINES[:2]:
        assert ((sheet == colour).all(-1)).sum() > 100
    assert np.array_equal(preview(*words), sheet)
    assert not np.array_equal(preview(*words, "--seed", 1), sheet)


def test_each_date_that_a_view_shows_is_on_the_sheet(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", {"train": 2}, dates=3)
    recipe = ViewRecipe(size=64, flip_vertical=0, flip_horizontal=0)
    sheet = views_preview(ShardSet.open(folder), "train", 1, 0, [recipe] * 2, seasons="different")
    opened = ShardSet.open(folder)
    index = int(np.random.default_rng(0).permutation(2)[0])
    sample = opened.read("train", index)
    dates = [int(draw(recipe, 0, 0, np.array([index]), view, 12, dates=3, seasons="different").date[0])
             for view in range(2)]  # fmt: skip
    for time in range(3):
        patch = colour_picture(
            opened.upsampled(sample, time), opened.manifest.band_names, opened.manifest.reflectance, infrared=False
        )
        # somewhere a stretch of the patch is crossed by no outline
        there = any(shows(packed(sheet), patch[y : y + 1, 50:70], (2,)) for y in range(0, 120, 20))
        assert there == (time in dates)


def test_pictures_and_many_views_have_their_sheet(tmp_path: Path) -> None:
    folder = make_set(
        tmp_path / "set", {"train": 3}, arrays={"rgb.npy": (["red", "green", "blue"], 40)}, dtype="uint8",
        reflectance={"scale": 1 / 255, "offset": 0, "level": "picture"},
    )  # fmt: skip
    one = views_preview(ShardSet.open(folder), "train", 2, 0, [ViewRecipe(size=32, hue=0.1, saturation=0.5)] * 2)
    many = views_preview(ShardSet.open(folder), "train", 2, 0, ViewRecipe(size=96).multi_crop(9, 32))
    assert many.shape[0] > one.shape[0] and many.shape[1] <= 1300


def test_a_recipe_without_views_is_wrong_usage(shard_set: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(
        bandstream, ["preview", str(shard_set), "--out", str(tmp_path / "x.png"), "--recipe", "recipes/demo.toml"]
    )
    assert told.exit_code == 2 and "add --views" in told.output


def test_words_tell_what_was_drawn() -> None:
    recipe = ViewRecipe(
        size=32, blur=1, blur_sigma=(1.5, 1.5), gain=0.2, brightness=0.4, contrast=0.5, saturation=0.6, hue=0.1,
        solarise=1, offset=0.1, noise=0.3, grey=1, band_dropout=1, band_dropout_max=1, cutout=1, cutout_area=(0.1, 0.1),
    )  # fmt: skip
    draws = draw(recipe, 0, 0, np.arange(50), 0, 3)
    for n in range(50):
        told = ", ".join(describe(draws, n, ["B02", "B03", "B04"]))
        lost = ["B02", "B03", "B04"][int(draws.dropped[n].argmax())]
        assert ("upside down" in told, "mirrored" in told) == tuple(draws.flip[n])
        assert ("turned" in told) == bool(draws.turns[n])
        area = (draws.end[n] - draws.start[n]).prod()
        for phrase in (
            f"crop {area:.0%}", "blur 1.5 px", f"brightness {draws.brightness[n]:.2f}", "solarised", "grey",
            f"contrast {draws.contrast[n]:.2f}", f"saturation {draws.saturation[n]:.2f}", f"without {lost}",
            f"gain {draws.gain[n].min():.2f} to {draws.gain[n].max():.2f}", f"noise {draws.noise_sigma[n]:.2f} sd",
            "cutout 10%", f"hue {draws.hue[n] * 360:+.0f}°",
        ):  # fmt: skip
            assert phrase in told or (phrase.startswith("gain") and "gain" in told), (phrase, told)
    plain = draw(ViewRecipe.plain(), 0, 0, np.arange(2), 0, 3)
    assert describe(plain, 1, ["B02", "B03", "B04"]) == ["as it is"]


@pytest.mark.parametrize("second", ["size = 64", "size = 32"])
def test_recipes_may_have_a_view_each(tmp_path: Path, second: str) -> None:
    from shards.errors import BandstreamError
    from training.recipe import Pretraining

    (tmp_path / "recipe.toml").write_text(f"[view]\nsize = 64\n[second_view]\nsolarise = 0.2\n{second}\n")
    if second == "size = 64":
        first, other = Pretraining.read(tmp_path / "recipe.toml", {}).views
        assert (first.solarise, other.solarise, other.size) == (0, 0.2, 64)
    else:
        with pytest.raises(BandstreamError, match="second_view.size 32 is not view.size 64"):
            Pretraining.read(tmp_path / "recipe.toml", {})
