"""What an ingest is said to take, against what it takes; which source an archive is of; what a plan holds in memory."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench.ingest import pack
from cli import bandstream
from ingest.building.build import Options, ingest
from ingest.building.plan import MEMORY_DRAWN, Plan
from ingest.planning import rates, trial
from ingest.planning.estimate import Estimate, Measured
from ingest.planning.outlook import report
from ingest.planning.recognise import recognised
from ingest.source import Entry
from ingest.sources.bigearthnet import BigEarthNet
from shards.errors import BandstreamError
from shards.manifest import Manifest


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter measurements: these tests are about bytes and counts."""
    monkeypatch.setattr(rates, "SECONDS", 0.1)
    monkeypatch.setattr(trial, "SAMPLES", 16)
    monkeypatch.setattr(trial, "MADE_UP", 24)


def plan(*words: Any) -> Result:
    return CliRunner().invoke(bandstream, ["plan", *map(str, words), "--workers", "1"], catch_exceptions=False)


def set_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".tar", ".idx"))


def test_counts_and_bytes_are_those_of_the_ingest(archive: Path, shard_set: Path, tmp_path: Path) -> None:
    result = plan(archive, "--dst", tmp_path, "--shard-samples", 16, "--json", tmp_path / "plan.json")
    assert result.exit_code == 0, result.output
    (size,) = json.loads((tmp_path / "plan.json").read_text())["sizes"]
    manifest = Manifest.read(shard_set)
    assert size["splits"] == {name: split.samples for name, split in manifest.splits.items()}
    assert size["shards"] == sum(len(split.shards) for split in manifest.splits.values())
    assert size["set"] == pytest.approx(set_bytes(shard_set), rel=1e-4)  # an index has digits more or fewer
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]  # nothing is left of what was measured
    told = next(line for line in result.output.splitlines() if line.startswith("  samples "))
    assert told.split()[:2] == ["samples", "96"]


def test_a_compressed_archive_is_judged_by_its_beginning(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(archive, tmp_path / "a.tar.zst")
    (tmp_path / "dst").mkdir()
    whole = trial.measure(BigEarthNet, (tmp_path / "a.tar.zst",), {}, tmp_path / "dst", 1, 16)
    assert (whole.share, whole.whole) == (1.0, 96)
    assert whole.spool_bytes == pytest.approx(whole.read_bytes, rel=0.15)  # tar headers and padding beside the files
    monkeypatch.setattr(trial, "HEAD", 8 << 20)
    part = trial.measure(BigEarthNet, (tmp_path / "a.tar.zst",), {}, tmp_path / "dst", 1, 16)
    assert 0.3 < part.share < 0.8
    assert part.whole == pytest.approx(96, rel=0.3)
    assert any("further behind" in note for note in part.notes)
    assert list((tmp_path / "dst").iterdir()) == []


def test_made_up_patches_and_room(tmp_path: Path) -> None:
    result = plan("--patches", 10**5, "--patches", 10**9, "--dst", tmp_path)
    assert result.exit_code == 0, result.output
    assert "180,736 B a sample" in result.output
    samples = next(line.split()[1:3] for line in result.output.splitlines() if line.startswith("  samples "))
    assert samples == ["100,000", "1,000,000,000"]
    assert "warning: 1,000,000,000 samples need 18" in result.output
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_one_line(tmp_path: Path, archive: Path) -> None:
    assert plan().exit_code == 2
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(BandstreamError, match="is not recognised: say which, bandstream plan .*bigearthnet"):
        plan(tmp_path)
    for path in archive.glob("BigEarthNet-S2/*/*/*_B02.tif"):
        copy = tmp_path / "damaged" / path.relative_to(archive)
        copy.parent.mkdir(parents=True)
        copy.write_bytes(path.read_bytes()[:99])
    (tmp_path / "dst").mkdir()
    with pytest.raises(BandstreamError, match=r"not one of \d+ samples that were tried can be taken, the first: .*B02"):
        plan("bigearthnet", tmp_path / "damaged", "--dst", tmp_path / "dst")
    assert list((tmp_path / "dst").iterdir()) == []


def test_recognised(archive: Path, real_data: Path, tmp_path: Path) -> None:
    pack(archive, tmp_path / "a.tar.zst")
    for path in (archive, archive / "BigEarthNet-S2", tmp_path / "a.tar.zst", real_data / "bigearthnet_v1"):
        assert recognised([path]) == "bigearthnet", path
    assert recognised([]) is None
    with pytest.raises(BandstreamError, match="not recognised"):
        recognised([archive / "Reference_Maps"])
    product = next((real_data / "sentinel2_safe").iterdir())
    assert recognised([product]) == recognised([product.parent]) == "scene"
    assert recognised([real_data / "eurosat_ms"]) == "eurosat"
    with pytest.raises(BandstreamError, match=r"may be of eurosat or images: say which"):
        recognised([real_data / "eurosat_rgb.tar"])


MEASURED = Measured(
    kind="made up",
    workers=2,
    shard_samples=100,
    samples=1000,
    rejected=0,
    share=1.0,
    splits={"train": 700, "val": 100, "test": 200},
    drawn=False,
    sample_bytes=10_000,
    read_bytes=8000.0,
    index_bytes=100.0,
    catalogue_bytes=10.0,
    record_bytes=20.0,
    entry_bytes=30.0,
    spool_bytes=0.0,
    taken=1.0,
    first="",
    start_s=1.0,
    list_s=1e-5,
    spool_s=0.0,
    sample_s={"train": 2e-3, "val": 1e-3},
    cpu_s={"train": 1e-3, "val": 1e-3},
    commit_s=0.01,
    reading=8e6,
    cached=1.0,
    writing=1e8,
    hashing=1e9,
    copying=1e10,
    cores=2,
)


def test_sums() -> None:
    estimate = Estimate.of(MEASURED, 1000, cached=0.75)
    assert (estimate.shards, estimate.set) == (10, 1000 * 10_100 + 10 * 1024)
    assert estimate.aside == 50_000
    # seven shards of 0.2 s and three of 0.1 s, dealt out to two workers as they become free
    assert estimate.make_s == pytest.approx(0.9)
    assert estimate.warm == pytest.approx(1.0 + 0.01 + 0.9 + 0.1)
    assert estimate.cold_s == pytest.approx(1.0)
    assert estimate.seconds == pytest.approx(estimate.warm + 0.25)
    large = Estimate.of(MEASURED, 10**8)
    assert large.make_s == pytest.approx(10**8 * (0.7 * 2e-3 + 0.3 * 1e-3) / 2, rel=1e-3)
    assert (large.fits, sum(large.splits.values())) == (False, 10**8)
    half = Estimate.of(replace(MEASURED, taken=0.5), 1000)
    assert (half.samples, half.make_s) == (500, estimate.make_s)


def test_what_binds_is_said(tmp_path: Path) -> None:
    def binds(**changes: Any) -> str:
        measured = replace(MEASURED, **changes)
        lines = report(measured, [Estimate.of(measured, 1000)], tmp_path, None)
        return next(line for line in lines if line.startswith("what binds: "))

    assert binds() == "what binds: read from the disk; where the archive lies in the page cache: CPU"
    assert binds(reading=1e9) == "what binds: CPU; where the archive lies in the page cache: CPU"
    assert binds(reading=0.0, writing=1e6) == "what binds: write and fsync"


def test_the_disk_is_measured_behind_the_page_cache(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}").write_bytes(bytes(100_000))
    found = rates.disk([tmp_path], 100_000, 1)
    assert 0 <= found.cached <= 1
    assert found.rate > 0 or found.cached == 1  # a file system in memory has no disk behind it
    again = rates.disk([tmp_path], 100_000, 1)
    if found.rate:
        assert again.cached > 0.9  # what was read just now lies there


def test_options_of_the_source_reach_it(archive: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in archive.glob("BigEarthNet-S2/*/*"))
    (tmp_path / "out.txt").write_text("\n".join(names[:90]))
    words = "bigearthnet", archive, "--exclude", tmp_path / "out.txt", "--dst", tmp_path, "--json", tmp_path / "a.json"
    result = plan(*words)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "a.json").read_text())["sizes"][0]["samples"] == 6
    assert "90 inputs are refused" in result.output
    outcome = ingest(BigEarthNet(archive, exclude=[tmp_path / "out.txt"]), tmp_path / "set", Options())
    assert sum(split.samples for split in outcome.manifest.splits.values()) == 6


def made_up(count: int) -> Iterator[Entry]:
    for number in range(count):
        yield Entry(f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{number}", f"T33UUP/{number}", where="0:0:maps")


def test_a_plan_holds_few_bytes_a_sample(tmp_path: Path) -> None:
    peaks = []
    for count in (5_000, 25_000):
        tracemalloc.start()
        plan_ = Plan(made_up(count), tmp_path / "entries")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert plan_.total == count
    assert (peaks[1] - peaks[0]) / 20_000 < 1.25 * MEMORY_DRAWN
