"""Fine-tune with few labels, from scratch or from a pretrained encoder; the best model is scored once on test.

    bandstream finetune SHARDS --task classify --init RUN --label-fraction 0.05 --out RUN2
    bandstream finetune SHARDS --task segment --init scratch --label-fraction 0.05 --out RUN3

classify is multi-label or single-label as the shard set says; segment is a U-Net. The label fraction is seeded,
stratified and nested: the 1 % lies inside the 5 %. Bands are matched by name. Views are standardised with the new set's
own statistics, or with those the encoder was trained with (--normalise encoder). SHARDS may be a URL, as in train.py.

OUT holds results.json (scores, per class, confusion matrix, what was run), metrics.jsonl, best.safetensors and figures.
"""

import time
from pathlib import Path
from typing import Any

import click

from cli import run


@click.command()
@click.argument("shards")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--task", required=True, type=click.Choice(["classify", "segment"]))
@click.option("--init", required=True, help="`scratch`, or the folder of a pretraining run.")
@click.option("--freeze", default="none", show_default=True, type=click.Choice(["encoder", "none"]))
@click.option(
    "--label-fraction", default=1.0, show_default=True, help="Share of the train split whose labels are used."
)
@click.option("--normalise", default="set", show_default=True, type=click.Choice(["set", "encoder"]),
              help="Whose statistics views are standardised with.")  # fmt: skip
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML with any of the knobs.")
@click.option("--encoder", help="For --init scratch.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--view-size", type=int, help="Pixels of training [default: the patch's own].")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--patience", type=int)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--seed", type=int)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=int, help="CPU threads [default: all].")
def main(shards: str, out: Path, task: str, init: str, freeze: str, label_fraction: float, normalise: str,
         recipe_file: Path | None, device: str, threads: int | None, view_size: int | None,
         **knobs: Any) -> None:  # fmt: skip
    """Fine-tune on SHARDS, a folder or a URL of fsspec: classification or segmentation with few labels."""
    from training.distributed import distributed
    from training.recipe import FineTuning

    recipe = FineTuning.read(recipe_file, knobs | {"view.size": view_size})
    with distributed(device) as place:
        finetune(shards, out, task, init, freeze, label_fraction, normalise, recipe, place.device, threads)


def finetune(
    shards: Path | str, out: Path, task: str, init: str, freeze: str, label_fraction: float, normalise: str,
    recipe: Any, device: Any, threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train, choose on val, test once; returns what results.json holds."""
    import numpy as np
    import torch
    from safetensors.torch import save
    from torch import nn

    from evaluation.fractions import labelled_subset
    from evaluation.result_figures import draw_results
    from evaluation.scoring import SCORE, loss_of, score_model
    from models.encoder import build_encoder
    from models.export import load_encoder
    from models.heads import Classifier, Segmenter
    from pipeline.loader import Loader
    from pipeline.views import ViewRecipe
    from shards import atomic
    from shards.errors import BandstreamError
    from shards.shardset import ShardSet
    from training.monitor import Monitor
    from training.optimiser import build_optimiser, set_learning_rate
    from training.precision import in_bfloat16
    from training.schedule import warmup_cosine

    # -- what there is to learn ----------------------------------------------------------------------------------------
    if out.exists() and any(out.iterdir()):
        raise BandstreamError(f"{out} is not empty: name another folder")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    shard_set = ShardSet.open(shards)
    manifest = shard_set.manifest
    targets: dict[str, Any] = dict(manifest.masks if task == "segment" else manifest.labels)
    if not targets:
        raise BandstreamError(
            f"{shards} has no {'masks' if task == 'segment' else 'labels'}: ingest a set that has some"
        )
    name, spec = next(iter(targets.items()))
    kind = "segment" if task == "segment" else spec.kind
    served: dict[str, Any] = {"masks": name} if task == "segment" else {"labels": name}
    if manifest.labels:
        everything = shard_set.labels("train", next(iter(manifest.labels)))
    else:  # masks alone: nothing to stratify by
        everything = np.zeros(shard_set.size("train"), np.int64)
    subset = labelled_subset(everything, label_fraction, recipe.seed)

    # -- the model -----------------------------------------------------------------------------------------------------
    bands = manifest.band_names
    statistics = None
    if init == "scratch":
        if normalise == "encoder":
            raise BandstreamError("--normalise encoder needs an encoder: name a run with --init")
        encoder = build_encoder(recipe.encoder, len(bands), recipe.view.size)
    else:
        encoder, info = load_encoder(init, bands)
        if normalise == "encoder":
            statistics = {band.name: (band.mean, band.std) for band in info.bands}
    model: Any = (Segmenter if task == "segment" else Classifier)(encoder, len(spec.classes))
    model = model.to(device, memory_format=torch.channels_last)
    inner = model.encoder
    if freeze == "encoder":
        inner.requires_grad_(False)
    rest = nn.ModuleList([part for part in (model.net.children() if task == "segment" else [model.head])
                          if part is not inner])  # fmt: skip
    optimiser = build_optimiser({inner: recipe.encoder_lr, rest: 1.0}, recipe.optimiser, recipe.weight_decay)
    half = in_bfloat16(recipe.precision, device)

    # -- the data ------------------------------------------------------------------------------------------------------
    shared: dict[str, Any] = {"device": device.type, "threads": threads, "bands": bands, "statistics": statistics}
    plain = ViewRecipe.plain(None if task == "segment" else recipe.view.size)  # masks are scored at their own size
    loader = Loader(shard_set, "train", min(recipe.batch_size, len(subset)), [recipe.view], seed=recipe.seed,
                    subset=subset, **served, **shared)  # fmt: skip
    looked_at = {"val": np.arange(shard_set.size("val"))[: recipe.validate_samples], "test": None}
    held_out = {split: Loader(shard_set, split, 2 * recipe.batch_size, [plain], training=False, subset=chosen,
                              **served, **shared) for split, chosen in looked_at.items()}  # fmt: skip
    steps = len(loader) * recipe.epochs
    rates = warmup_cosine(recipe.lr, steps, int(recipe.warmup_epochs * len(loader)))

    # -- the loop ------------------------------------------------------------------------------------------------------
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    step, best, best_epoch, best_state, validated = 0, -1.0, 0, model.state_dict(), 0
    click.echo(f"{task} from {init}: {len(subset)} of {shard_set.size('train')} labelled samples, {steps} steps")
    with Monitor(out, steps) as monitor:
        for epoch in range(recipe.epochs):
            model.train()
            if freeze == "encoder":
                inner.eval()
            for batch in loader:
                views = batch.views[0].to(device, memory_format=torch.channels_last)
                target: Any = batch.labels if batch.mask is None else batch.mask.long()
                set_learning_rate(optimiser, float(rates[step]))
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits = model(views)
                loss = loss_of(logits.float(), target.to(device), kind)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                optimiser.step()
                step += 1
            values = {"loss": loss.item(), "lr": float(rates[step - 1])}
            if values["loss"] != values["loss"]:
                raise BandstreamError(f"the loss is not a number at step {step}: lower --lr (now {recipe.lr:g})")
            if step - validated >= recipe.validate_steps or epoch + 1 == recipe.epochs:
                validated = step
                score = score_model(model, held_out["val"], kind, spec.classes, device, half)[SCORE[kind]]
                values[f"val_{SCORE[kind]}"] = score
                if score > best:
                    best, best_epoch = score, epoch
                    best_state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
                elif epoch - best_epoch >= recipe.patience:
                    monitor.log(step - 1, epoch, values)
                    break
            monitor.log(step - 1, epoch, values)
    trained = time.perf_counter() - began

    # -- the best, tested once -----------------------------------------------------------------------------------------
    model.load_state_dict(best_state)
    atomic.write_bytes(out / "best.safetensors", save({key: value.contiguous() for key, value in best_state.items()}))
    test = score_model(model, held_out["test"], kind, spec.classes, device, half)
    results = {
        "task": task, "kind": kind, "init": init, "freeze": freeze, "label_fraction": label_fraction,
        "labelled_samples": len(subset), "seed": recipe.seed, "normalise": normalise, "bands": bands,
        "encoder": encoder.name, "data": {"name": manifest.name, "manifest": manifest.fingerprint()},
        "classes": spec.classes, "score": SCORE[kind], "val": best, "best_epoch": best_epoch, "epochs_run": epoch + 1,
        "test": test, "test_samples": shard_set.size("test"),
        "seconds": {"training": trained, "all": time.perf_counter() - began},
        "recipe": recipe.model_dump(mode="json"),
    }  # fmt: skip
    atomic.write_json(out / "results.json", results)
    draw_results(out, results, model, shard_set, held_out["test"], device)
    click.echo(f"test {SCORE[kind]} {test[SCORE[kind]]:.3f}, macro F1 {test['macro_f1']:.3f} (val {best:.3f}) → {out}")
    for used in (loader, *held_out.values()):
        used.close()
    return results


if __name__ == "__main__":
    run(main)
