"""Two records of a bench, compared, and one drawn."""

import copy
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from bench.chart import chart
from bench.comparison import compare
from bench.measure import summary
from shards.errors import BandstreamError

RATES = {
    "bandstream, two views": [700, 720, 710, 690, 715],
    "bandstream, read": [27000, 27500, 26000, 26500, 27100],
    "WebDataset + Kornia, two views": [130, 131, 129, 133, 134],
    "WebDataset, read": [2800, 2900, 2850, 2700, 2750],
    "bandstream, training a ResNet-18": [30, 31, 32, 30, 31],
}


def record(rates: dict[str, list[float]], memory: float = 900) -> dict:
    return {
        "bench": "loader",
        "batch_size": 64,
        "machine": {"cpu": "some", "cores": 2, "packages": {"torch": "2.15.0"}},
        "runs": {
            name: {"samples_per_s": summary(found), "peak_mb": summary([memory] * len(found))}
            for name, found in rates.items()
        },
    }


def compared(tmp_path: Path, old: dict, new: dict, *more: str):
    for name, value in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return CliRunner().invoke(compare, [str(tmp_path / "old.json"), str(tmp_path / "new.json"), *more])


def verdicts(output: str) -> dict[str, str]:
    return {
        line.split("  ")[0].strip(): line.rpartition("  ")[2] for line in output.splitlines() if "samples/s" in line
    }


def test_only_what_leaves_the_other_ones_range_got_slower_or_faster(tmp_path):
    new = dict(RATES)
    new["bandstream, two views"] = [600, 610, 605, 640, 590]  # below all of the old ones
    new["bandstream, read"] = [29000, 30000, 29500, 28000, 29900]  # above all of them
    new["WebDataset + Kornia, two views"] = [120, 121, 122, 129.5, 118]  # lower, but one reaches into the old range
    new["WebDataset, read"] = [x + 210 for x in RATES["WebDataset, read"]]  # apart, by more than 2 %
    new["bandstream, training a ResNet-18"] = [20.0]  # too few
    result = compared(tmp_path, record(RATES), record(new, memory=1200))
    assert verdicts(result.output) == {
        "bandstream, two views": "slower",
        "bandstream, read": "faster",
        "WebDataset + Kornia, two views": "the same, within the spread",
        "WebDataset, read": "faster",
        "bandstream, training a ResNet-18": "too few runs to say",
    }
    assert "more memory" in result.output
    assert isinstance(result.exception, BandstreamError)
    assert "1 of 5 got slower: bandstream, two views" in str(result.exception)


def test_the_same_record_is_the_same_and_more_memory_is_no_failure(tmp_path):
    result = compared(tmp_path, record(RATES), record(RATES, memory=1200))
    assert result.exit_code == 0
    assert set(verdicts(result.output).values()) == {"the same, within the spread"}


def test_a_bench_may_tell_of_itself_in_other_words(tmp_path):
    old = record(RATES) | {"what": "samples a second"}
    assert compared(tmp_path, old, old | {"what": "samples a second, a sample being all its views"}).exit_code == 0


def test_a_change_below_two_per_cent_is_none(tmp_path):
    steady = {"bandstream, two views": [700.0, 701.0, 700.5]}
    less = {"bandstream, two views": [690.0, 691.0, 690.5]}
    assert compared(tmp_path, record(steady), record(less)).exit_code == 0


def test_other_benches_and_records_of_none_are_refused(tmp_path):
    old = record(RATES)
    for change in ({"bench": "train"}, {"runs": {"other": old["runs"]["WebDataset, read"]}}):
        result = compared(tmp_path, old, old | change, "--anyway")
        assert isinstance(result.exception, BandstreamError) and "different benches" in str(result.exception)
    for broken in ({"runs": {}}, {"runs": {"a": {"wall_s": 3}}}, [], {}):
        result = compared(tmp_path, old, broken)
        assert isinstance(result.exception, BandstreamError) and "no record of a bench" in str(result.exception)
    (tmp_path / "new.json").write_text("{")
    result = CliRunner().invoke(compare, [str(tmp_path / "old.json"), str(tmp_path / "new.json")])
    assert isinstance(result.exception, BandstreamError) and "cannot be read" in str(result.exception)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [("machine", "cpu", "another"), ("machine", "cores", 16), ("machine", "gpu", "an H200"), (None, "batch_size", 32)],
)
def test_other_machines_and_set_ups_need_a_word(tmp_path, where, name, value):
    old = record(RATES)
    new = copy.deepcopy(old)
    (new[where] if where else new)[name] = value
    refused = compared(tmp_path, old, new)
    assert isinstance(refused.exception, BandstreamError) and f"{name} (" in str(refused.exception)
    told = compared(tmp_path, old, new, "--anyway")
    assert told.exit_code == 0 and f"warning: they differ in {name}" in told.stderr


def test_other_versions_and_runs_of_one_record_are_told(tmp_path):
    old, new = record(RATES), record(RATES)
    new["machine"]["packages"]["torch"] = "2.16.0"
    del new["runs"]["WebDataset, read"]
    output = compared(tmp_path, old, new).output
    assert "torch: 2.15.0 then, 2.16.0 now" in output
    assert f"WebDataset, read: only in {tmp_path / 'old.json'}" in output


def test_a_chart_shows_every_run_of_its_panels(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(record(RATES)))
    for name in ("chart.svg", "again.svg", "chart.png"):
        result = CliRunner().invoke(chart, [str(tmp_path / "record.json"), "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "chart.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    texts = {element.text for element in ElementTree.parse(tmp_path / "chart.svg").iter() if element.text}
    assert {"bandstream", "WebDataset + Kornia", "WebDataset", "710", "27,000", "131", "2,800"} <= texts
    assert not any("training" in text for text in texts)
    pixels = imread(tmp_path / "chart.png")
    assert pixels.shape[2] == 4 and (pixels[..., 3] == 0).mean() > 0.5  # nothing behind: the page shows through
    refused = CliRunner().invoke(chart, [str(tmp_path / "record.json"), "--out", str(tmp_path / "chart.txt")])
    assert isinstance(refused.exception, BandstreamError)
    (tmp_path / "record.json").write_text(json.dumps(record(RATES) | {"bench": "train"}))
    refused = CliRunner().invoke(chart, [str(tmp_path / "record.json"), "--out", str(tmp_path / "chart.svg")])
    assert isinstance(refused.exception, BandstreamError) and "record of train" in str(refused.exception)
