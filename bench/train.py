"""`bandstream bench train`: steps of training on the loader's batches, and on batches that stay in memory.

The second is what a GPU could do if views cost nothing; their ratio is how well it is fed. How much of the device's
arithmetic a step uses (model FLOPs utilisation, Chowdhery et al. 2022, PaLM, appendix B) is beside it.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

KEPT = 4
"""Batches that are held in memory for the replayed steps."""
SETTLING_STEPS = 5
WHAT = (
    "steps of train.py, without its bookkeeping, in turns on the loader's batches and on batches in memory; samples a "
    "second, a sample being all its views. flops_a_step: of all convolutions and matrix products of a step, forward "
    "and backward, as torch counts them (what activation checkpointing or micro-batches repeat included). utilisation: "
    "flops a second of the replayed steps over those of a large matrix product in the same precision on this device, "
    "float32 on a GPU as its convolutions compute it, in TF32. gpu_mb: memory of the GPU that was taken at the end"
)


@click.command()
@click.argument("shards")
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML of a pretraining run.")
@click.option("--method", help="simclr, moco-v2, moco-v3, byol, simsiam, vicreg.")
@click.option("--encoder", help="An smp or timm encoder, or `cnn`.")
@click.option("--batch-size", type=click.IntRange(2))
@click.option("--view-size", type=click.IntRange(8), help="Pixels.")
@click.option("--compile", is_flag=True, default=None, help="With torch.compile.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [default: all]")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Turns of each.")
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Length of a turn.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where to write the record.")
def train(
    shards: str,
    recipe_file: Path | None,
    device: str,
    threads: int | None,
    repeats: int,
    seconds: float,
    output: Path | None,
    view_size: int | None,
    **knobs: Any,
) -> None:
    """Samples a second of training on SHARDS, with real data and with batches from memory, and their ratio."""
    import torch

    from bench.measure import machine, summary
    from bench.step import TrainingStep
    from pipeline.loader import Loader
    from shards import atomic
    from shards.shardset import ShardSet
    from training.distributed import alone
    from training.recipe import Pretraining

    recipe = Pretraining.read(recipe_file, knobs | {"view.size": view_size}).resolved()
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    place = alone("this bench", device)
    shard_set = ShardSet.open(shards)
    loader = Loader(
        shard_set, "train", recipe.batch_size, recipe.views, seed=recipe.seed, device=place.device.type,
        threads=threads, bands=recipe.bands, seasons=recipe.seasons,
    )  # fmt: skip
    step = TrainingStep(recipe, len(loader.bands), place.device.type)
    served = (batch.views for _ in itertools.count() for batch in loader)
    kept = [[view.clone() for view in views] for views in itertools.islice(served, KEPT)]
    flops = _flops(step, kept[0])
    peak = _matmul_rate(place.device, step.half)
    found: dict[str, list[dict[str, float]]] = {"real data": [], "replayed": []}
    for _ in range(repeats):
        for name, views in (("real data", served), ("replayed", itertools.cycle(kept))):
            for some in itertools.islice(views, SETTLING_STEPS):
                step(some)
            waited = loader.waiting
            rate = _rate(step, views, recipe.batch_size, seconds, place.device)
            found[name].append({"samples_per_s": rate[0], "waiting": (loader.waiting - waited) / rate[1]})
            click.echo(f"{name}: {rate[0]:,.1f} samples/s", err=True)
    memory = torch.cuda.mem_get_info() if place.device.type == "cuda" else None
    served.close()
    loader.close()

    rates = {name: [run["samples_per_s"] for run in runs] for name, runs in found.items()}
    utilised = [rate / recipe.batch_size * flops / peak for rate in rates["replayed"]]
    record: dict[str, Any] = {
        "bench": "train",
        "what": WHAT,
        "recipe": recipe.model_dump(mode="json"),
        "bands": len(loader.bands),
        "device": place.device.type,
        "precision": "bfloat16" if step.half else "float32",
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "runs": {name: {"samples_per_s": summary(rates[name]), "each": runs} for name, runs in found.items()},
        "ratio": summary([real / kept for real, kept in zip(rates["real data"], rates["replayed"], strict=True)]),
        "flops_a_step": flops,
        "matmul_flops_per_s": peak,
        "utilisation": summary(utilised),
        "gpu_mb": (memory[1] - memory[0]) / 1e6 if memory else None,
        "machine": machine(("bandstream", "torch", "nvidia-dali-cuda130", "segmentation-models-pytorch", "timm")),
    }
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(output, record)
    _tell(record)


def _rate(
    step: Callable[[Any], Any], batches: Iterator[Any], batch_size: int, seconds: float, device: Any
) -> tuple[float, float]:
    """Samples a second of steps on batches, and the seconds that were measured; the device has done them all."""
    import torch

    from shards.errors import BandstreamError

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    began, steps = finished(), 0
    while steps == 0 or time.perf_counter() - began < seconds:
        loss = step(next(batches))
        steps += 1
    wall = finished() - began
    if not torch.isfinite(loss):
        raise BandstreamError(
            f"the loss after {steps} steps is {loss.item()}: the recipe diverges, its rate says nothing"
        )
    return steps * batch_size / wall, wall


def _flops(step: Callable[[Any], Any], views: Any) -> int:
    """Floating-point operations of one step, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step(views)
    total: int = counter.get_total_flops()
    return total


def _matmul_rate(device: Any, half: bool) -> float:
    """Floating-point operations a second of a large matrix product: the best of ten."""
    import torch

    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if half else None) for _ in range(2))
    precision, best = torch.get_float32_matmul_precision(), float("inf")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        _ = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    torch.set_float32_matmul_precision(precision)
    return 2 * side**3 / best


def _tell(record: dict[str, Any]) -> None:
    for name, runs in record["runs"].items():
        rate = runs["samples_per_s"]
        click.echo(f"{name:<10}{rate['median']:>10,.1f} samples/s ({rate['min']:,.1f} to {rate['max']:,.1f})")
    ratio, use = record["ratio"], record["utilisation"]
    click.echo(
        f"real data runs at {ratio['median']:.1%} of replayed ({ratio['min']:.1%} to {ratio['max']:.1%}), n = "
        f"{ratio['n']}; {use['median']:.0%} of the rate of a large {record['precision']} matrix product"
    )
