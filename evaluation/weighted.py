"""Scores of `evaluation.metrics` as functions of weights, a weight a test sample, for many rows of weights at once.

With all weights 1 they are the scores; with a resample's counts, the scores of that resample. Classes that a resample's
truth does not hold are left out of its macro means, as `evaluation.metrics` leaves them out.
"""

from collections.abc import Callable

import numpy as np

from evaluation.predictions import Predictions
from shards.errors import BandstreamError

SCORES = {
    "single": ("accuracy", "macro_f1", "macro_iou"),
    "multilabel": ("macro_map", "macro_f1", "micro_f1"),
    "segment": ("macro_iou", "macro_f1", "accuracy"),
}
Weighted = Callable[[np.ndarray], np.ndarray]


def weighted_score(run: Predictions, score: str) -> Weighted:
    """A score of a run: weights float64 (B, n) → (B,). Raises BandstreamError on a score its kind does not have."""
    if score not in SCORES[run.kind]:
        raise BandstreamError(f"no intervals of {score!r} for {run.kind}: choose from {', '.join(SCORES[run.kind])}")
    if run.kind == "multilabel":
        return _average_precision(run) if score == "macro_map" else _multilabel_f1(run, micro=score == "micro_f1")
    return _of_counts(run, score)


def weighted_auroc(scores: np.ndarray, positive: np.ndarray) -> Weighted:
    """Area under the ROC curve of scores (n,) for booleans (n,): weights (B, n) → (B,); ties count half.

    NaN where a row of weights leaves one side without samples.
    """
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)  # where each distinct score begins
    sign = positive[order].astype(np.float64)

    def auroc(weights: np.ndarray) -> np.ndarray:
        sorted_weights = weights[:, order]
        up = np.add.reduceat(sorted_weights * sign, first, 1)  # (B, distinct)
        down = np.add.reduceat(sorted_weights * (1 - sign), first, 1)
        below = np.cumsum(down, 1) - down / 2
        pairs = up.sum(1) * down.sum(1)
        found: np.ndarray = np.divide((up * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
        return found

    return auroc


def _of_counts(run: Predictions, score: str) -> Weighted:
    """Scores of the confusion matrix: of class indices, or of pixels that were counted sample by sample."""
    width = len(run.classes)
    if run.kind == "segment":
        hit, true, found = np.diagonal(run.scores, axis1=1, axis2=2), run.scores.sum(2), run.scores.sum(1)
    else:
        true, found = np.eye(width)[run.truth], np.eye(width)[run.scores.argmax(1)]
        hit = true * found
    counts = np.concatenate([hit, true, found], 1).astype(np.float64)  # (n, 3 K)

    def score_of(weights: np.ndarray) -> np.ndarray:
        hits, trues, founds = np.split(weights @ counts, 3, 1)  # (B, K)
        if score == "accuracy":
            share: np.ndarray = hits.sum(1) / np.maximum(trues.sum(1), 1e-300)
            return share
        union = trues + founds - hits
        value = (
            hits / np.maximum(union, 1e-300) if score == "macro_iou" else 2 * hits / np.maximum(trues + founds, 1e-300)
        )
        return _mean_where(value, trues > 0)

    return score_of


def _multilabel_f1(run: Predictions, micro: bool) -> Weighted:
    true = run.truth.astype(np.float64)
    found = (run.scores > 0.5).astype(np.float64)
    counts = np.concatenate([true * found, true, found], 1)

    def score_of(weights: np.ndarray) -> np.ndarray:
        hits, trues, founds = np.split(weights @ counts, 3, 1)
        if micro:
            share: np.ndarray = 2 * hits.sum(1) / np.maximum((trues + founds).sum(1), 1e-300)
            return share
        return _mean_where(2 * hits / np.maximum(trues + founds, 1e-300), trues > 0)

    return score_of


def _average_precision(run: Predictions) -> Weighted:
    """Macro mean of average precision, sum of (R_i - R_i-1) P_i over distinct scores, as scikit-learn defines it."""
    sorted_by = []
    for k in range(len(run.classes)):
        order = np.argsort(-run.scores[:, k], kind="stable")
        first = np.flatnonzero(np.diff(-run.scores[order, k], prepend=-np.inf) > 0)
        sorted_by.append((order, first, run.truth[order, k].astype(np.float64)))

    def score_of(weights: np.ndarray) -> np.ndarray:
        values = np.zeros((len(weights), len(run.classes)))
        present = np.zeros(values.shape, bool)
        for k, (order, first, true) in enumerate(sorted_by):
            moved = weights[:, order]
            hits = np.add.reduceat(moved * true, first, 1)  # (B, distinct)
            taken = np.cumsum(np.add.reduceat(moved, first, 1), 1)
            total = hits.sum(1)
            present[:, k] = total > 0
            precision = np.cumsum(hits, 1) / np.maximum(taken, 1e-300)
            values[:, k] = (hits * precision).sum(1) / np.maximum(total, 1e-300)
        return _mean_where(values, present)

    return score_of


def _mean_where(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    mean: np.ndarray = (values * present).sum(1) / np.maximum(present.sum(1), 1)
    return mean
