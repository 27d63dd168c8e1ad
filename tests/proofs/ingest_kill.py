"""Ingest, killed by SIGKILL at two hundred random moments, leaves the same bytes as an undisturbed run.

    python -m tests.proofs ingest_kill        about half an hour

Killed are the whole ingest (from a folder, and from a `.tar.zst` that it spools; on local workers, and on a Dask
cluster), one of its workers, one of the cluster's workers, and the ingest while it uploads to an S3 server. After a
killed ingest the same command is run again; one that lost a worker goes on by itself.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.ingest import pack
from tests.ingest import cluster

REPOSITORY = Path(__file__).parents[2]
PATCHES, SHARD_SAMPLES, SEED = 1500, 64, 0
KILLS = {"ingest": 50, "ingest of a .tar.zst": 20, "worker": 50, "Dask worker": 30, "ingest on Dask": 10, "upload": 40}
IN_A_ROW = 2
"""So many kills of a whole ingest come before a run is let to its end."""
TRIES = 20
EARLY, SOON = 2.0, 0.3
"""Seconds within which a kill comes, before the first shard and after so many."""


class Bench:
    """Archive, cluster and expected bytes, and one target that is made again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.archive, self.target = folder, folder / "archive", folder / "set"
        self.draw = random.Random(SEED)
        synth = [
            sys.executable,
            "-m",
            "cli",
            "synth",
            str(self.archive),
            "--patches",
            str(PATCHES),
            "--seed",
            str(SEED),
        ]
        subprocess.run(synth, cwd=REPOSITORY, check=True, capture_output=True)
        self.packed = folder / "packed.tar.zst"
        pack(self.archive, self.packed)
        self.expected: dict[str, str] = {}
        self.undisturbed(self.command(self.archive, 1))
        self.shards = len(list(self.target.glob("*.tar")))
        self.compare("one worker")

    def command(self, source: Path, workers: int, *more: str) -> list[str]:
        arguments = [
            "ingest",
            "bigearthnet",
            source,
            self.target,
            "--shard-samples",
            SHARD_SAMPLES,
            "--workers",
            workers,
        ]
        return [sys.executable, "-m", "cli", *map(str, arguments), *more]

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    def undisturbed(self, command: list[str]) -> None:
        """Run an ingest to its end."""
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    def compare(self, what: str) -> None:
        """Hold the target to the expected bytes, and remove it."""
        found = digests(self.target)
        self.expected = self.expected or found
        assert found == self.expected, f"{what}: the set differs"
        shutil.rmtree(self.target)

    def worker_of(self, process: int) -> int | None:
        """One of the workers of an ingest; None where it has none."""
        found = cluster.workers_of(process)
        return self.draw.choice(found) if found else None

    def killed(self, command: list[str], victim: Callable[[int], int | None]) -> str:
        """Run a command and kill what `victim` says at a random moment; when that was. Raises where it fails otherwise.

        The moment: some time after so many shards were finished. Where nothing was left to be killed: once more.
        """
        for _ in range(TRIES):
            process = self.start(command)
            wanted = self.draw.randint(0, self.shards)
            while standing(self.target)[0] < wanted and process.poll() is None:
                time.sleep(0.002)
            time.sleep(self.draw.uniform(0, EARLY if wanted == 0 else SOON))
            chosen = victim(process.pid) if process.poll() is None else None
            when = standing(self.target)[1]
            if chosen is not None:
                with suppress(ProcessLookupError):
                    os.kill(chosen, signal.SIGKILL)
            _, said = process.communicate(timeout=300)
            if process.returncode == -signal.SIGKILL and chosen == process.pid:
                return when
            assert process.returncode == 0, said.decode()
            if chosen is not None and chosen != process.pid:
                return when
            if self.target.exists():
                self.compare("left alone")
        raise AssertionError(f"nothing could be killed in {TRIES} runs")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def standing(target: Path) -> tuple[int, str]:
    """How many shards are finished, and how far a run has come in words."""
    if (target / "dataset.json").exists():
        return 1 << 30, "committed"
    finished = len(list(target.glob(".partial/*-*.json")))
    return finished, f"{finished} shards finished" if target.exists() else "not begun"


def main(kills: dict[str, int] | None = None) -> dict[str, Any]:
    """All kinds of kills, one after another; every set is held to the undisturbed one."""
    kills = kills or KILLS
    moments: dict[str, list[str]] = {kind: [] for kind in kills}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for kind, count in kills.items():
            KINDS[kind](bench, count, moments[kind])
        files = len(bench.expected)
    return {
        "outcome": f"{sum(map(len, moments.values()))} kills: every set byte-identical to the undisturbed one",
        "n": sum(map(len, moments.values())),
        "kills": {kind: len(own) for kind, own in moments.items()},
        "patches": PATCHES,
        "files": files,
        "moments": {kind: dict(Counter(own).most_common()) for kind, own in moments.items()},
    }


def _whole(source: Callable[[Bench], Path]) -> Callable[[Bench, int, list[str]], None]:
    def run(bench: Bench, count: int, moments: list[str]) -> None:
        for number in range(count):
            command = bench.command(source(bench), 1 + number % 2)
            moments.append(bench.killed(command, lambda process: process))
            if number % IN_A_ROW == 0 or number == count - 1:
                bench.undisturbed(command)
                bench.compare(f"killed with {moments[-1]}")

    return run


def _worker(bench: Bench, count: int, moments: list[str]) -> None:
    for _ in range(count):
        moments.append(bench.killed(bench.command(bench.archive, 2), bench.worker_of))
        bench.compare(f"a worker killed with {moments[-1]}")


def _dask_worker(bench: Bench, count: int, moments: list[str]) -> None:
    with cluster.running(bench.folder / "dask", workers=2, nannies=True) as running:
        command = bench.command(bench.archive, 1, "--scheduler", running.address)
        for _ in range(count):
            moments.append(bench.killed(command, lambda _: running.worker(bench.draw.randrange(2))))
            bench.compare(f"a Dask worker killed with {moments[-1]}")


def _on_dask(bench: Bench, count: int, moments: list[str]) -> None:
    with cluster.running(bench.folder / "dask", workers=2, nannies=True) as running:
        command = bench.command(bench.archive, 1, "--scheduler", running.address)
        for _ in range(count):
            moments.append(bench.killed(command, lambda process: process))
            bench.undisturbed(command)
            bench.compare(f"an ingest on Dask killed with {moments[-1]}")


KINDS: dict[str, Callable[[Bench, int, list[str]], None]] = {
    "ingest": _whole(lambda bench: bench.archive),
    "ingest of a .tar.zst": _whole(lambda bench: bench.packed),
    "worker": _worker,
    "Dask worker": _dask_worker,
    "ingest on Dask": _on_dask,
}
