"""Encoders side by side: every way to come by one, on every protocol, at every label fraction, with several seeds.

    bandstream compare SPEC.toml --out DIR                 run what is not finished; tables and a report at the end
    bandstream compare SPEC.toml --out DIR --dry-run       list the runs, and which of them are finished
    bandstream compare SPEC.toml --out DIR --shards DST    on another set than its own (--set NAME=DST: its others)

A spec says (evaluation/comparison/spec.py; examples in recipes/compare):

    title = "Few labels"
    shards = "DST"
    seeds = [0, 1, 2]                        # of fine-tuning and probes: the labelled subset, the head, the order
    label_fractions = [0.01, 0.1, 1.0]
    baseline = "scratch"                     # whom paired differences are to

    [encoders.scratch]                       # random weights
    encoder = "resnet18"
    [encoders.simclr]                        # train.py by a recipe; axes: all combinations; variants: one at a time
    pretrain = "recipes/simclr-resnet18.toml"
    axes = { "objective.temperature" = [0.07, 0.5] }
    variants = { "no jitter" = { "view.jitter" = 0 } }
    [encoders.supervised]                    # finetune.py from scratch, on other labels
    supervised = "recipes/cerradata-supervised.toml"
    [encoders.theirs]                        # a run that exists, or user/name of the Hub
    run = "RUNS/x"

    [protocols.finetune]
    finetune = "recipes/cerradata-segment.toml"
    [protocols.linear]
    evaluate = "linear"                      # knn, cluster, retrieval, map, ood
    options = { features = "stages" }        # those of evaluate: labels, bands = ["B04", ...], view_size = 64, ...

Paths are relative to the working directory, recipes to the spec's folder first. Every run is the command that one would
type, with the same numbers, but all are in this process. The same command again, after a kill at any moment, runs what
is missing; encoders, protocols, values, label fractions and seeds may be added to the spec, nothing else may change. A
run that fails is told and left out, the rest goes on, and the exit code is 1.

DIR holds spec.json (the spec, resolved), encoders/, runs/, comparison.json, tables/*.csv, figures/ and report.html.
"""

import gc
import io
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from cli import run


@click.command()
@click.argument("spec_file", metavar="SPEC.toml", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of all of it.")
@click.option("--shards", help="A folder or URL, instead of the spec's.")
@click.option("--set", "sets", multiple=True, metavar="NAME=SHARDS", help="Where a set lies that the spec speaks of.")
@click.option("--dry-run", is_flag=True, help="List the runs and what is finished; nothing is written.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [default: all]")
def main(spec_file: Path, out: Path, shards: str | None, sets: tuple[str, ...], dry_run: bool, device: str,
         threads: int | None) -> None:  # fmt: skip
    """Pretrain, fine-tune and evaluate what SPEC.toml says, and write tables and a report of it."""
    from evaluation.comparison.spec import read_spec

    if wrong := [given for given in sets if not all(given.partition("="))]:
        raise click.UsageError(f"--set {wrong[0]}: say NAME=SHARDS")
    named = dict(given.split("=", 1) for given in sets)
    spec = read_spec(spec_file, shards, named)  # before torch is imported, which takes its time

    import torch

    from evaluation.comparison.grid import expand
    from evaluation.comparison.record import check, described, is_finished, remembered
    from shards.errors import BandstreamError
    from training.distributed import alone

    if threads:
        torch.set_num_threads(threads)
    grid = expand(spec, spec_file)
    wanted = described(spec, grid)
    check(out, wanted)
    if dry_run:
        for cell in grid.cells:
            click.echo(f"{'finished' if is_finished(out, cell) else 'to do':<10}{cell.told} → {out / cell.folder}")
        click.echo(f"{sum(is_finished(out, cell) for cell in grid.cells)} of {len(grid.cells)} runs are finished")
        return
    place = alone("a comparison", device)
    with remembered(out, wanted):
        failed = run_cells(spec, grid, out, place, threads)
        told = conclude(spec, grid, out, failed)
    if failed:
        raise BandstreamError(
            f"{len(failed)} of {len(grid.cells)} runs failed, the first: {failed[0]['cell']}: {failed[0]['error']}; "
            "the same command tries them again"
        )
    click.echo(told)


def run_cells(spec: Any, grid: Any, out: Path, place: Any, threads: int | None) -> list[dict[str, str]]:
    """Run what is not finished, a line each; returns what failed, and why."""
    import torch

    from evaluation.comparison.record import clear, is_finished
    from shards.errors import BandstreamError

    failed: dict[Path, dict[str, str]] = {}
    before = sum(is_finished(out, cell) for cell in grid.cells)
    click.echo(f"{len(grid.cells)} runs, {before} of them finished → {out}")
    for number, cell in enumerate(grid.cells, 1):
        if cell.needs in failed:
            failed[cell.folder] = {"cell": cell.told, "error": f"{cell.needs} failed, which it needs"}
            continue
        if is_finished(out, cell):
            continue
        told = f"[{number}/{len(grid.cells)}] {cell.told}"
        if cell.protocol is None:  # which may take days
            click.echo(f"{told} …")
        began = time.perf_counter()
        clear(out, cell)
        try:
            with redirect_stdout(io.StringIO()):
                found = run_cell(cell, spec, out, place, threads)
        except Exception as error:  # of DALI, CUDA or timm, too: what else was asked for is not lost for it
            why = " ".join(str(error).split())
            if not isinstance(error, (BandstreamError, OSError, torch.OutOfMemoryError)):
                where = traceback.extract_tb(error.__traceback__)[-1]
                why = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}: {why}"
            failed[cell.folder] = {"cell": cell.told, "error": why}
            click.echo(f"{told}: failed: {why}", err=True)
        else:
            click.echo(f"{told}: {found} ({time.perf_counter() - began:.0f} s)")
        gc.collect()  # graphs of DALI, and what an error held on to: the next run has the whole device
        if place.device.type == "cuda":
            torch.cuda.empty_cache()
    return list(failed.values())


def run_cell(cell: Any, spec: Any, out: Path, place: Any, threads: int | None) -> str:
    """One run, as the command for it would do it, in its folder; what it found, in words. Raises BandstreamError."""
    from evaluation.commands.evaluate import run_evaluation
    from evaluation.settings import Settings
    from finetune import finetune
    from shards.shardset import ShardSet
    from train import pretrain

    encoder, protocol, folder = cell.encoder, cell.protocol, out / cell.folder
    scratch = encoder.how == "scratch"
    init = str(out / cell.needs) if cell.needs else encoder.source

    # -- an encoder ----------------------------------------------------------------------------------------------------
    if protocol is None:
        recipe = encoder.recipe.model_copy(update={"seed": cell.seed} if encoder.every_seed else {})
        if encoder.how == "supervised":
            results = finetune(encoder.shards, folder, "scratch", recipe, place.device, threads)
            return told_score(results)
        pretrain(encoder.shards, folder, recipe, place, resume=True, threads=threads)
        return "done"

    # -- a protocol on one ---------------------------------------------------------------------------------------------
    seeded: dict[str, Any] = {"seed": cell.seed, "label_fraction": cell.label_fraction}
    options = protocol.options.model_dump(exclude={"features"})
    if scratch:  # random weights were trained with nobody's statistics
        seeded["normalise"] = options["normalise"] = "set"
    if protocol.evaluate is None:
        architecture = {"encoder": encoder.source} if scratch and encoder.source else {}
        recipe = protocol.recipe.model_copy(update=seeded | architecture)
        results = finetune(spec.shards, folder, "scratch" if scratch else init, recipe, place.device, threads)
        return told_score(results)
    subject = f"random:{init}" if scratch and not protocol.of else str(init)
    asked = Settings(
        ShardSet.open(spec.shards), encoder=subject, protocol=protocol.evaluate, level=protocol.options.features,
        device=place.device, threads=threads, **options | {k: v for k, v in seeded.items() if k != "normalise"},
    )  # fmt: skip
    return told_score(run_evaluation(asked, folder))


def told_score(results: dict[str, Any]) -> str:
    if "ood" in results:
        return "AUROC " + ", ".join(f"{name} {found['auroc']:.3f}" for name, found in results["ood"].items())
    return f"{results['score']} {results['test'][results['score']]:.3f}"


def conclude(spec: Any, grid: Any, out: Path, failed: list[dict[str, str]]) -> str:
    """Write comparison.json, the tables, figures and the report; returns what there is to say of them."""
    from evaluation.comparison.files import write_tables
    from evaluation.comparison.table import FILE, compare_runs
    from evaluation.report.comparison.figures import write_figures
    from evaluation.report.page import write_report
    from shards import atomic

    compared = compare_runs(spec.title, spec.baseline, grid, out, failed)
    atomic.write_json(out / FILE, compared)
    write_tables(out, compared)
    if compared["rows"]:
        write_figures(out)
        write_report([out], out / "report.html", spec.title)
    return f"{len(compared['rows'])} rows in {out / FILE} and {out / 'tables'}; the report: {out / 'report.html'}"


if __name__ == "__main__":
    run(main)
