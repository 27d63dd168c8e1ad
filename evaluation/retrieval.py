"""Retrieval: a test patch asks for the train patches that are nearest to it; are they of its kind?"""

from typing import Any, NamedTuple

import numpy as np

from shards.errors import BandstreamError

AT = (1, 5, 10, 50)
GALLERY, QUERIES = 50_000, 5_000
"""Of larger splits so many samples are drawn by the seed; the results say how many."""
SHOWN = 6
TOGETHER = 64
"""Queries whose similarities are computed at once."""


class Retrieved(NamedTuple):
    """Scores, and for the pictures: sample numbers in test (q,), in train (q, SHOWN), and which of those are right."""

    scores: dict[str, Any]
    queries: np.ndarray
    neighbours: np.ndarray
    right: np.ndarray


def retrieve(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], seed: int,
             shown: int = 12) -> Retrieved:  # fmt: skip
    """Rank train by cosine similarity for every test sample. Both are (features (n, D), labels (n,) or (n, K)).

    A neighbour is right where it has the query's class; with several labels, where it shares one at least.

    map           mean over queries of average precision over the whole ranking; a query that nothing in the gallery is
                  right for does not count (`unanswerable`)
    precision_at  k → share of right ones among the k nearest, mean over all queries
    jaccard_at    k → with several labels, mean size of the intersection over that of the union of labels
    by_chance     share of right ones in the gallery: what a random ranking has as precision

    Raises BandstreamError where train has fewer samples than a picture shows.
    """
    rng = np.random.default_rng(seed)
    gallery = np.sort(rng.permutation(len(train[0]))[:GALLERY])
    asked = np.sort(rng.permutation(len(test[0]))[:QUERIES])
    if len(gallery) < SHOWN:
        raise BandstreamError(f"{len(gallery)} train samples are fewer than the {SHOWN} neighbours asked for: add some")
    bank, bank_labels = _unit(train[0][gallery]), train[1][gallery]
    ats = [k for k in AT if k <= len(gallery)]
    precision, chance = [], []
    hits: dict[int, list[float]] = {k: [] for k in ats}
    alike: dict[int, list[float]] = {k: [] for k in ats}
    places, rights = np.empty((len(asked), SHOWN), np.int64), np.empty((len(asked), SHOWN), bool)
    for number, query in enumerate(asked.tolist()):
        if number % TOGETHER == 0:
            similarity = _unit(test[0][asked[number : number + TOGETHER]]) @ bank.T  # (TOGETHER, gallery)
        order = np.argsort(-similarity[number % TOGETHER], kind="stable")
        right, jaccard = relevance(test[1][query], bank_labels)
        ranked = right[order]
        chance.append(float(right.mean()))
        if ranked.any():
            at = np.flatnonzero(ranked)
            precision.append(float(np.mean(np.arange(1, len(at) + 1) / (at + 1))))
        for k in ats:
            hits[k].append(float(ranked[:k].mean()))
            alike[k].append(float(jaccard[order[:k]].mean()))
        places[number], rights[number] = gallery[order[:SHOWN]], ranked[:SHOWN]
    scores: dict[str, Any] = {
        "map": float(np.mean(precision)) if precision else 0.0,
        "precision_at": {str(k): float(np.mean(values)) for k, values in hits.items()},
        "by_chance": float(np.mean(chance)),
        "unanswerable": len(asked) - len(precision),
        "gallery": len(gallery),
        "queries": len(asked),
    }
    if train[1].ndim == 2:
        scores["jaccard_at"] = {str(k): float(np.mean(values)) for k, values in alike.items()}
    chosen = rng.permutation(len(asked))[:shown]
    return Retrieved(scores, asked[chosen], places[chosen], rights[chosen])


def relevance(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a label against those of a gallery: right or wrong, bool (n,), and Jaccard similarity of the labels, (n,)."""
    if gallery.ndim == 1:
        same = gallery == query
        return same, same.astype(np.float64)
    shared = (gallery * query).sum(1)
    union = np.maximum(gallery, query).sum(1)
    return shared > 0, np.divide(shared, union, out=np.zeros(len(gallery)), where=union > 0)


def _unit(features: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    return scaled
