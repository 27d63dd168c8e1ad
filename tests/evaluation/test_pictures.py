"""Pictures: the stretch in numbers, the colours of classes, sheets that show what is in a shard set."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import figures, pictures
from shards.manifest import Reflectance
from shards.shardset import ShardSet

LIGHT = Reflectance(scale=1e-4, offset=0.0, level="L2A")
BANDS = ["B02", "B03", "B04", "B08"]


def test_true_colour_is_red_green_blue_under_one_fixed_stretch() -> None:
    stored = np.zeros((4, 2, 2))
    stored[2] = [[0, 625], [2500, 9999]]  # B04: reflectance 0, 0.0625, 0.25 (white), more than white
    shown = pictures.colour_picture(stored, BANDS, LIGHT, infrared=False)
    assert shown.dtype == np.uint8 and shown.shape == (2, 2, 3)
    assert shown[..., 0].tolist() == [[0, round(255 * 0.25 ** (1 / 1.5))], [255, 255]]
    assert not shown[..., 1:].any()
    beside = np.concatenate([stored, np.full((4, 2, 2), 5000)], 2)
    assert np.array_equal(pictures.colour_picture(beside, BANDS, LIGHT, infrared=False)[:, :2], shown)


def test_false_colour_puts_the_near_infrared_in_red() -> None:
    stored = np.zeros((4, 1, 2))
    stored[3] = [[5000, 0]]
    stored[2] = [[0, 2500]]
    shown = pictures.colour_picture(stored, BANDS, LIGHT, infrared=True)
    assert shown.tolist() == [[[255, 0, 0], [0, 255, 0]]]


def test_offset_of_reflectance_is_heeded_and_eight_bit_pictures_stay_as_they_are() -> None:
    shifted = Reflectance(scale=1e-4, offset=-0.1, level="L2A")
    stored = np.full((4, 1, 1), 3500.0)
    assert pictures.colour_picture(stored, BANDS, shifted, infrared=False).max() == 255
    assert pictures.colour_picture(np.full((4, 1, 1), 1000.0), BANDS, shifted, infrared=False).max() == 0
    eight = np.arange(12).reshape(3, 2, 2) * 20
    picture = Reflectance(scale=1 / 255, offset=0.0, level="picture")
    shown = pictures.colour_picture(eight, ["red", "green", "blue"], picture, infrared=False)
    assert np.abs(shown.astype(int) - np.moveaxis(eight, 0, -1)).max() <= 1  # a float32 scale may round down


def test_bands_without_colour_are_shown_in_grey() -> None:
    shown = pictures.colour_picture(np.full((2, 1, 1), 2500.0), ["B11", "B12"], LIGHT, infrared=False)
    assert shown.tolist() == [[[255, 255, 255]]]


def test_classes_have_colours_that_differ(shard_set: Path) -> None:
    classes = ShardSet.open(shard_set).manifest.labels["land_cover"].classes
    assert len(classes) == 19 and set(classes) == set(pictures._LAND_COVER)
    for names in (classes, [f"crop {k}" for k in range(14)]):
        colours = pictures.class_colours(names).astype(int)
        distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(len(names), dtype=int)
        assert colours.shape == (len(names), 3) and distance.min() >= 24


def test_mask_picture_shows_each_class_and_leaves_the_ignored_white() -> None:
    shown = pictures.mask_picture(np.array([[0, 1, 255]], np.uint8), ["Marine waters", "Pastures"])
    assert shown.tolist() == [[[0, 80, 200], [190, 230, 90], [255, 255, 255]]]


def test_contact_sheet_holds_the_patches_drawn(shard_set: Path, tmp_path: Path) -> None:
    opened = ShardSet.open(shard_set)
    sheet = pictures.contact_sheet(opened, "train", 4, seed=3)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3
    first = int(np.random.default_rng(3).permutation(opened.size("train"))[0])
    sample = opened.read("train", first)
    manifest = opened.manifest
    truth = pictures.colour_picture(opened.upsampled(sample), manifest.band_names, manifest.reflectance, infrared=False)
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:400, :400, 0], truth.shape[:2])
    assert (windows[:, :, ::17, ::17] == truth[::17, ::17, 0]).all((2, 3)).any(), "the first patch drawn is on it"
    assert np.array_equal(sheet, pictures.contact_sheet(opened, "train", 4, seed=3))
    assert not np.array_equal(sheet, pictures.contact_sheet(opened, "train", 4, seed=4))
    pictures.save_picture(tmp_path / "sheet.png", sheet)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), sheet)


def test_view_sheet_undoes_the_standardisation(shard_set: Path) -> None:
    manifest = ShardSet.open(shard_set).manifest
    bands = manifest.band_names
    view = np.zeros((2, len(bands), 16, 16), np.float32)  # every pixel at its band's mean
    sheet = pictures.view_sheet([view, view], manifest, bands)
    mean = np.array([[[manifest.statistics[band].mean]] for band in bands])
    expected = pictures.colour_picture(mean, bands, manifest.reflectance, infrared=False)[0, 0]
    assert (sheet == expected).all(-1).mean() > 0.3  # half of the sheet is true colour, less the frames


def test_sheets_of_predictions_and_nothing_to_draw(shard_set: Path) -> None:
    from shards.errors import BandstreamError

    picture, mask = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8)
    assert pictures.prediction_sheet([(picture, mask, mask + 1)] * 3, ["a, b", "c"]).shape[2] == 3
    with pytest.raises(BandstreamError, match="nothing to draw"):
        pictures.prediction_sheet([], ["a", "b"])


def test_figures_are_pngs_even_of_little() -> None:
    made = [
        figures.curves({"loss": [1.0, 0.5], "score": [0.2]}, [1, 2], "step"),
        figures.curves({"loss": []}, [], "step"),
        figures.class_bars({"scratch": {"a": 0.5, "b": 0.1}, "pretrained": {"a": 0.7}}, "F1"),
        figures.confusion_figure([[5, 1, 0], [0, 2, 0], [0, 0, 0]], ["a", "b", "nowhere"]),
        figures.confusion_figure([[0, 0], [0, 0]], ["a", "b"]),
    ]
    assert all(png.startswith(b"\x89PNG") for png in made)
