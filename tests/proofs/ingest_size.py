"""Ingest at 1,000 and at 50,000 patches: CPU seconds a patch and memory stay the same; folder and `.tar.zst` give the
same bytes.

    python -m tests.proofs ingest_size        about ten minutes, 35 GB of disk
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.ingest import IMPORTS, pack
from bench.measure import process, summary, warm
from tests.proofs.ingest_kill import digests

REPOSITORY = Path(__file__).parents[2]
SIZES = 1000, 50_000
REPEATS = {1000: 5, 50_000: 2}
WITHIN = 0.05
"""How much more CPU a patch may take at the larger size."""


def command(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "cli", "ingest", "bigearthnet", str(source), str(target), "--workers", "1"]


def main() -> dict[str, Any]:
    """Both sizes, from a folder and from a compressed tar, one core each."""
    core = sorted(os.sched_getaffinity(0))[-1]
    start_up = [sys.executable, "-c", f"import {IMPORTS['bandstream']}"]
    start = summary([process(start_up, REPOSITORY, core)["cpu_s"] for _ in range(5)])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        archive, target = folder / "archive", folder / "set"
        packed = folder / "packed" / "archive.tar.zst"
        packed.parent.mkdir()
        for patches in SIZES:
            synth = [sys.executable, "-m", "cli", "synth", str(archive), "--patches", str(patches), "--seed", "0"]
            subprocess.run(synth, cwd=REPOSITORY, check=True, capture_output=True)
            pack(archive, packed)
            runs: dict[str, list[dict[str, float]]] = {"folder": [], ".tar.zst": []}
            expected: dict[str, str] = {}
            for source, name in [(archive, "folder")] * REPEATS[patches] + [(packed, ".tar.zst")] * REPEATS[patches]:
                if name == ".tar.zst" and archive.exists():
                    shutil.rmtree(archive)
                warm(source if source.is_dir() else source.parent)
                runs[name].append(process(command(source, target), REPOSITORY, core))
                made = digests(target)
                expected = expected or made
                assert made == expected, f"{patches} patches from {name}: other bytes than from the folder"
                shutil.rmtree(target)
            found[str(patches)] = {
                name: {key: summary([run[key] for run in own]) for key in own[0]}
                | {"cpu_us_a_patch": summary([(run["cpu_s"] - start["median"]) / patches * 1e6 for run in own])}
                | {"patches_per_s": summary([patches / run["wall_s"] for run in own])}
                for name, own in runs.items()
            } | {"files": len(expected)}
    small, large = (found[str(size)]["folder"]["cpu_us_a_patch"]["median"] for size in SIZES)
    more = large / small - 1
    assert more <= WITHIN, f"{large:.0f} µs of CPU a patch at {SIZES[1]} patches, {small:.0f} at {SIZES[0]}"
    return {
        "outcome": f"folder and .tar.zst give the same bytes; a patch takes {more:+.1%} CPU at {SIZES[1]:,} patches "
        f"against {SIZES[0]:,}, start-up apart",
        "start_cpu_s": start,
        "sizes": found,
    }
