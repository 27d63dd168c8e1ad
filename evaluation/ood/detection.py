"""How well a score tells two sets of samples apart. A score is higher where a sample is more out of distribution."""

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation.intervals import bootstrap
from evaluation.weighted import weighted_auroc
from shards.errors import BandstreamError

ACCEPTED = 0.95


def detection(inside: np.ndarray, outside: np.ndarray, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Of the scores of in-distribution samples (n,) and of others (m,):

    auroc     chance that a sample from outside scores higher than one from inside; below 0.5 the score is misled
    aupr_out  average precision where samples from outside are to be found by high scores
    aupr_in   average precision where those from inside are to be found by low scores
    fpr95     share of outside samples that are taken for inside ones at the threshold that accepts 95 % of those
    auroc_95  the 95 % bootstrap interval of auroc, over the samples of both sides

    Raises BandstreamError where one side is empty, or a score is not finite.
    """
    if not len(inside) or not len(outside):
        raise BandstreamError("there are no samples on one side: name another set with --against, or another class")
    scores = np.concatenate([inside, outside])
    if not np.isfinite(scores).all():
        raise BandstreamError("some out-of-distribution scores are not finite numbers: the features are damaged")
    out = np.concatenate([np.zeros(len(inside), bool), np.ones(len(outside), bool)])
    threshold = np.quantile(inside, ACCEPTED, method="inverted_cdf")
    found = bootstrap([weighted_auroc(scores, out)], [len(inside), len(outside)], resamples, seed)
    return {
        "auroc": float(roc_auc_score(out, scores)),
        "aupr_out": float(average_precision_score(out, scores)),
        "aupr_in": float(average_precision_score(~out, -scores)),
        "fpr95": float((outside <= threshold).mean()),
        "auroc_95": [found.low, found.high],
    }
