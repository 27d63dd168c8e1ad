"""What could mislead on a comparison's page: numbers out of range, whom it singles out, what seeds have in common."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.comparison.classes import confusions
from evaluation.report.comparison.contest import choice, contest
from evaluation.report.comparison.curves import curves
from evaluation.report.comparison.rows import identity
from evaluation.report.comparison.table import lead_table
from evaluation.report.page import write_report
from evaluation.report.words import signed
from tests.evaluation.report.made_comparisons import few_labels
from tests.evaluation.report.test_page import Page


def row(encoder: str, mean: float, low: float = 0.1, high: float = 0.9, **changes: Any) -> dict[str, Any]:
    return {"protocol": "p", "encoder": encoder, "variant": "", "settings": {}, "label_fraction": 0.1, "seeds": [0],
            "floor": False, "score": "accuracy", "folders": [], "seconds": {"all": 1.0},
            "scores": {"accuracy": {"mean": mean, "low": low, "high": high}}} | changes  # fmt: skip


def bold(rows: list[dict[str, Any]]) -> list[str]:
    (group,) = lead_table([{"title": "", "rows": rows}], {"rows": rows, "baseline": None}, rows, {})["groups"]
    return [line["name"] for line in group["rows"] if line["best"]]


def test_bounds_beyond_the_range_of_a_score_are_shown_as_they_are() -> None:
    rows = [row("a", 0.5, -0.25, 1.25)]
    (group,) = lead_table([{"title": "", "rows": rows}], {"rows": rows, "baseline": None}, rows, {})["groups"]
    assert group["rows"][0]["interval"] == "−0.250 to 1.250"


def test_no_difference_has_no_sign() -> None:
    assert [signed(value) for value in (0.0, -0.0004, 0.0004, -0.0006)] == ["0.000", "0.000", "0.000", "−0.001"]


def test_figures_at_the_top_say_of_which_comparison_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        few_labels(tmp_path / "all" / name, "single", ["x", "y"], fractions=(0.1,), seeds=(0,), samples=30)
    write_report([tmp_path / "all"], tmp_path / "report.html", "Title")
    titles = re.findall('<p class="title">(.*)</p>', (tmp_path / "report.html").read_text())
    assert len(titles) == 4 and all(title.startswith("Few labels, single: ") for title in titles)


def test_a_floor_above_all_encoders_is_the_highest() -> None:
    assert bold([row("a", 0.5), row("b", 0.6), row("image statistics", 0.7, floor=True)]) == ["image statistics"]
    assert bold([row("a", float("nan")), row("b", 0.6), row("image statistics", 0.4, floor=True)]) == ["b"]


def test_the_best_is_chosen_on_val_and_else_it_is_said_that_it_was_on_test(tmp_path: Path) -> None:
    rows = [row("scratch", 0.4, folders=["s"]), row("a", 0.7, folders=["a"]), row("b", 0.6, folders=["b"])]
    comparison = {"baseline": "scratch", "rows": rows}

    def named() -> list[str]:
        return [one["encoder"] for one in contest(tmp_path, rows, comparison) if one]

    assert named() == ["a", "scratch"] and "on the test split itself of 2" in choice(tmp_path, rows, comparison)
    for folder, val in (("a", 0.5), ("b", 0.55), ("s", 0.9)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "results.json").write_text(json.dumps({"val": val}))
    assert named() == ["b", "scratch"] and choice(tmp_path, rows, comparison) == "The best on val of 2 that were tried."
    assert choice(tmp_path, rows[:2], comparison) == "", "one encoder is no choice"
    (tmp_path / "b" / "results.json").write_text("{")
    assert named() == ["a", "scratch"], "a val score that is not there cannot choose"
    assert contest(tmp_path, [], comparison) == (None, None)


def test_small_shares_of_a_confusion_are_no_zeros(tmp_path: Path) -> None:
    held = row("a", 0.5, confusion=[[994, 6], [2, 998]])
    cells = [[cell["text"] for cell in line["cells"]] for line in confusions(tmp_path, [held])[0]["rows"]]
    assert cells == [["99", "1"], ["", "100"]]
    held = row("a", 0.5, confusion=[[995, 5], [0, 1]])
    assert confusions(tmp_path, [held])[0]["rows"][0]["cells"][1]["text"] == "1"


def test_classes_whose_short_names_are_the_same_keep_their_own(tmp_path: Path) -> None:
    held = row("a", 0.5, confusion=[[3, 1, 0], [2, 2, 0], [0, 0, 1]],
               per_class={"f1": {"Forest, dense": 0.5, "Forest, open": 0.4, "Sea, ocean": 0.1}})  # fmt: skip
    (matrix,) = confusions(tmp_path, [held])
    assert [one["short"] for one in matrix["names"]] == ["Forest, dense", "Forest, open", "Sea"]
    assert [line["short"] for line in matrix["rows"]] == ["Forest, dense", "Forest, open", "Sea"]


def test_floors_can_be_told_apart_in_the_chart_and_in_its_key() -> None:
    floors = ("image statistics", "random cnn")
    rows = [row(name, 0.3 + k / 10, label_fraction=fraction, floor=name in floors)
            for k, name in enumerate(("simclr", *floors)) for fraction in (0.1, 1.0)]  # fmt: skip
    order = list(dict.fromkeys(map(identity, rows)))
    drawn = curves(rows, order, {"rows": rows, "baseline": None}, [0.1, 1.0], "accuracy")
    assert drawn is not None
    in_chart = dict(re.findall(r'class="line (floor f\d)"[^>]*><title>([^<]+)', drawn["charts"][0]["svg"]))
    assert sorted(in_chart.values()) == sorted(floors)
    in_key = {re.search('class="line ([^"]+)"', one["svg"])[1]: one["name"] for one in drawn["keys"]}  # type: ignore[index]
    assert in_key == {"s2": "simclr"} | {kind: f"{name} (floor)" for kind, name in in_chart.items()}


HOSTILE = '"><script>alert(5)</script>'


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that pretrained one encoder for all seeds, and was cut off in another."""
    out = few_labels(tmp_path_factory.mktemp("pretrained") / "out", "single", ["x", "y"], fractions=(0.1,), samples=30)
    for path in out.glob("runs/finetune/simclr/*/*/results.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"init": "encoders/simclr/seed-0"}))
    for number, name in enumerate(("simclr/seed-0", "cut-off/seed-1")):
        run = out / "encoders" / name
        run.mkdir(parents=True)
        lines = [{"step": k, "loss": 5.0 - k, "knn": 0.1 * k} for k in range(4)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
        recipe = {"method": "simclr", "encoder": HOSTILE, "epochs": 2, "batch_size": 8, "view": {"size": 16}, "seed": 0,
                  "objective": {"temperature": 0.2}}  # fmt: skip
        (run / "recipe.json").write_text(json.dumps(recipe) if number == 0 else "{")
    return out


def test_losses_and_neighbours_of_the_comparisons_own_encoders_are_shown(pretrained: Path) -> None:
    write_report([pretrained], pretrained / "report.html", "Title")
    text = (pretrained / "report.html").read_text()
    assert text.count("<summary>Pretraining of ") == 1 and "<summary>Pretraining of simclr, seed 0</summary>" in text
    labels = [attributes.get("aria-label") for tag, attributes in Page(text).tags if tag == "svg"]
    assert {"loss over step: loss", "score over step: knn"} <= set(labels)
    assert "<script" not in text and "&lt;script&gt;alert(5)" in text
    assert "All seeds of simclr start from one pretraining run" in " ".join(text.split())


def test_where_each_seed_was_pretrained_nothing_of_one_pretraining_is_said(tmp_path: Path) -> None:
    out = few_labels(tmp_path / "out", "single", ["x", "y"], fractions=(0.1,), samples=30)
    for path in out.glob("runs/finetune/simclr/*/*/results.json"):
        seed = path.parent.name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"init": f"encoders/simclr/{seed}"}))
    write_report([out], tmp_path / "report.html", "Title")
    assert not re.search("one pretraining run|Pretraining of", (tmp_path / "report.html").read_text())
