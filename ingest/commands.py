"""The commands `ingest`, `verify`, `info` and `audit`; `ingest` has a subcommand for each file in `ingest/sources/`."""

import functools
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Folder(click.Path):
    """A folder of this machine that holds a shard set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL: copy the set to a folder and name that", param, ctx)
        return super().convert(value, param, ctx)


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
    return click.command(epilog=URLS)(run)


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

    from ingest.build import Options, Told
    from ingest.plan import read_split_file
    from ingest.progress import bars
    from ingest.stopping import terminable
    from ingest.upload import ingest as build

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


class Plans(Sources):
    """The same sources, each with a command that only says what its ingest would take. Where the first word is none of
    them, the archive is recognised, or made up where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*ctx.help_option_names, *self.list_commands(ctx)):
            args = ["", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        command = super().get_command(ctx, name or "bigearthnet")
        if command is None:
            return None
        own = _own(command) if name else []
        shared = [option for option in command.params if option.name in ESTIMATED]
        src = click.Argument(["src"], type=click.Path(path_type=Path, exists=True), nargs=-1, required=bool(name))

        def run(src: tuple[Path, ...], **options: Any) -> None:
            from ingest.recognise import recognised, source_maker

            extra = {str(option.name): options.pop(str(option.name)) for option in own}
            chosen, found = name or recognised(src), command
            if chosen and not name:
                found = super(Plans, self).get_command(ctx, chosen) or command
                words = found.make_context(f"plan {chosen}", [*map(str, src), str(options["dst"])]).params
                extra = {str(option.name): words[str(option.name)] for option in _own(found)}
            _plan(source_maker(found) if chosen else None, extra, src, **options)

        what = f"Say what `bandstream ingest {name}` of SRC would take." if name else PLAN
        return click.Command(name or "plan", params=[src, *PLANNING, *shared, *own], callback=run, help=what)


def _own(command: click.Command) -> list[click.Parameter]:
    """The options of a source alone."""
    return [option for option in command.params if option.name not in (*SHARED, "src", "dst")]


ESTIMATED = ("seed", "shard_samples", "split_file", "workers", "scratch")
"""Those of every source's options that bear on what an ingest takes."""
PLAN = "Say what an ingest of SRC would take: shards, bytes, hours."
PLANNING: list[click.Parameter] = [
    click.Option(
        ["--patches"],
        type=click.IntRange(1),
        multiple=True,
        help="Of so many patches like those of SRC, or of a made-up BigEarthNet; may be given several times.",
    ),
    click.Option(
        ["--dst"],
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(),
        help="Folder where the set would lie: its disk is measured, in a temporary folder  [default: this one]",
    ),
    click.Option(
        ["--json", "json_file"], type=click.Path(path_type=Path, dir_okay=False), help="Write all numbers there, too."
    ),
]


@click.group(cls=Plans, options_metavar="", subcommand_metavar="[SOURCE] [SRC]... [OPTIONS]")
def plan() -> None:
    """Say what an ingest will take, before it begins: shards, bytes, hours.

    \b
    bandstream plan SRC [--dst DST]          which source it is of is recognised
    bandstream plan bigearthnet SRC          or told, with the options of its ingest
    bandstream plan --patches 1000000        of so many patches of a made-up BigEarthNet

    Lists SRC, makes some hundred of its samples in a temporary folder on the disk of DST, and multiplies. Of a
    compressed archive only the beginning is unpacked.
    """


def _plan(
    make: Callable[..., Any] | None,
    options: dict[str, Any],
    src: tuple[Path, ...],
    patches: tuple[int, ...],
    dst: Path,
    json_file: Path | None,
    workers: int | None,
    shard_samples: int,
    seed: int,
    split_file: Path | None,
    scratch: Path | None,
) -> None:
    """Measure, and print what that comes to."""
    if make is None and not patches:
        raise click.UsageError("name an archive SRC, or a size with --patches")
    from ingest import outlook, trial
    from ingest.estimate import Estimate
    from ingest.plan import read_split_file
    from ingest.progress import bars
    from shards import atomic

    splits = read_split_file(split_file) if split_file else None
    cores = workers or len(os.sched_getaffinity(0))
    shared = cores, shard_samples, seed, splits, scratch
    with bars(sys.stderr) as progress:
        if make is None:
            measured = trial.measure_made_up(dst, *shared)
        else:
            measured = trial.measure(make, src, options, dst, *shared, progress)
    own = [] if make is None else [Estimate.of(measured, measured.whole, measured.cached)]
    estimates = own + [Estimate.of(measured, size) for size in patches]
    for line in outlook.report(measured, estimates, dst, scratch):
        click.echo(line)
    if json_file:
        atomic.write_json(json_file, outlook.content(measured, estimates))


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
    from ingest.progress import bars
    from ingest.repair import repair as mend
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
@click.argument("dst", type=Folder(path_type=Path))
@click.option(
    "--map",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw where the samples lie into this PNG, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
def info(dst: Path, picture: Path | None, as_json: bool) -> None:
    """Say what the shard set DST holds: splits, classes, dates, places, bands, radiometry, size, what was rejected."""
    import json

    from ingest.overview import lines, summary

    told = summary(dst)
    for line in [json.dumps(told, indent=1, ensure_ascii=False)] if as_json else lines(told):
        click.echo(line)
    if picture is not None:
        from ingest.map import draw

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
    from ingest.audit import Audit, report, write
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
