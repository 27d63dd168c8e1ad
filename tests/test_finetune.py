"""finetune.py on tasks with a known answer: what it learns, what it scores, what it must not look at."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

import finetune
from evaluation import metrics
from evaluation.fractions import labelled_subset
from evaluation.intervals import interval
from evaluation.predictions import load_predictions
from models.encoder import build_encoder
from models.export import EncoderBand, load_encoder, save_encoder
from models.heads import Classifier, Segmenter
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.pipeline.making import make_set, noise_image

BANDS = ["B02", "B03", "B04", "B08"]
SIDE = 40  # no multiple of 32
ENCODER = "tu-resnet10t"
SIZES = {"train": 96, "val": 38, "test": 57}


def edge(number: int) -> int:
    """The column where the right-hand class of a patch begins."""
    return 8 + number * 7 % 24


def landscape(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Two fields side by side; the spectrum of the left-hand one is the label's."""
    spectrum = np.random.default_rng(number % 19).uniform(300, 3000, (len(bands), 1, 1))
    image = np.broadcast_to(spectrum, shape).copy()
    image[:, :, edge(number) :] = np.array([600, 500, 400, 3500])[:, None, None]
    return (image + np.random.default_rng(number).normal(0, 30, shape)).clip(0).astype(dtype)


def fields(number: int, grid: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(grid, np.uint8)
    mask[:, edge(number) :] = 7
    mask[:5] = 255
    return mask


def shards(folder: Path, sizes: dict[str, int] = SIZES, **options: Any) -> Path:
    return make_set(folder, sizes, arrays={"10m.npy": (BANDS, SIDE)}, **{"image": landscape, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("finetune") / "set", mask=fields)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, whose encoder knows the four bands in another order, and one more."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(5)
    bands = [EncoderBand(name=b, wavelength_nm=500, mean=1000, std=800) for b in ("B08", "B11", "B04", "B02", "B03")]
    parts = {"reflectance": {}, "data": {}, "recipe": {}, "scores": {}}
    save_encoder(folder, build_encoder(ENCODER, 5), bands=bands, view_size=32, **parts)
    return folder


KNOBS = f'encoder = "{ENCODER}"\nbatch_size = 16\nlr = 3e-3\nview = {{size = 32, crop_scale = [0.5, 1]}}\n'


def command(made: Path, out: Path, more: str = "validate_steps = 6\n") -> list[str]:
    """The words of a command line, with a recipe that has `more` knobs."""
    recipe = out.with_suffix(".toml")
    recipe.write_text(KNOBS + more)
    return [str(made), "--out", str(out), "--recipe", str(recipe), "--device", "cpu", "--threads", "1"]


def run(made: Path, out: Path, *options: str, more: str = "validate_steps = 6\n") -> dict[str, Any]:
    """Fine-tune as from the command line, in this process; what results.json holds."""
    finetune.main.main([*command(made, out, more), *options], standalone_mode=False)
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def whole_patches(made: Path, split: str) -> torch.Tensor:
    """Standardised patches (n, C, H, W), read and standardised without the loader."""
    opened = ShardSet.open(made)
    stats = [opened.manifest.statistics[band] for band in BANDS]
    mean, std = (np.array([getattr(s, name) for s in stats])[:, None, None] for name in ("mean", "std"))
    pictures = [opened.upsampled(opened.read(split, i)) for i in range(opened.size(split))]
    return torch.from_numpy(((np.stack(pictures) - mean) / std).astype(np.float32))


def test_segments_a_known_landscape_and_scores_it_at_native_size(made: Path, tmp_path: Path) -> None:
    results = run(made, tmp_path / "run", "--task", "segment", "--init", "scratch", "--epochs", "6")
    test = results["test"]
    assert set(test["per_class"]["iou"]) == {"class 0", "class 7"}
    assert test["macro_iou"] > 0.8, "the fields are plain to see"
    assert sum(test["support"].values()) == SIZES["test"] * SIDE * (SIDE - 5), "each pixel that counts, at native size"

    # the same scores from the stored weights, with no loader and no metrics of ours
    model = Segmenter(build_encoder(ENCODER, 4), 19)
    model.load_state_dict(load_file(tmp_path / "run" / "best.safetensors"), strict=True)
    model.eval()
    with torch.inference_mode():
        found = model(whole_patches(made, "test")).argmax(1).numpy()
    assert found.shape[1:] == (SIDE, SIDE)
    opened = ShardSet.open(made)
    truth = np.stack([opened.read("test", i).masks["land_cover"] for i in range(SIZES["test"])])
    kept = load_predictions(tmp_path / "run")
    assert (kept.kind, kept.keys.tolist()) == ("segment", [opened.read("test", i).key for i in range(SIZES["test"])])
    for n in (0, 5, 56):
        assert np.array_equal(kept.scores[n].sum(1), np.bincount(truth[n].ravel(), minlength=256)[:19])
        expected = metrics.confusion(truth[n], found[n], 19)
        assert np.abs(kept.scores[n] - expected).sum() <= 20, "to rounding"
    assert kept.scores.sum(0).tolist() == test["confusion"]
    for k in (0, 7):
        both = ((found == k) & (truth == k)).sum()
        either = (((found == k) | (truth == k)) & (truth != 255)).sum()
        assert test["per_class"]["iou"][f"class {k}"] == pytest.approx(both / either, abs=2e-3)
    for picture in ("predictions.png", "per_class.png", "confusion.png", "curves.png"):
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")


def test_classifies_with_several_labels(made: Path, tmp_path: Path) -> None:
    results = run(
        made, tmp_path / "run", "--task", "classify", "--init", "scratch", "--epochs", "15", "--view-size", "40"
    )
    assert results["kind"] == "multilabel" and results["labelled_samples"] == SIZES["train"]
    assert results["test"]["macro_map"] > 0.5, "nineteen spectra, chance is about 0.1"
    model = Classifier(build_encoder(ENCODER, 4), 19)
    model.load_state_dict(load_file(tmp_path / "run" / "best.safetensors"), strict=True)
    model.eval()
    opened = ShardSet.open(made)
    truth = opened.labels("test", "land_cover")
    with torch.inference_mode():
        scores = model(whole_patches(made, "test")).numpy()
    there = truth.any(0)
    expected = average_precision_score(truth[:, there], scores[:, there], average="macro")
    assert results["test"]["macro_map"] == pytest.approx(expected, abs=0.01)
    kept = load_predictions(tmp_path / "run")
    assert np.array_equal(kept.truth, truth) and kept.classes == results["classes"]
    assert kept.keys.tolist() == [opened.read("test", i).key for i in range(SIZES["test"])]
    assert np.allclose(kept.scores, 1 / (1 + np.exp(-scores)), atol=0.02)
    assert interval([kept], "macro_map", resamples=20).estimate == pytest.approx(results["test"]["macro_map"])


def test_classifies_with_one_label(tmp_path: Path) -> None:
    made = shards(tmp_path / "set", single=True)
    results = run(made, tmp_path / "run", "--task", "classify", "--init", "scratch", "--epochs", "15")
    assert results["kind"] == "single"
    assert results["test"]["accuracy"] > 0.4, "chance is 1/19"
    assert np.sum(results["test"]["confusion"]) == SIZES["test"]


@pytest.mark.parametrize(("task", "inside"), [("classify", "encoder.net."), ("segment", "net.encoder.")])
def test_a_frozen_encoder_stays_the_pretrained_one_with_its_bands_in_our_order(
    made: Path, pretrained: Path, tmp_path: Path, task: str, inside: str
) -> None:
    options = ["--task", task, "--init", str(pretrained), "--freeze", "encoder", "--epochs", "2"]
    results = run(made, tmp_path / "run", *options)
    assert results["bands"] == BANDS and results["freeze"] == "encoder"
    before = load_file(pretrained / "encoder.safetensors")
    after = load_file(tmp_path / "run" / "best.safetensors")
    tuned = {name.removeprefix(inside): value for name, value in after.items() if name.startswith(inside)}
    assert tuned.keys() == before.keys()
    different = [name for name, value in before.items() if not torch.equal(tuned[name], value)]
    assert len(different) == 1, "only the first convolution, which takes four bands now instead of five"
    stem = before[different[0]][:, [3, 4, 2, 0]]  # B02 B03 B04 B08 in the run's order of bands
    scale = tuned[different[0]] / stem
    assert torch.allclose(scale, scale.mean(), rtol=1e-4)


def test_an_encoder_that_is_not_frozen_learns_and_may_keep_its_own_statistics(
    made: Path, pretrained: Path, tmp_path: Path
) -> None:
    options = ["--task", "classify", "--init", str(pretrained), "--epochs", "1"]
    results = [run(made, tmp_path / name, *options, "--normalise", name) for name in ("set", "encoder")]
    assert [content["normalise"] for content in results] == ["set", "encoder"]
    one, other = (load_file(tmp_path / name / "best.safetensors") for name in ("set", "encoder"))
    before = load_file(pretrained / "encoder.safetensors")
    assert any(not torch.equal(one[f"encoder.net.{k}"], v) for k, v in before.items() if v.ndim == 4 and v.shape[1] > 5)
    assert any(not torch.equal(one[k], other[k]) for k in one), "other inputs, another model"


def test_the_test_split_bears_on_nothing_but_the_test_scores(made: Path, tmp_path: Path) -> None:
    """Two sets that differ in all pictures, labels and masks of test: runs are the same bits but for their scores."""
    first = SIZES["train"] + SIZES["val"]
    poisoned = shards(
        tmp_path / "set",
        mask=lambda n, grid: fields(n, grid) if n < first else np.full(grid, 3, np.uint8),
        label=lambda n: n % 19 if n < first else 18 - n % 19,
        image=lambda n, *form: landscape(n, *form) if n < first else noise_image(n, *form),
    )
    for task in ("classify", "segment"):
        options = ["--task", task, "--init", "scratch", "--epochs", "3", "--label-fraction", "0.5"]
        options += ["--loss", "dice", "--loss", "focal", "--class-weights", "inverse", "--schedule", "plateau"]
        clean = run(made, tmp_path / f"{task}-clean", *options)
        wrong = run(poisoned, tmp_path / f"{task}-wrong", *options)
        for file in ("best.safetensors", "encoder.safetensors", "metrics.jsonl"):
            one, other = (tmp_path / f"{task}-{name}" / file for name in ("clean", "wrong"))
            assert one.read_bytes() == other.read_bytes(), "weights, losses, rates and all scores on val"
        own = {"test", "data", "seconds"}
        assert {k: v for k, v in clean.items() if k not in own} == {k: v for k, v in wrong.items() if k not in own}
        assert clean["test"] != wrong["test"]


def test_several_seeds_are_a_run_each_and_what_is_finished_is_not_run_again(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    options = ["--task", "classify", "--init", "scratch", "--epochs", "1", "--label-fraction", "0.3"]
    finetune.main.main([*command(made, out), *options, "--seeds", "3,1"], standalone_mode=False)
    files = [out / f"seed-{seed}" / "results.json" for seed in (3, 1)]
    before = [json.loads(file.read_text()) for file in files]
    assert [results["seed"] for results in before] == [3, 1] and before[0]["test"] != before[1]["test"]
    labels = ShardSet.open(made).labels("train", "land_cover")
    assert before[0]["labelled_samples"] == len(labelled_subset(labels, 0.3, 3))
    summary = json.loads((out / "summary.json").read_text())
    scores = [results["test"]["macro_map"] for results in before]
    assert summary["scores"]["test_macro_map"]["values"] == scores
    assert summary["scores"]["test_macro_map"]["std"] == pytest.approx(np.std(scores, ddof=1))

    untouched = files[0].stat().st_mtime_ns
    files[1].unlink()  # as if it had been killed before its end
    finetune.main.main([*command(made, out), *options, "--seed", "3", "--seed", "1"], standalone_mode=False)
    again = json.loads(files[1].read_text())
    assert files[0].stat().st_mtime_ns == untouched
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in before[1].items() if k != "seconds"}
    with pytest.raises(BandstreamError, match="another recipe.lr"):
        finetune.main.main([*command(made, out), *options, "--seeds", "3,1", "--lr", "0.5"], standalone_mode=False)


def test_progressive_unfreezing_ends_with_an_encoder_that_is_an_init_itself(
    made: Path, pretrained: Path, tmp_path: Path
) -> None:
    phases = "validate_steps = 12\ndropout = 0.1\nlayer_decay = 0.8\n[[unfreeze]]\nepoch = 1\nstages = 1\n"
    options = ["--task", "classify", "--init", str(pretrained), "--epochs", "2", "--bands", "B08,B04,B03"]
    results = run(made, tmp_path / "one", *options, more=phases)
    assert results["freeze"] == "progressive" and results["bands"] == ["B08", "B04", "B03"]
    before, after = load_file(pretrained / "encoder.safetensors"), load_file(tmp_path / "one" / "encoder.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name for name in changed if "layer" in name} == {name for name in before if "layer4" in name}
    assert len({name for name in changed if "layer" not in name}) == 1, "the stem, which takes other bands now"
    encoder, info = load_encoder(tmp_path / "one", ["B03", "B04"])
    assert info.band_names == ["B03", "B04"] and encoder.in_channels == 2
    best = load_file(tmp_path / "one" / "best.safetensors")
    assert all(torch.equal(value, best[f"encoder.net.{name}"]) for name, value in after.items())

    options = ["--task", "segment", "--init", str(tmp_path / "one"), "--epochs", "1", "--bands", "B03,B04"]
    results = run(made, tmp_path / "two", *options, "--decoder", "deeplabv3plus", "--freeze", "encoder")
    assert results["init_kind"] == "supervised" and results["decoder"] == "deeplabv3plus"
    tuned = load_file(tmp_path / "two" / "encoder.safetensors")
    assert all(torch.equal(value, tuned[name]) for name, value in after.items() if "layer" in name)


def test_a_transformer_segments_with_dpt_and_is_an_init_at_another_size(tmp_path: Path) -> None:
    arrays = {"10m.npy": (BANDS, SIDE)}
    made = make_set(tmp_path / "set", {"train": 16, "val": 4, "test": 4}, arrays=arrays, image=landscape, mask=fields)
    options = ["--task", "segment", "--init", "scratch", "--encoder", "vit_tiny_patch16_224", "--epochs", "1"]
    results = run(made, tmp_path / "one", *options)
    assert results["decoder"] == "dpt" and results["recipe"]["view"]["size"] == 32
    options = ["--task", "classify", "--init", str(tmp_path / "one"), "--epochs", "1", "--view-size", "48"]
    run(made, tmp_path / "two", *options)
    encoder, info = load_encoder(tmp_path / "two")
    assert info.view_size == 32 and encoder.name == "vit_tiny_patch16_224"


def test_mixing_and_early_stopping_on_single_labels(tmp_path: Path) -> None:
    made = shards(tmp_path / "set", single=True)
    more = "mixup = 0.2\ncutmix = 1.0\nvalidate_steps = 1\npatience = 1\n"
    options = ["--task", "classify", "--init", "scratch", "--epochs", "30", "--label-fraction", "0.4", "--lr", "1e-5"]
    results = run(made, tmp_path / "run", *options, more=more)
    assert results["epochs_run"] == results["best_epoch"] + 2 < 30
    with pytest.raises(BandstreamError, match="mixup and cutmix are for single labels, land_cover is multilabel"):
        run(shards(tmp_path / "multi"), tmp_path / "no", *options, more=more)


def test_the_best_epochs_weights_and_batch_statistics_are_what_is_tested(tmp_path: Path) -> None:
    """At a rate that is far too high the best epoch is not the last: its validation score comes back from the file."""
    made = shards(tmp_path / "set", {"train": 40, "val": 38, "test": 19}, single=True)
    options = ["--task", "classify", "--init", "scratch", "--epochs", "12", "--lr", "1e-2", "--view-size", str(SIDE)]
    results = run(made, tmp_path / "run", *options, more="validate_steps = 1\npatience = 4\n")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [line["val_accuracy"] for line in lines]
    assert results["best_epoch"] == int(np.argmax(scores)) < len(scores) - 1 and scores[-1] < max(scores)
    assert results["val"] == max(scores)
    model = Classifier(build_encoder(ENCODER, 4), 19)
    model.load_state_dict(load_file(tmp_path / "run" / "best.safetensors"), strict=True)
    with torch.inference_mode():
        found = model.eval()(whole_patches(made, "val")).argmax(1).numpy()
    truth = ShardSet.open(made).labels("val", "land_cover")
    assert (found == truth).mean() == pytest.approx(results["val"], abs=1 / 38 + 1e-9), "to rounding"


def test_an_encoders_statistics_are_of_reflectance_not_of_stored_numbers(tmp_path: Path) -> None:
    """The same light stored in numbers half as large: what the encoder knows is halved with them."""
    stored = {"reflectance": {"scale": 2e-4, "offset": 0.0, "level": "L2A"}}
    made = shards(tmp_path / "set", {"train": 8, "val": 4, "test": 4}, single=True, **stored)
    folder = tmp_path / "pretrained"
    bands = [EncoderBand(name=b, wavelength_nm=500, mean=1000, std=800) for b in BANDS]
    parts = {"data": {}, "recipe": {}, "scores": {}, "reflectance": {"scale": 1e-4, "offset": 0.0, "level": "L2A"}}
    save_encoder(folder, build_encoder(ENCODER, 4), bands=bands, view_size=32, **parts)
    options = ["--task", "classify", "--init", str(folder), "--epochs", "1", "--normalise", "encoder"]
    run(made, tmp_path / "run", *options)
    _, info = load_encoder(tmp_path / "run")
    assert {(band.mean, band.std) for band in info.bands} == {(500, 400)} and info.reflectance["scale"] == 2e-4


def test_label_fraction_takes_the_stratified_subset(made: Path, tmp_path: Path) -> None:
    options = ["--task", "classify", "--init", "scratch", "--epochs", "1", "--label-fraction", "0.25"]
    results = run(made, tmp_path / "run", *options)
    labels = ShardSet.open(made).labels("train", "land_cover")
    assert results["labelled_samples"] == len(labelled_subset(labels, 0.25, 0)) == 24


def test_bands_that_an_encoder_never_saw_are_stood_in_for_where_that_is_asked(pretrained: Path, tmp_path: Path) -> None:
    made = make_set(tmp_path / "set", SIZES, arrays={"10m.npy": (["B02", "B04", "B12"], SIDE)})
    options = ["--task", "classify", "--init", str(pretrained), "--epochs", "1"]
    with pytest.raises(BandstreamError, match="never saw B12.*--fallback wavelength, or zero"):
        run(made, tmp_path / "none", *options)
    with pytest.raises(BandstreamError, match=r"B12 \(nearest is B08, .* nm away\) within 60 nm.*--fallback zero"):
        run(made, tmp_path / "far", *options, "--fallback", "wavelength")
    results = run(made, tmp_path / "zero", *options, "--fallback", "zero")
    assert results["adapted"].startswith("3 bands out of 5; B12 from zero; left out: B08, B11, B03")
    assert results["adapted"] in (tmp_path / "zero" / "README.md").read_text()


def test_what_cannot_be_done_is_one_clear_line(made: Path, pretrained: Path, tmp_path: Path) -> None:
    bare = make_set(tmp_path / "bare", {"train": 8}, arrays={"10m.npy": (["B02", "B12"], 32)})
    blank = shards(tmp_path / "blank", mask=lambda n, grid: fields(n, grid) if n < 96 else np.full(grid, 255, np.uint8))
    unknown = shards(tmp_path / "x", mask=lambda n, grid: fields(n, grid) if n < 134 else np.full(grid, 255, np.uint8))
    odd = shards(tmp_path / "y", mask=lambda n, grid: np.full(grid, 19 + n % 2, np.uint8))
    untested = shards(tmp_path / "z", {"train": 8, "val": 4})
    untrained = shards(tmp_path / "0", {"val": 8, "test": 4})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for made_of, out, options, said in (
        (made, "used", ["--task", "classify", "--init", "scratch"], "not empty"),
        (made, "a", ["--task", "classify", "--init", "scratch", "--label-fraction", "1.5"], "label fraction"),
        (made, "b", ["--task", "classify", "--init", str(tmp_path)], "holds no encoder"),
        (made, "c", ["--task", "classify", "--init", "scratch", "--normalise", "encoder"], "--init"),
        (made, "d", ["--task", "classify", "--init", "scratch", "--encoder", "resnet19"], "resnet19"),
        (bare, "e", ["--task", "segment", "--init", "scratch"], "no masks"),
        (bare, "f", ["--task", "classify", "--init", str(pretrained)], "B12"),
        (bare, "g", ["--task", "classify", "--init", "scratch"], "no split 'val'"),
        (made, "h", ["--task", "classify", "--init", "scratch", "--target", "soil"], "no labels 'soil': it has land"),
        (made, "i", ["--task", "segment", "--init", "scratch", "--decoder", "linknet"], "decoder: Input should be"),
        (made, "j", ["--task", "segment", "--init", "scratch", "--decoder", "dpt"], "dpt is for vision transformers"),
        (made, "k", ["--task", "segment", "--init", "scratch", "--loss", "bce"], "take ce"),
        (made, "l", ["--task", "segment", "--init", "scratch", "--loss", "iou"], "loss.iou"),
        (made, "m", ["--task", "classify", "--init", "scratch", "--seeds", "a,b"], "--seeds a,b"),
        (made, "n", ["--task", "classify", "--init", "scratch", "--bands", "B02,B99"], "B99"),
        (made, "o", ["--task", "classify", "--init", "scratch", "--label-fraction", "0.01"], "leaves one"),
        (blank, "p", ["--task", "segment", "--init", "scratch", "--epochs", "1"], "the val split knows no class"),
        (unknown, "q", ["--task", "segment", "--init", "scratch", "--epochs", "1"], "the test split knows no class"),
        (
            odd,
            "r",
            ["--task", "segment", "--init", "scratch", "--epochs", "1"],
            "masks hold the class 20, of 19 from 0",
        ),
        (untested, "s", ["--task", "classify", "--init", "scratch"], "no split 'test'"),
        (untrained, "t", ["--task", "classify", "--init", "scratch"], "no split 'train'"),
        (made, "u", ["--task", "classify", "--init", "scratch", "--lr", "1e30", "--epochs", "2"], "no finite number"),
    ):
        with pytest.raises(BandstreamError, match=re.escape(said)) as caught:
            run(made_of, tmp_path / out, *options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / out / "results.json").exists()


def test_wrong_usage_is_told_by_click() -> None:
    assert CliRunner().invoke(finetune.main, ["x", "--out", "y", "--task", "sing", "--init", "scratch"]).exit_code == 2
    untold = CliRunner().invoke(finetune.main, ["x", "--out", "y", "--init", "scratch"])
    assert untold.exit_code == 2 and "--task" in untold.output
    assert CliRunner().invoke(finetune.main, ["--help"]).exit_code == 0
