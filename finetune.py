"""Fine-tune with few labels, from scratch or from a pretrained encoder; the best model is scored once on test.

    bandstream finetune SHARDS --task classify --init RUN --label-fraction 0.05 --out RUN2
    bandstream finetune SHARDS --task segment --init scratch --label-fraction 0.05 --decoder upernet --out RUN3
    bandstream finetune SHARDS --recipe F --init RUN --seeds 0,1,2 --out RUNS     a run a seed, and summary.json

--init takes a pretraining run, or an earlier run of this script (supervised pretraining, on other labels too: --target
L1, then --target L2), of which the encoder is taken. classify is multi-label or single-label as the shard set says.
The label fraction is seeded, stratified and nested: the 1 % lies inside the 5 %. Bands are matched by name. Views are
standardised with the new set's own statistics, or with those the encoder was trained with (--normalise encoder).

OUT holds results.json (scores, per class, confusion matrix, what was run; written last), metrics.jsonl, figures,
best.safetensors, and the encoder as train.py leaves it. The same command again runs what is not finished.
"""

import time
from pathlib import Path
from typing import Any

import click

from cli import run


@click.command()
@click.argument("shards")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--task", type=click.Choice(["classify", "segment"]), help="Unless the recipe says it.")
@click.option("--target", help="Which labels or masks of SHARDS  [default: its first]")
@click.option("--init", required=True, help="`scratch`, or the folder of a run whose encoder is taken.")
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML with any of the knobs.")
@click.option("--freeze", type=click.Choice(["encoder", "progressive", "none"]), help="[default: as the recipe says]")
@click.option("--label-fraction", type=float, help="Share of the train split whose labels are used  [default: 1]")
@click.option("--normalise", type=click.Choice(["set", "encoder"]), help="Whose statistics standardise the views.")
@click.option("--bands", help="Names with commas between them  [default: all of SHARDS]")
@click.option("--fallback", type=click.Choice(["none", "wavelength", "zero"]), help="For bands that --init never saw.")
@click.option("--encoder", help="For --init scratch.")
@click.option("--decoder", help="unet, unetplusplus, deeplabv3plus, fpn, segformer, upernet; dpt for a ViT.")
@click.option("--loss", multiple=True, help="ce, bce, dice or focal; several add up.")
@click.option("--class-weights", type=click.Choice(["none", "inverse"]))
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--view-size", type=int, help="Pixels of training [default: the patch's own].")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--schedule", type=click.Choice(["cosine", "plateau", "constant"]))
@click.option("--patience", type=int)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), multiple=True, help="May be given several times.")
@click.option("--seeds", default="", help="Several, such as 0,1,2.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all].")
def main(shards: str, out: Path, init: str, recipe_file: Path | None, bands: str | None, loss: tuple[str, ...],
         view_size: int | None, seed: tuple[int, ...], seeds: str, device: str, threads: int | None,
         **knobs: Any) -> None:  # fmt: skip
    """Fine-tune on SHARDS, a folder or a URL of fsspec: classification or segmentation with few labels."""
    from shards.errors import BandstreamError
    from training.distributed import alone
    from training.finetuning import FineTuning
    from training.seeds import RESULTS, parse_seeds, write_summary

    knobs |= {"view.size": view_size, "bands": bands.replace(" ", "").split(",") if bands else None}
    recipe = FineTuning.read(recipe_file, knobs | {"loss": dict.fromkeys(loss, 1.0) or None})
    if recipe.task is None:
        raise click.UsageError("nothing says what to learn: add --task classify or --task segment")
    numbers = list(dict.fromkeys([*seed, *parse_seeds(seeds)])) or [recipe.seed]
    if len(numbers) > 1 and (out / RESULTS).exists():
        raise BandstreamError(f"{out} holds a single run: name another folder for those of several seeds")
    place, runs = alone("fine-tuning", device), []
    for number in numbers:
        folder, seeded = out / f"seed-{number}" if len(numbers) > 1 else out, {"seed": number}
        runs.append(finetune(shards, folder, init, recipe.model_copy(update=seeded), place.device, threads))
    if len(runs) > 1:
        summary = write_summary(out, runs)
        found = summary["scores"][f"test_{summary['score']}"]
        click.echo(f"test {summary['score']} {found['mean']:.3f} ± {found['std']:.3f} over {len(runs)} seeds → {out}")


def finetune(
    shards: Path | str, out: Path, init: str, recipe: Any, device: Any, threads: int | None = None
) -> dict[str, Any]:
    """Train, choose on val, test once; returns what results.json holds."""
    import numpy as np
    import torch
    from safetensors.torch import save
    from torch import nn

    from evaluation.predictions import save_predictions
    from evaluation.result_figures import draw_results
    from evaluation.samples import sample_keys
    from evaluation.scoring import SCORE, known, predict, score_model, scores_of
    from evaluation.standardising import of_encoder
    from evaluation.target import choose_target, labelled
    from models.encoder import build_encoder
    from models.export import WEIGHTS, EncoderBand, load_encoder, save_encoder
    from models.heads import with_head
    from models.layers import layer_groups
    from models.losses import build_loss, inverse_frequency
    from pipeline.loader import Loader
    from pipeline.views import ViewRecipe
    from shards import atomic
    from shards.errors import BandstreamError
    from shards.shardset import ShardSet
    from training.mixing import mix, mixes
    from training.monitor import Monitor
    from training.optimiser import build_optimiser, set_learning_rate
    from training.precision import in_bfloat16
    from training.schedule import Plateau, rate_curve
    from training.seeds import RESULTS, SETTINGS, digest, finished
    from training.unfreezing import learning_rate_groups, training_mode, unfreeze

    # -- what there is to learn ----------------------------------------------------------------------------------------
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    shard_set = ShardSet.open(shards)
    manifest = shard_set.manifest
    settings = {"init": init, "init_sha256": digest(Path(init) / WEIGHTS), "data": manifest.fingerprint(),
                "recipe": recipe.model_dump(mode="json")}  # fmt: skip
    if done := finished(out, settings):
        click.echo(f"{out} is finished: test {done['score']} {done['test'][done['score']]:.3f}")
        return done
    target = choose_target(shard_set, recipe.task, recipe.target)
    kind, classes = target.kind, target.classes
    mixing = mixes(recipe.mixup, recipe.cutmix, kind, target.name)
    used = labelled(shard_set, target, recipe.label_fraction, recipe.seed)

    # -- the model -----------------------------------------------------------------------------------------------------
    bands, view_size = shard_set.chosen_bands(recipe.bands), recipe.view.size or shard_set.grid[0]
    statistics, origin = None, "scratch"
    if init == "scratch":
        if recipe.normalise == "encoder":
            raise BandstreamError("--normalise encoder needs an encoder: name a run with --init")
        encoder = build_encoder(recipe.encoder, len(bands), view_size)
    else:
        encoder, info = load_encoder(init, bands, recipe.fallback)
        origin = "supervised" if "target" in info.data else "pretrained"
        if recipe.normalise == "encoder":
            statistics = of_encoder(info, manifest.reflectance)
        view_size = info.view_size if encoder.library == "timm" else view_size  # what positions are made for
    if kind != "segment":  # which pads
        encoder.check([(recipe.view.size, recipe.view.size) if recipe.view.size else shard_set.grid])
    model: Any = with_head(encoder, kind, len(classes), recipe.decoder, recipe.dropout)
    model = model.to(device, memory_format=torch.channels_last)
    inverse = inverse_frequency(used.counts, len(used.subset) if kind == "multilabel" else None).to(device)
    loss_of = build_loss(recipe.loss, kind, inverse if recipe.class_weights == "inverse" else None, recipe.focal_gamma)
    layers = layer_groups(model.body)
    rated = learning_rate_groups(layers, model.rest, recipe.encoder_lr, recipe.layer_decay)
    optimiser = build_optimiser(rated, recipe.optimiser, recipe.weight_decay)
    half = in_bfloat16(recipe.precision, device, recipe.view.size or shard_set.grid[0])

    # -- the data ------------------------------------------------------------------------------------------------------
    shared: dict[str, Any] = {"device": device.type, "threads": threads, "bands": bands, "statistics": statistics}
    shared[target.what] = target.name
    plain = ViewRecipe.plain(None if kind == "segment" else recipe.view.size)  # masks are scored at their own size
    loader = Loader(shard_set, "train", min(recipe.batch_size, len(used.subset)), [recipe.view], seed=recipe.seed,
                    subset=used.subset, **shared)  # fmt: skip
    recipe = recipe.lengthened(len(loader))
    looked_at = {"val": np.arange(shard_set.size("val"))[: recipe.validate_samples], "test": None}
    held_out = {split: Loader(shard_set, split, 2 * recipe.batch_size, [plain], training=False, subset=chosen, **shared)
                for split, chosen in looked_at.items()}  # fmt: skip
    steps, warmup = (int(epochs * len(loader)) for epochs in (recipe.epochs, recipe.warmup_epochs))
    rates = rate_curve(recipe.schedule, recipe.lr, steps, warmup)
    plateau, rng = Plateau(recipe.plateau_patience, recipe.plateau_factor), np.random.default_rng(recipe.seed)

    # -- the loop ------------------------------------------------------------------------------------------------------
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(out / SETTINGS, settings)
    began = time.perf_counter()
    step, best, best_epoch, best_state, validated = 0, -1.0, 0, model.state_dict(), 0
    click.echo(f"{target.name} from {init}: {len(used.subset)} of {shard_set.size('train')} samples, {steps} steps")
    if used.missing:
        click.echo(f"warning: the labels used hold no sample of {', '.join(used.missing)}", err=True)
    with Monitor(out, steps) as monitor:
        for epoch in range(recipe.epochs):
            unfreeze(layers, recipe.stages(epoch))
            training_mode(model)
            for batch in loader:
                views = batch.views[0].to(device, memory_format=torch.channels_last)
                truth: Any = batch.labels if batch.mask is None else batch.mask.long()
                truth = truth.to(device, non_blocking=True)
                if mixing:
                    shares = nn.functional.one_hot(truth, len(classes)).float()
                    views, truth = mix(views, shares, recipe.mixup, recipe.cutmix, rng)
                set_learning_rate(optimiser, float(rates[step]) * plateau.factor)
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits = model(views)
                loss = loss_of(logits.float(), truth)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                optimiser.step()
                step += 1
            values = {"loss": loss.item(), "lr": float(rates[step - 1]) * plateau.factor}
            if not np.isfinite(values["loss"]):
                cure = f"lower --lr (now {recipe.lr:g}), or look for pixels that are no numbers"
                raise BandstreamError(f"the loss is no finite number at step {step}: {cure}")
            if step - validated >= recipe.validate_steps or epoch + 1 == recipe.epochs:
                validated = step
                scores = score_model(model, held_out["val"], kind, classes, device, half)
                scores = known(scores, "val", target.name)
                score = values[f"val_{SCORE[kind]}"] = scores[SCORE[kind]]
                if recipe.schedule == "plateau":
                    plateau.update(-score)
                if score > best:
                    best, best_epoch = score, epoch
                    best_state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            monitor.log(step - 1, epoch, values)
            if validated == step and epoch - max(best_epoch, recipe.last_phase) >= recipe.patience:
                break
    trained = time.perf_counter() - began

    # -- the best, tested once -----------------------------------------------------------------------------------------
    model.load_state_dict(best_state)
    atomic.write_bytes(out / "best.safetensors", save({key: value.contiguous() for key, value in best_state.items()}))
    nn.Module.load_state_dict(encoder.net, model.body.state_dict(), strict=True)  # as models.heads does
    mean, std = loader.statistics
    wavelengths = {band.name: band.wavelength_nm for band in manifest.bands}
    data = {"name": manifest.name, "manifest": manifest.fingerprint()}
    save_encoder(
        out, encoder,
        bands=[EncoderBand(name=name, wavelength_nm=wavelengths[name], mean=float(m), std=float(s))
               for name, m, s in zip(bands, mean, std, strict=True)],
        view_size=view_size, reflectance=manifest.reflectance.model_dump(),
        data=data | {"samples": len(used.subset), "target": target.name},
        recipe=recipe.model_dump(mode="json") | {"init": init}, scores={f"val_{SCORE[kind]}": best},
    )  # fmt: skip
    predicted = predict(model, held_out["test"], kind, classes, device, half)
    test = known(scores_of(*predicted, kind, classes), "test", target.name)
    save_predictions(out, sample_keys(shard_set, "test"), *predicted, kind, classes)
    results = {
        "task": recipe.task, "kind": kind, "target": target.name, "init": init, "init_kind": origin,
        "freeze": recipe.frozen, "label_fraction": recipe.label_fraction, "labelled_samples": len(used.subset),
        "missing_classes": used.missing, "seed": recipe.seed, "normalise": recipe.normalise, "bands": bands,
        "adapted": str(encoder.adaptation or ""),
        "encoder": encoder.name, "decoder": model.decoder, "data": data, "classes": classes, "score": SCORE[kind],
        "val": best, "best_epoch": best_epoch, "epochs_run": epoch + 1, "test": test,
        "test_samples": shard_set.size("test"), "recipe": recipe.model_dump(mode="json"),
        "seconds": {"training": trained, "all": time.perf_counter() - began},
    }  # fmt: skip
    draw_results(out, results, model, shard_set, held_out["test"], device)
    atomic.write_json(out / RESULTS, results)
    click.echo(f"test {SCORE[kind]} {test[SCORE[kind]]:.3f}, macro F1 {test['macro_f1']:.3f} (val {best:.3f}) → {out}")
    for each in (loader, *held_out.values()):
        each.close()
    return results


if __name__ == "__main__":
    run(main)
