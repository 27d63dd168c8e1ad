"""compare.py on a tiny grid: what it runs, what it writes, and that a kill, or typing each command, changes nothing."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from compare import main
from evaluation.comparison.grid import expand
from evaluation.comparison.record import described, remembered
from evaluation.comparison.spec import read_spec
from evaluation.comparison.table import compare_runs
from evaluation.intervals import difference, interval
from evaluation.predictions import load_predictions
from shards.errors import BandstreamError
from tests.pipeline.making import make_set
from training.seeds import differences

HERE = Path(__file__).parent.parent
SIZES = {"train": 48, "val": 12, "test": 20}
SPEC = """
title = "Tiny"
seeds = [0, 1]
label_fractions = [0.5]

[encoders.scratch]
encoder = "cnn"
[encoders.simclr]
pretrain = "pretrain.toml"
axes = { "view.flip_vertical" = [0.25] }
[encoders.broken]
pretrain = "pretrain.toml"
knobs = { bands = ["B02", "B99"] }

[protocols.finetune]
finetune = "finetune.toml"
[protocols.knn]
evaluate = "knn"
encoders = ["scratch", "simclr"]
seeds = [0]
options = { view_size = 32, bands = ["B04", "B03", "B02"] }
"""
FLIPS = "simclr--view.flip_vertical-0.25"
PRETRAIN = 'encoder = "cnn"\nepochs = 1\nbatch_size = 16\nvalidate_epochs = 0\n[view]\nsize = 32\n'
FINETUNE = 'task = "classify"\nepochs = 2\nbatch_size = 8\nlr = 3e-3\nvalidate_steps = 3\nview = { size = 32 }\n'


def spectrum(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Pictures whose label stands in their colour, more or less."""
    level = np.random.default_rng(number % 4).uniform(300, 3000, (shape[0], 1, 1))
    rng = np.random.default_rng(number)
    own = level + rng.normal(0, 600, level.shape)
    return np.clip(own + rng.normal(0, 200, shape), 0, None).astype(dtype)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the spec, its recipes and the set."""
    folder = tmp_path_factory.mktemp("compare")
    arrays = {"10m.npy": (["B02", "B03", "B04", "B08"], 32)}
    make_set(folder / "set", SIZES, arrays=arrays, image=spectrum, single=True, label=lambda number: number % 4)
    for name, text in (("spec", SPEC), ("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        (folder / f"{name}.toml").write_text(text)
    return folder


def command(made: Path, out: Path, *more: str, spec: str = "spec") -> list[str]:
    words = [str(made / f"{spec}.toml"), "--shards", str(made / "set"), "--out", str(out)]
    return [*words, "--device", "cpu", "--threads", "1", *more]


def read(out: Path) -> dict[str, Any]:
    """comparison.json without what differs from time to time."""
    content: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    for row in (content, *content["rows"]):
        row.pop("seconds", None)
    return content


@pytest.fixture(scope="module")
def compared(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.raises(BandstreamError, match="3 of 10 runs failed, the first: pretraining, broken, seed 0: .*B99"):
        main.main(command(made, out), standalone_mode=False)
    return out


def test_rows_are_what_the_runs_say(compared: Path) -> None:
    content = read(compared)
    assert content["score"] == {"finetune": "accuracy", "knn": "accuracy"} and content["baseline"] == "scratch"
    assert [(p["name"], p["task"], p["kind"], p["evaluate"]) for p in content["protocols"]] == [
        ("finetune", "classify", "single", None), ("knn", "classify", "single", "knn"),
    ]  # fmt: skip
    rows = content["rows"]
    flips = {"view.flip_vertical": 0.25}
    assert [(r["protocol"], r["encoder"], r["settings"], r["floor"], r["seeds"]) for r in rows] == [
        ("finetune", "scratch", {}, False, [0, 1]), ("finetune", "simclr", flips, False, [0, 1]),
        ("knn", "scratch", {}, False, [0]), ("knn", "simclr", flips, False, [0]),
        ("knn", "image statistics", {}, True, [0]), ("knn", "random cnn", {}, True, [0]),
    ]  # fmt: skip
    for row in rows:
        assert (row["label_fraction"], row["labelled_samples"]) == (0.5, 24)
        if row["floor"]:
            continue
        runs = [json.loads((compared / folder / "results.json").read_text()) for folder in row["folders"]]
        assert [run["seed"] for run in runs] == row["seeds"]
        bands = ["B02", "B03", "B04", "B08"] if row["protocol"] == "finetune" else ["B04", "B03", "B02"]
        assert all(run["bands"] == bands for run in runs)
        tests = [run["test"] for run in runs]
        assert set(row["scores"]) == {"accuracy", "macro_f1", "macro_iou"}
        for name, score in row["scores"].items():
            values = [test[name] for test in tests]
            assert score["values"] == values and score["mean"] == pytest.approx(np.mean(values))
            assert score["std"] == (pytest.approx(np.std(values, ddof=1)) if len(values) > 1 else None)
            assert score["low"] <= score["mean"] <= score["high"]
        for held, f1 in row["per_class"]["f1"].items():
            assert f1 == pytest.approx(np.mean([test["per_class"]["f1"][held] for test in tests]))
        assert np.array_equal(row["confusion"], np.sum([test["confusion"] for test in tests], 0))
        assert np.sum(row["confusion"]) == len(runs) * SIZES["test"]


def test_intervals_are_those_of_the_kept_predictions(compared: Path) -> None:
    rows = {(r["protocol"], r["encoder"]): r for r in read(compared)["rows"]}

    def kept(*row: str) -> list[Any]:
        return [load_predictions(compared / folder) for folder in rows[row]["folders"]]

    ours, base = kept("finetune", "simclr"), kept("finetune", "scratch")
    found = rows["finetune", "simclr"]
    bounds = interval(ours, "accuracy", resamples=1000)
    assert (found["scores"]["accuracy"]["low"], found["scores"]["accuracy"]["high"]) == (bounds.low, bounds.high)
    lead = difference(ours, base, "accuracy", resamples=1000)
    assert found["to_baseline"] == {"baseline": "scratch", "mean": lead.estimate, "low": lead.low, "high": lead.high}
    scores = [np.mean([(run.scores.argmax(1) == run.truth).mean() for run in runs]) for runs in (ours, base)]
    assert found["to_baseline"]["mean"] == pytest.approx(scores[0] - scores[1])
    assert "to_baseline" not in rows["finetune", "scratch"] and "to_floors" not in found

    probed = rows["knn", "simclr"]
    assert set(probed["to_floors"]) == {"image statistics", "random cnn"}
    for told, lead in probed["to_floors"].items():
        floor = rows["knn", told]
        assert lead["mean"] == pytest.approx(probed["scores"]["accuracy"]["mean"] - floor["scores"]["accuracy"]["mean"])
    assert rows["knn", "random cnn"]["scores"] == rows["knn", "scratch"]["scores"], "the same weights"


def test_tables_hold_the_same_numbers(compared: Path) -> None:
    rows = read(compared)["rows"]
    table: dict[str, list[dict[str, str]]] = {}
    for name in ("scores", "differences", "per_class"):
        table[name] = list(csv.DictReader((compared / "tables" / f"{name}.csv").open()))
    assert len(table["scores"]) == 3 * len(rows)
    for line, row in zip(table["scores"][::3], rows, strict=True):
        score = row["scores"][line["score"]]
        assert [line["protocol"], line["encoder"], line["variant"]] == [
            row[k] for k in ("protocol", "encoder", "variant")
        ]
        numbers = [float(line[k]) if line[k] else None for k in ("mean", "low", "high", "std")]
        assert numbers == [score[k] for k in ("mean", "low", "high", "std")]
        assert [float(value) for value in line["values"].split()] == score["values"]
    assert [(d["protocol"], d["encoder"], d["to"]) for d in table["differences"]] == [
        ("finetune", "simclr", "scratch"), ("knn", "scratch", "image statistics"),
        *(("knn", "simclr", to) for to in ("scratch", "image statistics", "random cnn")),
    ]  # fmt: skip
    assert json.loads(table["differences"][0]["settings"]) == {"view.flip_vertical": 0.25}
    assert {line["measure"] for line in table["per_class"]} == {"f1", "iou", "precision", "recall"}


def test_what_failed_is_recorded_and_the_rest_is_there(compared: Path) -> None:
    failed = read(compared)["failed"]
    assert [one["cell"] for one in failed] == [
        "pretraining, broken, seed 0", *(f"finetune, broken, 50 % of the labels, seed {seed}" for seed in (0, 1)),
    ]  # fmt: skip
    assert "B99" in failed[0]["error"] and failed[1]["error"] == "encoders/broken/seed-0 failed, which it needs"
    assert "Tiny" in (compared / "report.html").read_text()
    assert {path.suffix for path in (compared / "figures").iterdir()} == {".png", ".svg"}


TYPED = """
import sys
from cli import bandstream
for words in (line.split("\\t") for line in sys.stdin.read().splitlines()):
    try:
        bandstream.main(words, standalone_mode=False)
    except Exception as error:
        print(error)
"""


def test_killed_and_begun_again_or_typed_by_hand_it_is_the_same(made: Path, compared: Path, tmp_path: Path) -> None:
    """Another process types a fine-tuning and then a pretraining, the wrong way round, and is then killed with SIGKILL
    amidst the same comparison; this process goes on with that."""
    (made / "typed.toml").write_text(PRETRAIN + "flip_vertical = 0.25\n")
    lines, more = [], ["--device", "cpu", "--threads", "1"]
    encoder = compared / "encoders" / FLIPS / "seed-0"
    tuning = ["--recipe", str(made / "finetune.toml"), "--init", str(encoder), "--label-fraction", "0.5", "--seed", "1"]
    lines.append(["finetune", str(made / "set"), "--out", str(tmp_path / "tuned"), *tuning, *more])
    lines.append(
        ["train", str(made / "set"), "--out", str(tmp_path / "run"), "--recipe", str(made / "typed.toml"), *more]
    )
    out = tmp_path / "out"
    lines.append(["compare", *command(made, out)])
    with subprocess.Popen([sys.executable, "-c", TYPED], stdin=subprocess.PIPE, cwd=HERE, start_new_session=True,
                          stdout=subprocess.DEVNULL) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write("\n".join("\t".join(words) for words in lines).encode())
        process.stdin.close()
        amidst = out / "runs" / "finetune" / FLIPS / "fraction-0.5" / "seed-1" / "metrics.jsonl"
        while process.poll() is None and not amidst.exists():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (amidst.parent / "results.json").exists()

    def weights(folder: Path) -> str:
        return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()

    ours = compared / "runs" / "finetune" / FLIPS / "fraction-0.5" / "seed-1"
    assert weights(tmp_path / "run") == weights(encoder) == weights(out / "encoders" / FLIPS / "seed-0")
    assert weights(tmp_path / "tuned") == weights(ours)
    typed, own = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "tuned", ours))
    assert typed["test"] == own["test"] and typed["recipe"] == own["recipe"]

    kept = (out / "runs" / "finetune" / "scratch" / "fraction-0.5" / "seed-0" / "results.json").stat().st_mtime_ns
    with pytest.raises(BandstreamError, match="3 of 10 runs failed"):
        main.main(command(made, out), standalone_mode=False)
    assert read(out) == read(compared)
    assert (out / "runs/finetune/scratch/fraction-0.5/seed-0/results.json").stat().st_mtime_ns == kept


def test_more_may_be_asked_for_but_nothing_else(made: Path, compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (old, new, said) in enumerate((
        ("seeds = [0, 1]", "seeds = [0]", "protocols.finetune.seeds (fewer)"),
        ('encoder = "cnn"', 'encoder = "resnet18"', "encoders.scratch.source"),
        ("[0.25]", "[0.5]", f"encoders.{FLIPS} (gone)"),
        ('pretrain = "pretrain.toml"\naxes', 'pretrain = "pretrain.toml"\nknobs = { view.gain = 0.1 }\naxes',
         f"encoders.{FLIPS}.recipe.view.gain"),
        ("view_size = 32", "view_size = 24", "protocols.knn.options.view_size"),
        ("[protocols.knn]", "[protocols.probe]", "protocols.knn (gone)"),
    )):  # fmt: skip
        assert old in SPEC
        (made / f"other{number}.toml").write_text(SPEC.replace(old, new))
        with pytest.raises(BandstreamError) as caught:
            main.main(command(made, compared, spec=f"other{number}"), standalone_mode=False)
        assert f"another {said}: more may be added" in str(caught.value)
    more = SPEC.replace("[0.5]", "[0.5, 1]").replace("seeds = [0, 1]", "seeds = [0, 1, 2]")
    (made / "more.toml").write_text(more + "[encoders.another]\nencoder = 'resnet18'\n")
    before = sorted(path for path in compared.rglob("*"))
    main.main(command(made, compared, "--dry-run", spec="more"), standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "7 of 30 runs are finished" and len(said) == 31
    assert said[0].startswith("finished  finetune, scratch, 50 % of the labels, seed 0 → ")
    assert said[2].startswith("to do     finetune, scratch, 50 % of the labels, seed 2 → ")
    assert sorted(path for path in compared.rglob("*")) == before, "nothing was written"
    known = json.loads((compared / "spec.json").read_text())
    with remembered(compared, known), pytest.raises(BandstreamError, match="another comparison is running"):
        main.main(command(made, compared), standalone_mode=False)
    tuned = "runs/finetune/scratch/fraction-0.5/seed-0"
    for added, told in (
        ("[encoders.theirs]\nrun = 'none'\n", "encoders.theirs: none holds no encoder"),
        ("[protocols.ood]\nevaluate = 'ood'\noptions = { against = 'none' }\n", "protocols.ood: .*--set none=SHARDS"),
        (
            f"[encoders.tuned]\nrun = '{compared / tuned}'\n[protocols.ood]\nevaluate = 'ood'\n"
            "options = { hold_out = ['x'] }\n",
            "protocols.ood: encoders.tuned is a classifier",
        ),
    ):
        (made / "missing.toml").write_text(SPEC + added)
        with pytest.raises(BandstreamError, match=told):
            main.main(command(made, compared, spec="missing"), standalone_mode=False)
    (made / "used").mkdir()
    (made / "used" / "file").touch()
    with pytest.raises(BandstreamError, match="used is not empty, and no comparison"):
        main.main(command(made, made / "used"), standalone_mode=False)


def test_a_folder_may_move_but_runs_of_another_encoder_are_not_counted(
    made: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(compared, tmp_path / "moved")

    def finished() -> list[str]:
        main.main(command(made, moved, "--dry-run"), standalone_mode=False)
        return [line.split(" → ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("finished")]

    before = finished()
    assert len(before) == 7
    with (moved / "encoders" / FLIPS / "seed-0" / "encoder.safetensors").open("ab") as file:
        file.write(b"?")
    assert [line for line in before if line not in finished()] == [
        f"finished  {protocol}, simclr (view.flip_vertical 0.25), 50 % of the labels, seed {seed}"
        for protocol, seed in (("finetune", 0), ("finetune", 1), ("knn", 0))
    ]
    shutil.rmtree(moved / "encoders" / FLIPS)
    assert finished() == [line for line in before if "simclr" not in line], "nor those of one that is gone"


def test_encoders_may_have_a_baseline_of_their_own(made: Path, compared: Path) -> None:
    path = made / "baselines.toml"
    path.write_text(SPEC.replace('encoder = "cnn"', 'encoder = "cnn"\nbaseline = "simclr"'))
    spec = read_spec(path, str(made / "set"))
    content = compare_runs(spec.title, spec.baseline, expand(spec, path), compared, [])
    usual = {(row["protocol"], row["encoder"]): row for row in read(compared)["rows"]}
    assert content["baseline"] == "scratch"
    for row in content["rows"]:
        lead, other = row.get("to_baseline"), usual[row["protocol"], "simclr"]["to_baseline"]
        if row["encoder"] == "simclr":
            assert lead == other
        elif row["encoder"] == "scratch":
            assert lead["baseline"] == "simclr" and lead["mean"] == pytest.approx(-other["mean"])
            assert lead["low"] <= lead["mean"] <= lead["high"]
        else:
            assert lead is None


def test_sets_by_name_are_known_by_what_they_hold(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for old, new, name in (("axes", "shards = 'other'\naxes", "named"), ("[encoders.broken]", "", "unnamed")):
        (made / f"{name}.toml").write_text(SPEC.replace(old, new, 1))

    def plan(*more: str) -> str:
        main.main(command(made, tmp_path / "out", "--dry-run", *more, spec="named"), standalone_mode=False)
        return capsys.readouterr().out

    assert "0 of 10 runs" in plan("--set", f"other={made / 'set'}")
    with pytest.raises(BandstreamError, match="encoders.simclr: .*if that is a name, say --set other=SHARDS"):
        plan()
    with pytest.raises(click.UsageError, match="--set other: say NAME=SHARDS"):
        plan("--set", "other")

    path = made / "named.toml"
    spec = read_spec(path, str(made / "set"), {"other": str(made / "set")})
    known = described(spec, expand(spec, path))
    make_set(made / "another", {"train": 4}, arrays={"10m.npy": (["B02", "B03", "B04", "B08"], 32)}, single=True)
    spec = read_spec(path, str(made / "set"), {"other": str(made / "another")})
    changed = described(spec, expand(spec, path))
    assert differences(known, changed) == [f"encoders.{FLIPS}.data"]


def test_what_pretraining_begins_with_is_known_by_its_weights(made: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path, weights, file = made / "begins.toml", tmp_path / "run" / "encoder.safetensors", tmp_path / "w.safetensors"
    text = SPEC.replace("axes", f"knobs = {{ init = '{weights.parent}' }}\naxes")
    path.write_text(text.replace('["B02", "B99"]', f'["B02"], weights = "{file}"'))
    spec, found = read_spec(path, str(made / "set")), []
    for content in (b"a", b"b"):
        weights.write_bytes(content)
        file.write_bytes(content)
        found.append(described(spec, expand(spec, path)))
    assert differences(*found) == ["encoders.broken.begins_sha256.weights", f"encoders.{FLIPS}.begins_sha256.init"]


def test_a_protocol_that_fails_everywhere_leaves_the_rest_as_it_was(
    made: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the fault: labels that are not there, and one that nobody foresaw."""
    masks = "[protocols.masks]\nevaluate = 'linear'\nencoders = ['scratch']\nseeds = [0]\noptions = { labels = 'no' }\n"
    odd = "[protocols.odd]\nfinetune = 'finetune.toml'\nencoders = ['scratch']\nseeds = [0]\n"
    (made / "failing.toml").write_text(SPEC + masks + odd)
    out = shutil.copytree(compared, tmp_path / "out")

    def fall(*_: object) -> None:
        raise RuntimeError("CUDA says\nno")

    monkeypatch.setattr("finetune.finetune", fall)
    with pytest.raises(BandstreamError, match="5 of 12 runs failed"):
        main.main(command(made, out, spec="failing"), standalone_mode=False)
    content, usual = read(out), read(compared)
    assert (content["rows"], content["score"]) == (usual["rows"], usual["score"])
    assert [(p["name"], p["kind"]) for p in content["protocols"][2:]] == [("masks", None), ("odd", None)]
    faults = {one["cell"].split(",")[0]: one["error"] for one in content["failed"]}
    assert "has no labels 'no'" in faults["masks"]
    assert faults["odd"].startswith("RuntimeError in test_compare.py, line ") and faults["odd"].endswith("CUDA says no")
    assert "masks" not in (out / "tables" / "scores.csv").read_text() and (out / "report.html").is_file()
