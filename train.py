"""Pretrain an encoder without labels, on augmented views of multispectral patches.

    bandstream train SHARDS --out RUN                            SimCLR, as in its paper
    bandstream train SHARDS --out RUN --method byol              or moco-v2, moco-v3, simsiam, vicreg
    bandstream train SHARDS --out RUN --recipe recipes/simclr-resnet18.toml
    bandstream train SHARDS --out RUN --init OTHER               from the encoder of a run, of a folder or the Hub
    bandstream train SHARDS --out RUN --resume                   go on where the run was stopped or killed, if it was
    torchrun --nproc-per-node 8 train.py SHARDS --out RUN        on several GPUs; batch sizes are global

Every knob is one of `Pretraining` in training/recipe.py and can stand in a recipe; what a recipe leaves out is as in
the method's paper, and recipe.json says what it came to.

SHARDS may be a URL of fsspec (s3://…, https://…), whose shards are fetched ahead of need into a cache: BANDSTREAM_CACHE
names its folder, BANDSTREAM_CACHE_GB its size. Endpoint and credentials are the environment's, or of fsspec's files.

RUN holds recipe.json, metrics.jsonl, tensorboard/, views.png, floors.json, checkpoints/ (the newest, and the best by
validation) and, at the end, encoder.safetensors, encoder.json, a model card and summary.json. SIGTERM or SIGUSR1 (a
scheduler's notice) finishes the step, saves, and leaves with exit code 143; the same command with --resume goes on and,
on as many processes and threads of a CPU, ends with the bits of a run left alone; with nothing saved yet, it begins.

Where numbers are not finite or features collapse, the run ends and says what to change; with --on-nan rollback its
weights go back to the last good checkpoint, and the data go on, at a lower rate.
"""

import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli import run


@click.command()
@click.argument("shards")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML with any of the knobs.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out, if there is one.")
@click.option("--method", help="simclr, moco-v2, moco-v3, byol, simsiam, vicreg  [default: simclr]")
@click.option("--init", help="A run, folder or user/name of the Hub, whose encoder is trained on.")
@click.option("--fallback", type=click.Choice(["none", "wavelength", "zero"]), help="For bands that --init never saw.")
@click.option("--encoder", help="An smp or timm encoder, such as resnet50, or cnn.")
@click.option("--weights", help="What it begins with: none, imagenet, or a .safetensors file.  [default: none]")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int, help="Over all processes.")
@click.option("--accumulate", type=int, help="Micro-batches that a step is computed in, to save memory.")
@click.option("--view-size", type=int, help="Pixels.")
@click.option("--lr", type=float, help="Base learning rate.")
@click.option("--temperature", type=float, help="Of methods that have one.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--checkpoint-steps", type=int)
@click.option("--on-nan", type=click.Choice(["stop", "rollback"]), help="When training breaks.  [default: stop]")
@click.option("--seed", type=int)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [default: all, shared by the processes]")
def main(shards: str, out: Path, recipe_file: Path | None, resume: bool, device: str, threads: int | None,
         view_size: int | None, temperature: float | None, **knobs: Any) -> None:  # fmt: skip
    """Pretrain an encoder on the train split of SHARDS, a folder or a URL of fsspec, without labels."""
    from training.distributed import distributed
    from training.recipe import Pretraining

    knobs |= {"view.size": view_size, "objective.temperature": temperature}
    recipe = Pretraining.read(recipe_file, knobs).resolved()
    with distributed(device) as place:
        recipe.check_parts(place.world_size)
        pretrain(shards, out, recipe, place, resume, threads)


def pretrain(
    shards: Path | str, out: Path, recipe: Any, place: Any, resume: bool = False, threads: int | None = None
) -> None:
    """Train by a resolved recipe, validate, checkpoint and export; see the module's text."""
    import torch
    from torch import nn

    from evaluation.online import Online, projected
    from evaluation.pictures import save_views
    from models.objectives import build_objective
    from pipeline.loader import Loader
    from shards import atomic
    from shards.errors import BandstreamError
    from shards.shardset import ShardSet
    from training.accumulation import backward
    from training.average import Average
    from training.checkpoint import BEST, GOOD, Checkpoints, all_finite, newest_checkpoint
    from training.distributed import any_rank, mean_over_ranks, notices, on_all_ranks, share_buffers
    from training.export import export, starting_encoder
    from training.monitor import Monitor, Pace
    from training.optimiser import build_optimiser, set_learning_rate
    from training.precision import in_bfloat16
    from training.schedule import Best, Plateau, rate_curve
    from training.watch import MEASURED, Watch, measure

    # -- where from, where to ------------------------------------------------------------------------------------------
    if not resume and out.exists() and any(out.iterdir()):
        raise BandstreamError(f"{out} is not empty: add --resume to go on with its run, or name another folder")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    saved = newest_checkpoint(out, place) if resume else None
    shard_set = ShardSet.open(shards)
    manifest = shard_set.manifest
    loader = Loader(
        shard_set, "train", recipe.batch_size, recipe.views, seed=recipe.seed, rank=place.rank,
        world_size=place.world_size, device=place.device.type, threads=threads, bands=recipe.bands,
        window=recipe.window, seasons=recipe.seasons,
    )  # fmt: skip
    bands, epoch_steps, steps = loader.bands, len(loader), len(loader) * recipe.epochs

    # -- model, optimiser, schedule ------------------------------------------------------------------------------------
    encoder = starting_encoder(recipe, bands, loader.sizes, saved)
    if recipe.init:  # which brings its architecture
        recipe = recipe.model_copy(update={"encoder": encoder.name})
    bare: Any = build_objective(recipe.method, encoder, recipe.objective)
    bare.to(place.device, memory_format=torch.channels_last)
    average = Average(encoder, recipe.ema) if recipe.ema else None
    shown: Any = average.encoder if average else encoder  # what is validated and exported
    optimiser = build_optimiser({bare: 1.0}, recipe.optimiser, recipe.weight_decay, recipe.momentum)
    rates = rate_curve(recipe.schedule, recipe.peak_lr, steps, int(recipe.warmup_epochs * epoch_steps))
    plateau = Plateau(recipe.plateau_patience if recipe.schedule == "plateau" else None, recipe.plateau_factor)
    watch = Watch(recipe.watch, epoch_steps, place)
    online = Online(shard_set, recipe, bands, out, place, threads)
    best = Best(recipe.early_stopping and recipe.early_stopping * epoch_steps)
    learnt: dict[str, Any] = {"model": bare, "optimiser": optimiser} | ({"average": average} if average else {})
    parts = learnt | {"loader": loader, "plateau": plateau, "watch": watch, "best": best}
    knobs = recipe.model_dump(mode="json")
    checkpoints = Checkpoints(out, knobs, parts, list(learnt), place)
    torch.manual_seed(recipe.seed + 1_000_003 * place.rank)  # dropout differs from rank to rank
    step = first_step = checkpoints.resume(saved) if saved else 0
    model: nn.Module = on_all_ranks(bare, place) if place.world_size > 1 else bare
    encoder.checkpointing(recipe.checkpointing)  # hooks on norms, which may just have been replaced
    model = torch.compile(model) if recipe.compile else model  # type: ignore[assignment]
    out.mkdir(parents=True, exist_ok=True)
    half = in_bfloat16(recipe.precision, place.device, min(view.size or shard_set.grid[0] for view in recipe.views))
    autocast = partial(torch.autocast, place.device.type, torch.bfloat16, enabled=half)

    # -- the loop ------------------------------------------------------------------------------------------------------
    began, pace = time.perf_counter(), Pace(step, loader.waiting)
    with notices() as told_to_stop, Monitor(out, steps, step, place.is_main) as monitor:
        if place.is_main:
            atomic.write_json(out / "recipe.json", knobs)
            click.echo(
                f"{recipe.method}: {epoch_steps} steps an epoch, {steps} in all; {loader.left_out} of "
                f"{shard_set.size('train')} samples are left out of each epoch's tail; {recipe.encoder}, {len(bands)} "
                f"bands, {place.device}; {recipe.optimiser}, peak learning rate {recipe.peak_lr:g}"
            )
            if resume:
                click.echo(f"resumed at step {step}" if saved else f"nothing was saved in {out}: beginning at step 0")
        if recipe.on_nan == "rollback" and not saved:
            checkpoints.save(step, best=False, good=True)
        for epoch in range(loader.epoch, recipe.epochs):
            if best.over(step):
                break
            for batch in loader:
                views = [view.to(place.device, memory_format=torch.channels_last) for view in batch.views]
                rate = float(rates[step]) * plateau.factor * watch.factor
                set_learning_rate(optimiser, rate)
                optimiser.zero_grad(set_to_none=True)
                outcome = backward(model, bare.loss, views, recipe.accumulate, autocast)
                norm = nn.utils.get_total_norm([p.grad for p in bare.parameters() if p.grad is not None])
                if recipe.clip:
                    nn.utils.clip_grads_with_norm_(bare.parameters(), recipe.clip, norm)
                watch.note(outcome.loss, norm)

                # -- of our own, only steps that look, log, save or leave wait for the device, or for other ranks
                first, ending = step == 0, (step + 1) % epoch_steps == 0
                looking = first or (step + 1) % watch.look_steps == 0
                logging = first or ending or (step + 1) % recipe.log_steps == 0
                leaving = (looking or place.world_size == 1) and any_rank(bool(told_to_stop), place)
                saving = leaving or ending or (step + 1) % recipe.checkpoint_steps == 0
                values: dict[str, Any] = {}
                if looking or logging:  # at the weights that made these embeddings
                    seen = measure(encoder, [view[: recipe.watch.samples] for view in views[:2]], outcome.embeddings)
                    told = {"loss": outcome.loss.detach(), "gradient_norm": norm, **outcome.metrics}
                    raw = torch.cat([torch.stack(list(told.values())).float(), seen])
                    values = dict(zip([*told, *MEASURED], mean_over_ranks(raw, place).tolist(), strict=True))
                optimiser.step()
                bare.after_step(step, steps)
                if average:
                    average.update(encoder)
                step += 1

                # -- is all well? what is saved was looked at before: no checkpoint holds a model that diverged
                wrong = None
                if looking or logging or saving:
                    if any_rank(not watch.all_finite() or (saving and not all_finite(bare)), place):
                        wrong = f"loss, gradients or weights are not finite (loss {values.get('loss', math.nan):.3g})"
                    elif looking:
                        wrong = watch.judge(step, values)
                if wrong:
                    way = f"lower --lr (now {recipe.lr:g}), warm up longer, or raise the batch size"
                    if recipe.on_nan == "stop":
                        raise BandstreamError(f"{wrong}, at step {step}: {way}; checkpoints: {checkpoints.folder}")
                    watch.go_back(f"{wrong}, at step {step}", way)
                    back = checkpoints.go_back(GOOD)
                    event = f"{wrong}: back to the weights of step {back}, rate × {watch.factor:g}"
                    values = {"rollbacks": watch.rollbacks, "event": event}  # the data go on

                # -- the end of an epoch, and what is told and kept
                is_best = False
                if saving:
                    share_buffers([bare, shown], place)
                if ending and recipe.validate_epochs and (epoch + 1) % recipe.validate_epochs == 0:
                    found = online.validate(bare, shown, autocast)
                    values |= found
                    if "val_loss" in found:
                        plateau.update(found["val_loss"])
                    is_best = bool(found) and best.update(online.score(found), step)
                if logging or wrong:
                    values |= {"lr": rate} | pace.since(step, loader.waiting, recipe.batch_size)
                    monitor.log(step - 1, epoch, values)
                if first and place.is_main:
                    save_views(out / "views.png", batch.views, manifest, bands)
                    monitor.picture("views")
                if saving:
                    checkpoints.save(step, is_best, good=watch.is_well(step))
                if leaving:
                    if place.is_main:
                        click.echo(f"stopped at step {step}, saved: go on with --resume", err=True)
                    sys.exit(143)
        if early := best.over(step):
            checkpoints.go_back(BEST)
        if place.is_main:
            monitor.embeddings(*projected(shard_set, shown, bands, recipe.view.size, place.device))

    # -- what is kept --------------------------------------------------------------------------------------------------
    if place.is_main:
        export(out, shown, loader, recipe, best.step if early else step)
        seconds = time.perf_counter() - began
        summary = {
            "method": recipe.method, "steps": step, "epochs": step / epoch_steps, "stopped_early": early,
            "exported_step": best.step if early else step, "best_step": best.step, "rollbacks": watch.rollbacks,
            "samples_left_out_per_epoch": loader.left_out, "seconds": seconds, "waiting": loader.waiting / seconds,
            "samples_per_s": (step - first_step) * recipe.batch_size / seconds, "processes": place.world_size,
            "device": str(place.device), "threads": torch.get_num_threads(),
        }  # fmt: skip
        if step > first_step or not (out / "summary.json").exists():  # a finished run keeps what it told of itself
            atomic.write_json(out / "summary.json", summary)
        speed = f"{summary['samples_per_s']:.0f} samples/s, {summary['waiting']:.0%} of the time waiting for data"
        click.echo(f"{out}/encoder.safetensors after {step} steps in {seconds:.0f} s ({speed})")
    online.close()
    loader.close()


if __name__ == "__main__":
    run(main)
