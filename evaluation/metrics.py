"""Scores. Classes that the truth does not hold are left out of every macro mean; a micro mean counts them as mistakes.

Average precision and F1 of labels are scikit-learn's; confusion matrices are counted here, since scikit-learn's takes
thirty times as long over pixels and refuses masks that are ignored altogether.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, f1_score

IGNORE = 255


def multilabel(truth: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Multi-hot truth and probabilities, both (n, K): average precision and F1 (at 0.5), macro, micro and per class."""
    present = np.flatnonzero(truth.any(0)).tolist()
    micro = float(average_precision_score(truth.ravel(), scores.ravel())) if present else 0.0
    found = (scores > 0.5).astype(np.uint8)
    average = {classes[k]: float(average_precision_score(truth[:, k], scores[:, k])) for k in present}
    f1 = {classes[k]: float(f1_score(truth[:, k], found[:, k], zero_division=0)) for k in present}
    hit = (found * truth).sum(0)
    return {
        "macro_map": _mean(average),
        "micro_map": micro,
        "macro_f1": _mean(f1),
        "micro_f1": float(f1_score(truth, found, average="micro", zero_division=0)),
        "per_class": {
            "average_precision": average,
            "f1": f1,
            "precision": {classes[k]: float(hit[k] / max(found[:, k].sum(), 1)) for k in present},
            "recall": {classes[k]: float(hit[k] / truth[:, k].sum()) for k in present},
        },
        "support": {classes[k]: int(truth[:, k].sum()) for k in present},
    }


def single_label(truth: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Class indices (n,) and scores (n, K): accuracy, F1 macro and per class, confusion matrix."""
    return _of_confusion(confusion(truth, scores.argmax(1), len(classes), None), classes)


def confusion(truth: np.ndarray, found: np.ndarray, classes: int, ignore: int | None = IGNORE) -> np.ndarray:
    """Counts int64 (K, K), a row a true class, wherever the truth is not `ignore`. They add up over batches."""
    known = truth != (-1 if ignore is None else ignore)
    pairs = truth[known].astype(np.int64) * classes + found[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def segmentation(table: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Of a confusion matrix (K, K) of pixels: pixel accuracy, IoU and F1, macro and per class."""
    return _of_confusion(table, classes)


def _of_confusion(table: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    hit = np.diag(table).astype(np.float64)
    true, found = table.sum(1), table.sum(0)
    present = np.flatnonzero(true).tolist()
    iou = {classes[k]: float(hit[k] / (true[k] + found[k] - hit[k])) for k in present}
    f1 = {classes[k]: float(2 * hit[k] / (true[k] + found[k])) for k in present}
    return {
        "accuracy": float(hit.sum() / max(table.sum(), 1)),
        "macro_f1": _mean(f1),
        "macro_iou": _mean(iou),
        "per_class": {
            "iou": iou,
            "f1": f1,
            "precision": {classes[k]: float(hit[k] / max(found[k], 1)) for k in present},
            "recall": {classes[k]: float(hit[k] / true[k]) for k in present},
        },
        "support": {classes[k]: int(true[k]) for k in present},
        "confusion": table.tolist(),
    }


def _mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else 0.0
