"""The report: everything in one file, every figure as the runs wrote it, nothing taken on trust."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest

from evaluation.report.page import write_report
from evaluation.runs import discover
from shards.errors import BandstreamError
from shards.manifest import Manifest
from tests.pipeline.making import make_set

CLASSES = ["Pastures", "<script>alert(1)</script>", "Never there"]
MANIFEST = "0" * 64


def results(init: str, macro: float, classes: list[str], manifest: str = MANIFEST, **changes: Any) -> dict[str, Any]:
    """What finetune.py writes, for a multi-label run in which the first class scores a little above `macro`."""
    each = {classes[0]: macro + 0.1, classes[1]: macro - 0.1}
    return {
        "task": "classify", "kind": "multilabel", "init": init, "freeze": "none", "label_fraction": 0.05,
        "labelled_samples": 7, "seed": 0, "normalise": "set", "encoder": "resnet18", "classes": classes,
        "data": {"name": "made", "manifest": manifest}, "score": "macro_map", "val": 0.5, "best_epoch": 2,
        "epochs_run": 4, "test_samples": 11, "seconds": {"training": 1.0, "all": 2.0},
        "test": {"macro_map": macro, "micro_map": macro, "macro_f1": macro, "micro_f1": macro,
                 "per_class": {"average_precision": each, "f1": each}, "support": dict.fromkeys(each, 5)},
    } | changes  # fmt: skip


def make_run(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    lines = [{"step": step, "loss": 1 / (step + 1), "val_macro_map": step / 10} for step in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and rows of tables as text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "classify-a", results("scratch", 0.3, CLASSES))
    make_run(tmp_path / "runs" / "classify-b", results("runs/pretrained", 0.25, CLASSES))
    return tmp_path / "runs"


def test_every_figure_is_the_runs_own_also_where_pretraining_did_not_help(folder: Path, tmp_path: Path) -> None:
    write_report([folder], tmp_path / "report.html", "Title <&>")
    text = (tmp_path / "report.html").read_text()
    rows = Page(text).rows
    assert ["from scratch", "7", *["0.300"] * 4, "0.500", "3 / 4", "2 s"] in rows
    assert ["pretrained", "7", *["0.250"] * 4, "0.500", "3 / 4", "2 s"] in rows
    assert ["Pastures", "5", "0.400", "0.350", "-0.050"] in rows
    assert "0.050 behind the start from scratch" in text
    assert "Not in the test split, so without a score: Never there." in text


def test_page_needs_nothing_beside_it_and_escapes_what_it_shows(folder: Path, tmp_path: Path) -> None:
    write_report([folder], tmp_path / "report.html", "Title <&>")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "Title &lt;&amp;&gt;" in text and "alert(1)</script>" not in text
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in page.tags)
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_names_of_folders_stay_text_and_label_levels_are_not_mixed(tmp_path: Path) -> None:
    evil = "<svg onload=alert(6)>'&"
    for name in ("a", evil):
        make_run(tmp_path / "all" / name, results("scratch", 0.3, CLASSES, target="land_cover"))
    make_run(tmp_path / "all" / "other", results("scratch", 0.3, CLASSES, target="climate"))
    write_report([tmp_path / "all"], tmp_path / "report.html", "Title")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert any(row[0] == f"from scratch ({evil})" for row in page.rows)
    assert len(re.findall('<h2 id="finetuning-', text)) == 2, "a table a label level"


def test_pictures_without_near_infrared_are_not_called_false_colour(tmp_path: Path) -> None:
    folder = make_set(
        tmp_path / "set", {"train": 3}, arrays={"rgb.npy": (["red", "green", "blue"], 40)}, dtype="uint8",
        reflectance={"scale": 1 / 255, "offset": 0, "level": "picture"},
    )  # fmt: skip
    write_report([folder], tmp_path / "report.html", "Title")
    text = (tmp_path / "report.html").read_text()
    assert "true colour" in text and "false colour" not in text


def test_data_views_stages_and_predictions_are_shown(shard_set: Path, tmp_path: Path) -> None:
    from evaluation.pictures import save_picture

    manifest = Manifest.read(shard_set)
    classes = manifest.labels["land_cover"].classes
    for name, init in (("a", "scratch"), ("b", "pretrained")):
        made = make_run(tmp_path / "all" / name, results(init, 0.3, classes, manifest.fingerprint()))
        np.savez_compressed(made / "predictions.npz", indices=[0, 2], found=np.full((2, 19), 0.6, np.float32))
    pretrained = tmp_path / "all" / "pretrained"
    pretrained.mkdir()
    (pretrained / "metrics.jsonl").write_text("".join(f'{{"step": {k}, "loss": {5 - k}}}\n' for k in range(3)))
    view = {"size": 64}
    recipe = {"encoder": "resnet18", "epochs": 2, "batch_size": 128, "view": view, "temperature": 0.2, "seed": 0}
    (pretrained / "recipe.json").write_text(json.dumps(recipe))
    save_picture(pretrained / "views.png", np.zeros((8, 8, 3), np.uint8))
    stages = [{"stage": "Ingest", "command": "bandstream ingest <x>", "seconds": 7.5, "told": "96 patches"}]
    (tmp_path / "all" / "stages.json").write_text(json.dumps(stages))
    write_report([shard_set, tmp_path / "all"], tmp_path / "report.html", "All")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert ["Ingest", "7.5", "96 patches"] in page.rows and "bandstream ingest &lt;x&gt;" in text
    assert "The run is not finished: 3 steps so far." in text
    assert "log(2N − 1) = 5.54" in text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3, "patches, views, predictions of both runs on one sheet"
    train = next(row for row in page.rows if row[0] == "train")
    assert train[1] == str(manifest.splits["train"].samples)
    assert not re.search(r"\{\{|\{%", text)


def test_wrong_paths_are_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BandstreamError, match="no folder"):
        discover([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BandstreamError, match="holds no run"):
        discover([tmp_path / "empty"])
    (folder / "classify-a" / "results.json").write_text("{")
    with pytest.raises(BandstreamError, match=r"classify-a/results.json cannot be read"):
        discover([folder])


def test_report_is_written_without_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from evaluation.report.page import write_report;"
        f"write_report([Path({str(folder)!r})], Path({str(tmp_path / 'r.html')!r}), 't');"
        "sys.exit('torch' in sys.modules)"
    )
    assert run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
