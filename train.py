"""Pretrain an encoder without labels: SimCLR on pairs of multispectral views.

    bandstream train SHARDS --out RUN                            with the default recipe
    bandstream train SHARDS --out RUN --recipe recipes/simclr-resnet18.toml --epochs 200
    bandstream train SHARDS --out RUN --resume                   go on where the run was stopped or killed, if it was
    torchrun --nproc-per-node 8 train.py SHARDS --out RUN        on several GPUs; batch sizes are global

SHARDS may be a URL of fsspec (s3://…, https://…): its shards are fetched ahead of need into a cache, checked against
their sha256, and read from there by all processes of the machine. BANDSTREAM_CACHE names the cache's folder (else
~/.cache/bandstream) and BANDSTREAM_CACHE_GB its size (else half of what is free). Endpoint and credentials are those of
the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...) or of fsspec's configuration.

RUN holds recipe.json, metrics.jsonl, tensorboard/, views.png, checkpoints/ and, at the end, encoder.safetensors with
encoder.json and a model card, and summary.json. SIGTERM (a scheduler's notice) finishes the step, saves, and leaves
with exit code 143; the same command with --resume goes on. A run that is resumed, on the same number of processes
and threads, ends with the same weights as one left alone. A job script can always say --resume: where nothing was saved
yet, the run begins.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from cli import run

# Embeddings whose spread (1 for an even spread over the sphere, 0 for one single point) stays under COLLAPSED for
# so many steps are no longer learning: a falling loss does not say so.
COLLAPSED, COLLAPSED_STEPS = 0.05, 50

# Knobs that do not bear on the weights: a run may be resumed with others.
FREE = ("log_steps", "checkpoint_steps")


@click.command()
@click.argument("shards")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML with any of the knobs.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out, if there is one.")
@click.option("--encoder", help="An smp or timm encoder, such as resnet50.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int, help="Over all processes.")
@click.option("--view-size", type=int, help="Pixels.")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--temperature", type=float)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--checkpoint-steps", type=int)
@click.option("--seed", type=int)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=int, help="CPU threads of this process [default: all, shared by the processes].")
def main(shards: str, out: Path, recipe_file: Path | None, resume: bool, device: str, threads: int | None,
         view_size: int | None, **knobs: Any) -> None:  # fmt: skip
    """Pretrain an encoder on the train split of SHARDS, a folder or a URL of fsspec, without labels (SimCLR)."""
    from training.distributed import distributed
    from training.recipe import Pretraining

    recipe = Pretraining.read(recipe_file, knobs | {"view.size": view_size})
    with distributed(device) as place:
        pretrain(shards, out, recipe, place, resume, threads)


def pretrain(
    shards: Path | str, out: Path, recipe: Any, place: Any, resume: bool = False, threads: int | None = None
) -> None:
    """Train, checkpoint and export; see the module's text."""
    import torch
    from torch import nn

    from evaluation.pictures import save_picture, view_sheet
    from models.encoder import build_encoder
    from models.export import EncoderBand, save_encoder
    from models.simclr import SimCLR, nt_xent
    from pipeline.loader import Loader
    from shards import atomic
    from shards.errors import BandstreamError
    from shards.shardset import ShardSet
    from training.checkpoint import checkpoints, load_checkpoint, rng_state, save_checkpoint, set_rng_state
    from training.distributed import any_rank, mean_over_ranks
    from training.monitor import Monitor
    from training.optimiser import build_optimiser, set_learning_rate
    from training.precision import in_bfloat16
    from training.schedule import warmup_cosine

    # -- where from, where to ------------------------------------------------------------------------------------------
    if not resume and out.exists() and any(out.iterdir()):
        raise BandstreamError(f"{out} is not empty: add --resume to go on with its run, or name another folder")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    shard_set = ShardSet.open(shards)
    manifest = shard_set.manifest
    loader = Loader(
        shard_set, "train", recipe.batch_size, recipe.views, seed=recipe.seed, rank=place.rank,
        world_size=place.world_size, device=place.device.type, threads=threads, bands=recipe.bands,
        window=recipe.window, seasons=recipe.seasons,
    )  # fmt: skip
    steps = len(loader) * recipe.epochs

    # -- model, optimiser, schedule ------------------------------------------------------------------------------------
    encoder = build_encoder(recipe.encoder, len(loader.bands), recipe.view.size)
    bare = SimCLR(encoder, recipe.projection_hidden, recipe.projection_out).to(place.device)
    model: nn.Module = bare.to(memory_format=torch.channels_last)
    optimiser = build_optimiser({bare: 1.0}, recipe.optimiser, recipe.weight_decay)
    rates = warmup_cosine(recipe.lr, steps, int(recipe.warmup_epochs * len(loader)))
    step = 0
    if resume and checkpoints(out / "checkpoints"):
        saved = load_checkpoint(out / "checkpoints")
        knobs = recipe.model_dump(mode="json")
        changed = [name for name in knobs if name not in FREE and saved["recipe"].get(name) != knobs[name]]
        if changed:
            raise BandstreamError(
                f"{out} was started with another {', '.join(changed)}: resume with the same recipe and options"
            )
        bare.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        loader.load_state_dict(saved["loader"])
        set_rng_state(saved["rng"])
        step = saved["step"]
    if place.world_size > 1:
        if place.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = nn.parallel.DistributedDataParallel(model)
    if recipe.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    out.mkdir(parents=True, exist_ok=True)
    half = in_bfloat16(recipe.precision, place.device)

    def save() -> None:
        if place.is_main:
            state = {
                "model": bare.state_dict(), "optimiser": optimiser.state_dict(), "loader": loader.state_dict(),
                "rng": rng_state(place.device), "step": step, "recipe": recipe.model_dump(mode="json"),
            }  # fmt: skip
            save_checkpoint(out / "checkpoints", step, state)

    # -- the loop ------------------------------------------------------------------------------------------------------
    told_to_stop: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.append(number))
    began, first_step, collapsed = time.perf_counter(), step, 0
    last_time, last_waiting, last_step = began, loader.waiting, step
    with Monitor(out, steps, step, place.is_main) as monitor:
        values = monitor.last
        if place.is_main:
            atomic.write_json(out / "recipe.json", recipe.model_dump(mode="json"))
            click.echo(
                f"{len(loader)} steps an epoch, {steps} in all; {loader.left_out} of {shard_set.size('train')} samples "
                f"are left out of each epoch's tail; {recipe.encoder}, {len(loader.bands)} bands, {place.device}"
            )
            if resume:
                click.echo(f"resumed at step {step}" if step else f"nothing was saved in {out}: beginning at step 0")
        for epoch in range(loader.epoch, recipe.epochs):
            for batch in loader:
                first, second = (view.to(place.device, memory_format=torch.channels_last) for view in batch.views)
                set_learning_rate(optimiser, float(rates[step]))
                with torch.autocast(place.device.type, torch.bfloat16, enabled=half):
                    one, other = model(first, second)  # (n, D) each
                contrast = nt_xent(one, other, recipe.temperature)
                optimiser.zero_grad(set_to_none=True)
                contrast.loss.backward()
                norm = nn.utils.clip_grad_norm_(bare.parameters(), recipe.clip)
                optimiser.step()
                step += 1
                leaving = any_rank(bool(told_to_stop), place)
                saving = leaving or step % recipe.checkpoint_steps == 0 or step % len(loader) == 0
                # what is saved was looked at before: no checkpoint holds a model that diverged
                if saving or step % recipe.log_steps == 0 or step == first_step + 1:
                    unit = nn.functional.normalize(one.detach(), dim=1)
                    spread = unit.std(0).mean() * unit.shape[1] ** 0.5
                    raw = torch.stack([contrast.loss.detach(), contrast.top1, contrast.top5, spread, norm])
                    loss, top1, top5, feature_std, gradient = mean_over_ranks(raw, place).tolist()
                    now = time.perf_counter()
                    values = {
                        "loss": loss, "top1": top1, "top5": top5, "feature_std": feature_std,
                        "gradient_norm": gradient, "lr": float(rates[step - 1]),
                        "samples_per_s": (step - last_step) * recipe.batch_size / (now - last_time),
                        "waiting": (loader.waiting - last_waiting) / (now - last_time),
                    }  # fmt: skip
                    if not all(map(_finite, (loss, gradient))):
                        raise BandstreamError(
                            f"loss {loss}, gradient norm {gradient} at step {step}: lower --lr (now {recipe.lr:g}) or "
                            f"raise --temperature, and start again or --resume from the last checkpoint in {out}"
                        )
                    collapsed = collapsed + step - last_step if feature_std < COLLAPSED else 0
                    if collapsed >= COLLAPSED_STEPS:
                        raise BandstreamError(
                            f"the embeddings collapsed (feature std {feature_std:.3f} for {collapsed} steps, loss "
                            f"{loss:.3f}): lower --lr (now {recipe.lr:g}), raise the batch size, or warm up longer"
                        )
                    monitor.log(step - 1, epoch, values)
                    last_time, last_waiting, last_step = now, loader.waiting, step
                if step == 1 and place.is_main:
                    sheet = view_sheet([v[:8].float().numpy(force=True) for v in batch.views], manifest, loader.bands)
                    save_picture(out / "views.png", sheet)
                    monitor.picture("views", sheet, 0)
                if saving:
                    save()
                if leaving:
                    if place.is_main:
                        click.echo(f"stopped at step {step}, saved: go on with --resume", err=True)
                    sys.exit(143)
    signal.signal(signal.SIGTERM, before)

    # -- what is kept --------------------------------------------------------------------------------------------------
    if place.is_main:
        mean, std = loader.statistics
        wavelengths = {band.name: band.wavelength_nm for band in manifest.bands}
        save_encoder(
            out, encoder,
            bands=[EncoderBand(name=name, wavelength_nm=wavelengths[name], mean=float(m), std=float(s))
                   for name, m, s in zip(loader.bands, mean, std, strict=True)],
            view_size=recipe.view.size or shard_set.grid[0],
            reflectance=manifest.reflectance.model_dump(),
            data={"name": manifest.name, "samples": shard_set.size("train"), "manifest": manifest.fingerprint()},
            recipe=recipe.model_dump(mode="json"),
            scores={name: values[name] for name in ("loss", "top1", "top5", "feature_std") if name in values},
        )  # fmt: skip
        seconds = time.perf_counter() - began
        summary = {
            "steps": step, "epochs": recipe.epochs, "seconds": seconds, "samples_left_out_per_epoch": loader.left_out,
            "samples_per_s": (step - first_step) * recipe.batch_size / seconds, "waiting": loader.waiting / seconds,
            "processes": place.world_size, "device": str(place.device), "threads": torch.get_num_threads(),
        }  # fmt: skip
        atomic.write_json(out / "summary.json", summary)
        click.echo(
            f"{out}/encoder.safetensors after {step} steps in {seconds:.0f} s "
            f"({summary['samples_per_s']:.0f} samples/s, {summary['waiting']:.0%} of the time waiting for data)"
        )
    loader.close()


def _finite(value: float) -> bool:
    return value - value == 0


if __name__ == "__main__":
    run(main)
