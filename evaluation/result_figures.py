"""What a fine-tuning run shows: its curves, its classes, its predictions."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.figures import class_bars, confusion_figure, curves
from evaluation.pictures import Caption, colour_picture, labelled_sheet, prediction_sheet, save_picture, short_name
from shards import atomic
from shards.shardset import ShardSet
from training.monitor import METRICS, read_metrics

if TYPE_CHECKING:
    import torch
    from torch import nn

PREDICTIONS = "predictions.npz"
SHOWN = 8


def draw_results(
    out: Path,
    results: dict[str, Any],
    model: "nn.Module",
    shard_set: ShardSet,
    batches: Iterable[Any],
    device: "torch.device",
) -> None:
    """curves.png, validation.png, per_class.png, confusion.png where there is one, predictions.png and .npz.

    The archive holds `indices` (n,) of test patches and `found`: class maps uint8 (n, H, W) or scores float32 (n, K).
    """
    import torch

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
    batch = next(iter(batches))
    model.eval()
    with torch.inference_mode():
        logits = model(batch.views[0][:SHOWN].to(device)).float().cpu()
    if results["kind"] == "segment":
        found = logits.argmax(1).to(torch.uint8)
    else:
        found = logits.sigmoid() if results["kind"] == "multilabel" else logits.softmax(1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, indices=batch.indices[:SHOWN].numpy(), found=found.numpy())
    atomic.write_bytes(out / PREDICTIONS, buffer.getvalue())
    save_picture(out / "predictions.png", compare_predictions(shard_set, results, [out], ["predicted"]))


def compare_predictions(
    shard_set: ShardSet, results: dict[str, Any], runs: Sequence[Path], names: Sequence[str]
) -> np.ndarray:
    """The patches that all runs predicted, with the truth and what each run found: uint8 (H, W, 3)."""
    archives = [np.load(folder / PREDICTIONS, allow_pickle=False) for folder in runs]
    indices = archives[0]["indices"]
    founds = [archive["found"] for archive in archives]
    manifest, classes = shard_set.manifest, results["classes"]
    segments = results["kind"] == "segment"
    segmented: list[tuple[np.ndarray, ...]] = []
    labelled: list[tuple[list[np.ndarray], list[Caption]]] = []
    for number, index in enumerate(indices.tolist()):
        sample = shard_set.read("test", index)
        image = shard_set.upsampled(sample)
        pictures = [
            colour_picture(image, manifest.band_names, manifest.reflectance, infrared=infrared)
            for infrared in ((False,) if segments else (False, True))
        ]
        if segments:
            truth = sample.masks[results.get("target") or next(iter(manifest.masks))]
            # a view of another size than the patch: shown on the patch's grid, nearest neighbour
            maps = [_fitted(found[number], truth.shape) for found in founds]
            segmented.append((pictures[0], truth, *maps))
        else:
            value = sample.labels[results.get("target") or next(iter(manifest.labels))]
            true = np.flatnonzero(value) if isinstance(value, np.ndarray) else np.array([value])
            told: list[Caption] = [("true: " + ", ".join(short_name(classes[k]) for k in true), None)]
            for name, found in zip(names, founds, strict=False):
                told.append(_found_labels(name, found[number], set(true.tolist()), classes, results["kind"]))
            labelled.append((pictures, told))
    return prediction_sheet(segmented, classes, names) if segments else labelled_sheet(labelled)


def _found_labels(name: str, scores: np.ndarray, true: set[int], classes: Sequence[str], kind: str) -> tuple[str, bool]:
    """What a run says of a patch, and whether that is exactly right."""
    chosen = np.flatnonzero(scores > 0.5) if kind == "multilabel" else np.array([scores.argmax()])
    chosen = chosen[np.argsort(-scores[chosen])]
    told = ", ".join(f"{short_name(classes[k])} {scores[k]:.2f}" for k in chosen) or "nothing"
    return f"{name}: {told}", set(chosen.tolist()) == true


def _fitted(found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    rows = np.arange(shape[0]) * found.shape[0] // shape[0]
    columns = np.arange(shape[1]) * found.shape[1] // shape[1]
    fitted: np.ndarray = found[rows[:, None], columns]
    return fitted
