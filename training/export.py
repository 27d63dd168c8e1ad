"""What a pretraining run leaves behind: its encoder, and a summary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.encoder import Encoder, build_encoder
from models.export import EncoderBand, load_encoder, save_encoder
from models.stem import Adaptation
from pipeline.loader import Loader
from shards.errors import BandstreamError
from training.monitor import METRICS, read_metrics
from training.recipe import Pretraining

SCORES = (
    "loss", "val_loss", "top1", "top5", "feature_std", "encoder_std", "effective_rank", "knn", "knn_statistics",
    "knn_random",
)  # fmt: skip
"""What the model card tells of the run's end."""


def starting_encoder(
    recipe: Pretraining, bands: list[str], sizes: Sequence[tuple[int, int]], saved: dict[str, Any] | None
) -> Encoder:
    """The encoder that a run begins with, on these bands and views of these heights and widths in pixels. Where it goes
    on from a checkpoint, its weights need not be fetched again. Raises BandstreamError where that cannot be."""
    if saved:
        encoder = build_encoder(saved["recipe"]["encoder"], len(bands), recipe.view.size)
        if told := saved.get("adaptation"):
            encoder.adaptation = Adaptation(**told)
        return encoder
    encoder = _begun(recipe, bands)
    encoder.check(sizes)
    return encoder


def _begun(recipe: Pretraining, bands: list[str]) -> Encoder:
    if recipe.init:
        encoder = load_encoder(recipe.init, bands, recipe.fallback)[0]
        size = encoder.options.get("img_size")
        if size and size != recipe.view.size:  # a transformer's positions
            raise BandstreamError(f"{recipe.init} was made for views of {size} pixels: train it on those (view.size)")
        if "encoder" in recipe.model_fields_set and recipe.encoder != encoder.name:
            raise BandstreamError(f"{recipe.init} is a {encoder.name}, not a {recipe.encoder}: leave encoder out")
        return encoder
    return build_encoder(recipe.encoder, len(bands), recipe.view.size, recipe.weights, bands)


def export(out: Path, encoder: Encoder, loader: Loader, recipe: Pretraining, step: int) -> None:
    """Write the encoder as it was after `step` steps, its description, and a model card with the numbers of then."""
    values: dict[str, Any] = next((line for line in reversed(read_metrics(out / METRICS)) if line["step"] < step), {})
    mean, std = loader.statistics
    manifest, shard_set = loader.shard_set.manifest, loader.shard_set
    wavelengths = {band.name: band.wavelength_nm for band in manifest.bands}
    save_encoder(
        out,
        encoder,
        bands=[
            EncoderBand(name=name, wavelength_nm=wavelengths[name], mean=float(m), std=float(s))
            for name, m, s in zip(loader.bands, mean, std, strict=True)
        ],
        view_size=recipe.view.size or shard_set.grid[0],
        reflectance=manifest.reflectance.model_dump(),
        data={"name": manifest.name, "samples": shard_set.size("train"), "manifest": manifest.fingerprint()},
        recipe=recipe.model_dump(mode="json"),
        scores={name: values[name] for name in SCORES if name in values},
    )
