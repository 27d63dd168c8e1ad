"""Ingest at 1,000 and at 50,000 patches: CPU seconds a patch are the same; folder and `.tar.zst` give the same bytes.

    python -m tests.proofs ingest_size        about twelve minutes; 10 GB of memory, 16 GB of disk

What a run pays once (imports, the look at the first patches, the catalogue) is what a run of 100 patches costs: a patch
costs what a run takes beyond that, over the patches beyond those. In a round the small sizes are run in turns for as
long as the large one takes after them, so that whatever else a machine does (shared caches, shared cores) meets them
alike; the median of the rounds' ratios counts. The archives lie in memory, the 50,000 patches as hard links to the
1,000, under names of their own, that they fit.
"""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.ingest import pack
from bench.measure import process, summary
from tests.proofs.ingest_kill import digests

REPOSITORY = Path(__file__).parents[2]
ONCE, *SIZES = 100, 1000, 50_000
LINKED = SIZES[1] // SIZES[0]
ROUNDS, TURNS = 4, 20
"""Rounds from the folder, and turns of each small size in one; from `.tar.zst` each size is run once."""
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


def rounds(runs: list[dict[str, float]]) -> list[float]:
    """CPU seconds of a run, mean over each round."""
    each = len(runs) // ROUNDS
    return [mean([run["cpu_s"] for run in runs[n * each : (n + 1) * each]]) for n in range(ROUNDS)]


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
            for patches in [ONCE, SIZES[0]] * TURNS + [SIZES[1]]:
                run(patches, "folder", archives[patches], Path(scratch) / "set")
            print([summary([run["cpu_s"] for run in own["folder"]]) for own in runs.values()], file=sys.stderr)
        for patches, archive in archives.items():
            tar = packed(archive)
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
    cost = {patches: rounds(runs[patches]["folder"]) for patches in runs}
    marginal = {
        patches: [(own - once) / (patches - ONCE) * 1e6 for own, once in zip(cost[patches], cost[ONCE], strict=True)]
        for patches in SIZES
    }
    ratio = summary([large / small - 1 for small, large in zip(*marginal.values(), strict=True)])
    more = ratio["median"]
    assert abs(more) <= WITHIN, f"{more:+.1%} CPU a patch at {SIZES[1]:,} patches: {marginal}"
    return {
        "outcome": f"folder and .tar.zst give the same bytes; a patch takes {more:+.1%} CPU at {SIZES[1]:,} patches "
        f"against {SIZES[0]:,}, what a run pays once apart",
        "cpu_us_a_patch": {patches: summary(each) for patches, each in marginal.items()},
        "more_at_the_larger": ratio,
        "archives": f"in memory; {SIZES[1]:,} patches are {LINKED} hard links to each of {SIZES[0]:,}",
        "sizes": found,
    }
