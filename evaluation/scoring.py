"""A fine-tuned model over a split: what it says of each sample, and its scores."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation import metrics
from shards.errors import BandstreamError

SCORE = {"multilabel": "macro_map", "single": "accuracy", "segment": "macro_iou"}
"""What a model is chosen by on the val split."""
Part = tuple[np.ndarray, np.ndarray]
"""Truth and scores of n samples, as `evaluation.predictions.Predictions` holds them."""


def predict(
    model: nn.Module, batches: Iterable[Any], kind: str, classes: Sequence[str], device: torch.device, half: bool
) -> Part:
    """Truth and scores of a split, in the order in which it is served, shapes as in `Predictions`: class indices (n,)
    or multi-hot (n, K) with probabilities (n, K), or, of masks at their own size, (n, 0) with confusion matrices
    int64 (n, K, K)."""
    truth, found = zip(*_parts(model, batches, kind, len(classes), device, half), strict=True)
    return np.concatenate(truth), np.concatenate(found)


def score_model(
    model: nn.Module, batches: Iterable[Any], kind: str, classes: Sequence[str], device: torch.device, half: bool
) -> dict[str, Any]:
    """Scores of a model over a split, each sample once, masks at their own size."""
    parts = _parts(model, batches, kind, len(classes), device, half)
    if kind == "segment":  # summed as they come: no more than one batch's tables are held
        table = sum((found.sum(0) for _, found in parts), np.zeros((len(classes), len(classes)), np.int64))
        return metrics.segmentation(table, classes)
    truth, found = zip(*parts, strict=True)
    return scores_of(np.concatenate(truth), np.concatenate(found), kind, classes)


def scores_of(truth: np.ndarray, scores: np.ndarray, kind: str, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of what `predict` gives."""
    if kind == "segment":
        return metrics.segmentation(scores.sum(0), classes)
    return (metrics.multilabel if kind == "multilabel" else metrics.single_label)(truth, scores, classes)


def known(scores: dict[str, Any], split: str, target: str) -> dict[str, Any]:
    """The scores of a split, or, where its truth holds no class at all, a BandstreamError."""
    if not scores["support"]:
        raise BandstreamError(f"the {split} split knows no class of {target}: nothing can be scored by it")
    return scores


def _parts(
    model: nn.Module, batches: Iterable[Any], kind: str, classes: int, device: torch.device, half: bool
) -> Iterator[Part]:
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = model(batch.views[0].to(device, memory_format=torch.channels_last)).float()
            if not logits.isfinite().all():
                raise BandstreamError(
                    "a model's outputs are not finite numbers: its pictures hold pixels that are none, or it diverged: "
                    "run `bandstream verify`, or lower --lr"
                )
            if kind == "segment":
                tables = _pairs(batch.mask.to(device), logits.argmax(1), classes).cpu().numpy()
                yield np.empty((len(tables), 0), np.uint8), tables
            else:
                found = logits.sigmoid() if kind == "multilabel" else logits.softmax(1)
                yield batch.labels.numpy(), found.cpu().numpy()


def _pairs(truth: torch.Tensor, found: torch.Tensor, classes: int) -> torch.Tensor:
    """`metrics.confusion` of each map, on the device where they are: (n, H, W) twice → int64 (n, K, K).

    Raises BandstreamError on a true class that there is not.
    """
    pairs, cells = truth.long() * classes + found, classes * classes + 1
    pairs = torch.where(truth == metrics.IGNORE, cells - 1, pairs).flatten(1)  # (n, H * W)
    if int(pairs.max()) >= cells:
        strange = int(truth[(truth >= classes) & (truth != metrics.IGNORE)].max())
        raise BandstreamError(f"a mask holds the class {strange}, of {classes} from 0 on: verify the set, ingest again")
    starts = cells * torch.arange(len(pairs), device=pairs.device)[:, None]
    counts = torch.bincount((pairs + starts).flatten(), minlength=cells * len(pairs))
    return counts.view(len(pairs), cells)[:, :-1].reshape(-1, classes, classes)
