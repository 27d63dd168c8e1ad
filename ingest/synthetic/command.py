"""The command `bandstream synth`."""

from pathlib import Path

import click


@click.command()
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--patches", type=click.IntRange(1), required=True, help="How many patches.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same bytes.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes  [default: one a core]")
def synth(dst: Path, patches: int, seed: int, workers: int | None) -> None:
    """Make up a Sentinel-2 archive DST in the layout of BigEarthNet version 2.

    Land-cover mosaics with the textures, seasons, light and noise of the real one, its file formats, names, reference
    maps and metadata.parquet: for trying things out, for tests and for benches.
    """
    from time import perf_counter

    from ingest.synthetic.archive import make_archive

    start = perf_counter()
    make_archive(dst, patches, seed, workers)
    seconds = perf_counter() - start
    click.echo(f"{dst}: {patches:,} patches in {seconds:.1f} s, {patches / seconds:,.0f} patches/s")
