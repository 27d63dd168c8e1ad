"""A fine-tuned model over a split: its scores."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation import metrics

SCORE = {"multilabel": "macro_map", "single": "accuracy", "segment": "macro_iou"}
"""What a model is chosen by on the val split."""


def score_model(
    model: nn.Module, batches: Iterable[Any], kind: str, classes: Sequence[str], device: torch.device, half: bool
) -> dict[str, Any]:
    """Scores of a model over a split, each sample once, masks at their own size."""
    model.eval()
    table = torch.zeros(len(classes) ** 2, dtype=torch.int64, device=device)
    found, truth = [], []
    with torch.inference_mode():
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = model(batch.views[0].to(device, memory_format=torch.channels_last)).float()
            if kind == "segment":
                table += _pairs(batch.mask.to(device), logits.argmax(1), len(classes))
            else:
                found.append((logits.sigmoid() if kind == "multilabel" else logits.softmax(1)).cpu().numpy())
                truth.append(batch.labels.numpy())
    if kind == "segment":
        return metrics.segmentation(table.view(len(classes), -1).cpu().numpy(), classes)
    scored = metrics.multilabel if kind == "multilabel" else metrics.single_label
    return scored(np.concatenate(truth), np.concatenate(found), classes)


def _pairs(truth: torch.Tensor, found: torch.Tensor, classes: int) -> torch.Tensor:
    """`metrics.confusion` on the device where the maps are, flat: int64 (K * K,)."""
    pairs = torch.where(truth == metrics.IGNORE, classes * classes, truth.long() * classes + found)
    return torch.bincount(pairs.flatten(), minlength=classes * classes + 1)[:-1]
