"""The same bytes whatever the workers, the kills and the damage in between; and what a run refuses to do."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.building import statistics
from ingest.building.build import Options, Outcome, ingest
from ingest.building.plan import Plan, Shard
from ingest.source import Entry
from ingest.sources.bigearthnet import BigEarthNet
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet
from tests.ingest.archives import V2_TILE, contents, make_v2, patch_name

COMMAND = [sys.executable, "-m", "cli"]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 patches, of which one is damaged and one not covered by a map."""
    root = make_v2(tmp_path_factory.mktemp("archive"), 24)
    patch = root / "BigEarthNet-S2" / V2_TILE / patch_name(5)
    path = patch / f"{patch.name}_B02.tif"
    path.write_bytes(path.read_bytes()[:9000])
    next((root / "Reference_Maps" / V2_TILE / patch_name(6)).iterdir()).unlink()
    return root


def convert(archive: Path, target: Path, **options: Any) -> Outcome:
    return ingest(BigEarthNet(archive), target, Options(**{"shard_samples": 4, **options}))


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every byte of the set that an undisturbed run with one worker leaves."""
    folder = tmp_path_factory.mktemp("expected") / "set"
    convert(archive, folder)
    return contents(folder)


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_set_holds_nothing_but_the_set(expected: dict[str, bytes]) -> None:
    names = set(expected)
    assert {"dataset.json", "samples.parquet", "rejected.jsonl", "train-000000.tar", "train-000000.idx"} <= names
    assert all(
        name.endswith((".tar", ".idx")) for name in names - {"dataset.json", "samples.parquet", "rejected.jsonl"}
    )


@pytest.mark.parametrize("workers", [2, 3])
def test_same_bytes_with_more_workers(archive: Path, expected: dict[str, bytes], tmp_path: Path, workers: int) -> None:
    convert(archive, tmp_path / "set", workers=workers)
    assert contents(tmp_path / "set") == expected


def test_same_bytes_from_a_copy_elsewhere(archive: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(archive, tmp_path / "other name")
    convert(tmp_path / "other name", tmp_path / "set")
    assert contents(tmp_path / "set") == expected


def alive(group: int) -> list[int]:
    """Processes of a process group that are more than zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again(archive: Path, expected: dict[str, bytes], tmp_path: Path, workers: int) -> None:
    """SIGKILL once some shards stand there: no worker outlives it, and the next run ends with the same bytes."""
    target = tmp_path / "set"
    command = [*COMMAND, "ingest", "bigearthnet", archive, target, "--shard-samples", 4, "--workers", workers]
    process = subprocess.Popen([*map(str, command)], cwd=REPOSITORY, start_new_session=True)
    deadline = time.monotonic() + 60
    wanted = random.randint(1, 4)
    while len(list(target.glob(".partial/*-*.json"))) < wanted and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while left := alive(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    (target / ".train-000000.tar.1.tmp").write_bytes(b"left behind")
    result = run(*command[len(COMMAND) :])
    assert result.returncode == 0, result.stderr
    assert contents(target) == expected


def test_a_rerun_reuses_finished_shards(archive: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Stopped in the middle by --strict, the run afterwards leaves finished shards' files alone."""
    target = tmp_path / "set"
    with pytest.raises(BandstreamError, match="stops at the first"):
        convert(archive, target, strict=True)
    finished = {path: path.stat().st_ino for path in target.glob("*.tar")}
    records = {path.stem for path in target.glob(".partial/*-*.json")}
    assert records, "the damaged patches lie in the first shard: this tests nothing"
    assert not (target / "dataset.json").exists()
    convert(archive, target)
    assert contents(target) == expected
    assert [path.stat().st_ino for path in finished if path.stem in records] == [
        inode for path, inode in finished.items() if path.stem in records
    ]


def damage_record(target: Path) -> None:
    record = sorted(target.glob(".partial/train-*.json"))[0]
    record.write_text(record.read_text()[:100])


def damage_shard(target: Path) -> None:
    shard = sorted(target.glob("train-*.tar"))[0]
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_record, damage_shard])
def test_unfinished_and_damaged(archive: Path, expected: dict[str, bytes], tmp_path: Path, damage: Any) -> None:
    target = tmp_path / "set"
    with pytest.raises(BandstreamError):
        convert(archive, target, strict=True, seed=0)
    if not list(target.glob(".partial/train-*.json")):
        pytest.skip("the damaged patch lies in the first shard")
    damage(target)
    convert(archive, target)
    assert contents(target) == expected


@pytest.mark.parametrize(
    "name", ["train-000001.tar", "train-000000.idx", "samples.parquet", "rejected.jsonl", "dataset.json"]
)
def test_a_finished_set_is_mended(archive: Path, expected: dict[str, bytes], tmp_path: Path, name: str) -> None:
    """A file lost or changed is made again, the others are not touched; a sound set is left alone."""
    target = tmp_path / "set"
    convert(archive, target)
    assert convert(archive, target).processed == 0
    (target / name).unlink()
    assert convert(archive, target).processed > 0
    assert contents(target) == expected
    if name.endswith(".tar"):
        damage_shard(target)
        inodes = {path: path.stat().st_ino for path in target.glob("*.tar")}
        convert(archive, target)
        assert contents(target) == expected
        assert sum(path.stat().st_ino != inode for path, inode in inodes.items()) == 1


def test_other_options_are_refused(archive: Path, tmp_path: Path) -> None:
    convert(archive, tmp_path / "set")
    with pytest.raises(BandstreamError, match=r"holds a shard set with other options \(seed 0, now 1\)"):
        convert(archive, tmp_path / "set", seed=1)
    with pytest.raises(BandstreamError):
        convert(archive, tmp_path / "part", strict=True)
    with pytest.raises(BandstreamError, match=r"an unfinished ingest with other options \(shard_samples 4, now 5\)"):
        convert(archive, tmp_path / "part", shard_samples=5)


def test_places_that_are_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(BandstreamError, match="inside the archive"):
        convert(archive, archive / "set")
    with pytest.raises(BandstreamError, match="inside the archive"):
        convert(archive, archive)
    with pytest.raises(BandstreamError, match="archive .* lies inside"):
        convert(archive, archive.parent)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(BandstreamError, match="not empty"):
        convert(archive, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(BandstreamError, match="is a file"):
        convert(archive, tmp_path / "file")
    with pytest.raises(BandstreamError, match="cannot be written"):
        convert(archive, Path("/proc/none/set"))
    assert contents(tmp_path / "mine") == {"thesis.tex": b"precious"}


def test_two_ingests_into_one_folder(archive: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "set").mkdir()
    descriptor = os.open(tmp_path / "set", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(BandstreamError, match="another ingest"):
        convert(archive, tmp_path / "set")
    os.close(descriptor)
    convert(archive, tmp_path / "set")


def test_commands(archive: Path, tmp_path: Path) -> None:
    """ingest, its rerun, info, verify; one line on errors, 1 for failed work and 2 for wrong usage."""
    target = tmp_path / "set"
    made = run("ingest", "bigearthnet", archive, target, "--shard-samples", 8, "--workers", 1)
    assert made.returncode == 0
    assert made.stderr == ""
    assert "22 samples" in made.stdout
    assert "no-map 1, truncated 1" in made.stdout
    assert "nothing to do" in run("ingest", "bigearthnet", archive, target, "--shard-samples", 8).stdout
    told = run("info", target).stdout
    for word in ("train 1", "B8A", "Marine waters", "no-map 1", "L2A", "reflectance"):
        assert word in told, word
    assert run("verify", target).returncode == 0
    damage_shard(target)
    broken = run("verify", target)
    assert broken.returncode == 1
    assert "train-000000.tar" in broken.stdout
    for arguments, code in [
        (("ingest", "bigearthnet", tmp_path / "none", tmp_path / "x"), 1),
        (("ingest", "bigearthnet", archive), 2),
        (("ingest", "bigearthnet", archive, tmp_path / "x", "--workers", 0), 2),
        (("info", tmp_path / "none"), 1),
        (("verify", archive), 1),
    ]:
        failed = run(*arguments)
        assert failed.returncode == code
        assert "Traceback" not in failed.stderr
        if code == 1:
            assert failed.stderr.startswith("error: ")
            assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_statistics_are_exact(archive: Path, tmp_path: Path) -> None:
    manifest = convert(archive, tmp_path / "set").manifest
    opened = ShardSet.open(tmp_path / "set")
    samples = [opened.read("train", index) for index in range(opened.size("train"))]
    for member, array in manifest.arrays.items():
        for index, band in enumerate(array.bands):
            pixels = np.stack([sample.arrays[member][index] for sample in samples]).astype(np.float64)
            found = manifest.statistics[band]
            assert found.mean == pytest.approx(pixels.mean(), rel=1e-12)
            assert found.std == pytest.approx(pixels.std(), rel=1e-12)
            assert (found.min, found.max, found.count) == (pixels.min(), pixels.max(), pixels.size)
            for share, value in ((2, found.p02), (98, found.p98)):
                assert value == np.percentile(pixels, share, method="inverted_cdf")
            assert found.nodata == (pixels == 0).mean()
            assert found.saturated == 0


def test_statistics_of_the_largest_numbers_do_not_overflow() -> None:
    tally, other = (statistics.Tally(("uint16",), 0) for _ in range(2))
    tally.counts[0, [0, 65535]] = 5 << 39
    other.merge(tally.pack())
    other.merge(tally.pack())
    found = other.summary(0)
    assert (found.mean, found.std, found.nodata, found.count) == (32767.5, 32767.5, 0.5, 10 << 40)


@pytest.mark.parametrize(
    ("dtype", "saturated"), [("uint8", [255]), ("uint16", [65535, 64535]), ("int16", [32767]), ("float32", [])]
)
def test_saturated_pixels_are_counted(dtype: str, saturated: list[int]) -> None:
    tally = statistics.Tally((dtype,), None)
    pixels = np.array([*saturated, 1, 2, 3, 100, 101, 102, 103, 104], dtype)
    tally.add(0, pixels)
    assert tally.summary(0).saturated == len(saturated) / len(pixels)


def test_plan_scatters_neighbours_and_covers_all(tmp_path: Path) -> None:
    entries = [Entry(f"p{number:04d}", f"p{number:04d}") for number in range(1000)]

    def planned(listed: list[Entry], seed: int) -> list[Shard]:
        return list(Plan(listed, tmp_path / "entries", seed, 64))

    shards = planned(entries, 0)
    sizes = Counter(shard.split for shard in shards for _ in shard.entries)
    assert sizes == {"train": 800, "val": 100, "test": 100}
    assert [shard.name for shard in shards[:2]] == ["train-000000", "train-000001"]
    assert sorted(entry.key for shard in shards for entry in shard.entries) == [entry.key for entry in entries]
    numbers = [int(entry.key[1:]) for shard in shards if shard.split == "train" for entry in shard.entries]
    assert sum(abs(a - b) < 5 for a, b in itertools.pairwise(numbers)) < 20
    # a pure function of key and seed: the order in which an archive is listed does not matter
    assert planned(entries[::-1], 0) == shards
    assert planned(entries, 1) != shards


def test_manifest_states_the_contract(expected: dict[str, bytes], archive: Path, tmp_path: Path) -> None:
    manifest: Manifest = convert(archive, tmp_path / "set").manifest
    assert manifest.sample_bytes == 180736
    assert {name: array.offset for name, array in manifest.arrays.items()} == {
        "10m.npy": 640,
        "20m.npy": 640 + 115712 + 512,
        "60m.npy": 640 + 115712 + 512 + 43520 + 512,
    }
    assert manifest.source["plan"]
    assert str(archive) not in expected["dataset.json"].decode()


def test_random_damage() -> None:
    """A few of the damages that the long proof does in their thousand."""
    from tests.proofs.ingest_damage import main

    share = {"bigearthnet v2 folder": 8, "bigearthnet v2 .tar": 5, "eurosat RGB .zip": 4, "images": 4, "geotiff": 4}
    assert main(seeds=(7,), share=share)["n"] == 25
