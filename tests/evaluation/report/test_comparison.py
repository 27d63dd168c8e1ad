"""Comparisons on the page: every number as comparison.json has it, verdicts in words, names escaped everywhere."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.intervals import difference
from evaluation.predictions import Predictions, load_predictions
from evaluation.report.comparison.charts import Line, band_chart
from evaluation.report.comparison.examples import rightness
from evaluation.report.comparison.figures import write_figures
from evaluation.report.comparison.rows import paired, verdict
from evaluation.report.page import write_report
from evaluation.runs import discover, times
from shards.errors import BandstreamError
from shards.manifest import Manifest
from tests.evaluation.report.made_comparisons import Maker, axis_study, few_labels, protocol
from tests.evaluation.report.test_page import Page

HOSTILE = ['<img src=x onerror="alert(1)">', "a\"b'><script>alert(2)</script>", "$x_1$ & <b>", "_under"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    failed = [{"cell": "finetune, byol, seed 1", "error": "the features collapsed <b>"}]
    return few_labels(
        tmp_path_factory.mktemp("single") / "out", "single", HOSTILE, failed=failed, seeds=(0, 1, 2), samples=160
    )


def page_of(folder: Path) -> tuple[str, Page]:
    write_report([folder], folder / "report.html", "A comparison")
    text = (folder / "report.html").read_text()
    return text, Page(text)


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return content


def words(row: list[str]) -> list[str]:
    return [" ".join(cell.split()) for cell in row]


def test_scores_intervals_differences_and_verdicts_are_those_of_the_file(single: Path) -> None:
    text, page = page_of(single)
    rows = [words(row) for row in page.rows]
    said = {"better": 0, "worse": 0, "not told apart": 0}
    for row in content_of(single)["rows"]:
        score = row["scores"]["accuracy"]
        line = next(
            r for r in rows if r[0].removesuffix("floor").removesuffix("baseline") == row["encoder"]
            and f"{score['mean']:.3f}" in r[2] and f"{score['low']:.3f} to {score['high']:.3f}" in r[2]
        )  # fmt: skip
        floors = row.get("to_floors", {})
        best = max(floors, key=lambda name: mean_of(single, row, name)) if floors else None
        lead = row.get("to_baseline") or (floors[best] if best else None)
        if lead:
            expected = "better" if lead["low"] > 0 else "worse" if lead["high"] < 0 else "not told apart"
            said[expected] += 1
            assert f"{lead['mean']:+.3f}".replace("-", "−") in line[3] and expected in line[3], line
        if best:
            assert line[3].endswith(f"than {best}")
    assert said["better"] and said["not told apart"]
    assert "the features collapsed &lt;b&gt;" in text and "1 failed" in text


def mean_of(folder: Path, row: dict[str, Any], floor: str) -> float:
    return next(
        other["scores"]["accuracy"]["mean"] for other in content_of(folder)["rows"]
        if (other["protocol"], other["encoder"], other["label_fraction"])
        == (row["protocol"], floor, row["label_fraction"])
    )  # fmt: skip


def test_verdicts_depend_on_the_interval_alone() -> None:
    assert verdict({"mean": 0.1, "low": 0.01, "high": 0.2}) == "better"
    assert verdict({"mean": -0.1, "low": -0.2, "high": -0.01}) == "worse"
    assert verdict({"mean": 0.1, "low": -0.01, "high": 0.2}) == "not told apart"
    assert verdict({"mean": 0.1, "low": float("nan"), "high": float("nan")}) == "" == verdict(None)


def test_hostile_names_stay_text_in_cells_titles_and_charts(tmp_path: Path) -> None:
    made = Maker(tmp_path / "out", "single", HOSTILE, 60)
    evil = '"><script>alert(3)</script>'
    for fraction in (0.1, 1.0):
        made.add("finetune", "scratch", fraction, [0])
        made.add("finetune", "<svg/onload=alert(4)>", fraction, [0])
        made.add("finetune", "<svg/onload=alert(4)>", fraction, [0], settings={evil: 1.0}, variant="")
        made.add("finetune", "<svg/onload=alert(4)>", fraction, [0], settings={evil: 2.0}, variant="")
    made.write(evil, [protocol("finetune", "single")], failed=[{"cell": evil, "error": evil}])
    _, page = page_of(tmp_path / "out")
    known = {"html", "head", "meta", "title", "style", "body", "a", "main", "header", "h1", "h2", "h3", "h4", "h5", "p",
             "span", "div", "section", "nav", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "svg", "path",
             "text", "circle", "figure", "figcaption", "details", "summary", "strong", "dl", "dt", "dd", "img", "i",
             "br", "pre", "code"}  # fmt: skip
    assert {tag for tag, _ in page.tags} <= known
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    titles = [attributes["title"] for _, attributes in page.tags if attributes.get("title")]
    assert set(titles) >= set(HOSTILE)
    labels = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg" and "role" in attributes]
    assert any("<svg/onload=alert(4)>" in label for label in labels) and any(evil in label for label in labels)
    assert [name for tag, _ in page.tags for name in (tag,) if tag == "img"] == [], "no picture but those of samples"


def test_everything_that_scrolls_can_be_focused_and_headings_stand_in_order(single: Path) -> None:
    _, page = page_of(single)
    for _, attributes in page.tags:
        if "scroll" in (attributes.get("class") or "").split():
            assert attributes.get("tabindex") == "0" and attributes.get("role") == "region"
            assert attributes.get("aria-label")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    skip = next(attributes for tag, attributes in page.tags if tag == "a")
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert skip["href"] == "#main" and len(ids) == len(set(ids))
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert all(link.removeprefix("#") in ids for link in links)


def test_a_comparisons_runs_are_not_shown_or_counted_again(single: Path) -> None:
    runs = [single / row["folders"][0] for row in content_of(single)["rows"][:2]]
    found = discover([single, single, *runs])
    assert [folder for folder, _ in found.comparisons] == [single] and not found.finetuning and not found.probes
    assert times(found) == [{"stage": "comparison (out)", "seconds": 3600.0}]
    assert discover([single.parent]).comparisons == found.comparisons
    assert discover(runs[:1]).finetuning, "named alone it is shown"


def test_differences_to_the_recipe_are_paired_and_the_axis_is_drawn(tmp_path: Path) -> None:
    classes = [f"class {k}" for k in range(5)]
    folder = axis_study(tmp_path / "out", classes)
    _, page = page_of(folder)
    rows = content_of(folder)["rows"]
    plain = next(r for r in rows if r["encoder"] == "simclr" and not r["settings"] and r["label_fraction"] == 1)
    other = next(r for r in rows if r["variant"] == "no jitter" and r["label_fraction"] == 1)
    both = [[load_predictions(folder / place) for place in row["folders"]] for row in (other, plain)]
    expected = difference(*both, "accuracy", resamples=1000)
    found = paired(folder, other, plain)
    assert found == {"mean": expected.estimate, "low": expected.low, "high": expected.high}
    lines = [words(row) for row in page.rows if words(row)[0] == "no jitter: jitter 0"]
    assert f"{expected.estimate:+.3f}".replace("-", "−") in lines[-1][3]
    axis = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg" and "role" in attributes]
    assert "accuracy over objective.temperature: 5 % of the labels, 100 % of the labels" in axis
    (folder / other["folders"][0] / "test_predictions.npz").unlink()
    bare = paired(folder, other, plain)
    assert bare is not None and np.isclose(bare["mean"], expected.estimate) and np.isnan(bare["low"])


def test_a_logarithmic_axis_spreads_ratios_evenly_and_bands_hold_the_bounds() -> None:
    line = Line("a", [0.01, 0.1, 1.0], [0.2, 0.3, 0.5], [0.1, 0.2, 0.4], [0.3, 0.4, 0.6], 2)
    svg = band_chart([line], {0.01: "1 %", 0.1: "10 %", 1.0: "100 %"}, "labels", "accuracy", log=True)
    (path,) = re.findall(r'class="line s2" d="([^"]+)"', svg)
    (band,) = re.findall(r'class="band s2" d="([^"]+)z"', svg)
    at = np.array([pair.split() for pair in re.split("[ML]", path)[1:]], float)
    edge = np.array([pair.split() for pair in re.split("[ML]", band)[1:]], float)
    assert np.isclose(at[1, 0] - at[0, 0], at[2, 0] - at[1, 0], atol=0.2)
    assert np.allclose(edge[:3, 0], at[:, 0]) and np.allclose(edge[:2:-1, 0], at[:, 0])
    assert (edge[:3, 1] < at[:, 1]).all() and (edge[:2:-1, 1] > at[:, 1]).all()
    assert "nan" not in svg and band_chart([], {1.0: ""}, "x", "y", log=True) == ""


def test_rightness_is_what_the_page_says_it_is() -> None:
    keys, classes = np.array(["a", "b"]), ["x", "y"]
    single = Predictions(keys, np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), "single", classes)
    assert np.allclose(rightness(single), [0.9, 0.2])
    multi = Predictions(keys, np.array([[1, 0], [0, 0]]), np.array([[0.9, 0.3], [0.5, 0.1]]), "multilabel", classes)
    assert np.allclose(rightness(multi), [(0.9 + 0.7) / 2, (0.5 + 0.9) / 2])
    tables = np.array([[[3, 1], [0, 4]], [[0, 0], [0, 0]]])
    segment = Predictions(keys, np.empty((2, 0)), tables, "segment", classes)
    assert np.allclose(rightness(segment), [7 / 8, np.nan], equal_nan=True)


@pytest.mark.parametrize("kind", ["multilabel", "segment"])
def test_worst_and_best_samples_come_with_their_pictures(kind: str, shard_set: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(shard_set)
    classes = manifest.labels["land_cover"].classes
    folder = few_labels(tmp_path / "out", kind, classes, shard_set, encoders=("scratch", "simclr"), fractions=(1.0,),
                        seeds=(0,))  # fmt: skip
    text, page = page_of(folder)
    rows = {row["encoder"]: row for row in content_of(folder)["rows"] if row["protocol"] == "finetune"}
    ours, theirs = (load_predictions(folder / rows[name]["folders"][0]) for name in ("simclr", "scratch"))
    ahead = rightness(ours) - rightness(theirs)
    best = ours.keys[int(np.nanargmax(ahead))]
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    shown = [alt for alt in pictures if alt and alt.startswith("Test sample")]
    assert f"Test sample {best} in true colour" in shown and len(shown) >= 6
    assert ("Its true class map" in pictures) == (kind == "segment")
    if ahead.min() < 0:
        assert f"Test sample {ours.keys[int(np.nanargmin(ahead))]} in true colour" in shown
    assert "Data" in text and text.count("<script") == 0


def test_figures_are_written_as_png_and_svg_and_are_the_same_again(single: Path) -> None:
    first = {path.name: path.read_bytes() for path in write_figures(single)}
    assert set(first) == {f"{what}-{name}.{kind}" for what in ("efficiency", "classes", "confusion")
                          for name in ("finetune", "linear") for kind in ("png", "svg")}  # fmt: skip
    assert all(content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml") for name, content in first.items())
    assert first["efficiency-finetune.png"] == next(
        path.read_bytes() for path in write_figures(single) if path.name == "efficiency-finetune.png"
    )


def test_what_is_missing_is_left_out_and_what_is_damaged_is_one_line(tmp_path: Path) -> None:
    """Scores without intervals, floors without predictions, and folders that lead outside."""
    scores = {"purity": {"mean": 0.6, "low": None, "high": None, "values": [0.6], "std": None}}
    shared = {"protocol": "clusters", "variant": "", "settings": {}, "label_fraction": 1.0, "labelled_samples": 9,
              "seeds": [0], "folders": ["../elsewhere"], "score": "purity", "scores": scores,
              "per_class": {}}  # fmt: skip
    ood = {"energy": {"auroc": 0.7, "aupr": 0.6, "fpr95": 0.5}}
    rows = [shared | {"encoder": "simclr", "floor": False, "extra": {"ood": ood}, "seconds": {"all": 3.0}},
            shared | {"encoder": "image statistics", "floor": True}]  # fmt: skip
    content = {"format_version": 1, "title": "Bare", "score": {}, "baseline": None, "rows": rows, "failed": [],
               "protocols": [protocol("clusters", "single", "cluster")], "seconds": 0}  # fmt: skip
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    text, page = page_of(tmp_path)
    assert ["simclr", "", "0.600 (highest)–", "1"] in [words(row) for row in page.rows]
    assert ["simclr, 100 %", "0.700"] in [words(row) for row in page.rows]
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S).lower().replace("finance", "")
    assert write_figures(tmp_path) == []
    (tmp_path / "comparison.json").write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(BandstreamError, match="is of format 2, and format 1 can be read"):
        discover([tmp_path])
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(BandstreamError, match="comparison.json cannot be read"):
        discover([tmp_path])
