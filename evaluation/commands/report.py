"""`bandstream report`."""

from pathlib import Path

import click


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--title", default="Pretraining and fine-tuning", show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The HTML page to write.")
def report(paths: tuple[Path, ...], title: str, out: Path) -> None:
    """Write runs and their comparison as one self-contained HTML page.

    Each PATH is a run (of train, evaluate or finetune), a shard set, or a folder that holds such.
    """
    from evaluation.report.page import write_report

    write_report(paths, out, title)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, all in one file")
