"""Label fractions: seeded, stratified, and nested, so that the 1 % lies inside the 5 %.

All samples are brought into one order of which every prefix is close to stratified; a fraction is a prefix of it.
Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, "On the stratification of multi-label data") balances the
parts of one division; here the order grows greedily instead, so that no size is favoured.
"""

import numpy as np

from shards.errors import BandstreamError

WINDOW = 64
"""Candidates for the next place: few enough for 10^5 samples in seconds, enough to hold one that fits."""


def labelled_subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sample numbers, sorted int64, of a fraction in (0, 1] of a split with labels (n, K) multi-hot or (n,)."""
    if not 0 < fraction <= 1:
        raise BandstreamError(f"label fraction {fraction}: it is a share between 0 and 1, such as 0.05")
    count = max(1, round(fraction * len(labels)))
    if count == len(labels):
        return np.arange(count)
    if labels.ndim == 1:
        labels = np.eye(labels.max() + 1, dtype=np.uint8)[labels]
    there = labels.any(0)  # the same samples, to the last bit, however many classes are named that have none
    return np.sort(stratified_order(labels[:, there], seed, count))


def stratified_order(labels: np.ndarray, seed: int, count: int | None = None) -> np.ndarray:
    """The first `count` (default: all) of an order, int64, of samples with multi-hot labels (n, K).

    The samples are shuffled; then, of the next `WINDOW` ones, always that which leaves the counts of the classes
    closest to their shares takes the next place. Deviations weigh by a class's own spread, so that rare classes count.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    share = labels.mean(0)
    weight = 1 / np.maximum(share * (1 - share), 1e-6)
    window, behind = order[:WINDOW].copy(), WINDOW
    candidates = labels[window].astype(np.float64)  # (W, K)
    held = np.zeros(labels.shape[1])
    chosen = np.empty(len(labels) if count is None else count, np.int64)
    for place in range(len(chosen)):
        excess = held - (place + 1) * share + candidates  # (W, K)
        best = int((excess**2 @ weight).argmin())
        chosen[place] = window[best]
        held += candidates[best]
        if behind < len(order):
            window[best], candidates[best] = order[behind], labels[order[behind]]
            behind += 1
        else:
            window, candidates = np.delete(window, best), np.delete(candidates, best, 0)
    return chosen
