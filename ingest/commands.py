"""`bandstream ingest`: a subcommand for each file in `ingest/sources/`."""

import functools
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Sources(click.Group):
    """A group whose commands are the modules of `ingest.sources`, each with a `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from ingest import sources

        return sorted(module.name for module in pkgutil.iter_modules(sources.__path__))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"ingest.sources.{name}").command
        return command


@click.group(cls=Sources)
def ingest() -> None:
    """Convert an archive into a shard set."""


OPTIONS = [
    click.option("--name", default="", help="Name of the shard set  [default: that of the source]"),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order, and of splits."),
    click.option("--shard-samples", type=click.IntRange(1), default=1024, show_default=True, help="Samples a shard."),
    click.option(
        "--split-file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="CSV with lines PATCH,SPLIT (train, val, test), instead of the archive's own split.",
    ),
    click.option("--workers", type=click.IntRange(1), default=None, help="Processes  [default: one a core]"),
    click.option(
        "--scratch",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for what has to be unpacked on the way, and, where DST is a URL, for the set until it lies there  "
        "[default: inside DST; for a URL $TMPDIR or /var/tmp]",
    ),
    click.option(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="Dask cluster that does the work: tcp://HOST:PORT, or the scheduler's file.",
    ),
    click.option("--strict", is_flag=True, help="Stop at the first input that cannot be taken."),
]
"""What every source's command may be told."""


def source_command(make: Callable[..., Any]) -> click.Command:
    """The command `ingest NAME SRC... DST` of a source, from a function that makes the source.

    The function takes `src`, a tuple of paths, and the source's own options, which its decorators declare; its
    docstring is the command's help.
    """

    @functools.wraps(make)
    def run(src: tuple[Path, ...], dst: str, **options: Any) -> None:
        shared = {option: options.pop(option) for option in SHARED}
        recorded = {name: value for name, value in options.items() if _is_plain(value)}
        _run(make(src, **options), dst, recorded, **shared)

    for option in reversed(OPTIONS):
        run = option(run)
    run = click.argument("dst")(run)
    run = click.argument("src", type=click.Path(path_type=Path), nargs=-1, required=True)(run)
    command = click.command(epilog=URLS)(run)
    command.params.sort(key=lambda param: (param.name not in ("src", "dst"), param.name in SHARED))  # its own first
    return command


URLS = """DST may be a URL of fsspec, such as s3://BUCKET/NAME: the set is built in a folder (--scratch), sent, read
back and compared, and its manifest is written last. Endpoint and credentials of S3 are those of the environment
(AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) or of fsspec's configuration, as in
FSSPEC_S3='{"config_kwargs": {"read_timeout": 60}}', which is also how long a silent server is waited for."""


SHARED = ("name", "seed", "shard_samples", "split_file", "workers", "scratch", "strict", "scheduler")


def _is_plain(value: Any) -> bool:
    """Whether an option says what is made, and not where something lies on this machine."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value)) and len(value) > 0
    return value is not None and not isinstance(value, Path)


def _run(
    source: Any,
    dst: str,
    recorded: dict[str, Any],
    name: str,
    seed: int,
    shard_samples: int,
    split_file: Path | None,
    workers: int | None,
    scratch: Path | None,
    strict: bool,
    scheduler: str,
) -> None:
    """Ingest with a progress bar on a terminal, and say what came of it."""
    import time

    from ingest.building.build import Options, Told
    from ingest.building.plan import read_split_file
    from ingest.progress import bars
    from ingest.sending.upload import ingest as build
    from ingest.stopping import terminable

    splits = read_split_file(split_file) if split_file else None
    cores = workers or len(os.sched_getaffinity(0))
    options = Options(name, seed, shard_samples, splits, recorded, cores, strict, scratch, scheduler)
    begin = time.perf_counter()
    with terminable(), bars(sys.stderr) as progress:
        told = Told(
            lambda text: click.echo(f"warning: {text}", err=True), lambda text: click.echo(text, err=True), progress
        )
        outcome = build(source, dst, options, told)
    seconds = time.perf_counter() - begin
    manifest = outcome.manifest
    total = sum(split.samples for split in manifest.splits.values())
    splits_ = ", ".join(f"{name} {split.samples:,}" for name, split in manifest.splits.items())
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    click.echo(f"{dst}: {total:,} samples ({splits_}), {len(manifest.bands)} bands, {size / 1e6:,.1f} MB")
    if manifest.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected.items())
        click.echo(f"rejected {sum(manifest.rejected.values()):,} ({reasons}): see {dst.rstrip('/')}/rejected.jsonl")
    if outcome.processed:
        click.echo(f"{outcome.processed:,} patches in {seconds:.1f} s, {outcome.processed / seconds:,.0f} patches/s")
    if outcome.sent:
        click.echo(f"{outcome.sent:,} objects sent, all read back and compared")
    if not outcome.processed and not outcome.sent:
        click.echo("it was complete: nothing to do")
