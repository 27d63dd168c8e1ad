"""Where the time of reading and of a pair of views goes on a CPU, beside what memory alone would take.

    python -m bench.profile SHARDS --json results/bench/profile.json

Reading is taken apart into what every reader does that gives out bytes: touch each, copy each once, have each copied by
the kernel. Of the view graph there are graphs that stop after each step, the bytes of one batch handed in from memory:
what a step takes is the difference to the one before it.
"""

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np

from cli import run
from pipeline.views import ViewRecipe

BATCH = 64
WHAT = (
    "microseconds a sample, shards in the page cache. read: the bytes of all bands, shuffled over the split, every one "
    "summed by one thread, read by all cores. views: a pair of all bands, float32, of a random resized crop, flips, "
    "gains, standardisation; its limit is one copy of what comes in and of what goes out, by all cores"
)


@click.command()
@click.argument("shards", type=click.Path(path_type=Path, exists=True))
@click.option("--view-size", type=click.IntRange(8), default=112, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Turns of each step.")
@click.option("--seconds", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Length of a turn.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where to write the record.")
def main(shards: Path, view_size: int, repeats: int, seconds: float, output: Path | None) -> None:
    """Profile reader and view graph on the train split of SHARDS."""
    from bench.measure import machine, summary, warm
    from shards import atomic

    steps = _reading(shards) | _views(shards, view_size)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        warm(shards)
        for name, once in steps.items():
            found[name].append(_timed(once, seconds))
    record: dict[str, Any] = {
        "bench": "profile",
        "what": WHAT,
        "batch_size": BATCH,
        "view_size": view_size,
        "cores": len(os.sched_getaffinity(0)),
        "steps": {
            name: {"wall_us": summary([wall for wall, _ in each]), "cpu_us": summary([cpu for _, cpu in each])}
            for name, each in found.items()
        },
        "machine": machine(("bandstream", "nvidia-dali-cuda130", "numpy")),
    }
    for name, own in record["steps"].items():
        click.echo(f"{name:<56}{own['wall_us']['median']:>8.1f} us{own['cpu_us']['median']:>8.1f} us of CPU")
    if output:
        atomic.write_json(output, record)


def _timed(once: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Wall and CPU microseconds a sample."""
    for _ in range(4):
        once()
    batches, cpu, begin = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        once()
        batches += 1
    samples = batches * BATCH
    return (time.perf_counter() - begin) / samples * 1e6, (time.process_time() - cpu) / samples * 1e6


def _reading(shards: Path) -> dict[str, Callable[[], Any]]:
    """Name → one batch, summed."""
    from bench.loaders.__main__ import consumed
    from bench.loaders.bandstream import Bandstream
    from pipeline.order import Order
    from shards.shardset import ShardSet

    shard_set = ShardSet.open(shards)
    threads = len(os.sched_getaffinity(0))
    prefix = max(shard_set.layout[name].end for name in shard_set.manifest.arrays)
    order = Order(shard_set.size("train"), BATCH, 0, training=True)
    batches = [shard_set.locate("train", order.batch(0, start)) for start in order.starts()]
    files = [path.open("rb") for path in shard_set.paths("train")]
    memory = [np.frombuffer(path.read_bytes(), np.uint8) for path in shard_set.paths("train")]
    buffer = np.empty((BATCH, prefix), np.uint8)
    pool, turn = ThreadPoolExecutor(threads), itertools.cycle(batches)
    served = Bandstream(shards, BATCH, ViewRecipe(), threads).read()

    def gathered(one: Callable[[int, int, int], Any]) -> float:
        found, offsets = next(turn)
        rows = [*zip(range(BATCH), found.tolist(), offsets.tolist(), strict=True)]
        list(pool.map(lambda part: [one(*row) for row in part], [rows[number::threads] for number in range(threads)]))
        return consumed(buffer)

    def copied(row: int, shard: int, offset: int) -> None:
        np.copyto(buffer[row], memory[shard][offset : offset + prefix])

    def read(row: int, shard: int, offset: int) -> None:
        os.preadv(files[shard].fileno(), [buffer[row]], offset)

    return {
        "read: one batch summed, over and over": lambda: consumed(buffer),
        "read: copied from memory, then summed": lambda: gathered(copied),
        "read: pread into one buffer, then summed": lambda: gathered(read),
        "read: the reader, ahead of the sum": lambda: consumed(next(served)[1][0]),
    }


def _views(shards: Path, view_size: int) -> dict[str, Callable[[], Any]]:
    """Name → a batch through all steps up to this one."""
    from nvidia.dali import fn, pipeline_def, types

    from bench.loader import recipe_of
    from pipeline import augmentations as augment
    from pipeline.graph import sliced
    from pipeline.loader import Loader

    recipe = recipe_of(view_size)
    loader = Loader(shards, "train", BATCH, [recipe] * 2)
    indices = np.arange(BATCH)
    raw = np.empty((BATCH, loader._reader.prefix), np.uint8)
    loader._reader.read(indices, raw)
    given = loader._graph.inputs(raw, loader.draws(indices))
    graph, threads = loader._graph, len(os.sched_getaffinity(0))
    size = graph.size(recipe)

    def define(last: int) -> tuple[Any, ...]:
        samples, *drawn = fn.external_source(source=lambda: given, num_outputs=len(given), batch=True)
        if last == 0:
            return (samples, *drawn)
        arrays = [sliced(samples, [p.at], p.dtype, p.shape) for p in graph.planes[0]]
        if last > 1:
            arrays = [augment.interleaved(array) for array in arrays]
        if last < 3:
            return (*arrays, *drawn)
        outputs = []
        inputs = iter(drawn)
        for names in graph.names:
            own = {name: next(inputs) for name in names}
            views = [augment.resampled_crop(array, own["start"], own["end"], size, types.UINT16) for array in arrays]
            if last > 3:
                views = [graph.in_order(views)]
            if last > 4:
                views = [augment.standardise(views[0], own["shift"], own["divisor"])]
            outputs += [*views, own["shift"], own["divisor"]]
        return tuple(outputs)

    def once(last: int) -> Callable[[], Any]:
        pipe = pipeline_def(
            define, batch_size=BATCH, num_threads=threads, device_id=None, enable_conditionals=False,
            prefetch_queue_depth=2,
        )(last)  # fmt: skip
        pipe.build()
        run_once: Callable[[], Any] = pipe.run
        return run_once

    names = (
        "bytes and draws handed in", "arrays sliced out", "bands interleaved", "two crops resampled, planes again",
        "bands in order", "standardised, float32",
    )  # fmt: skip
    pool = ThreadPoolExecutor(threads)
    views = np.ones((2, BATCH, len(loader.bands), *size), np.float32)
    copies: list[tuple[np.ndarray, np.ndarray]] = [
        (raw, np.empty_like(raw)),
        *((view, np.empty_like(view)) for view in views),
    ]

    def copied() -> None:
        parts = [
            (target, source)
            for whole, copy in copies
            for source, target in zip(np.array_split(whole, threads), np.array_split(copy, threads), strict=True)
        ]
        list(pool.map(lambda part: np.copyto(*part), parts))

    return {f"views: {name}": once(last) for last, name in enumerate(names)} | {"views: limit": copied}


if __name__ == "__main__":
    run(main)
