"""`bandstream evaluate` and `bandstream preview` as typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import bandstream
from evaluation.probe import knn
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.pipeline.making import make_set

SIZES = {"train": 60, "val": 38, "test": 38}


def spectrum(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Pictures whose label stands in their colour."""
    level = np.random.default_rng(number % 19).uniform(300, 3000, (shape[0], 1, 1))
    return np.clip(level + np.random.default_rng(number).normal(0, 20, shape), 0, None).astype(dtype)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "set"
    return make_set(folder, SIZES, arrays={"10m.npy": (["B02", "B03", "B04", "B08"], 32)}, image=spectrum)


def call(*words: object) -> None:
    bandstream.main(args=[str(word) for word in words], standalone_mode=False)


def test_statistics_by_neighbours_equal_the_same_by_hand(made: Path, tmp_path: Path) -> None:
    call("evaluate", made, "--encoder", "statistics", "--protocol", "knn", "--device", "cpu", "--out", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    opened = ShardSet.open(made)
    stats = [opened.manifest.statistics[band] for band in opened.manifest.band_names]
    mean, std = (np.array([getattr(s, name) for s in stats])[:, None, None] for name in ("mean", "std"))

    def by_hand(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for i in range(opened.size(split)):
            pixels = ((opened.upsampled(opened.read(split, i)) - mean) / std).reshape(4, -1)
            quantiles = np.quantile(pixels, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
            rows.append([*pixels.mean(1), *pixels.std(1, ddof=1), *quantiles.ravel()])
        return np.array(rows, np.float32), opened.labels(split, "land_cover").astype(np.float32)

    expected = knn(by_hand("train"), by_hand("val"), by_hand("test")[0], 19)
    assert results["chosen_on_val"] == expected.chosen
    ranked = expected.scores.argmax(1) == opened.labels("test", "land_cover").argmax(1)
    assert results["test"]["macro_map"] > 0.9 and ranked.mean() > 0.9, "the colour says it all"
    assert (results["features"], results["labelled_samples"], results["test_samples"]) == (28, 60, 38)


def test_random_encoders_are_a_function_of_the_seed(made: Path, tmp_path: Path) -> None:
    scores = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        options = ("--protocol", "knn", "--label-fraction", 0.5, "--device", "cpu", "--seed", seed)
        call("evaluate", made, "--encoder", "random:tu-resnet10t", *options, "--out", out)
        scores.append(json.loads((out / "results.json").read_text()))
    assert scores[0]["test"] == scores[1]["test"] != scores[2]["test"]
    assert scores[0]["labelled_samples"] == 30


def test_all_stages_of_an_encoder_may_be_probed(made: Path, tmp_path: Path) -> None:
    found = {}
    for level in ("last", "stages"):
        options = ("--features", level, "--view-size", 32, "--device", "cpu", "--out", tmp_path / level)
        call("evaluate", made, "--encoder", "random:resnet18", *options)
        found[level] = json.loads((tmp_path / level / "results.json").read_text())
    assert found["last"]["features"] == 512 and found["stages"]["features"] == 64 + 64 + 128 + 256 + 512
    assert {level: results["level"] for level, results in found.items()} == {"last": "last", "stages": "stages"}


def test_what_cannot_be_probed_is_one_clear_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for encoder, out, options, said in (
        ("statistics", "used", (), "not empty"),
        ("random:resnet19", "a", (), "resnet19"),
        (str(tmp_path), "b", (), "holds no encoder"),
        ("statistics", "c", ("--normalise", "encoder"), "--encoder"),
        ("statistics", "d", ("--label-fraction", "0"), "label fraction"),
        ("statistics", "e", ("--features", "stages"), "no stages"),
    ):
        with pytest.raises(BandstreamError, match=said):
            call("evaluate", made, "--encoder", encoder, "--device", "cpu", "--out", tmp_path / out, *options)
        assert not (tmp_path / out / "results.json").exists()


def test_preview_draws_and_refuses_a_split_that_is_not_there(made: Path, tmp_path: Path) -> None:
    call("preview", made, "--out", tmp_path / "new" / "sheet.png", "--count", 3, "--split", "val")
    assert Image.open(tmp_path / "new" / "sheet.png").size[0] > 100
    with pytest.raises(BandstreamError, match="no split"):
        call("preview", made, "--out", tmp_path / "sheet.png", "--split", "dev")
