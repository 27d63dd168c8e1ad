"""Do clusters that are found without labels agree with them? k-means, fitted on train, met by test."""

from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from evaluation.standardising import scaling
from shards.errors import BandstreamError

SILHOUETTE_SAMPLES = 5000
RESTARTS = 4


def cluster(train: np.ndarray, test: tuple[np.ndarray, np.ndarray], clusters: int, seed: int) -> dict[str, Any]:
    """k-means on standardised train features (n, D); how test samples (features, labels) fall into the clusters.

    purity      share of test samples that have the commonest class of their cluster; with several labels a sample
                (multi-hot), the class that most samples of the cluster hold, and a sample counts where it holds it
    one_cluster purity of a single cluster: the share of the commonest class, which is no achievement
    nmi, ari    normalised mutual information (arithmetic mean) and adjusted Rand index; with several labels a sample,
                of the exact sets of labels
    silhouette  mean silhouette of test (of 5,000 samples at most), from -1 to 1; None where one cluster has them all

    Raises BandstreamError on fewer train samples than clusters.
    """
    if len(train) < clusters:
        raise BandstreamError(
            f"{len(train)} train samples make no {clusters} clusters: ask for fewer with --clusters, or use more "
            "samples"
        )
    mean, scale = scaling(train)
    model = KMeans(clusters, n_init=RESTARTS, random_state=seed).fit(((train - mean) / scale).astype(np.float32))
    inputs = ((test[0] - mean) / scale).astype(np.float32)
    found = model.predict(inputs)
    whole = label_sets(test[1])
    silhouette = None
    if 1 < len(np.unique(found)) < len(found):
        size = min(len(found), SILHOUETTE_SAMPLES)
        chosen = np.random.default_rng(seed).choice(len(found), size, replace=False)
        if 1 < len(np.unique(found[chosen])) < size:
            silhouette = float(silhouette_score(inputs[chosen], found[chosen]))
    return {
        "purity": purity(found, test[1]),
        "one_cluster": purity(np.zeros_like(found), test[1]),
        "nmi": float(normalized_mutual_info_score(whole, found)),
        "ari": float(adjusted_rand_score(whole, found)),
        "silhouette": silhouette,
        "clusters": clusters,
        "sizes": np.bincount(found, minlength=clusters).tolist(),
    }


def purity(found: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples that hold the commonest class of their cluster: (n,), labels (n,) or multi-hot (n, K)."""
    hot = labels if labels.ndim == 2 else np.eye(int(labels.max()) + 1)[labels]
    counts = np.zeros((int(found.max()) + 1, hot.shape[1]))
    np.add.at(counts, found, hot)
    return float(counts.max(1).sum() / len(found))


def label_sets(labels: np.ndarray) -> np.ndarray:
    """A number a distinct set of labels: (n,) as they are, multi-hot (n, K) → int64 (n,)."""
    return labels if labels.ndim == 1 else np.unique(labels, axis=0, return_inverse=True)[1].ravel()
