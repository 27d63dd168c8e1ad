"""Every recipe for pretraining, run for two steps on made-up data of its set-up's layout, scaled down to seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image

from cli import bandstream
from models import load_encoder
from train import main
from training.recipe import Pretraining

RECIPES = Path(__file__).parent.parent / "recipes"
BANDS = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12"
# recipe → its data, and a smaller encoder where a step and a checkpoint of its own take more than 5 s on a core
RUN = {
    "cerradata": ("cerradata", None),
    "pictures-resnet18": ("pictures", None),
    "pictures-resnet50": ("pictures", None),
    "pictures-small": ("small pictures", None),
    "bigearthnet-cnn": ("bigearthnet", None),
    "bigearthnet-resnet50": ("bigearthnet", None),
    "bigearthnet-vit": ("bigearthnet", "vit_tiny_patch16_224"),  # of ViT-B a checkpoint is 1 GB
    "simclr-resnet18": ("bigearthnet", None),
}


def run(*words):
    result = CliRunner().invoke(bandstream, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Shard sets by their set-up's name, made when they are first asked for."""
    top, made = tmp_path_factory.mktemp("sets"), {}

    def cerradata(folder):
        rng = np.random.default_rng(0)
        for level, classes in (("images", 0), ("L1", 7), ("L2", 14)):
            for split, count in (("train", 8), ("val", 4)):
                (folder / level / split).mkdir(parents=True)
                for k in range(count):
                    shape = (1, 128, 128) if classes else (12, 128, 128)
                    pixels = rng.integers(0, classes or 5000, shape).astype("uint8" if classes else "uint16")
                    place = rasterio.transform.from_origin(4e5, 8e6 - 1280 * k, 10, 10)
                    with rasterio.open(folder / level / split / f"{split}{k}.tif", "w", "GTiff", 128, 128, len(pixels),
                                       "EPSG:32723", place, pixels.dtype) as file:  # fmt: skip
                        file.write(pixels)
            if classes:
                (folder / f"{level}.txt").write_text("".join(f"class {k}\n" for k in range(classes)))
        levels = []
        for level in ("L1", "L2"):
            levels += ["--masks", f"{level}={folder / level}", "--classes", f"{level}={folder / level}.txt"]
        return ["geotiff", folder / "images", "--bands", BANDS, "--level", "L2A", *levels]

    def pictures(folder, side=64):
        rng = np.random.default_rng(1)
        for split, count in (("train", 3), ("val", 2)):
            for name in ("a", "b", "c"):
                (folder / split / name).mkdir(parents=True)
                for k in range(count):
                    pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / split / name / f"{k}.png")
        return ["images", folder]

    def bigearthnet(folder):
        run("synth", folder, "--patches", 24, "--workers", 1)
        return ["bigearthnet", folder]

    makers = {
        "cerradata": cerradata,
        "pictures": pictures,
        "small pictures": lambda folder: pictures(folder, 32),
        "bigearthnet": bigearthnet,
    }

    def give(name):
        if name not in made:
            kind, source, *options = makers[name](top / name)
            run("ingest", kind, source, top / f"{name} set", *options, "--workers", 1)
            made[name] = top / f"{name} set"
        return made[name]

    return give


def test_no_recipe_is_forgotten():
    named = {path.stem for path in RECIPES.glob("*.toml")}
    tuning = ("-classify", "-segment", "-finetune", "-linear", "-supervised")
    others = {name for name in named if name.startswith("demo") or name.endswith(tuning)}
    assert named - others == RUN.keys()


@pytest.mark.parametrize("name", RUN)
def test_a_recipe_trains_on_data_of_its_layout(sets, tmp_path, name):
    file = RECIPES / f"{name}.toml"
    recipe = Pretraining.read(file, {}).resolved()
    assert recipe.encoder and recipe.method == "simclr" and file.read_text().startswith("#")
    data, encoder = RUN[name]
    small = {"batch-size": 4, "view-size": 32, "epochs": 1, "threads": 1, "device": "cpu", "encoder": encoder}
    options = [word for knob, value in small.items() if value is not None for word in (f"--{knob}", str(value))]
    main([str(sets(data)), "--out", str(tmp_path / "run"), "--recipe", str(file), *options], standalone_mode=False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] >= 2
    told = json.loads((tmp_path / "run" / "recipe.json").read_text())
    for knob in ("objective", "lr", "optimiser", "schedule"):
        assert told[knob] == recipe.model_dump(mode="json")[knob]
    found, info = load_encoder(tmp_path / "run")
    assert len(info.bands) == (3 if "pictures" in data else 12) and found.name == (encoder or recipe.encoder)


def test_the_numbers_are_those_of_the_set_ups():
    def read(name):
        return Pretraining.read(RECIPES / f"{name}.toml", {}).resolved()

    a, b, c, e = (read(n) for n in ("cerradata", "pictures-resnet18", "pictures-resnet50", "pictures-small"))
    assert (a.encoder, a.batch_size, a.epochs, a.optimiser, a.peak_lr) == ("resnet34", 100, 200, "adam", 1e-3)
    assert (a.schedule, a.plateau_patience, a.objective["temperature"], a.view.size) == ("plateau", 10, 0.5, 128)
    assert (a.objective["projection_hidden"], a.objective["projection_out"]) == (256, 128)
    assert (b.objective["temperature"], b.batch_size, b.epochs, b.weight_decay, b.view.size) == (
        0.07,
        32,
        100,
        1e-4,
        224,
    )
    assert (b.view.brightness, b.view.contrast, b.view.saturation, b.view.hue, b.view.grey) == (0.8, 0.8, 0.8, 0.2, 0.2)
    assert (c.encoder, c.objective["temperature"], c.batch_size, c.early_stopping) == ("resnet50", 0.5, 32, 20)
    assert (e.view.size, e.objective["projection_out"], e.epochs) == (128, 256, 50)
    for name, encoder in (("cnn", "cnn"), ("resnet50", "resnet50"), ("vit", "vit_base_patch16_224")):
        d = read(f"bigearthnet-{name}")
        assert (d.encoder, d.batch_size, d.epochs, d.peak_lr, d.view.size) == (encoder, 64, 300, 1e-3, 64)
        assert (d.view.crop_scale, d.view.jitter, d.view.band_dropout_max) == ((0.2, 1.0), 0.8, 9)
