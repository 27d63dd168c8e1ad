"""`bandstream plan`: what an ingest will take; it has a subcommand for each file in `ingest/sources/`, as `ingest`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ingest.commands import SHARED, Sources

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
            from ingest.planning.recognise import recognised, source_maker

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
    from ingest.building.plan import read_split_file
    from ingest.planning import outlook, trial
    from ingest.planning.estimate import Estimate
    from ingest.progress import bars
    from ingest.stopping import terminable
    from shards import atomic

    splits = read_split_file(split_file) if split_file else None
    cores = workers or len(os.sched_getaffinity(0))
    shared = cores, shard_samples, seed, splits, scratch
    with terminable(), bars(sys.stderr) as progress:
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
