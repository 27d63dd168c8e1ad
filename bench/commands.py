"""`bandstream bench …`: a command a stage, and what reads their records; imported when called."""

import importlib

import click

COMMANDS = {
    "ingest": ("bench.ingest:ingest", "Our ingest beside rasterio + webdataset.ShardWriter on the same patches."),
    "loader": ("bench.loader:loader", "Our loader beside those of others on the same patches, read to views."),
    "train": ("bench.train:train", "Steps of training, on the loader's batches and on batches in memory."),
    "compare": ("bench.comparison:compare", "What got slower from one record to another."),
    "chart": ("bench.chart:chart", "Draw a record as bars."),
}


class Benches(click.Group):
    """Mounts the benches lazily, so that listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Benches)
def bench() -> None:
    """Measure a stage beside what users would otherwise run on the same work."""
