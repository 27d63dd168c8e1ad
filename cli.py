"""The `bandstream` command: mounts each room's commands lazily, so that `--help` imports nothing heavy."""

import importlib
import os
import sys

import click

COMMANDS = {
    "synth": ("ingest.synthetic.command:synth", "Make up a Sentinel-2 archive in BigEarthNet v2's layout."),
    "ingest": ("ingest.commands:ingest", "Convert an archive into a shard set."),
    "plan": ("ingest.planning.commands:plan", "What an ingest will take: shards, bytes, hours."),
    "verify": ("ingest.checking.commands:verify", "Check every byte of a shard set against its manifest."),
    "info": ("ingest.checking.commands:info", "What is in a shard set."),
    "audit": ("ingest.checking.commands:audit", "Find duplicates, and leakage between splits."),
    "preview": ("evaluation.commands.preview:preview", "Draw a contact sheet of patches."),
    "train": ("train:main", "Pretrain an encoder on a shard set without labels."),
    "finetune": ("finetune:main", "Fine-tune for classification or segmentation with few labels."),
    "evaluate": ("evaluation.commands.evaluate:evaluate", "Evaluate an encoder: probes, clusters, retrieval, OOD."),
    "embed": ("evaluation.commands.embed:embed", "Write the embeddings of a shard set to Zarr and Parquet."),
    "push": ("models.commands:push", "Give an encoder away: to the Hugging Face Hub, or to a folder."),
    "compare": ("compare:main", "Encoders by protocols, label fractions and seeds: tables and a report."),
    "report": ("evaluation.commands.report:report", "Write runs and their comparison as one HTML page."),
    "bench": ("bench.commands:bench", "Measure a stage beside what users would otherwise run."),
    "demo": ("demo:main", "All stages on a made-up archive, in minutes, without a GPU."),
}


class LazyGroup(click.Group):
    """A click group that imports a command's module when the command is called, not when its name is listed."""

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


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bandstream", prog_name="bandstream")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def bandstream(debug: bool) -> None:
    """Sentinel-2 archives in, self-supervised encoders out."""


def run(command: click.Command) -> None:
    """Run a command: errors are one line, exit 2 for wrong usage and 1 for failed work."""
    from shards.errors import BandstreamError

    try:
        command(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (BandstreamError, OSError) as error:
        if "--debug" in sys.argv[1:2]:
            raise
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(getattr(error, "exit_code", 1))


def main() -> None:
    """Entry point of the `bandstream` script."""
    run(bandstream)


if __name__ == "__main__":
    main()
