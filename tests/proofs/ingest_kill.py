"""Ingest, killed by SIGKILL at ten random moments and run again, leaves the same bytes as an undisturbed run."""

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PATCHES, SHARD_SAMPLES, KILLS, SEED = 600, 32, 10, 0


def command(archive: Path, target: Path, workers: int) -> list[str]:
    arguments = ["ingest", "bigearthnet", archive, target, "--shard-samples", SHARD_SAMPLES, "--workers", workers]
    return [sys.executable, "-m", "cli", *map(str, arguments)]


def undisturbed(archive: Path, target: Path, workers: int) -> float:
    """Run an ingest to its end; its seconds."""
    begin = time.perf_counter()
    subprocess.run(command(archive, target, workers), cwd=REPOSITORY, check=True, capture_output=True)
    return time.perf_counter() - begin


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def state(target: Path) -> str:
    """How far a killed run had come."""
    if (target / "dataset.json").exists():
        return "committed"
    finished = len(list(target.glob(".partial/*-*.json")))
    temporary = len(list(target.glob(".*.tmp")))
    return f"{finished} shards finished, {temporary} temporary files" if target.exists() else "not begun"


def main() -> dict[str, Any]:
    """Ten sets, each killed once at its own random moment; and one set killed ten times in a row."""
    draw = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        archive, target = Path(folder) / "archive", Path(folder) / "set"
        synth = [sys.executable, "-m", "cli", "synth", str(archive), "--patches", str(PATCHES), "--seed", str(SEED)]
        subprocess.run(synth, cwd=REPOSITORY, check=True, capture_output=True)
        seconds = {workers: undisturbed(archive, Path(folder) / f"calm{workers}", workers) for workers in (1, 2)}
        expected = digests(Path(folder) / "calm1")
        assert digests(Path(folder) / "calm2") == expected, "one and two workers leave different bytes"
        kills = []
        for in_a_row in (False, True):
            for number in range(KILLS):
                workers = 1 + number % 2
                after = draw.uniform(0.2, 1.0) * seconds[workers]
                process = subprocess.Popen(
                    command(archive, target, workers),
                    cwd=REPOSITORY,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                time.sleep(after)
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills.append({"workers": workers, "after_s": round(after, 3), "state": state(target), "row": in_a_row})
                if not in_a_row or number == KILLS - 1:
                    undisturbed(archive, target, workers)
                    assert digests(target) == expected, f"after {kills[-1]} the set differs"
                    shutil.rmtree(target)
    return {
        "outcome": f"{KILLS} kills, each followed by a rerun, and {KILLS} kills in a row: all sets byte-identical",
        "n": len(kills),
        "patches": PATCHES,
        "files": len(expected),
        "undisturbed_s": {str(workers): round(value, 2) for workers, value in seconds.items()},
        "kills": kills,
    }
