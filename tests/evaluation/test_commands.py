"""`bandstream evaluate` and `bandstream preview` as typed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logit

from cli import bandstream
from evaluation.calibration import calibration
from evaluation.intervals import interval
from evaluation.metrics import multilabel
from evaluation.predictions import load_predictions
from evaluation.probe import knn
from evaluation.report.page import write_report
from evaluation.runs import discover
from models.encoder import build_encoder
from models.export import EncoderBand, save_encoder
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
        call("evaluate", made, "--encoder", "random:resnet18", "--protocol", "knn", *options)
        found[level] = json.loads((tmp_path / level / "results.json").read_text())
    assert found["last"]["features"] == 512 and found["stages"]["features"] == 64 + 64 + 128 + 256 + 512
    assert {level: results["level"] for level, results in found.items()} == {"last": "last", "stages": "stages"}


def test_floors_stand_beside_what_is_evaluated_and_alone(made: Path, tmp_path: Path) -> None:
    """The floors of a run are what the same command says of statistics, and of random weights, by themselves."""
    torch.manual_seed(7)
    (tmp_path / "run").mkdir()
    net = build_encoder("tu-resnet10t", 4, 32)
    bands = [EncoderBand(name=b, wavelength_nm=500, mean=1000, std=800) for b in ("B02", "B03", "B04", "B08")]
    save_encoder(tmp_path / "run", net, bands=bands, view_size=32, reflectance={}, data={}, recipe={}, scores={})
    found = {}
    for name, encoder in {"run": tmp_path / "run", "random": "random:tu-resnet10t", "statistics": "statistics"}.items():
        out = tmp_path / f"of {name}"
        options = ("--protocol", "knn", "--device", "cpu", "--threads", 1, "--view-size", 32)
        call("evaluate", made, "--encoder", encoder, *options, "--out", out)
        found[name] = json.loads((out / "results.json").read_text())
    main = found["run"]
    assert main["encoder"] == "pretrained tu-resnet10t" and set(main["floors"]) == {
        "image statistics",
        "random tu-resnet10t",
    }
    for told, alone in (("image statistics", "statistics"), ("random tu-resnet10t", "random")):
        assert main["floors"][told]["test"] == found[alone]["test"]
        lead = main["above_floors"][told]
        assert lead["estimate"] == pytest.approx(main["test"]["macro_map"] - found[alone]["test"]["macro_map"])
        assert lead["low"] <= lead["estimate"] <= lead["high"] and lead["samples"] == 38
    assert found["statistics"]["floors"] == {} and set(found["random"]["floors"]) == {"image statistics"}
    kept = load_predictions(tmp_path / "of run")
    opened = ShardSet.open(made)
    assert kept.keys.tolist() == [opened.read("test", i).key for i in range(38)]
    assert np.array_equal(kept.truth, opened.labels("test", "land_cover"))
    again = multilabel(kept.truth, kept.scores, kept.classes)
    assert again["macro_map"] == pytest.approx(main["test"]["macro_map"], abs=1e-6)
    assert interval([kept], "macro_map", resamples=1000).as_dict() == main["intervals"]["macro_map"]
    for told, alone in (("image-statistics", "statistics"), ("random-tu-resnet10t", "random")):
        floor, same = (
            load_predictions(tmp_path / "of run" / "floors" / told),
            load_predictions(tmp_path / f"of {alone}"),
        )
        assert np.array_equal(floor.scores, same.scores) and floor.keys.tolist() == kept.keys.tolist()


def test_an_encoder_meets_a_set_with_more_bands_by_those_it_is_told(made: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ("--device", "cpu", "--threads", 1)
    bands = [EncoderBand(name=b, wavelength_nm=500, mean=1000, std=800) for b in ("B02", "B04")]
    save_encoder(
        run, build_encoder("cnn", 2, 32), bands=bands, view_size=32, reflectance={}, data={}, recipe={}, scores={}
    )
    with pytest.raises(BandstreamError, match="B03"):
        call("evaluate", made, "--encoder", run, "--protocol", "knn", *words, "--out", tmp_path / "all")
    found = []
    for number, chosen in enumerate(("B02,B04", "B04, B02")):
        out = tmp_path / str(number)
        call("evaluate", made, "--encoder", run, "--protocol", "knn", *words, "--bands", chosen, "--out", out)
        found.append(json.loads((out / "results.json").read_text()))
    assert [one["bands"] for one in found] == [["B02", "B04"], ["B04", "B02"]]
    assert found[0]["test"]["macro_map"] == pytest.approx(found[1]["test"]["macro_map"], abs=1e-3), "met by name"
    assert found[0]["floors"]["image statistics"]["features"] == 14
    for protocol in (("knn",), ("ood", "--hold-out", "class 3")):
        near, stood_in = tmp_path / protocol[0], (*words, "--fallback", "zero")
        call("evaluate", made, "--encoder", run, "--protocol", *protocol, *stood_in, "--out", near)
        results = json.loads((near / "results.json").read_text())
        assert results["adapted"].startswith("4 bands out of 2; B03 from zero; B08")
    with pytest.raises(BandstreamError, match="another bands"):
        call("evaluate", made, "--encoder", run, "--protocol", "knn", *words, "--bands", "B02", "--out", out)
    for chosen, said in (("B02,B99", "has no bands B99: it has B02, B03"), ("B02,B02", "name each once")):
        with pytest.raises(BandstreamError, match=said):
            call("evaluate", made, "--encoder", run, *words, "--bands", chosen, "--out", tmp_path / "no")


def test_an_evaluation_is_known_by_its_settings(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    run, out = tmp_path / "run", tmp_path / "out"
    bands = [EncoderBand(name=b, wavelength_nm=500, mean=1000, std=800) for b in ("B02", "B03", "B04", "B08")]

    def save(seed: int) -> None:
        torch.manual_seed(seed)
        net = build_encoder("tu-resnet10t", 4, 32)
        save_encoder(run, net, bands=bands, view_size=32, reflectance={}, data={}, recipe={}, scores={})

    def again(*options: object) -> None:
        call("evaluate", made, "--encoder", run, "--protocol", "knn", "--device", "cpu", "--out", out, *options)

    save(0)
    again()
    first, written = (out / "results.json").read_text(), (out / "results.json").stat().st_mtime_ns
    again("--threads", 1, "--batch-size", 7)
    assert (out / "results.json").stat().st_mtime_ns == written, "finished, and of nothing else"
    (out / "results.json").unlink()  # as if killed before its end
    again()
    assert json.loads(first) | {"seconds": 0} == json.loads((out / "results.json").read_text()) | {"seconds": 0}
    for options, said in (
        (("--seed", 1), "seed"),
        (("--protocol", "linear"), "protocol"),
        (("--view-size", 16), "view"),
    ):
        with pytest.raises(BandstreamError, match=f"another {said}"):
            again(*options)
    save(1)
    with pytest.raises(BandstreamError, match="another weights_sha256"):
        again()


def test_linear_probes_say_how_far_their_probabilities_can_be_believed(made: Path, tmp_path: Path) -> None:
    call("evaluate", made, "--encoder", "statistics", "--device", "cpu", "--threads", 1, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "results.json").read_text())["calibration"]
    kept = load_predictions(tmp_path / "out")
    again = calibration(kept.truth, logit(np.clip(kept.scores.astype(np.float64), 1e-7, 1 - 1e-7)))
    assert found["as_is"]["ece"] == pytest.approx(again["ece"], abs=1e-3)
    assert found["as_is"]["brier"] == pytest.approx(again["brier"], abs=1e-4) and found["temperature"] > 0
    assert Image.open(tmp_path / "out" / "reliability.png").size[0] > 300


@pytest.mark.parametrize(("protocol", "score", "picture"), [
    ("cluster", "purity", None), ("retrieval", "map", "neighbours.png"), ("map", "trustworthiness", "map.png"),
])  # fmt: skip
def test_protocols_without_a_probe_write_scores_floors_and_pictures(
    made: Path, tmp_path: Path, protocol: str, score: str, picture: str | None
) -> None:
    out = tmp_path / "out"
    options = ("--device", "cpu", "--threads", 1, "--view-size", 32, "--out", out)
    call("evaluate", made, "--encoder", "random:tu-resnet10t", "--protocol", protocol, *options)
    results = json.loads((out / "results.json").read_text())
    assert results["score"] == score and results["test"][score] > 0.8
    assert results["floors"]["image statistics"]["test"][score] > 0.6
    if picture:
        assert Image.open(out / picture).size[0] > 300
    if protocol == "map":
        assert np.array(results["places"]).shape == (38, 2) and results["mapped_samples"] == list(range(38))
    found = discover([tmp_path])
    assert [content["protocol"] for _, content in found.studies] == [protocol] and not found.probes
    write_report([tmp_path], tmp_path / "report.html", "a study beside nothing else")


def test_sets_that_cannot_be_probed_are_one_clear_line(tmp_path: Path) -> None:
    arrays = {"10m.npy": (["B02", "B03", "B04", "B08"], 16)}
    one = make_set(tmp_path / "one", SIZES, arrays=arrays, label=lambda number: 4, single=True)
    same = make_set(tmp_path / "same", SIZES, arrays=arrays, label=lambda number: 4)
    untested = make_set(tmp_path / "untested", {"train": 20, "val": 20}, arrays=arrays)
    few = make_set(tmp_path / "few", {"train": 5, "test": 5}, arrays=arrays)
    net = build_encoder("tu-resnet10t", 1, 32)
    (tmp_path / "run").mkdir()
    bands = [EncoderBand(name="B11", wavelength_nm=500, mean=1000, std=800)]
    save_encoder(tmp_path / "run", net, bands=bands, view_size=32, reflectance={}, data={}, recipe={}, scores={})
    for made, options, said in (
        (one, (), "one class, 'class 4'"),
        (same, (), "the same labels"),
        (untested, (), "no split 'test'"),
        (few, ("--protocol", "retrieval"), "fewer than the 6"),
        (few, ("--protocol", "cluster"), "no 19 clusters"),
        (few, ("--protocol", "map"), "10 at least"),
        (untested, ("--encoder", tmp_path / "run"), "never saw B02"),
    ):
        with pytest.raises(BandstreamError, match=said):
            call("evaluate", made, "--encoder", "statistics", *options, "--device", "cpu", "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


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
