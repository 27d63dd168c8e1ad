"""`bandstream embed`."""

from pathlib import Path

import click

from shards.bands import Fallback


@click.command()
@click.argument("dst")
@click.option("--encoder", required=True, metavar="RUN|random:NAME|statistics",
              help="A pretraining run; an encoder with random weights; or image statistics a band.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Zarr group, such as emb.zarr.")
@click.option("--splits", metavar="SPLIT,…", help="Which splits, between commas  [default: all that the set has]")
@click.option(
    "--parquet", type=click.Path(path_type=Path), help="Write all that the group holds to one Parquet file, too."
)
@click.option("--features", "level", default="last", show_default=True, type=click.Choice(["last", "stages"]),
              help="An encoder's last map, pooled; or those of all its stages, side by side.")  # fmt: skip
@click.option("--bands", metavar="BAND,…", help="Which of DST's bands, in which order  [default: all]")
@click.option("--fallback", default="none", show_default=True, type=click.Choice(["none", "wavelength", "zero"]),
              help="What stands in for bands that the encoder never saw.")  # fmt: skip
@click.option("--view-size", type=click.IntRange(8), help="Pixels  [default: the encoder's view; else the patch's own]")
@click.option("--normalise", default="set", show_default=True, type=click.Choice(["set", "encoder"]),
              help="Whose statistics views are standardised with.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random weights.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [default: all]")
def embed(
    dst: str,
    encoder: str,
    out: Path,
    splits: str | None,
    parquet: Path | None,
    level: str,
    bands: str | None,
    fallback: Fallback,
    view_size: int | None,
    normalise: str,
    batch_size: int,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Write the embeddings of DST to a Zarr group: a group a split, with keys, places, dates and labels.

    The same command goes on after a kill, with the same bytes in the end. Splits that are there are left alone; those
    that are not are added. Another encoder, another set or other views are refused.
    """
    import torch

    from evaluation.embedding import Embedding, write_parquet
    from evaluation.subject import find_subjects
    from shards.shardset import ShardSet
    from training.distributed import alone

    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    shard_set = ShardSet.open(dst)
    chosen = splits.split(",") if splits else list(shard_set.manifest.splits)
    for split in chosen:
        shard_set.size(split)
    met = shard_set.chosen_bands(bands.replace(" ", "").split(",") if bands else None)
    place = alone("embedding", device)
    found = find_subjects(
        encoder, met, shard_set.grid[0], stages=level == "stages", view_size=view_size, normalise=normalise,
        reflectance=shard_set.manifest.reflectance, seed=seed, device=place.device, fallback=fallback,
    )  # fmt: skip
    embedding = Embedding(shard_set, found.main, out, batch_size, found.view_size, found.statistics, met)
    for split in chosen:
        written = embedding.write(split, place.device.type, threads)
        click.echo(
            f"{found.main.told}, {split}: {written:,} samples embedded, {shard_set.size(split):,} in all → {out}"
        )
    if parquet:
        rows = write_parquet(out, parquet)
        click.echo(f"{parquet}: {rows:,} rows")
