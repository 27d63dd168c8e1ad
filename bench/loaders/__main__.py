"""One loader in a process of its own.

    python -m bench.loaders bandstream|geotiff|webdataset|… DATA --batch-size 64 --view-size 112 --cores 0,1

Each line of its stdin is a phase, as JSON: {"phase": "views", "seconds": 15, "setting": {"workers": 2}}; it answers
with a line of what it measured. Phases of peers are `views` and `read`; those of ours are the methods of Bandstream.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

SETTLING_SECONDS = 1.0
"""Before the clock starts (or as long as it runs, if that is shorter): queues fill up, caches and threads get warm."""


@click.command()
@click.argument("name")
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--batch-size", type=click.IntRange(1), default=64)
@click.option("--view-size", type=click.IntRange(8), default=112)
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--cores", default=",".join(map(str, sorted(os.sched_getaffinity(0)))))
def main(name: str, data: Path, batch_size: int, view_size: int, device: str, cores: str) -> None:
    """Answer phases until stdin ends."""
    pinned = {int(core) for core in cores.split(",")}
    os.sched_setaffinity(0, pinned)  # before torch and DALI count the cores
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    torch.set_num_threads(len(pinned))
    batches = _contestant(name, data, batch_size, view_size, len(pinned), device)
    answer(answers, {"ready": name})
    for line in sys.stdin:
        told = json.loads(line)
        found = measured(batches(told["phase"], told["setting"]), told["seconds"], told["setting"])
        if device == "cuda":
            free, total = torch.cuda.mem_get_info()
            found["gpu_mb"] = (total - free) / 1e6
        answer(answers, found)


def answer(stream: TextIO, value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")


def _contestant(
    name: str, data: Path, batch_size: int, view_size: int, threads: int, device: str
) -> Callable[[str, dict[str, Any]], Iterator[tuple[int, list[Any]]]]:
    """(phase, setting) → batches; what it imports is imported here, before anything is measured."""
    from bench.loader import recipe_of
    from bench.loaders import OURS

    recipe = recipe_of(view_size)
    if name == OURS:
        from bench.loaders.bandstream import Bandstream

        ours = Bandstream(data / OURS, batch_size, recipe, threads, device)
        return lambda phase, setting: getattr(ours, phase)()
    from bench.loaders.peer import batches_of

    return batches_of(name, data, batch_size, recipe, device)


def measured(
    batches: Iterator[tuple[int, list[Any]]], seconds: float | None, setting: dict[str, Any]
) -> dict[str, float]:
    """Consume batches for so many seconds, once they flow; or, where `seconds` is None, all of them from the first.

    Workers deliver in turns: the clock is read after each has delivered as many batches as the others.
    """
    from bench.measure import cpu_seconds

    turn = max(1, setting.get("workers", 1))
    total = 0.0

    def take(count: int | None) -> int:
        nonlocal total
        samples = 0
        for number, tensors in itertools.islice(batches, count):
            samples += number
            total += sum(consumed(tensor) for tensor in tensors)
        return samples

    settled, taken = time.perf_counter() + min(SETTLING_SECONDS, seconds or 0), 0
    while seconds is not None and (taken < 2 * turn or time.perf_counter() < settled):
        take(turn)
        taken += turn
    samples, cpu, began = 0, cpu_seconds(), time.perf_counter()
    if seconds is None:
        samples = take(None)
    while samples == 0 or (seconds is not None and time.perf_counter() - began < seconds):
        found = take(turn)
        if not found:
            raise ValueError("there are no more batches")
        samples += found
    wall = time.perf_counter() - began
    used = cpu_seconds() - cpu
    if not 0 < abs(total) < float("inf"):
        raise ValueError(f"the sum of everything served is {total}")
    if hasattr(batches, "close"):
        batches.close()
    return {"samples": samples, "seconds": wall, "cpu_s": used}


def consumed(tensor: Any) -> float | int:
    """Touch every byte: the sum of a float tensor, or of the 64-bit words (modulo 2^64) of whatever else."""
    import numpy as np

    if getattr(tensor, "is_floating_point", bool)():
        import torch

        return float(tensor.sum(dtype=torch.float32))  # in halves it would overflow
    flat = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    whole = len(flat) // 8 * 8
    return int(flat[:whole].view(np.uint64).sum(dtype=np.uint64)) + int(flat[whole:].sum())


if __name__ == "__main__":
    main()
