"""The commands that look at a shard set: `verify`, `info` and `audit`."""

import sys
from pathlib import Path
from typing import Any

import click


class Folder(click.Path):
    """A folder of this machine that holds a shard set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL: copy the set to a folder and name that", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("dst", type=Folder(path_type=Path))
@click.argument("src", nargs=-1, metavar="[SRC]... [-- OPTIONS]")
@click.option("--repair", is_flag=True, help="Make anew what is damaged; shards from the archive SRC.")
def verify(dst: Path, src: tuple[str, ...], repair: bool) -> None:
    """Check every byte of the shard set DST against its manifest; exit 1 where there are problems.

    With --repair, what is damaged or missing is made anew, byte for byte as it was, and what is sound is left alone:
    indexes and the catalogue from the shards, shards and the list of rejected inputs from the archive SRC that the set
    was made of. The options are those that the manifest names; those that name files, such as --metadata, are given
    again after --.
    """
    from ingest.checking.repair import repair as mend
    from ingest.progress import bars
    from ingest.stopping import terminable
    from shards.manifest import Manifest
    from shards.verify import examine

    if src and not repair:
        raise click.UsageError("SRC is what --repair makes shards from: add --repair, or leave it out")
    manifest = Manifest.read(dst)
    with bars(sys.stderr) as progress:
        problems = examine(dst, lambda done, total: progress("verify", done, total))
    for problem in problems:
        click.echo(str(problem))
    if problems and not repair:
        click.echo(f"{dst}: {len(problems)} problems", err=True)
        sys.exit(1)
    if problems:
        with terminable(), bars(sys.stderr) as progress:
            click.echo(mend(dst, src, problems, lambda text: click.echo(text, err=True), progress))
        return
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    click.echo(
        f"{dst}: {len(shards)} shards, {sum(shard.samples for shard in shards):,} samples, all as the manifest says"
    )
    if manifest.files is None:
        click.echo("an early bandstream made it: no checksums of its catalogue, list and manifest", err=True)


@click.command()
@click.argument("dst")
@click.option(
    "--map",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw where the samples lie into this PNG, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
def info(dst: str, picture: Path | None, as_json: bool) -> None:
    """Say what the shard set DST holds: splits, classes, dates, places, bands, radiometry, size, what was rejected.

    Of a URL, the manifest and the catalogue are read and no shard.
    """
    import json

    from ingest.checking.overview import lines, summary

    told = summary(dst)
    for line in [json.dumps(told, indent=1, ensure_ascii=False)] if as_json else lines(told):
        click.echo(line)
    if picture is not None:
        from ingest.checking.map import draw

        samples = draw(dst, picture)
        click.echo(f"{picture}: {samples:,} samples", err=True)


@click.command()
@click.argument("dst", type=Folder(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all pairs to this file, too: Parquet, or JSON lines where it ends in .jsonl.",
)
def audit(dst: Path, out: Path | None) -> None:
    """Find copies in the shard set DST, exact and near, and ground that splits share; exit 1 where any crosses splits.

    Exact: the same stored numbers in all arrays. Near: the same picture, but for noise, a little gain or a shift by a
    pixel. Overlaps of footprints are looked for between samples of different splits, whatever their dates.
    """
    from ingest.checking.audit import Audit
    from ingest.checking.pairs import report, write
    from ingest.progress import bars

    with bars(sys.stderr) as progress:
        opened = Audit(dst, progress)
        findings = opened.run()
    for line in report(opened, findings):
        click.echo(line)
    if out is not None:
        click.echo(f"{out}: {write(opened, findings, out):,} pairs", err=True)
    if findings.leaks:
        sys.exit(1)
