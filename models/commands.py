"""`bandstream push`: give an encoder away."""

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("destination", metavar="FOLDER_OR_REPO")
@click.option("--licence", help="Of the weights: an identifier such as cc-by-4.0. It stands in the model card.")
@click.option("--private", is_flag=True, help="Where the repository is new, nobody else sees it.")
def push(run: Path, destination: str, licence: str | None, private: bool) -> None:
    """Give RUN's encoder away, with its description and model card.

    To the repository user/name on the Hugging Face Hub (HF_TOKEN says who you are, HF_ENDPOINT names another server),
    or to a folder: any path that exists or is not of the shape user/name, such as ./user/name.
    """
    from models.hub import push_encoder

    click.echo(push_encoder(run, destination, licence=licence, private=private))
