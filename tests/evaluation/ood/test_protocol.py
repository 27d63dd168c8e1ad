"""`bandstream evaluate --protocol ood` as typed: another set, held-out classes, a fine-tuned run, an ensemble."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click import UsageError
from safetensors.torch import load_file, save_file

from cli import bandstream
from evaluation.ood.classifiers import load_fine_tuned
from evaluation.ood.sides import has_class, without
from evaluation.predictions import load_predictions
from evaluation.standardising import converted
from models.encoder import build_encoder
from models.export import EncoderBand, save_encoder
from models.heads import Classifier
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.pipeline.making import make_set

SIZES = {"train": 76, "val": 38, "test": 57}
BANDS = ["B02", "B03", "B04", "B08"]
NAMES = {"max_softmax", "energy", "entropy", "mutual_information", "mahalanobis", "knn"}
COMMON = ("--protocol", "ood", "--device", "cpu", "--threads", 1, "--neighbours", 3)


def spectrum(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str, dark: float = 1) -> np.ndarray:
    """Pictures whose label stands in their colour."""
    level = np.random.default_rng(number % 19).uniform(300, 3000, (shape[0], 1, 1)) * dark
    return np.clip(level + np.random.default_rng(number).normal(0, 20, shape), 0, None).astype(dtype)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set; the same pictures with a fifth of the light, and one band more; and a set of one other band."""
    folder = tmp_path_factory.mktemp("ood")
    more = {"10m.npy": (["B02", "B03", "B04", "B08", "B11"], 32)}
    return {
        "inside": make_set(folder / "inside", SIZES, arrays={"10m.npy": (BANDS, 32)}, image=spectrum, single=True),
        "dark": make_set(folder / "dark", {"test": 40}, arrays=more, image=lambda *a: spectrum(*a, dark=0.2)),
        "other": make_set(folder / "other", {"train": 20}, arrays={"10m.npy": (["B11"], 32)}),
    }


@pytest.fixture(scope="module")
def runs(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of classifiers, in finetune's layout, with random weights."""
    folders = []
    for seed in range(2):  # of the second one, the encoder is there too, and its head was trained with dropout
        folder = tmp_path_factory.mktemp("run")
        torch.manual_seed(seed)
        model = Classifier(build_encoder("tu-resnet10t", 4, 32), 19)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "best.safetensors")
        manifest = ShardSet.open(sets["inside"]).manifest
        content = {
            "kind": "single", "encoder": "tu-resnet10t", "bands": BANDS,
            "classes": manifest.labels["land_cover"].classes,
            "normalise": "set", "init": "scratch", "label_fraction": 1.0, "seed": 0, "recipe": {"view": {"size": 32}},
            "data": {"name": manifest.name, "manifest": manifest.fingerprint()},
        }  # fmt: skip
        if seed:
            content |= {"target": "land_cover", "recipe": {"view": {"size": 32}, "dropout": 0.5}}
            about = [
                EncoderBand(name=b, wavelength_nm=500, mean=s.mean, std=s.std) for b, s in manifest.statistics.items()
            ]
            save_encoder(
                folder, model.encoder, bands=about, view_size=32, reflectance={}, data={}, recipe={}, scores={}
            )
        (folder / "results.json").write_text(json.dumps(content))
        folders.append(folder)
    return folders


def call(*words: object) -> None:
    bandstream.main(args=["evaluate", *(str(word) for word in words)], standalone_mode=False)


def evaluated(out: Path, *words: object) -> dict[str, Any]:
    call(*words, *COMMON, "--out", out)
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert set(found["ood"]) == NAMES and (out / "ood.png").exists() and (out / "reliability.png").exists()
    return found


def test_another_set_is_told_by_its_light_which_its_own_statistics_would_hide(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    found = evaluated(tmp_path / "out", sets["inside"], "--encoder", "random:tu-resnet10t", "--against", sets["dark"])
    assert found["ood"]["mahalanobis"]["auroc"] > 0.95
    assert found["floors"]["image statistics"]["ood"]["mahalanobis"]["auroc"] > 0.95
    assert found["bands"] == BANDS and found["against"]["split"] == "test" and found["ood_samples"] == 40
    assert found["test"]["accuracy"] > 0.8 and {"ece", "brier", "nll", "bins"} == set(found["calibration"]["as_is"])
    scores = np.load(tmp_path / "out" / "ood_scores.npz", allow_pickle=False)
    assert scores["inside_keys"].tolist() == load_predictions(tmp_path / "out").keys.tolist()
    assert scores["outside_knn"].shape == (40,)


def test_held_out_classes_are_never_seen_by_the_probe(sets: dict[str, Path], tmp_path: Path) -> None:
    held = ("--hold-out", "class 3", "--hold-out", "class 7")
    found = evaluated(tmp_path / "out", sets["inside"], "--encoder", "statistics", *held)
    assert found["classes"] == [f"class {k}" for k in range(19) if k not in (3, 7)]
    assert (found["labelled_samples"], found["test_samples"], found["ood_samples"]) == (68, 51, 6)
    assert len(found["test"]["confusion"]) == 17 and found["test"]["accuracy"] > 0.8
    assert found["ood"]["mahalanobis"]["auroc"] > 0.9 and found["floors"] == {}


def test_a_fine_tuned_run_and_an_ensemble_are_judged_by_their_own_heads(
    sets: dict[str, Path], runs: list[Path], tmp_path: Path
) -> None:
    alone = evaluated(tmp_path / "alone", sets["inside"], "--encoder", runs[0], "--against", sets["dark"])
    assert alone["encoder"] == "fine-tuned tu-resnet10t" and alone["chosen_on_val"] is None
    assert set(alone["floors"]) == {"image statistics", "random tu-resnet10t"} and alone["passes"] == 20
    assert alone["test"]["accuracy"] < 0.3, "its head is random; a probe would have learned"
    assert alone["floors"]["random tu-resnet10t"]["test"]["accuracy"] > 0.8
    again = evaluated(tmp_path / "alone", sets["inside"], "--encoder", runs[0], "--against", sets["dark"])
    assert again == alone, "finished, not done again: its seconds too"
    with pytest.raises(BandstreamError, match="another against"):
        evaluated(tmp_path / "alone", sets["inside"], "--encoder", runs[0], "--against", sets["inside"])
    both = evaluated(
        tmp_path / "both", sets["inside"], "--encoder", runs[0], "--ensemble", runs[1], "--against", sets["dark"]
    )
    assert both["encoder"] == "fine-tuned tu-resnet10t + fine-tuned tu-resnet10t"
    assert both["ood"]["mutual_information"] != alone["ood"]["mutual_information"]
    assert both["ood"]["mahalanobis"] == alone["ood"]["mahalanobis"], "of the first one's features"


def test_a_runs_own_dropout_and_statistics_are_taken(sets: dict[str, Path], runs: list[Path]) -> None:
    plain, own = (load_fine_tuned(str(folder), torch.device("cpu")) for folder in runs)
    assert plain.statistics is None and own.statistics is not None and set(own.statistics) == set(BANDS)
    features = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)
    assert np.array_equal(own.head.passes(features, 3, 0.01, 0), own.head.passes(features, 3, 0.9, 0))
    views = torch.randn(3, 4, 32, 32)
    model = Classifier(build_encoder("tu-resnet10t", 4, 32), 19).eval()
    model.load_state_dict(load_file(runs[1] / "best.safetensors"))
    expected = model(views).detach().double().numpy()
    assert np.allclose(own.head.logits(own.features(views).numpy()), expected, atol=1e-5)


def test_what_cannot_be_judged_is_one_clear_line(sets: dict[str, Path], runs: list[Path], tmp_path: Path) -> None:
    inside, statistics = sets["inside"], ("--encoder", "statistics")
    foreign = make_set(tmp_path / "foreign", SIZES, arrays={"10m.npy": (BANDS, 32)}, label=lambda n: n % 5, single=True)
    for words, said in (
        ((inside, *statistics, "--against", sets["other"]), "no band in common"),
        ((inside, *statistics, "--hold-out", "lava"), "no class 'lava'"),
        ((inside, *statistics, "--against", sets["dark"], "--neighbours", 77), "fewer than 77"),
        ((inside, *statistics, "--against", tmp_path), "dataset.json"),
        ((sets["dark"], *statistics, "--against", inside), "no split 'train'"),
        ((inside, "--encoder", runs[0], "--hold-out", "class 3"), "seen all classes"),
        ((inside, "--encoder", runs[0], "--against", sets["other"]), "lacks the bands B02"),
        ((foreign, "--encoder", runs[0], "--against", inside), "another set"),
        ((inside, *statistics, "--ensemble", "statistics", "--against", sets["dark"]), "ensemble is of runs"),
    ):
        with pytest.raises(BandstreamError, match=said):
            call(*words[:3], *COMMON, *words[3:], "--out", tmp_path / "out")
    for words in ((), ("--against", sets["dark"], "--hold-out", "class 3")):
        with pytest.raises(UsageError, match="one of both"):
            call(inside, *statistics, *COMMON, *words, "--out", tmp_path / "out")
    with pytest.raises(UsageError, match="--protocol ood"):
        call(inside, *statistics, "--hold-out", "class 3", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_statistics_are_converted_between_scales_and_classes_are_numbered_anew(sets: dict[str, Path]) -> None:
    own = ShardSet.open(sets["inside"]).manifest.reflectance
    other = own.model_copy(update={"scale": 2e-4, "offset": -0.1})
    mean, std = converted({"B02": (3000.0, 500.0)}, own, other)["B02"]
    assert (mean * 2e-4 - 0.1, std * 2e-4) == (pytest.approx(3000 * 1e-4), pytest.approx(500 * 1e-4))
    assert converted({"B02": (3000.0, 500.0)}, own, own)["B02"] == (3000, 500)
    labels = np.array([0, 2, 4, 1, 3])
    assert has_class(labels, [1, 3]).tolist() == [False, False, False, True, True]
    assert without(labels[:3], [1, 3], 5).tolist() == [0, 1, 2]
    hot = np.eye(5)[labels]
    assert has_class(hot, [1, 3]).tolist() == [False, False, False, True, True]
    assert without(hot[:3], [1, 3], 5).argmax(1).tolist() == [0, 1, 2]
