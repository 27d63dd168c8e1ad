"""A fine-tuned model over a split: its loss while it learns, its scores afterwards."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from evaluation import metrics

SCORE = {"multilabel": "macro_map", "single": "accuracy", "segment": "macro_iou"}
"""What a model is chosen by on the val split."""


def loss_of(logits: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    """Binary cross-entropy for multi-hot labels, cross-entropy for indices; 255 in a mask does not count.

    A batch of masks that are ignored altogether has the loss 0.
    """
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, target)
    if kind == "single":
        return F.cross_entropy(logits, target)
    known = (target != metrics.IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits, target, ignore_index=metrics.IGNORE, reduction="sum") / known


def score_model(
    model: nn.Module, batches: Iterable[Any], kind: str, classes: Sequence[str], device: torch.device, half: bool
) -> dict[str, Any]:
    """Scores of a model over a split, each sample once, masks at their own size."""
    model.eval()
    table = np.zeros((len(classes), len(classes)), np.int64)
    found, truth = [], []
    with torch.inference_mode():
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = model(batch.views[0].to(device, memory_format=torch.channels_last)).float().cpu()
            if kind == "segment":
                table += metrics.confusion(batch.mask.numpy(), logits.argmax(1).numpy(), len(classes))
            else:
                found.append((logits.sigmoid() if kind == "multilabel" else logits.softmax(1)).numpy())
                truth.append(batch.labels.numpy())
    if kind == "segment":
        return metrics.segmentation(table, classes)
    scored = metrics.multilabel if kind == "multilabel" else metrics.single_label
    return scored(np.concatenate(truth), np.concatenate(found), classes)
