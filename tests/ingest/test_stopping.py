"""Ctrl-C and SIGTERM, sent to a real `bandstream ingest`: one line, the shell's exit status, nothing left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.building.build import Options, ingest
from ingest.sources.bigearthnet import BigEarthNet
from shards.verify import verify
from tests.ingest.archives import contents, make_v2

ROOT = Path(__file__).parents[2]


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_v2(tmp_path_factory.mktemp("archive"), 24)


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, "terminated: run the same command again to go on\n"),
        (signal.SIGINT, 130, "\ninterrupted\n"),
    ],
)
@pytest.mark.parametrize("whole_group", [False, True])
def test_stopped(
    archive: Path, tmp_path: Path, number: signal.Signals, status: int, said: str, whole_group: bool
) -> None:
    """As workers start: a terminal sends Ctrl-C to them too, while they still import."""
    target = tmp_path / "set"
    command = [sys.executable, "-m", "cli", "ingest", "bigearthnet", str(archive), str(target), "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--shard-samples", "1"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever runs the tests may ignore it
    )
    started: list[int] = []
    until = time.monotonic() + 60
    while len(started) < 3 and process.poll() is None and time.monotonic() < until:  # two, and the resource tracker
        started = children(process.pid)
    assert len(started) == 3
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert process.communicate(timeout=60)[1] == said
    assert process.returncode == status
    assert not (target / "dataset.json").exists()
    for worker in started[1:]:
        assert not (Path(f"/proc/{worker}/cmdline").exists() and Path(f"/proc/{worker}/cmdline").read_bytes())

    ingest(BigEarthNet(archive), target, Options(shard_samples=1))
    ingest(BigEarthNet(archive), tmp_path / "expected", Options(shard_samples=1))
    assert verify(target) == []
    assert contents(target) == contents(tmp_path / "expected")
