"""Ingest at 1,000 and at 50,000 patches: CPU seconds a patch are the same; folder and `.tar.zst` give the same bytes.

    python -m tests.proofs ingest_size        about ten minutes; 16 GB of memory, 8 GB of disk

What a run pays once (imports, the look at the first patches, the catalogue) is what a run of 100 patches costs: a patch
costs what a run takes beyond that, over the patches beyond those. Sizes are run in turns, and the least CPU time of
each counts: the work is the same in each run, and what other work on a machine adds to it (shared caches, shared
cores) differs by more than what is asked here. Archives and sets lie in memory: what writing to a disk takes is the
kernel's, which does some of it in threads of its own, more of it the longer a run. That they fit, the 50,000 patches
are hard links to the 1,000, under names of their own.
"""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.ingest import pack
from bench.measure import process, summary
from tests.proofs.ingest_kill import digests

REPOSITORY = Path(__file__).parents[2]
ONCE, *SIZES = 100, 1000, 50_000
LINKED = SIZES[1] // SIZES[0]
ROUNDS, TURNS = 5, {100: 4, 1000: 4, 50_000: 1}
"""Turns of each size in a round, from the folder; from `.tar.zst` each size is run twice."""
MEMORY = Path("/dev/shm")
WITHIN = 0.05
"""By how much the CPU time of a patch may differ between the sizes."""


def command(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "cli", "ingest", "bigearthnet", str(source), str(target), "--workers", "1"]


def made(archive: Path, patches: int) -> None:
    synth = [sys.executable, "-m", "cli", "synth", str(archive), "--patches", str(patches), "--seed", "0"]
    subprocess.run(synth, cwd=REPOSITORY, check=True, capture_output=True)


def linked(archive: Path, target: Path, times: int) -> None:
    """An archive of `times` as many patches, hard links to those of `archive`: each has the time of day in its name."""
    for file in archive.glob("*/*/*/*.tif"):
        for number in range(times):
            link = target / renamed(str(file.relative_to(archive)), number)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(file)
    table = pq.read_table(archive / "metadata.parquet")
    column = table.schema.get_field_index("patch_id")
    parts = [
        table.set_column(
            column, "patch_id", pa.array([renamed(name, number) for name in table["patch_id"].to_pylist()])
        )
        for number in range(times)
    ]
    pq.write_table(pa.concat_tables(parts), target / "metadata.parquet")


def renamed(path: str, number: int) -> str:
    """A path, or a patch's name, with another second of the day in its time of sensing."""
    return re.sub(r"(?<=_\d{8}T)\d{6}(?=_N)", f"00{number // 60:02}{number % 60:02}", path)


def packed(archive: Path) -> Path:
    """The archive as a `.tar.zst`, in its place."""
    target = archive.with_name(f"{archive.name}.tar.zst")
    packing = multiprocessing.get_context("spawn").Process(target=pack, args=(archive, target))
    packing.start()  # in a process of its own, whose memory is not counted as that of what is measured
    packing.join()
    assert packing.exitcode == 0
    shutil.rmtree(archive)
    return target


def main() -> dict[str, Any]:
    """All sizes, from a folder and from a compressed tar, one core each."""
    core = sorted(os.sched_getaffinity(0))[-1]
    with tempfile.TemporaryDirectory(dir=MEMORY) as memory, tempfile.TemporaryDirectory() as scratch:
        archives = {patches: Path(memory) / str(patches) for patches in (ONCE, *SIZES)}
        runs: dict[int, dict[str, list[dict[str, float]]]] = {
            patches: {"folder": [], ".tar.zst": []} for patches in archives
        }
        expected: dict[int, dict[str, str]] = {}

        def run(patches: int, name: str, source: Path, target: Path) -> None:
            runs[patches][name].append(process(command(source, target), REPOSITORY, core))
            found = digests(target)
            assert found == expected.setdefault(patches, found), f"{patches} patches from {name}: other bytes"
            shutil.rmtree(target)

        for patches in (ONCE, SIZES[0]):
            made(archives[patches], patches)
        linked(archives[SIZES[0]], archives[SIZES[1]], LINKED)
        assert len(list(archives[SIZES[1]].glob("BigEarthNet-S2/*/*"))) == SIZES[1]
        for _ in range(ROUNDS):
            for patches, turns in TURNS.items():
                for _ in range(turns):
                    run(patches, "folder", archives[patches], Path(memory) / "set")
        for patches, archive in archives.items():
            tar = packed(archive)
            for _ in range(2):
                os.sync()
                run(patches, ".tar.zst", tar, Path(scratch) / "set")

    found: dict[int, Any] = {
        patches: {
            name: {key: summary([run[key] for run in own]) for key in own[0]}
            | {"patches_per_s": summary([patches / run["wall_s"] for run in own])}
            for name, own in kinds.items()
        }
        | {"files": len(expected[patches])}
        for patches, kinds in runs.items()
    }
    for name in ("folder", ".tar.zst"):
        for patches in SIZES:
            once, own = (found[size][name]["cpu_s"]["min"] for size in (ONCE, patches))
            found[patches][name]["least_cpu_us_a_patch"] = (own - once) / (patches - ONCE) * 1e6
    small, large = (found[size]["folder"]["least_cpu_us_a_patch"] for size in SIZES)
    more = large / small - 1
    assert abs(more) <= WITHIN, f"{large:.0f} µs of CPU a patch at {SIZES[1]} patches, {small:.0f} at {SIZES[0]}"
    return {
        "outcome": f"folder and .tar.zst give the same bytes; a patch takes {more:+.1%} CPU at {SIZES[1]:,} patches "
        f"against {SIZES[0]:,}, what a run pays once apart",
        "archives": f"in memory; {SIZES[1]:,} patches are {LINKED} hard links to each of {SIZES[0]:,}",
        "sizes": found,
    }
