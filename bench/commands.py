"""`bandstream bench …`: one command a stage, imported when it is called."""

import importlib

import click

STAGES = {
    "ingest": ("bench.ingest:ingest", "Our ingest beside rasterio + webdataset.ShardWriter on the same patches."),
    "loader": ("bench.loader:loader", "Our loader beside WebDataset + torch on the same shards."),
}


class Stages(click.Group):
    """Mounts the benches lazily, so that listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(STAGES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in STAGES:
            return None
        module, _, attribute = STAGES[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in STAGES.items()])


@click.group(cls=Stages)
def bench() -> None:
    """Measure a stage beside what users would otherwise run on the same work."""
