"""What the loader's bench counts, tries and tells."""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner

from bench.contestant import Contestant
from bench.loader import STAGES, loader, recipe_of
from bench.loaders import OURS
from bench.loaders.__main__ import SETTLING_SECONDS, consumed, measured
from bench.loaders.bandstream import Bandstream
from bench.measure import cpu_seconds, evict, memory_mb
from bench.tuning import tuned
from shards.errors import BandstreamError
from shards.shardset import ShardSet


def test_cpu_seconds_are_counted_while_threads_come_and_go() -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            short = threading.Thread(target=int)
            short.start()
            short.join()

    churning = [threading.Thread(target=churn) for _ in range(4)]
    for thread in churning:
        thread.start()
    try:
        seconds = [cpu_seconds() for _ in range(100)]
    finally:
        stop.set()
        for thread in churning:
            thread.join()
    assert seconds == sorted(seconds)


def test_cpu_seconds_are_those_of_children_that_run_and_that_have_ended() -> None:
    code = "import time, sys\nwhile time.process_time() < 0.5: pass\nprint(flush=True); sys.stdin.read()"
    before = cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = cpu_seconds() - before
    assert 0.45 < running < 1.5
    assert running - 0.05 < cpu_seconds() - before < 1.5


def test_memory_counts_what_a_child_holds_and_shared_pages_once() -> None:
    held = np.ones(50_000_000, np.uint8)
    mine = memory_mb(os.getpid())
    assert mine > 50
    ready = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        own = np.ones(80_000_000, np.uint8)
        ready.set()
        time.sleep(60)
        del own

    child = multiprocessing.get_context("fork").Process(target=hold)
    child.start()
    try:
        ready.wait()
        more = memory_mb(os.getpid()) - mine
    finally:
        child.kill()
        child.join()
    assert 75 < more < 120  # its own 80 MB, not its share of the forked 50 again
    assert held[0] == 1


def test_everything_is_consumed() -> None:
    random = np.random.default_rng(0)
    words = random.integers(0, 1 << 16, (3, 2, 5, 5), np.uint16)  # 300 bytes: no whole number of 64-bit words
    base = consumed(torch.from_numpy(words))
    for place in (0, 70, 149):
        other = words.copy().reshape(-1)
        other[place] ^= 1 << 15
        assert consumed(torch.from_numpy(other)) != base
    floats = torch.rand(4, 12, 8, 8)
    assert consumed(floats) == pytest.approx(float(floats.double().sum()), rel=1e-4)
    assert consumed(torch.ones(64, 12, 112, 112, dtype=torch.float16)) == 64 * 12 * 112 * 112, "more than a half holds"


def test_the_clock_runs_only_once_batches_flow_and_counts_whole_turns() -> None:
    served = []

    def batches():
        while True:
            served.append(time.perf_counter())
            time.sleep(0.02)
            yield 7, [torch.ones(7)]

    result = measured(batches(), 1.0, {"workers": 3})
    ended = time.perf_counter()
    counted, rest = divmod(result["samples"], 7)
    assert rest == 0 and counted % 3 == 0 and counted >= 3
    assert served[-1] - served[-counted] <= result["seconds"] <= ended - served[-counted - 1]
    assert served[-counted] - served[0] > SETTLING_SECONDS - 0.1
    whole = measured(iter([(7, [torch.ones(7)])] * 5), None, {})
    assert whole["samples"] == 35
    with pytest.raises(ValueError, match="sum of everything"):
        measured(iter([(7, [torch.zeros(7)])] * 5), None, {})


def test_files_are_put_out_of_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 << 20))
    path.read_bytes()
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    if mounts[next(str(folder) for folder in path.parents if str(folder) in mounts)] == "tmpfs":
        assert evict([path]) == 1
        return
    assert evict([path]) == 0


def test_a_peers_best_setting_is_found_a_knob_at_a_time() -> None:
    speed = {"sample": 1, "batch": 2}
    asked = []

    def rate(phase: str, setting: dict) -> float:
        asked.append((phase, tuple(setting.items())))
        assert phase == "views" or "in_workers" not in setting
        value = speed[setting["fetch"]] * (3 if setting["workers"] == 1 else 1)
        if phase == "views":
            value *= {"slice": 1, "resample": 2}[setting["crop"]] * (1 if setting["in_workers"] else 5)
        return float(value)

    found = tuned(rate, {"fetch": ["sample", "batch"]}, {"crop": ["slice", "resample"]}, cores=2)
    assert found["read"] == {"fetch": "batch", "workers": 1}
    assert found["views"] == {"fetch": "batch", "workers": 1, "crop": "resample", "in_workers": False}
    assert len(asked) == len(set(asked)) == len(found["tried"])  # nothing is measured twice
    assert {(one["setting"]["workers"], one["setting"].get("in_workers")) for one in found["tried"]} >= {
        (0, False), (1, False), (1, True), (2, False), (2, True),
    }  # fmt: skip


@pytest.fixture
def data(shard_set: Path, tmp_path: Path) -> Path:
    (tmp_path / OURS).symlink_to(shard_set)
    return tmp_path


def test_our_stages_serve_what_they_say(data: Path) -> None:
    ours = Bandstream(data / OURS, 8, recipe_of(32), 1)
    size = ours.shard_set.size("train")
    views = ours.views()
    count, (first, second) = next(views)
    third = next(itertools.islice(views, 1, None))[1][0]
    views.close()
    assert count == 8 and first.shape == second.shape == (8, 12, 32, 32) and not torch.equal(first, second)

    # fed from memory the graph goes on making the first batches' pixels with each batch's own draws
    replayed = ours.graph()
    batches = [[view.clone() for view in next(replayed)[1]] for _ in range(size // 8)]
    replayed.close()
    assert torch.equal(batches[0][0], first) and torch.equal(batches[2][0], third)
    assert not torch.equal(batches[0][0], batches[4][0])

    for steps in (ours.train(), ours.train_replayed()):
        losses = [next(steps) for _ in range(2)]
        assert all(number == 8 and 0 < float(loss) < 10 for number, (loss,) in losses)

    read = ours.read(epochs=1)
    rows = np.concatenate([raw.copy() for _, (raw,) in read])
    assert len(rows) == size // 8 * 8 == len(np.unique(rows[:, :100], axis=0))  # a key each, none twice
    assert rows.shape[1] >= 160_000


def test_a_loader_in_its_own_process_answers_phase_by_phase(data: Path) -> None:
    with Contestant(OURS, data, batch_size=8, view_size=32) as process:
        views = process.run("views", {}, 0.2)
        graph = process.run("graph", {}, 0.2)
        with pytest.raises(BandstreamError, match=r"bandstream exited with 1.*nonsense"):
            process.run("nonsense", {}, 0.1)
    assert 10 < views["samples_per_s"] < 1e6 and graph["samples_per_s"] > 10
    assert 0.2 < views["cpus"] < 1.3 * (os.cpu_count() or 1)
    assert 100 < views["peak_mb"] < 8000


def test_a_run_leaves_a_record_that_says_what_was_run(shard_set: Path, tmp_path: Path, monkeypatch) -> None:
    """With processes that answer from a table: who is run, in which setting, in which turn, and what is made of it."""
    said = []

    class Told:
        def __init__(self, name: str, *rest: object) -> None:
            self.name = name
            said.append(name)

        def run(self, phase: str, setting: dict, seconds: float | None) -> dict[str, float]:
            said.append((self.name, phase, setting, seconds))
            base = {OURS: 700.0, "webdataset": 130.0, "grid_sample": 250.0}[self.name]
            fast = {"read": 20.0, "train": 0.04, "train_replayed": 0.05}.get(phase, 1.0)
            return {"samples_per_s": base * fast + len(said), "cpus": 2.0, "peak_mb": 900.0}

        def __enter__(self) -> "Told":
            return self

        def __exit__(self, *failure: object) -> None:
            pass

    monkeypatch.setattr("bench.contestant.Contestant", Told)
    output = tmp_path / "record.json"
    result = CliRunner().invoke(loader, [str(shard_set), "--repeats", "2", "--seconds", "6", "--json", str(output)])
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    order = [entry for entry in said if isinstance(entry, str)]
    turn = [OURS, "webdataset", "grid_sample", OURS]
    assert order == ["webdataset", "grid_sample", *turn, *turn]
    assert record["patches"] == ShardSet.open(shard_set).size("train")
    assert set(record["ratio"]["two views"]) == {
        "WebDataset + Kornia, two views",
        "WebDataset + grid_sample, two views",
    }
    assert record["best_peer"] == {"two views": "WebDataset + grid_sample, two views", "read": "WebDataset, read"}
    ours, theirs = (
        record["runs"][name]["each"] for name in ("bandstream, two views", "WebDataset + Kornia, two views")
    )
    ratios = [own["samples_per_s"] / other["samples_per_s"] for own, other in zip(ours, theirs, strict=True)]
    assert record["ratio"]["two views"]["WebDataset + Kornia, two views"]["max"] == max(ratios)
    assert {f"{OURS}, {stage}" for stage in STAGES.values()} <= set(record["runs"])
    chosen = record["settings"]["WebDataset + Kornia"]["views"]
    assert ("webdataset", "views", chosen, 6.0) in said
    assert any(entry[1:] == ("read_cold", {}, None) for entry in said if entry[0] == OURS)
    assert all(run["samples_per_s"]["n"] == 2 for run in record["runs"].values())


def test_what_cannot_be_run_is_refused(shard_set: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(loader, [str(shard_set), "--peer", "zarr"])
    assert isinstance(refused.exception, BandstreamError) and "cannot read a shard set" in str(refused.exception)
    assert CliRunner().invoke(loader, [str(shard_set), "--alone", "--peer", "grid_sample"]).exit_code == 2
    refused = CliRunner().invoke(loader, [str(tmp_path)])
    assert isinstance(refused.exception, BandstreamError) and "dataset.json" in str(refused.exception)
