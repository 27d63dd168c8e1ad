"""Bootstrap intervals of scores over test samples and seeds, and of the difference of two runs on the same samples.

A resample is a row of weights: how often each test sample was drawn. Every score is computed from weights, for many
resamples at once, without sorting anew (`evaluation.weighted`).

Intervals over samples are BCa (Efron 1987), not percentiles: resampling repeats positives, which lifts average
precision, and empties rare classes, which moves macro means, so the resamples' distribution is shifted against the
score; percentiles then err twice in one direction, while BCa takes the shift out, and follows the skewness of scores
near 1. The acceleration is of a jackknife that leaves out one of at most 200 random groups.

Over seeds, runs are resampled as well, crossed with the samples, since all seeds are scored on the same ones. The few
runs that people make spread too little when they are resampled: their part of the deviation is widened by sqrt(S / (S -
1)), and by the ratio of Student's t with S - 1 degrees of freedom to the normal quantile. With one run an interval
speaks of that run's test samples alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from evaluation.predictions import Predictions
from evaluation.weighted import weighted_score
from shards.errors import BandstreamError

RESAMPLES, LEVEL, GROUPS = 2000, 0.95, 200
CELLS = 1 << 22
"""Weights held at a time."""
Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights float64 (B, n) → a score a row (B,)."""


@dataclass(frozen=True)
class Interval:
    """A score with its bounds, and over how many test samples and runs it was resampled."""

    estimate: float
    low: float
    high: float
    level: float
    samples: int
    runs: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def interval(runs: Sequence[Predictions], score: str, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The 95 % interval of a score's mean over `runs`, which differ in their seed alone.

    `score`: a name of `weighted.SCORES`. Raises BandstreamError on runs of other test samples.
    """
    aligned = align(runs)
    return bootstrap([weighted_score(run, score) for run in aligned], [len(aligned[0].keys)], resamples, seed)


def difference(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    score: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The 95 % interval of `first` minus `second`, paired: both on the same samples in every resample.

    Run i of both has the same seed. The two differ, by this data, where the interval leaves out 0. Raises
    BandstreamError on unequal numbers of runs, or other test samples.
    """
    if len(first) != len(second):
        raise BandstreamError(
            f"a paired difference needs as many runs on both sides, seed by seed; here are {len(first)} and "
            f"{len(second)}"
        )
    runs = align([*first, *second])
    scores = [weighted_score(run, score) for run in runs]
    leads = [_minus(a, b) for a, b in zip(scores[: len(first)], scores[len(first) :], strict=True)]
    found = bootstrap(leads, [len(runs[0].keys)], resamples, seed, bounded=False)
    return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))  # as far apart as scores can be


def align(runs: Sequence[Predictions]) -> list[Predictions]:
    """Runs with samples in the first one's order. Raises BandstreamError where samples, truth or classes differ."""
    first = runs[0]
    order = np.argsort(first.keys)
    aligned = [first]
    for run in runs[1:]:
        own = np.argsort(run.keys)
        if not np.array_equal(first.keys[order], run.keys[own]):
            both = len(np.intersect1d(first.keys, run.keys))
            raise BandstreamError(
                f"the runs were not tested on the same samples ({both} in common of {len(first.keys)} and "
                f"{len(run.keys)}): evaluate both on one shard set"
            )
        back = np.empty_like(own)
        back[order] = own
        moved = Predictions(run.keys[back], run.truth[back], run.scores[back], run.kind, run.classes)
        if (run.kind, run.classes) != (first.kind, first.classes) or not np.array_equal(moved.truth, first.truth):
            raise BandstreamError("the runs were tested on other labels: evaluate both on one label set")
        aligned.append(moved)
    return aligned


def bootstrap(
    statistics: Sequence[Statistic], sizes: Sequence[int], resamples: int = RESAMPLES, seed: int = 0,
    level: float = LEVEL, bounded: bool = True,
) -> Interval:  # fmt: skip
    """BCa interval of the mean of `statistics` (one a run) over samples that are drawn within groups of `sizes`.

    Runs are resampled too where there are several. A `bounded` score lies in 0 to 1, and so do its bounds. A score of
    exactly 1 (or 0) is the same in every resample; its other bound is that of Clopper & Pearson (1934) for as many
    right (wrong) ones as the smallest group has. Raises BandstreamError on fewer than two samples.
    """
    count, runs = sum(sizes), len(statistics)
    if count < 2 or min(sizes) < 1:
        raise BandstreamError(f"an interval over {count} test samples says nothing: two at least")
    rng = np.random.default_rng(seed)
    chunk = max(1, CELLS // count)
    found = np.empty((runs, resamples))
    for start in range(0, resamples, chunk):
        weights = _drawn(rng, sizes, min(chunk, resamples - start))
        found[:, start : start + len(weights)] = [statistic(weights) for statistic in statistics]
    estimate = float(np.mean([statistic(np.ones((1, count)))[0] for statistic in statistics]))
    over_samples = found.mean(0)  # (B,)
    replicates = over_samples
    if runs > 1:
        drawn = rng.integers(runs, size=(runs, resamples))
        over_runs = np.take_along_axis(found, drawn, 0).mean(0)
        tail = (1 + level) / 2
        wider = np.sqrt(runs / (runs - 1)) * student.ppf(tail, runs - 1) / ndtri(tail)
        replicates = over_samples + wider * (over_runs - over_samples)
    shares = _bca_shares(estimate, replicates, _jackknife(statistics, count, rng), level)
    low, high = np.quantile(replicates, shares)
    if bounded:  # what is widened for few runs may reach beyond what the score can be
        low, high = max(low, 0.0), min(high, 1.0)
    if bounded and estimate in (0.0, 1.0):
        edge = ((1 - level) / 2) ** (1 / min(sizes))
        low, high = (edge, 1.0) if estimate == 1 else (0.0, 1 - edge)
    return Interval(estimate, float(low), float(high), level, count, runs)


def _minus(a: Statistic, b: Statistic) -> Statistic:
    return lambda weights: a(weights) - b(weights)


def _drawn(rng: np.random.Generator, sizes: Sequence[int], rows: int) -> np.ndarray:
    """Weights float64 (rows, sum of sizes): each group drawn with replacement, as often as it is large."""
    parts = []
    for size in sizes:
        picked = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        parts.append(np.bincount(picked.ravel(), minlength=rows * size).reshape(rows, size))
    return np.concatenate(parts, 1).astype(np.float64)


def _jackknife(statistics: Sequence[Statistic], count: int, rng: np.random.Generator) -> np.ndarray:
    """The mean statistic without each of at most 200 random groups of samples."""
    groups = rng.permutation(count) % min(count, GROUPS)
    number = int(groups.max()) + 1
    chunk = max(1, CELLS // count)
    parts = []
    for start in range(0, number, chunk):
        left_out = np.arange(start, min(start + chunk, number))[:, None] == groups
        parts.append(np.mean([statistic((~left_out).astype(np.float64)) for statistic in statistics], 0))
    values = np.concatenate(parts)
    finite: np.ndarray = values[np.isfinite(values)]  # a group may have been all that one side had
    return finite


def _bca_shares(estimate: float, replicates: np.ndarray, jackknife: np.ndarray, level: float) -> np.ndarray:
    """The two shares of the replicates that bound the interval; replicates equal to the estimate count half."""
    below = (np.sum(replicates < estimate) + 0.5 * np.sum(replicates == estimate)) / len(replicates)
    shift = ndtri(np.clip(below, 1 / (2 * len(replicates)), 1 - 1 / (2 * len(replicates))))
    influence = jackknife.mean() - jackknife
    spread = np.sum(influence**2)
    acceleration = np.sum(influence**3) / (6 * spread**1.5) if spread > 0 else 0.0
    tails = ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shares: np.ndarray = ndtr(shift + (shift + tails) / (1 - acceleration * (shift + tails)))
    return shares
