"""Plans of 100,000, 1 and 10 million samples: memory and seconds a sample, what it takes to read a shard's entries;
and what the listing of BigEarthNet holds of a patch.

    python -m tests.proofs ingest_plan        about fifteen minutes, 4 GB of disk

Each plan is made in a process of its own from entries that are made up one by one, like those of BigEarthNet v2. The
listing reads real folders, whose files are hard links to one.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest.building.plan import Plan
from ingest.source import Entry, Listening

REPOSITORY = Path(__file__).parents[2]
SIZES = 100_000, 1_000_000, 10_000_000
LISTED = 20_000, 100_000
MOST_MB, MOST_BYTES_A_SAMPLE = 400.0, 40.0
"""Peak memory of the whole process with the largest plan; its slope between the two largest."""
SHARDS_READ = 20
PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
TILE_PATCHES = 8000
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


def patch_name(number: int) -> str:
    return f"{product(number)}_{number % TILE_PATCHES // 90:02d}_{number % TILE_PATCHES % 90:02d}"


def product(number: int) -> str:
    tile = number // TILE_PATCHES
    return f"S2A_MSIL2A_{20170101 + tile % 28}T{101031 + tile // 28}_N9999_R022_T33UUP"


def entries(count: int, drawn: bool) -> Iterator[Entry]:
    """As BigEarthNet lists them, in the order of names; `drawn`: without a split of their own."""
    for number in range(count):
        key, tile = patch_name(number), product(number)
        labels = {"land_cover": tuple(range(number % 19, min(number % 19 + 3, 19)))}
        split = "" if drawn else ("train", "train", "val", "test")[number % 4]
        yield Entry(key, f"{tile}/{key}", split, labels, {"country": "Austria"}, f"0:0:Reference_Maps/{tile}")


def child(what: str, count: int) -> dict[str, float]:
    """Make a plan, or list an archive, in this process: seconds, CPU microseconds a sample, peak memory."""
    base = _peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        if what == "list":
            return _list(Path(os.environ["LISTED"]), count)
        begin, cpu = time.perf_counter(), time.process_time()
        few = min(count, SIZES[0])
        for _ in entries(few, what == "drawn"):
            pass
        made_up, cpu_made_up = (
            (now - then) * count / few for now, then in ((time.perf_counter(), begin), (time.process_time(), cpu))
        )
        begin, cpu = time.perf_counter(), time.process_time()
        plan = Plan(entries(count, what == "drawn"), Path(folder) / "entries")
        seconds, cpu = time.perf_counter() - begin - made_up, time.process_time() - cpu - cpu_made_up
        peak = _peak_mb()
        assert plan.total == count and sum(plan.splits.values()) == count
        draw, reads = random.Random(0), []
        for _ in range(SHARDS_READ):
            begin = time.process_time()
            shard = plan[draw.randrange(len(plan))]
            reads.append((time.process_time() - begin) / len(shard.entries))
        return {
            "seconds": round(seconds, 2),
            "cpu_us_a_sample": round(cpu / count * 1e6, 2),
            "peak_mb": round(peak, 1),
            "before_mb": round(base, 1),
            "list_bytes_a_sample": round(plan.path.stat().st_size / count, 1),
            "read_us_a_sample": round(sorted(reads)[len(reads) // 2] * 1e6, 2),
        }


def _list(archive: Path, count: int) -> dict[str, float]:
    """The listing alone, every entry let go."""
    import pyarrow.parquet as pq

    from ingest.sources.bigearthnet import BigEarthNet

    pq.read_table(archive / "few.parquet").to_pylist()  # Arrow's threads and pools stand before it begins
    source = BigEarthNet(archive)
    with tempfile.TemporaryDirectory() as scratch:
        base, begin, cpu = _peak_mb(), time.perf_counter(), time.process_time()
        listed = sum(isinstance(item, Entry) for item in source.listing(Listening(Path(scratch))))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    assert listed == count, f"{listed} of {count} listed"
    us = round(cpu / count * 1e6, 2)
    return {
        "seconds": round(seconds, 2),
        "cpu_us_a_sample": us,
        "peak_mb": round(_peak_mb(), 1),
        "before_mb": round(base, 1),
    }


def _peak_mb() -> float:
    # ru_maxrss would begin with what the parent held when it started this process
    return int(Path("/proc/self/status").read_text().split("VmHWM:", 1)[1].split(None, 1)[0]) / 1024


def measured(what: str, count: int, **environment: str) -> dict[str, float]:
    """What `child` finds in a new process."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.proofs.ingest_plan", what, str(count)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(result.stdout)
    print(f"{what} {count:,}: {found}", file=sys.stderr)
    return found


def archive_of(folder: Path, count: int) -> None:
    """A BigEarthNet v2 of folders whose files are links to a few."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number in range(count):
        key = patch_name(number)
        patch, maps = (folder / top / product(number) / key for top in ("BigEarthNet-S2", "Reference_Maps"))
        patch.mkdir(parents=True)
        maps.mkdir(parents=True)
        if number % 4000 == 0:  # a file of ext4 has at most 65,000 links
            link = folder / f".one-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            link.write_bytes(b"II*\0")
        for band in BANDS:
            os.link(link, f"{patch}/{key}_{band}.tif")
        os.link(link, f"{maps}/{key}_reference_map.tif")
    names = ["Arable land", "Pastures", "Urban fabric"]
    rows = {
        "patch_id": [patch_name(number) for number in range(count)],
        "labels": [names[: 1 + number % 3] for number in range(count)],
        "split": [("train", "validation", "test")[number % 3] for number in range(count)],
        "country": ["Austria"] * count,
    }
    pq.write_table(pa.table(rows), folder / "metadata.parquet")
    pq.write_table(pa.table({name: values[:100] for name, values in rows.items()}), folder / "few.parquet")


def slope(found: dict[str, dict[str, float]]) -> float:
    """Bytes of peak memory that a further sample takes, between the two largest sizes."""
    (small, first), (large, second) = sorted((int(size), run["peak_mb"]) for size, run in found.items())[-2:]
    return round((second - first) * 2**20 / (large - small), 1)


def main() -> dict[str, Any]:
    """All sizes, splits given and drawn; then the listing."""
    plans = {
        what: {str(size): measured(what, size) for size in sizes}
        for what, sizes in (("given", SIZES), ("drawn", SIZES[1:]))
    }
    with tempfile.TemporaryDirectory() as folder:
        listings = {}
        for size in LISTED:
            archive = Path(folder) / str(size)
            archive_of(archive, size)
            listings[str(size)] = measured("list", size, LISTED=str(archive))
    slopes = {what: slope(found) for what, found in plans.items()} | {"listing": slope(listings)}
    largest = plans["given"][str(SIZES[-1])]
    assert largest["peak_mb"] <= MOST_MB, f"{largest['peak_mb']} MB for {SIZES[-1]:,} samples"
    assert slopes["given"] <= MOST_BYTES_A_SAMPLE, f"a sample takes {slopes['given']} bytes of memory"
    reads = [run["read_us_a_sample"] for run in plans["given"].values()]
    assert max(reads) <= 3 * min(reads), f"reading a shard's entries takes longer in a larger plan: {reads} µs a sample"
    return {
        "outcome": f"{SIZES[-1]:,} samples planned in {largest['peak_mb']:.0f} MB and {largest['seconds']:.0f} s "
        f"({largest['cpu_us_a_sample']:.1f} µs of CPU a sample); {slopes['given']:.0f} bytes a further sample, "
        f"{slopes['listing']:.0f} in BigEarthNet's listing",
        "memory_slope_bytes": slopes,
        "plans": plans,
        "listing": listings,
    }


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], int(sys.argv[2]))))
