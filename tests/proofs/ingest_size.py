"""Ingest at 1,000 and at 50,000 patches: CPU seconds a patch do not grow; folder and `.tar.zst` give the same bytes.

    python -m tests.proofs ingest_size        about ten minutes; 16 GB of memory, 20 GB of disk

What a run pays once (imports, the look at the first patches, the catalogue) is what a run of 100 patches costs: a patch
costs what a run takes beyond that, over the patches beyond those.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.ingest import pack
from bench.measure import process, summary
from tests.proofs.ingest_kill import digests

REPOSITORY = Path(__file__).parents[2]
ONCE, *SIZES = 100, 1000, 50_000
REPEATS = {100: 9, 1000: 9, 50_000: 2}
MEMORY = Path("/dev/shm")
"""Where archives are made, so that not what the page cache has lost is measured: 16 GB."""
WITHIN = 0.05
"""How much more CPU a patch may take at the larger size."""


def command(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "cli", "ingest", "bigearthnet", str(source), str(target), "--workers", "1"]


def made(folder: Path, patches: int) -> tuple[Path, Path]:
    """An archive of so many patches, and the same as a `.tar.zst`."""
    archive, packed = folder / "archive", folder / "archive.tar.zst"
    shutil.rmtree(archive, ignore_errors=True)
    synth = [sys.executable, "-m", "cli", "synth", str(archive), "--patches", str(patches), "--seed", "0"]
    subprocess.run(synth, cwd=REPOSITORY, check=True, capture_output=True)
    packing = multiprocessing.get_context("spawn").Process(target=pack, args=(archive, packed))
    packing.start()  # in a process of its own, whose memory is not counted as that of what is measured
    packing.join()
    assert packing.exitcode == 0
    return archive, packed


def main() -> dict[str, Any]:
    """All sizes, from a folder and from a compressed tar, one core each."""
    core = sorted(os.sched_getaffinity(0))[-1]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=MEMORY) as memory, tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "set"
        for patches in (ONCE, *SIZES):
            archive, packed = made(Path(memory), patches)
            runs: dict[str, list[dict[str, float]]] = {"folder": [], ".tar.zst": []}
            expected: dict[str, str] = {}
            for source, name in [(archive, "folder"), (packed, ".tar.zst")] * REPEATS[patches]:
                os.sync()
                runs[name].append(process(command(source, target), REPOSITORY, core))
                found_now = digests(target)
                expected = expected or found_now
                assert found_now == expected, f"{patches} patches from {name}: other bytes than from the folder"
                shutil.rmtree(target)
            found[str(patches)] = {
                name: {key: summary([run[key] for run in own]) for key in own[0]}
                | {"patches_per_s": summary([patches / run["wall_s"] for run in own])}
                for name, own in runs.items()
            } | {"files": len(expected)}
    for name in ("folder", ".tar.zst"):
        once = found[str(ONCE)][name]["cpu_s"]["median"]
        for patches in SIZES:
            own = found[str(patches)][name]
            own["cpu_us_a_patch"] = {
                key: (own["cpu_s"][key] - once) / (patches - ONCE) * 1e6 for key in ("median", "min", "max")
            }
    small, large = (found[str(size)]["folder"]["cpu_us_a_patch"]["median"] for size in SIZES)
    more = large / small - 1
    assert more <= WITHIN, f"{large:.0f} µs of CPU a patch at {SIZES[1]} patches, {small:.0f} at {SIZES[0]}"
    return {
        "outcome": f"folder and .tar.zst give the same bytes; a patch takes {more:+.1%} CPU at {SIZES[1]:,} patches "
        f"against {SIZES[0]:,}, what a run pays once apart",
        "sizes": found,
    }
