"""The loader at 1,000 and at 200,000 samples, over 20 epochs, at 10^8 samples in order, and from 1,000 shards.

    python -m tests.proofs loader_scale      about fifteen minutes, 0.2 GB of disk, a machine that does nothing else

Large sets are one shard of 1,000 real samples under many names (hard links) with a manifest that lists them all: the
page cache serves all sizes alike, so that what differs is what the loader itself does. Each number is taken in a
process of its own, `python -m tests.proofs.loader_scale PART SET`, which prints JSON.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.measure import summary
from shards.manifest import Manifest, SplitSpec
from tests.pipeline.making import make_set

REPOSITORY = Path(__file__).parents[2]
SHARD = 1000
SIZES = (1000, 200_000)
WITHIN = 0.05
"""By how much CPU seconds a sample may differ between the sizes."""
ROUNDS, BATCH, BATCHES = 15, 64, 15
"""Turns of each set, interleaved, and the batches of a turn: 960 samples, nearly an epoch of the smallest set."""
SETTLING_SECONDS = 0.5
"""Behind a turn, until what is read ahead is read: so that each turn pays for as many batches as it serves."""
EPOCHS = 40
GROWTH = 0.05
"""By what share more the second half of the epochs may hold at most than the first, which begins with the second."""
ORDERED = 10**8
ORDER_MB = {"global": 0.3, "windows of 64 shards": 6.0}
STARTS, START_SHARDS, START_SECONDS = 5, 1000, 2.0


def linked(source: Path, folder: Path, shards: int) -> Path:
    """A shard set that has the only train shard of another so many times."""
    manifest = Manifest.read(source)
    shard = manifest.splits["train"].shards[0]
    folder.mkdir()
    specs = []
    for number in range(shards):
        specs.append(shard.model_copy(update={"file": f"train-{number:06d}.tar"}))
        os.link(source / shard.file, folder / specs[-1].file)
    split = SplitSpec(samples=shard.samples * shards, shards=specs)
    manifest.model_copy(update={"splits": {"train": split}}).write(folder)
    return folder


def recipe() -> Any:
    from pipeline.views import ViewRecipe

    return ViewRecipe(size=112, gain=0.2)


def memory_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_a_sample(*folders: Path) -> dict[str, Any]:
    """CPU µs a sample of reading and two views, and of order and reading alone, of sets served in turn."""
    from pipeline.loader import Loader
    from pipeline.order import Order, Windows
    from pipeline.reader import Reader
    from shards.shardset import ShardSet

    def views(folder: Path, window: int | None) -> Iterator[int]:
        loader = Loader(folder, "train", BATCH, [recipe()] * 2, window=window)
        while True:
            for batch in loader:
                assert batch.views[0].shape[0] == BATCH
                yield BATCH

    def read(folder: Path, window: int | None) -> Iterator[int]:
        shard_set = ShardSet.open(folder)
        sizes = [shard.samples for shard in shard_set.manifest.splits["train"].shards]
        order = Order(sum(sizes), BATCH, 0, True, windows=window and Windows(sizes, window))  # type: ignore[arg-type]
        prefix = max(shard_set.layout[name].end for name in shard_set.manifest.arrays)
        reader, epoch = Reader(shard_set, "train", prefix, len(os.sched_getaffinity(0))), 0
        while True:
            plan = (order.batch(epoch, start) for start in order.starts())
            for indices, _, done in reader.batches(plan):
                yield len(indices)
                done()
            epoch += 1

    def turn(batches: Iterator[int], count: int) -> float:
        begin = time.process_time()
        samples = sum(next(batches) for _ in range(count))
        time.sleep(SETTLING_SECONDS)
        return (time.process_time() - begin) / samples * 1e6

    found: dict[str, Any] = {}
    for name, serve, more in (("two views", views, 1), ("read", read, 20)):
        runs: dict[str, Iterator[int]] = {}
        for folder in folders:
            runs[folder.name] = serve(folder, None)
            runs[f"{folder.name}, windows of 64"] = serve(folder, 64)
        for batches in runs.values():
            turn(batches, BATCHES)
        turns: dict[str, list[float]] = {which: [] for which in runs}
        for _ in range(ROUNDS):
            for which, batches in runs.items():
                turns[which].append(turn(batches, BATCHES * more))
        found[name] = {which: summary(each) for which, each in turns.items()}
    return found


def resident_by_epoch(folder: Path, trim: bool = False) -> list[float]:
    """Resident MB behind each of the epochs; `trim`: of what is held, for free memory goes back before each look."""
    from pipeline.loader import Loader

    loader = Loader(folder, "train", BATCH, [recipe()] * 2)
    resident = []
    for _ in range(EPOCHS // 2 if trim else EPOCHS):
        for batch in loader:
            assert batch.views[0].shape[0] == BATCH
        if trim:
            ctypes.CDLL(None).malloc_trim(0)
        resident.append(round(memory_mb(), 1))
    return resident


def held_by_epoch(folder: Path) -> list[float]:
    """What the loader really holds behind each epoch, MB."""
    return resident_by_epoch(folder, trim=True)


def order_at(samples: int = ORDERED) -> dict[str, Any]:
    """Memory and time of orders of so many samples, over a thousand batches of a few epochs."""
    import numpy as np

    from pipeline.order import Order, Windows

    def made(name: str) -> Order:
        windows = None if name == "global" else Windows(np.full(samples // SHARD, SHARD), 64)
        return Order(samples, 512, 0, True, windows=windows)

    found = {}
    for name in ORDER_MB:
        made(name).batch(0, 0)
        before = memory_mb()
        tracemalloc.start()
        order = made(name)
        starts = order.starts()
        for epoch in range(3):
            for start in starts[:: len(starts) // 300]:
                order.batch(epoch, start)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        resident = memory_mb() - before
        begin = time.perf_counter()
        for start in starts[:1000]:
            order.batch(0, start)
        seconds = time.perf_counter() - begin
        found[name] = {"peak_mb": peak, "resident_grew_mb": resident, "us_a_batch_of_512": seconds / 1000 * 1e6}
    return found


def start(folder: Path) -> dict[str, float]:
    """Seconds from the call of Loader to its first batch, in a process that has imported what it needs."""
    begin = time.perf_counter()
    from pipeline.loader import Loader
    from shards.shardset import ShardSet

    imported = time.perf_counter()
    opened = ShardSet.open(folder)
    checked = time.perf_counter()
    loader = Loader(opened, "train", BATCH, [recipe()] * 2)
    built = time.perf_counter()
    batch = next(iter(loader))
    served = time.perf_counter()
    assert batch.views[0].shape[0] == BATCH
    return {
        "imports_s": imported - begin,
        "open_s": checked - imported,
        "build_s": built - checked,
        "first_batch_s": served - built,
        "start_s": served - imported,
        "resident_mb": memory_mb(),
    }


PARTS: dict[str, Callable[..., Any]] = {
    part.__name__: part for part in (cpu_a_sample, resident_by_epoch, held_by_epoch, order_at, start)
}  # fmt: skip


def apart(part: Callable[..., Any], *folders: Path) -> Any:
    """A part in a process of its own."""
    command = [sys.executable, "-m", "tests.proofs.loader_scale", part.__name__, *map(str, folders)]
    child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])


def main() -> dict[str, Any]:
    """All four parts, and the load of the machine before each."""
    load = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        one = make_set(scratch / "one", {"train": SHARD}, shard_samples=SHARD)
        sizes = [linked(one, scratch / f"{size:,}", size // SHARD) for size in SIZES]
        many = linked(one, scratch / "many", START_SHARDS)

        load["start"] = os.getloadavg()[0]
        starts = [apart(start, many) for _ in range(STARTS)]
        beside = [apart(start, sizes[0]) for _ in range(STARTS)]
        load["order"] = os.getloadavg()[0]
        order = apart(order_at)
        load["cpu"] = os.getloadavg()[0]
        cpu = apart(cpu_a_sample, *sizes)
        load["memory"] = os.getloadavg()[0]
        resident = apart(resident_by_epoch, sizes[0])
        held = apart(held_by_epoch, sizes[0])

    begins = {key: summary([each[key] for each in starts]) for key in starts[0]}
    for name, limit in ORDER_MB.items():
        assert order[name]["peak_mb"] < limit, f"order, {name}: {order[name]['peak_mb']:.1f} MB at {ORDERED:,} samples"
    # the work of a turn is the same each time: what other work on a machine adds to it is not the loader's
    small, large = (cpu["two views"][f"{size:,}"]["min"] for size in SIZES)
    more = large / small - 1
    early, late = max(resident[1 : EPOCHS // 2]), max(resident[EPOCHS // 2 :])
    outcome = {
        "outcome": f"two views take {more:+.1%} CPU a sample at {SIZES[1]:,} samples against {SIZES[0]:,}; at most "
        f"{early:.0f} MB in epochs 2 to {EPOCHS // 2}, {late:.0f} MB in epochs {EPOCHS // 2 + 1} to {EPOCHS}; "
        f"order of {ORDERED:,} samples: {order['global']['peak_mb']:.2f} MB; "
        f"{begins['start_s']['median']:.2f} s from {START_SHARDS:,} shards to the first batch",
        "cpu_us_a_sample": cpu,
        "two_views_at_200000_against_1000": more,
        "resident_mb_by_epoch": resident,
        "held_mb_by_epoch": held,
        "order": order,
        "start_1000_shards": begins,
        "start_1_shard": {key: summary([each[key] for each in beside]) for key in beside[0]},
        "load_before": load,
    }
    assert abs(more) <= WITHIN, outcome["outcome"]
    for name, (first, last) in {"resident": (early, late), "held": (max(held[1:10]), max(held[10:]))}.items():
        assert last <= first * (1 + GROWTH), f"{name}: {first} MB, then {last} MB; {outcome['outcome']}"
    assert statistics.median(each["start_s"] for each in starts) < START_SECONDS, outcome["outcome"]
    return outcome


if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](*map(Path, sys.argv[2:]))))
