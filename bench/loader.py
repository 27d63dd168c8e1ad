"""`bandstream bench loader`: our reader and our views beside WebDataset + torch on the same shards."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

PACKAGES = ("bandstream", "numpy", "torch", "nvidia-dali-cuda130", "webdataset")
SETTLING_SECONDS = 1.0
"""Before the clock starts: what was prefetched is used up, and the others have refilled their queues."""


@click.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs of each, interleaved.")
@click.option("--seconds", type=click.FloatRange(0.1), default=8.0, show_default=True, help="Length of a run.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--view-size", type=click.IntRange(8), default=112, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where to write the result.")
def loader(shards: Path, repeats: int, seconds: float, batch_size: int, view_size: int, output: Path | None) -> None:
    """Samples a second from the train split of SHARDS: read only, and as two views, every batch consumed."""
    import torch

    from bench import plain_loader
    from bench.measure import interleave, machine, summary, warm
    from pipeline.loader import Loader
    from pipeline.order import Order
    from pipeline.reader import Reader
    from pipeline.views import ViewRecipe
    from shards import atomic
    from shards.shardset import ShardSet

    shard_set = ShardSet.open(shards)
    manifest, paths = shard_set.manifest, shard_set.paths("train")
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    recipe = ViewRecipe(size=view_size, rotate90=0, gain=0.2)
    everything = ViewRecipe(
        size=view_size, blur=0.5, gain=0.2, offset=0.2, noise=0.1, grey=0.2, band_dropout=0.2
    )  # fmt: skip
    prefix = max(shard_set.layout[name].end for name in manifest.arrays)

    def read() -> Iterator[Any]:
        reader = Reader(shard_set, "train", prefix, threads)
        order = Order(shard_set.size("train"), batch_size, 0, training=True)
        plan = (order.batch(epoch, start) for epoch in itertools.count() for start in order.starts())
        for _, raw in reader.batches(plan):
            yield [raw]

    def views(chosen: ViewRecipe) -> Iterator[Any]:
        ours = Loader(shard_set, "train", batch_size, [chosen] * 2)
        while True:
            for batch in ours:
                yield batch.views

    def peer(chosen: ViewRecipe | None, workers: int) -> Iterator[Any]:
        return plain_loader.batches(paths, manifest, chosen, batch_size, workers)

    def measured(batches: Iterator[Any], length: float) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            warm(shards)
            settled = time.perf_counter() + SETTLING_SECONDS
            while time.perf_counter() < settled:
                next(batches)
            samples, total = 0, 0.0
            began, cpu = time.perf_counter(), _cpu_seconds()
            while samples == 0 or time.perf_counter() - began < length:
                tensors = next(batches)
                samples += len(tensors[0])
                total += sum(_consumed(tensor) for tensor in tensors)
            wall = time.perf_counter() - began
            assert total != 0
            return {"samples_per_s": samples / wall, "cpus": (_cpu_seconds() - cpu) / wall}

        return run

    # WebDataset gets its best number of workers, each tried once
    best: dict[str, int] = {}
    tried: dict[str, dict[str, float]] = {}
    for name, chosen in (("read", None), ("two views", recipe)):
        tried[name] = {}
        for workers in sorted({0, 1, threads}):
            rate = measured(peer(chosen, workers), min(seconds, 4))()["samples_per_s"]
            tried[name][f"{workers} workers"] = rate
            click.echo(f"WebDataset, {name}, {workers} workers: {rate:.0f} samples/s", err=True)
        best[name] = max(sorted({0, 1, threads}), key=lambda workers: tried[name][f"{workers} workers"])

    runs = {
        "bandstream, read": measured(read(), seconds),
        "WebDataset, read": measured(peer(None, best["read"]), seconds),
        "bandstream, two views": measured(views(recipe), seconds),
        "WebDataset + torch, two views": measured(peer(recipe, best["two views"]), seconds),
        "bandstream, two views, every augmentation": measured(views(everything), seconds),
    }
    results = interleave(runs, repeats, lambda line: click.echo(line, err=True))
    rates = {name: [run["samples_per_s"] for run in found] for name, found in results.items()}
    record = {
        "what": f"samples/s of the train split, page cache warm, batches of {batch_size}, views of {view_size} px; "
        "each array read or view summed; 'two views' is crop, flips, gains and standardisation for both",
        "samples": shard_set.size("train"),
        "bytes_a_sample": prefix,
        "repeats": repeats,
        "seconds_a_run": seconds,
        "threads": threads,
        "workers_tried": tried,
        "ratio_read": summary(_ratios(rates, "bandstream, read", "WebDataset, read")),
        "ratio_two_views": summary(_ratios(rates, "bandstream, two views", "WebDataset + torch, two views")),
        "samples_per_s": {name: summary(found) for name, found in rates.items()},
        "cpus": {name: summary([run["cpus"] for run in found]) for name, found in results.items()},
        "machine": machine(PACKAGES),
    }
    for name, told in record["samples_per_s"].items():  # type: ignore[attr-defined]
        click.echo(f"{name:45s} {told['median']:8.0f} samples/s  ({told['min']:.0f} to {told['max']:.0f})")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(output, record)


def _consumed(batch: Any) -> float:
    """Touch every byte: the sum of a float tensor, or of the 64-bit words of whatever else."""
    import numpy as np

    if getattr(batch, "is_floating_point", bool)():
        return float(batch.sum())
    return float(np.ascontiguousarray(batch).reshape(-1).view(np.uint64).sum(dtype=np.uint64))


def _cpu_seconds() -> float:
    """CPU seconds of this process and of the worker processes that have ended or still run."""
    total = sum(os.times()[:2])
    ticks = os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread, or a child, that has ended since it was listed
            for child in (task / "children").read_text().split():
                with suppress(OSError):
                    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                    total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def _ratios(rates: dict[str, list[float]], ours: str, theirs: str) -> list[float]:
    return [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
