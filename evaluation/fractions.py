"""Label fractions: seeded, stratified, and nested, so that the 1 % lies inside the 5 %.

The split is dealt into a hundred parts by iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, "On the
stratification of multi-label data"); the parts, one behind the other, make one order, and a fraction is a prefix of it.
"""

import numpy as np

from shards.errors import BandstreamError

PARTS = 100


def labelled_subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sample numbers, sorted int64, of a fraction in (0, 1] of a split with labels (n, K) multi-hot or (n,)."""
    if not 0 < fraction <= 1:
        raise BandstreamError(f"label fraction {fraction}: it is a share between 0 and 1, such as 0.05")
    if labels.ndim == 1:
        labels = np.eye(labels.max() + 1, dtype=np.uint8)[labels]
    count = max(1, round(fraction * len(labels)))
    return np.sort(stratified_order(labels, seed)[:count])


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order, int64 (n,), of samples with multi-hot labels (n, K), whose prefixes are close to stratified."""
    rng = np.random.default_rng(seed)
    count = len(labels)
    parts = min(PARTS, count)
    wanted = np.full(parts, count / parts)
    wanted_of = np.outer(labels.sum(0), np.full(parts, 1 / parts))  # (K, parts)
    part_of = np.full(count, -1)
    shuffled = rng.permutation(count)
    present = labels.astype(bool)
    remaining = labels.sum(0).astype(np.int64)
    while (remaining > 0).any():
        rarest = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        for sample in shuffled[present[shuffled, rarest] & (part_of[shuffled] < 0)]:
            neediest = np.flatnonzero(wanted_of[rarest] == wanted_of[rarest].max())
            neediest = neediest[wanted[neediest] == wanted[neediest].max()]
            part = int(rng.choice(neediest))
            part_of[sample] = part
            wanted[part] -= 1
            wanted_of[present[sample], part] -= 1
            remaining[present[sample]] -= 1
    for sample in shuffled[part_of[shuffled] < 0]:
        part = int(wanted.argmax())
        part_of[sample] = part
        wanted[part] -= 1
    order: np.ndarray = shuffled[np.argsort(part_of[shuffled], kind="stable")].astype(np.int64)
    return order
