"""The demo from end to end, with recipes of seconds, and what it will not overwrite."""

import json
import shlex
from pathlib import Path

import pytest

import demo
from shards.errors import BandstreamError

TINY = {
    "demo": 'encoder = "tu-resnet10t"\nbatch_size = 16\nepochs = 1\nwarmup_epochs = 0\n[view]\nsize = 32\n',
    "demo-classify": 'encoder = "tu-resnet10t"\nbatch_size = 8\nepochs = 1\n[view]\nsize = 32\n',
    "demo-segment": 'encoder = "tu-resnet10t"\nbatch_size = 8\nepochs = 1\n[view]\nsize = 32\n',
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_stage_runs_and_twice_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in TINY.items():
        (tmp_path / f"{name}.toml").write_text(content)
    monkeypatch.setattr(demo, "RECIPES", tmp_path)
    out = tmp_path / "demo"
    out.mkdir()
    (out / demo.STAGES).write_text("[]")  # an earlier demo that was stopped
    (out / "archive").mkdir()
    (out / "archive" / "old").touch()
    demo.main.main(["--out", str(out), "--patches", "100", "--label-fraction", "0.2"], standalone_mode=False)
    said = capsys.readouterr().out
    stages = json.loads((out / demo.STAGES).read_text())
    assert [shlex.split(stage["command"])[1] for stage in stages] == (
        ["synth", "ingest", "verify", "preview", "train", *["finetune"] * 4]
    )
    for stage in stages:
        assert stage["command"] in said and (out / stage["output"]).exists()
        assert stage["seconds"] > 0 and stage["told"]
    assert not (out / "archive" / "old").exists()
    page = (out / "report.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("data:image/png;base64,") >= 4
    for path in out.glob("*/results.json"):
        results = json.loads(path.read_text())
        assert f"{results['test'][results['score']]:.3f}" in said
    assert f"The report: {out / 'report.html'}" in said


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BandstreamError, match=r"thesis\.tex"):
        demo.main.main(["--out", str(tmp_path)], standalone_mode=False)
    (tmp_path / demo.STAGES).write_text("[]")
    with pytest.raises(BandstreamError, match=r"thesis\.tex"):
        demo.main.main(["--out", str(tmp_path)], standalone_mode=False)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    out = tmp_path / "demo"
    out.mkdir()
    (out / demo.STAGES).write_text("[]")
    (out / "archive").symlink_to(tmp_path / "precious")
    demo.clear(out, {"archive"})
    assert not (out / "archive").exists() and (tmp_path / "precious" / "file").exists()
