"""What a fine-tuning run shows: its curves, its classes, its predictions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.figures import class_bars, confusion_figure, curves
from evaluation.pictures import colour_picture, prediction_sheet, save_picture
from shards import atomic
from shards.shardset import ShardSet
from training.monitor import METRICS, read_metrics


def draw_results(
    out: Path,
    results: dict[str, Any],
    model: nn.Module,
    shard_set: ShardSet,
    batches: Iterable[Any],
    device: torch.device,
) -> None:
    """curves.png, per_class.png, confusion.png where there is one, and predictions.png of a segmentation."""
    lines = read_metrics(out / METRICS)
    score = f"val_{results['score']}"
    validated = [line for line in lines if score in line]
    atomic.write_bytes(
        out / "curves.png", curves({"loss": [x["loss"] for x in lines]}, [x["step"] for x in lines], "step")
    )
    atomic.write_bytes(
        out / "validation.png", curves({score: [x[score] for x in validated]}, [x["step"] for x in validated], "step")
    )
    name, per_class = next(iter(results["test"]["per_class"].items()))
    atomic.write_bytes(out / "per_class.png", class_bars({results["init"]: per_class}, f"{name} on the test split"))
    if "confusion" in results["test"]:
        atomic.write_bytes(out / "confusion.png", confusion_figure(results["test"]["confusion"], results["classes"]))
    if results["kind"] == "segment":
        batch = next(iter(batches))
        with torch.inference_mode():
            found = model(batch.views[0][:8].to(device)).argmax(1).cpu().numpy()
        rows = []
        for index, truth, prediction in zip(batch.indices.tolist(), batch.mask.numpy(), found, strict=False):
            image = shard_set.upsampled(shard_set.read("test", index))
            manifest = shard_set.manifest
            picture = colour_picture(image, manifest.band_names, manifest.reflectance, infrared=False)
            if picture.shape[:2] == truth.shape:
                rows.append((picture, truth, prediction))
        if rows:
            save_picture(out / "predictions.png", prediction_sheet(rows, results["classes"]))
