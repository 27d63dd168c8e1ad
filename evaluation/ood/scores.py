"""Scores of how far out of distribution a sample is: all of them higher where it is further out.

Of logits float (n, K). `multi`: a sigmoid a class, for labels of which a sample may have several; else a softmax.
"""

import numpy as np
from scipy.special import expit, log_expit, logsumexp, softmax, xlogy
from sklearn.covariance import LedoitWolf

from shards.errors import BandstreamError

REFERENCE = 50_000
"""Train samples that neighbours are looked for among, at most."""
NEIGHBOURS = 10


def max_softmax(logits: np.ndarray, multi: bool) -> np.ndarray:
    """-log of the largest probability (Hendrycks & Gimpel 2017): (n,), also where that rounds to 1 without ties."""
    if multi:
        return _negative(log_expit(logits).max(1))
    others = np.exp(logits - logits.max(1, keepdims=True))  # relative to the largest
    np.put_along_axis(others, logits.argmax(1)[:, None], 0, 1)
    found: np.ndarray = np.log1p(others.sum(1))
    return found


def energy(logits: np.ndarray, multi: bool) -> np.ndarray:
    """-logsumexp of the logits (Liu et al. 2020): (n,). `multi`: minus the joint energy (Wang et al. 2021)."""
    return _negative(np.logaddexp(0, logits).sum(1) if multi else logsumexp(logits, 1))


def entropy(probabilities: np.ndarray, multi: bool) -> np.ndarray:
    """Entropy in nats of probabilities (..., n, K): (..., n). `multi`: summed over the classes' yes or no."""
    found = -xlogy(probabilities, probabilities).sum(-1)
    if multi:
        found = found - xlogy(1 - probabilities, 1 - probabilities).sum(-1)
    summed: np.ndarray = found
    return summed


def mutual_information(passes: np.ndarray, multi: bool) -> np.ndarray:
    """Of logits (T, n, K) of T stochastic passes or T models: entropy of the mean prediction minus mean entropy, (n,).

    What they disagree about, not what each is unsure of (Houlsby et al. 2011; Gal et al. 2017); never below 0.
    """
    found = mean_probabilities(passes, multi)
    each = np.mean([entropy(_probabilities(one, multi), multi) for one in passes], 0)
    disagreement: np.ndarray = np.maximum(entropy(found, multi) - each, 0.0)
    return disagreement


def mean_probabilities(passes: np.ndarray, multi: bool) -> np.ndarray:
    """The mean prediction of passes (T, n, K): (n, K)."""
    found: np.ndarray = np.mean([_probabilities(one, multi) for one in passes], 0)
    return found


class Mahalanobis:
    """Distance to the nearest class of a Gaussian a class with one covariance (Lee et al. 2018).

    The covariance is shrunk (Ledoit & Wolf 2004), so that it can be inverted with fewer samples than features. With
    several labels a sample (multi-hot), or one sample a class, there is no class to condition on: one Gaussian for all.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        """`features` (n, D), `labels` (n,) or (n, K). Raises BandstreamError on fewer than two samples."""
        if len(features) < 2:
            raise BandstreamError(f"{len(features)} train samples have no covariance: use more labels")
        alone = labels.ndim == 2 or len(np.unique(labels)) == len(labels)
        groups = np.zeros(len(labels), np.int64) if alone else labels
        known, numbers = np.unique(groups, return_inverse=True)
        x = features.astype(np.float64)
        self.means = np.stack([x[numbers == k].mean(0) for k in range(len(known))])  # (G, D)
        fitted = LedoitWolf(assume_centered=True).fit(x - self.means[numbers])
        self.shrinkage = float(fitted.shrinkage_)
        values, vectors = np.linalg.eigh(fitted.covariance_)
        held = values > values.max() * 1e-12  # constant features have no variance, nor a distance
        self.whiten = vectors[:, held] / np.sqrt(values[held])

    def score(self, features: np.ndarray) -> np.ndarray:
        """Squared distance (n,) of features (n, D)."""
        white = features.astype(np.float64) @ self.whiten
        means = self.means @ self.whiten
        distances = (white**2).sum(1)[:, None] - 2 * white @ means.T + (means**2).sum(1)
        nearest: np.ndarray = distances.min(1)
        return nearest


class Neighbours:
    """Distance to the k-th nearest train sample, both of unit length (Sun et al. 2022)."""

    def __init__(self, features: np.ndarray, k: int = NEIGHBOURS, seed: int = 0) -> None:
        """Of more than 50,000 samples, so many are drawn. Raises BandstreamError on fewer than k."""
        if len(features) < k:
            raise BandstreamError(f"{len(features)} train samples are fewer than {k} neighbours: lower --neighbours")
        chosen = np.sort(np.random.default_rng(seed).permutation(len(features))[:REFERENCE])
        self.bank, self.k = _unit(features[chosen]), k

    def score(self, features: np.ndarray) -> np.ndarray:
        """Distance (n,), 0 to 2."""
        found = np.empty(len(features))
        for start in range(0, len(features), 256):
            similarity = _unit(features[start : start + 256]) @ self.bank.T
            kth = -np.partition(-similarity, self.k - 1, 1)[:, self.k - 1]
            found[start : start + 256] = np.sqrt(np.maximum(2 - 2 * kth, 0))
        return found


def _probabilities(logits: np.ndarray, multi: bool) -> np.ndarray:
    found: np.ndarray = expit(logits) if multi else softmax(logits, -1)
    return found


def _unit(features: np.ndarray) -> np.ndarray:
    x = features.astype(np.float64)
    scaled: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    return scaled


def _negative(values: np.ndarray) -> np.ndarray:
    return -values
