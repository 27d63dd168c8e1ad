"""The recipes of fine-tuning: published numbers as they stand, and each run on a little data of its own layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune
from ingest.building.build import Options, ingest
from models.encoder import build_encoder
from models.export import EncoderBand, save_encoder
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.ingest.levels import LEVELS, levels, make_levels
from tests.pipeline.making import make_set
from training.finetuning import FineTuning

RECIPES = Path(__file__).parents[1] / "recipes"
ENDINGS = ("-classify", "-segment", "-finetune", "-linear", "-supervised")
ALL = sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem.endswith(ENDINGS))
SMALL = ["--epochs", "2", "--batch-size", "4", "--view-size", "32", "--device", "cpu", "--threads", "1"]


def read(name: str) -> FineTuning:
    return FineTuning.read(RECIPES / f"{name}.toml", {})


def pictures(folder: Path) -> Path:
    return make_set(
        folder, {"train": 24, "val": 9, "test": 9}, arrays={"rgb.npy": (["red", "green", "blue"], 32)},
        dtype="uint8", single=True, label=lambda number: number % 3,
        reflectance={"scale": 1 / 255, "offset": 0, "level": "picture"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set of the layout of each recipe, by the beginning of its name."""
    folder = tmp_path_factory.mktemp("recipes")
    make_levels(folder / "cerrado", 48)
    ingest(levels(folder / "cerrado"), folder / "levels", Options(shard_samples=16))
    arrays = {"10m.npy": (["B02", "B03", "B04", "B08"], 32)}
    landscape = make_set(
        folder / "landscape", {"train": 40, "val": 20, "test": 20}, arrays=arrays,
        mask=lambda number, grid: np.full(grid, number % 4, np.uint8),
    )  # fmt: skip
    eurosat = make_set(folder / "eurosat", {"train": 40, "val": 20, "test": 20}, arrays=arrays, single=True)
    return {
        "cerradata": folder / "levels", "pictures": pictures(folder / "pictures"), "bigearthnet": eurosat,
        "demo": landscape,
    }  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_runs(name: str, sets: dict[str, Path], tmp_path: Path) -> None:
    made, out = sets[name.split("-")[0]], tmp_path / "run"
    init = "scratch"
    if name.endswith(("-linear", "-finetune")):
        init, bands = str(tmp_path), ShardSet.open(made).manifest.band_names
        known = [EncoderBand(name=band, wavelength_nm=500, mean=1000, std=800) for band in bands]
        parts: dict[str, Any] = {"reflectance": {}, "data": {}, "recipe": {}, "scores": {}}
        save_encoder(tmp_path, build_encoder("tu-resnet10t", len(bands)), bands=known, view_size=32, **parts)
    command = [str(made), "--recipe", str(RECIPES / f"{name}.toml"), "--out", str(out), "--init", init, *SMALL]
    if init == "scratch":
        command += ["--encoder", "tu-resnet10t"]
    if read(name).label_fraction < 0.2:
        command += ["--label-fraction", "0.2"]
    finetune.main.main(command, standalone_mode=False)
    results = json.loads((out / "results.json").read_text())
    recipe = read(name)
    assert results["task"] == recipe.task and results["freeze"] == recipe.frozen
    assert results["init_kind"] == ("scratch" if init == "scratch" else "pretrained")
    if name.startswith("cerradata"):
        assert results["classes"] == LEVELS[recipe.target or ""]


def test_published_numbers_stand_in_the_recipes() -> None:
    cerrado = read("cerradata-segment")
    assert (cerrado.target, cerrado.label_fraction, cerrado.encoder, cerrado.decoder) == (
        "L2",
        0.05,
        "resnet34",
        "unet",
    )
    assert (cerrado.batch_size, cerrado.epochs, cerrado.lr, cerrado.plateau_patience) == (100, 100, 1e-4, 5)
    supervised = read("cerradata-supervised")
    assert (supervised.target, supervised.label_fraction, supervised.encoder) == ("L1", 1.0, cerrado.encoder)
    linear, full = read("pictures-resnet18-linear"), read("pictures-resnet18-finetune")
    assert (linear.frozen, linear.lr, full.frozen, full.lr, full.epochs) == ("encoder", 0.01, "none", 1e-3, 50)
    eurosat = read("bigearthnet-finetune")
    stages = [eurosat.stages(epoch) for epoch in range(eurosat.epochs)]
    assert [stages.count(value) for value in (0, 1, None)] == [10, 10, 80] and stages == [0] * 10 + [1] * 10 + [
        None
    ] * 80
    assert (eurosat.lr, eurosat.dropout, eurosat.weight_decay) == (1e-4, 0.1, 1e-4)


def test_levels_of_labels_follow_each_other(sets: dict[str, Path], tmp_path: Path) -> None:
    """Set-up A: supervised on L1, then a part of L2 on the same encoder, though with other classes."""
    made = str(sets["cerradata"])
    tiny = [*SMALL, "--recipe"]
    before = [made, "--out", str(tmp_path / "one"), "--init", "scratch", "--encoder", "tu-resnet10t"]
    finetune.main.main([*before, *tiny, str(RECIPES / "cerradata-supervised.toml")], standalone_mode=False)
    after = [made, "--out", str(tmp_path / "two"), "--init", str(tmp_path / "one"), "--label-fraction", "0.2"]
    finetune.main.main([*after, *tiny, str(RECIPES / "cerradata-segment.toml")], standalone_mode=False)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["init_kind"] == "supervised" and len(results["classes"]) == 14
    assert set(results["test"]["support"]) == set(LEVELS["L2"])
    info = json.loads((tmp_path / "one" / "encoder.json").read_text())
    assert info["data"]["target"] == "L1" and set(info["scores"]) == {"val_macro_iou"}, "no score of the test split"
    with pytest.raises(BandstreamError, match="no masks 'L3': it has L1, L2"):
        finetune.main.main([*after, "--target", "L3", "--out", str(tmp_path / "x"), *tiny[:-1], "--task", "segment"],
                           standalone_mode=False)  # fmt: skip
