"""`bandstream preview`."""

from pathlib import Path

import click


@click.command()
@click.argument("dst")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The PNG to write.")
@click.option("--split", default="train", show_default=True)
@click.option("--count", type=click.IntRange(1), help="Patches  [default: 12; with --views 6]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which patches are drawn.")
@click.option("--views", is_flag=True, help="Draw the views that training takes of each patch, and how they were made.")
@click.option("--recipe", type=click.Path(path_type=Path), help="TOML of a pretraining run, for --views.")
def preview(dst: str, out: Path, split: str, count: int | None, seed: int, views: bool, recipe: Path | None) -> None:
    """Draw a contact sheet of the shard set DST: true colour, near-infrared false colour, mask, labels.

    With --views: each patch with the windows of its views, then the views, as the first epoch of a training with that
    recipe takes them, in true and false colour, with all that was drawn for each in words.

    Of a URL, the shards that hold the patches are fetched.
    """
    from evaluation.pictures import contact_sheet, save_picture
    from shards.shardset import ShardSet

    if recipe and not views:
        raise click.UsageError("a recipe says how views are made: add --views, or leave --recipe out")
    shard_set = ShardSet.open(dst)
    count = min(count or (6 if views else 12), shard_set.size(split))
    told = f"{count} patches of {split}"
    if views:
        from evaluation.view_preview import views_preview
        from training.recipe import Pretraining

        made = Pretraining.read(recipe, {})
        sheet = views_preview(
            shard_set, split, count, seed, made.views, views_seed=made.seed, seasons=made.seasons, bands=made.bands
        )
        told += f", {len(made.views)} views of each"
    else:
        sheet = contact_sheet(shard_set, split, count, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(out, sheet)
    click.echo(f"{out}: {told}")
