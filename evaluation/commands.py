"""The commands of this room: `preview`, `evaluate`, `report`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

STATISTICS, RANDOM = "statistics", "random:"


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


@click.command()
@click.argument("dst")
@click.option("--encoder", required=True, metavar="RUN|random:NAME|statistics",
              help="A pretraining run; an encoder with random weights; or image statistics a band.")  # fmt: skip
@click.option("--protocol", default="linear", show_default=True, type=click.Choice(["linear", "knn"]))
@click.option("--features", "level", default="last", show_default=True, type=click.Choice(["last", "stages"]),
              help="An encoder's last map, pooled; or those of all its stages, side by side.")  # fmt: skip
@click.option("--label-fraction", default=1.0, show_default=True, help="Share of the train split's labels used.")
@click.option("--view-size", type=click.IntRange(8), help="Pixels  [default: the encoder's view; else the patch's own]")
@click.option("--normalise", default="set", show_default=True, type=click.Choice(["set", "encoder"]),
              help="Whose statistics views are standardised with.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Of the label fraction and of random weights.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [default: all]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for results.json.")
def evaluate(
    dst: str,
    encoder: str,
    protocol: str,
    level: str,
    label_fraction: float,
    view_size: int | None,
    normalise: str,
    batch_size: int,
    seed: int,
    device: str,
    threads: int | None,
    out: Path,
) -> None:
    """Probe frozen features on the labels of DST: fitted on train, chosen on val, scored once on test."""
    import torch

    from evaluation.features import extract, frozen, image_statistics
    from evaluation.fractions import labelled_subset
    from evaluation.metrics import multilabel, single_label
    from evaluation.probe import knn, linear_probe
    from evaluation.scoring import SCORE
    from models.encoder import build_encoder
    from models.export import load_encoder
    from pipeline.loader import Loader
    from pipeline.views import ViewRecipe
    from shards import atomic
    from shards.errors import BandstreamError
    from shards.shardset import ShardSet
    from training.distributed import distributed

    if out.exists() and any(out.iterdir()):
        raise BandstreamError(f"{out} is not empty: name another folder")
    began = time.perf_counter()
    if threads:
        torch.set_num_threads(threads)
    shard_set = ShardSet.open(dst)
    manifest = shard_set.manifest
    if not manifest.labels:
        raise BandstreamError(f"{dst} has no labels to probe with: ingest a set that has some")
    name, spec = next(iter(manifest.labels.items()))
    subset = labelled_subset(shard_set.labels("train", name), label_fraction, seed)

    # -- what is probed ------------------------------------------------------------------------------------------------
    statistics = None
    features: Callable[[torch.Tensor], torch.Tensor]
    with distributed(device) as place:
        if encoder == STATISTICS:
            if level == "stages":
                raise BandstreamError("image statistics have no stages: leave --features out")
            features, told = image_statistics, "image statistics"
        elif encoder.startswith(RANDOM):
            torch.manual_seed(seed)
            told = f"random {encoder.removeprefix(RANDOM)}"
            net = build_encoder(encoder.removeprefix(RANDOM), len(manifest.bands), view_size or shard_set.grid[0])
            features = frozen(net, place.device, level == "stages")
        else:
            net, info = load_encoder(encoder, manifest.band_names)
            told, view_size = f"pretrained {net.name}", view_size or info.view_size
            features = frozen(net, place.device, level == "stages")
            if normalise == "encoder":
                statistics = {band.name: (band.mean, band.std) for band in info.bands}
        if normalise == "encoder" and statistics is None:
            raise BandstreamError("--normalise encoder needs the encoder of a run: name one with --encoder")
        view = ViewRecipe.plain(view_size)
        found: dict[str, Any] = {}
        for split, chosen in (("train", subset), ("val", None), ("test", None)):
            loader = Loader(
                shard_set, split, batch_size, [view], training=False, device=place.device.type, threads=threads,
                labels=name, subset=chosen, statistics=statistics,
            )  # fmt: skip
            found[split] = extract(loader, features)
            loader.close()
    extracted = time.perf_counter() - began

    # -- the probe, and the test split once ----------------------------------------------------------------------------
    probe = linear_probe if protocol == "linear" else knn
    probed = probe(found["train"], found["val"], found["test"][0], len(spec.classes))
    score = multilabel if spec.kind == "multilabel" else single_label
    test = score(found["test"][1], probed.scores, spec.classes)
    results = {
        "stage": "evaluate", "task": "classify", "kind": spec.kind, "protocol": protocol, "encoder": told,
        "source": encoder, "label_fraction": label_fraction, "labelled_samples": len(subset), "seed": seed,
        "normalise": normalise, "view_size": view_size or shard_set.grid[0], "bands": manifest.band_names,
        "level": level, "features": int(found["train"][0].shape[1]), "classes": spec.classes, "score": SCORE[spec.kind],
        "chosen_on_val": probed.chosen, "test": test, "test_samples": shard_set.size("test"),
        "data": {"name": manifest.name, "manifest": manifest.fingerprint()},
        "seconds": {"features": extracted, "all": time.perf_counter() - began},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(out / "results.json", results)
    click.echo(
        f"{told}, {protocol}, {len(subset)} labels: test {SCORE[spec.kind]} {test[SCORE[spec.kind]]:.3f}, "
        f"macro F1 {test['macro_f1']:.3f} → {out}"
    )


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--title", default="Pretraining and fine-tuning", show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The HTML page to write.")
def report(paths: tuple[Path, ...], title: str, out: Path) -> None:
    """Write runs and their comparison as one self-contained HTML page.

    Each PATH is a run (of train, evaluate or finetune), a shard set, or a folder that holds such.
    """
    from evaluation.report import write_report

    write_report(paths, out, title)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, all in one file")
