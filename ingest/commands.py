"""The commands `ingest`, `verify` and `info`."""

import sys
from pathlib import Path

import click


@click.group()
def ingest() -> None:
    """Convert an archive into a shard set."""


@ingest.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes  [default: one a core]")
@click.option("--shard-samples", type=click.IntRange(1), default=1024, show_default=True, help="Samples a shard.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the order, and of splits.")
@click.option(
    "--split-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV with lines PATCH,SPLIT (train, val, test), instead of the archive's own split.",
)
@click.option(
    "--metadata",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="metadata.parquet of version 2, where it does not lie in SRC; may be given several times.",
)
@click.option(
    "--maps",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Reference_Maps of version 2, where they do not lie in SRC.",
)
@click.option("--name", default="", help="Name of the shard set  [default: bigearthnet]")
@click.option("--strict", is_flag=True, help="Stop at the first input that cannot be taken.")
def bigearthnet(
    src: Path,
    dst: Path,
    workers: int | None,
    shard_samples: int,
    seed: int,
    split_file: Path | None,
    metadata: tuple[Path, ...],
    maps: Path | None,
    name: str,
    strict: bool,
) -> None:
    """Convert BigEarthNet, version 1 or 2, in the folder SRC into the shard set DST.

    Without a split in the archive or a split file, a tenth of the patches goes to val and a tenth to test, by the seed.
    A run that was interrupted goes on when it is started again.
    """
    import os

    from ingest.build import Options
    from ingest.plan import read_split_file
    from ingest.sources.bigearthnet import BigEarthNet

    source = BigEarthNet(src, metadata, maps)
    splits = read_split_file(split_file) if split_file else None
    cores = len(os.sched_getaffinity(0))
    _run(source, src, dst, Options(name, seed, shard_samples, splits, workers or cores, strict))


def _run(source, src: Path, dst: Path, options) -> None:  # type: ignore[no-untyped-def]
    """Ingest with a progress bar on a terminal, and say what came of it."""
    import time

    from ingest.build import ingest as build
    from ingest.progress import bar

    begin = time.perf_counter()
    with bar("ingest", "patches", sys.stderr) as progress:
        outcome = build(source, src, dst, options, lambda text: click.echo(f"warning: {text}", err=True), progress)
    seconds = time.perf_counter() - begin
    manifest = outcome.manifest
    total = sum(split.samples for split in manifest.splits.values())
    splits = ", ".join(f"{name} {split.samples:,}" for name, split in manifest.splits.items())
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    click.echo(f"{dst}: {total:,} samples ({splits}), {len(manifest.bands)} bands, {size / 1e6:,.1f} MB")
    if manifest.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected.items())
        click.echo(f"rejected {sum(manifest.rejected.values()):,} ({reasons}): see {dst / 'rejected.jsonl'}")
    if outcome.processed:
        click.echo(f"{outcome.processed:,} patches in {seconds:.1f} s, {outcome.processed / seconds:,.0f} patches/s")
    else:
        click.echo("it was complete: nothing to do")


@click.command()
@click.argument("dst", type=click.Path(path_type=Path))
def verify(dst: Path) -> None:
    """Check every byte of the shard set DST against its manifest; exit 1 where there are problems."""
    from shards.manifest import Manifest
    from shards.verify import verify as problems_of

    manifest = Manifest.read(dst)
    problems = problems_of(dst)
    for problem in problems:
        click.echo(problem)
    if problems:
        click.echo(f"{dst}: {len(problems)} problems", err=True)
        sys.exit(1)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    click.echo(
        f"{dst}: {len(shards)} shards, {sum(shard.samples for shard in shards):,} samples, all as the manifest says"
    )


@click.command()
@click.argument("dst", type=click.Path(path_type=Path))
def info(dst: Path) -> None:
    """Say what the shard set DST holds: splits, classes, bands, radiometry, size, what was rejected."""
    from ingest.overview import overview

    for line in overview(dst):
        click.echo(line)
