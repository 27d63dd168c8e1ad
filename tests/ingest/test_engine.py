"""Engines: the same bytes from processes and from a Dask cluster, whatever of it is killed; maps in order."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.building.build import Options, ingest
from ingest.building.engine import Here, Processes, make_all
from ingest.building.plan import Plan
from ingest.building.shard import CLAIM, RECORDS, Task, read_record
from ingest.building.workplace import claim
from ingest.source import Facts, Listening, Rejected
from ingest.sources.bigearthnet import BigEarthNet
from shards.errors import BandstreamError
from tests.ingest import cluster
from tests.ingest.archives import contents, make_v2
from tests.ingest.test_build import REPOSITORY, run


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_v2(tmp_path_factory.mktemp("archive"), 24)


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected") / "set"
    ingest(BigEarthNet(archive), folder, Options(shard_samples=4))
    return contents(folder)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Running]:
    with cluster.running(tmp_path_factory.mktemp("dask"), workers=2) as running:
        yield running


class Deadly(BigEarthNet):
    """Kills the worker that reads it, as often as there are files in `bullets`; slowly, so that others are behind."""

    def __init__(self, archive: Path, bullets: Path) -> None:
        super().__init__(archive)
        self.bullets = bullets
        self.spared = os.getpid()

    def read(self, entry: Any, views: Any) -> Facts:
        for bullet in self.bullets.iterdir() if os.getpid() != self.spared else ():
            bullet.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return super().read(entry, views)


def loaded(folder: Path, bullets: int) -> Path:
    folder.mkdir()
    for number in range(bullets):
        (folder / str(number)).touch()
    return folder


def double(number: int) -> int:
    """For `map`; slow for the first, so that order is not the order of ending."""
    time.sleep(0.3 if number == 0 else 0.0)
    return 2 * number


def die_once(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def reject(number: int) -> int:
    if number == 3:
        raise Rejected("a", "b", "c")
    return number


def test_maps_keep_the_order() -> None:
    with Processes(2) as engine:
        assert list(engine.map(double, range(20))) == list(Here().map(double, range(20))) == list(range(0, 40, 2))


def test_maps_take_only_what_they_need() -> None:
    taken = []
    with Processes(2) as engine:
        results = engine.map(double, (taken.append(number) or number for number in range(100)))  # type: ignore[func-returns-value]
        assert next(results) == 0
        assert len(taken) <= 5


def test_maps_pass_errors_on() -> None:
    with Processes(2) as engine, pytest.raises(Rejected):
        list(engine.map(reject, range(10)))


def test_a_map_outlives_a_killed_worker(tmp_path: Path) -> None:
    paths = [str(tmp_path / str(number)) for number in range(3)]
    with Processes(2) as engine:
        assert list(engine.map(die_once, paths)) == paths
        with pytest.raises(BandstreamError, match="workers were killed one after another"):
            list(engine.map(die, range(3)))


@pytest.mark.parametrize("bullets", [1, 3])
def test_killed_workers_are_replaced(archive: Path, expected: Any, tmp_path: Path, bullets: int) -> None:
    source = Deadly(archive, loaded(tmp_path / "bullets", bullets))
    ingest(source, tmp_path / "set", Options(shard_samples=4, workers=2))
    assert contents(tmp_path / "set") == expected
    assert not list(source.bullets.iterdir())


def test_a_worker_killed_again_and_again_is_an_error(archive: Path, expected: Any, tmp_path: Path) -> None:
    source = Deadly(archive, loaded(tmp_path / "bullets", 100))
    with pytest.raises(BandstreamError, match=r"workers were killed one after another .* train-0"):
        ingest(source, tmp_path / "set", Options(shard_samples=4, workers=2))
    assert not (tmp_path / "set" / "dataset.json").exists()
    ingest(BigEarthNet(archive), tmp_path / "set", Options(shard_samples=4))
    assert contents(tmp_path / "set") == expected


def test_a_worker_left_over_does_no_harm(archive: Path, tmp_path: Path) -> None:
    """One whose ingest is gone, and whose folder another plan has taken, stops before it renames anything."""
    source = BigEarthNet(archive)
    target = tmp_path / "set"
    (target / RECORDS).mkdir(parents=True)
    plan = Plan(source.listing(Listening(tmp_path)), target / RECORDS / "entries.jsonl", 0, 4)
    claim(target, "another", {})
    with pytest.raises(BandstreamError, match="removed, or begun anew"), Here() as engine:
        make_all(engine, Task(source, target, "mine", False), plan, lambda done: None)
    assert not list(target.glob("*.tar*"))
    (target / RECORDS / CLAIM).unlink()
    with pytest.raises(BandstreamError, match="removed, or begun anew"), Here() as engine:
        make_all(engine, Task(source, target, "mine", False), plan, lambda done: None)


def test_two_makers_of_one_shard(archive: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Two engines that make all shards at once leave what one does."""
    from concurrent.futures import ThreadPoolExecutor

    source = BigEarthNet(archive)
    target = tmp_path / "set"
    (target / RECORDS).mkdir(parents=True)
    plan = Plan(source.listing(Listening(tmp_path)), target / RECORDS / "entries.jsonl", 0, 4)
    claim(target, "mine", {})
    with ThreadPoolExecutor(2) as threads:
        tasks = [Task(BigEarthNet(archive), target, "mine", False) for _ in range(2)]
        for task in tasks:
            list(task.source.listing(Listening(tmp_path)))
        list(threads.map(lambda task: make_all(Here(), task, plan, lambda done: None), tasks))
    assert {path.name: path.read_bytes() for path in target.glob("*.tar")} == {
        name: content for name, content in expected.items() if name.endswith(".tar")
    }
    assert all(read_record(target, name, "mine") for name in plan.names)


def test_dask_leaves_the_same_bytes(archive: Path, expected: Any, tmp_path: Path, dask: cluster.Running) -> None:
    said: list[str] = []
    from ingest.building.build import Told

    options = Options(shard_samples=4, scheduler=dask.address)
    ingest(BigEarthNet(archive), tmp_path / "set", options, Told(say=said.append))
    assert contents(tmp_path / "set") == expected
    assert any(text.startswith("Dask: ") for text in said)


def test_dask_by_the_command(archive: Path, expected: Any, tmp_path: Path, dask: cluster.Running) -> None:
    arguments = "ingest", "bigearthnet", archive, tmp_path / "set", "--shard-samples", 4, "--scheduler", dask.file
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "set") == expected


def test_dask_maps(dask: cluster.Running) -> None:
    from ingest.building.cluster import Cluster

    with Cluster(dask.address, lambda text: None) as engine:
        assert list(engine.map(double, range(9))) == list(range(0, 18, 2))
        with pytest.raises(Rejected):
            list(engine.map(reject, range(5)))


def test_dask_workers_killed(archive: Path, expected: Any, tmp_path: Path) -> None:
    with cluster.running(tmp_path / "dask", workers=2, nannies=True) as running:
        source = Deadly(archive, loaded(tmp_path / "bullets", 2))
        ingest(source, tmp_path / "set", Options(shard_samples=4, scheduler=running.address))
        assert contents(tmp_path / "set") == expected


def test_the_job_for_slurm(archive: Path, expected: Any, tmp_path: Path) -> None:
    """The job's script as sbatch starts it on the first of two nodes; `srun`, which SLURM has, starts its command on
    each of them, here twice on this one."""
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\n"$@" & "$@" & wait\n')
    (tmp_path / "srun").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "BANDSTREAM_BIN": str(Path(sys.executable).parent),
        "PYTHONPATH": str(REPOSITORY),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "1",
        "SLURM_CPUS_PER_TASK": "1",
    }
    job = REPOSITORY / "recipes" / "slurm" / "ingest.sh"
    arguments = ["bigearthnet", archive, tmp_path / "set", "--shard-samples", 4]
    result = subprocess.run(
        [job, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "set") == expected
    assert {path.name for path in tmp_path.iterdir()} == {"set", "srun"}


def test_dask_that_is_not_there(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.building.cluster.PATIENCE_S", 2)
    for address in ("tcp://127.0.0.1:9", "nonsense://x", str(tmp_path / "none.json")):
        with pytest.raises(BandstreamError, match="no Dask scheduler answers at"):
            ingest(BigEarthNet(archive), tmp_path / "set", Options(scheduler=address))
    assert not (tmp_path / "set").exists()
    with (
        cluster.running(tmp_path / "dask", workers=0) as running,
        pytest.raises(BandstreamError, match="has no workers"),
    ):
        ingest(BigEarthNet(archive), tmp_path / "set", Options(scheduler=running.address))
