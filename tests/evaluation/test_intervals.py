"""Scores from weights are the scores of repeated samples, and 95 % intervals cover in 95 % of simulations."""

import numpy as np
import pytest
from scipy.stats import beta
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import roc_auc_score

from evaluation import metrics
from evaluation.intervals import bootstrap, difference, interval
from evaluation.predictions import Predictions, load_predictions, save_predictions
from evaluation.weighted import SCORES, weighted_auroc, weighted_score
from shards.errors import BandstreamError

CLASSES = ["a", "b", "c", "d"]


def made(kind: str, seed: int = 0, count: int = 60) -> Predictions:
    """Predictions that are right more often than not, with ties, and a class that is rare."""
    rng = np.random.default_rng(seed)
    keys = np.array([f"P{n}" for n in range(count)])
    if kind == "segment":
        tables = rng.integers(0, 30, (count, 4, 4))
        tables[:, 3] = 0
        tables[0, 3] = [1, 0, 0, 2]
        return Predictions(keys, np.empty((count, 0), np.uint8), tables, kind, CLASSES)
    scores = rng.dirichlet(np.ones(4), count).round(1).astype(np.float32)
    truth = np.where(rng.random(count) < 0.6, scores.argmax(1), rng.choice(4, count, p=[0.5, 0.3, 0.17, 0.03]))
    if kind == "multilabel":
        hot = np.eye(4, dtype=np.uint8)[truth] | (rng.random((count, 4)) < [0.5, 0.2, 0.1, 0.01]).astype(np.uint8)
        return Predictions(keys, hot, scores, kind, CLASSES)
    return Predictions(keys, truth.astype(np.int64), scores, kind, CLASSES)


@pytest.mark.parametrize("kind", list(SCORES))
def test_weighted_scores_are_those_of_repeated_samples(kind: str) -> None:
    run = made(kind)
    weights = np.random.default_rng(1).multinomial(len(run.keys), np.full(len(run.keys), 1 / len(run.keys)), 7)
    weights[0] = 1
    for score in SCORES[kind]:
        got = weighted_score(run, score)(weights.astype(np.float64))
        for row, value in zip(weights, got, strict=True):
            drawn = np.repeat(np.arange(len(run.keys)), row)
            if kind == "segment":
                expected = metrics.segmentation(run.scores[drawn].sum(0), CLASSES)
            else:
                scored = metrics.multilabel if kind == "multilabel" else metrics.single_label
                expected = scored(run.truth[drawn], run.scores[drawn], CLASSES)
            assert value == pytest.approx(expected[score], abs=1e-9)


def test_weighted_auroc_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    scores, out = rng.integers(0, 9, 50).astype(float), rng.random(50) < 0.4
    weights = rng.multinomial(50, np.full(50, 0.02), 5)
    got = weighted_auroc(scores, out)(weights.astype(np.float64))
    for row, value in zip(weights, got, strict=True):
        drawn = np.repeat(np.arange(50), row)
        assert value == pytest.approx(roc_auc_score(out[drawn], scores[drawn]))


def test_bca_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    got = bootstrap([lambda weights: weights @ values / weights.sum(1)], [80], 20000, 0, bounded=False)
    expected = scipy_bootstrap((values,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1))
    assert got.estimate == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx(expected.confidence_interval, abs=0.01)


def covered(trials: int, truth: float, one: object) -> float:
    """Share of simulated intervals that hold the truth."""
    found = [one(np.random.default_rng([7, trial])) for trial in range(trials)]  # type: ignore[operator]
    return float(np.mean([low <= truth <= high for low, high in found]))


def right_or_wrong(right: np.ndarray) -> Predictions:
    """A run with two classes that is right where `right` says so."""
    keys = np.array([f"P{n}" for n in range(len(right))])
    return Predictions(keys, np.zeros(len(right), np.int64), np.eye(2)[1 - right.astype(int)], "single", ["a", "b"])


def test_intervals_over_samples_cover() -> None:
    def one(rng: np.random.Generator) -> tuple[float, float]:
        found = interval([right_or_wrong(rng.random(150) < 0.85)], "accuracy", resamples=500)
        return found.low, found.high

    assert 0.92 <= covered(400, 0.85, one) <= 0.98


def test_intervals_of_macro_average_precision_cover() -> None:
    """Scores of positives N(1, 1) and negatives N(0, 1), one in five positive: the truth is of a million samples."""

    def drawn(rng: np.random.Generator, count: int) -> Predictions:
        truth = (rng.random((count, 2)) < 0.2).astype(np.uint8)
        scores = rng.normal(truth).astype(np.float64)
        return Predictions(np.array([f"P{n}" for n in range(count)]), truth, scores, "multilabel", ["a", "b"])

    def one(rng: np.random.Generator) -> tuple[float, float]:
        found = interval([drawn(rng, 200)], "macro_map", resamples=400)
        return found.low, found.high

    truth = weighted_score(drawn(np.random.default_rng(0), 10**6), "macro_map")(np.ones((1, 10**6)))[0]
    assert 0.92 <= covered(300, float(truth), one) <= 0.98


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_over_seeds_cover_what_a_further_seed_would_have(seeds: int) -> None:
    """Seeds have true accuracies N(0.8, 0.04): the interval is of their mean, 0.8, and few seeds must not narrow it."""

    def one(rng: np.random.Generator) -> tuple[float, float]:
        hard = rng.random(200)  # the samples' own difficulty, the same for every seed
        runs = [right_or_wrong(hard < level) for level in rng.normal(0.8, 0.04, seeds)]
        found = interval(runs, "accuracy", resamples=400)
        return found.low, found.high

    assert 0.92 <= covered(300, 0.8, one) <= 0.99


def test_paired_differences_cover_and_are_narrower_than_unpaired_ones() -> None:
    widths = []

    def one(rng: np.random.Generator) -> tuple[float, float]:
        hard = rng.random(200)
        noise = rng.random((2, 200)) < 0.03
        a, b = (right_or_wrong((hard < level) ^ flip) for level, flip in zip((0.85, 0.80), noise, strict=True))
        found = difference([a], [b], "accuracy", resamples=400)
        widths.append((found.high - found.low, interval([a], "accuracy", resamples=200)))
        return found.low, found.high

    truth = 0.05 * 0.94  # flips pull both towards one half
    assert 0.92 <= covered(300, truth, one) <= 0.98
    alone = np.mean([i.high - i.low for _, i in widths])
    assert np.mean([w for w, _ in widths]) < 0.8 * np.sqrt(2) * alone


def test_a_run_against_itself_differs_by_nothing_in_any_order_of_samples() -> None:
    run = made("single")
    order = np.random.default_rng(3).permutation(len(run.keys))
    moved = Predictions(run.keys[order], run.truth[order], run.scores[order], run.kind, run.classes)
    found = difference([run], [moved], "macro_f1", resamples=100)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_a_perfect_score_is_no_certainty() -> None:
    """Clopper & Pearson: 30 right of 30 are, at 95 %, a share of 0.025^(1/30) or more."""
    found = interval([right_or_wrong(np.ones(30, bool))], "accuracy", resamples=50)
    assert (found.low, found.high) == (pytest.approx(beta.ppf(0.025, 30, 1)), 1.0)
    found = interval([right_or_wrong(np.zeros(30, bool))], "accuracy", resamples=50)
    assert (found.low, found.high) == (0.0, pytest.approx(beta.ppf(0.975, 1, 30)))


def test_bounds_of_a_score_are_scores_however_far_few_runs_lie_apart() -> None:
    weighted = [lambda weights, share=share: weights @ np.linspace(share - 0.01, share + 0.01, 40) / weights.sum(1)
                for share in (0.5, 0.97)]  # fmt: skip
    found = bootstrap(weighted, [40])
    assert (found.low, found.high) == (0.0, 1.0) and found.estimate == pytest.approx(0.735)
    apart = bootstrap(weighted, [40], bounded=False)
    assert apart.low < 0 and apart.high > 1
    right, wrong = (right_or_wrong(np.full(40, answer)) for answer in (True, False))
    lead = difference([right, wrong], [wrong, right], "accuracy")
    assert (lead.low, lead.estimate, lead.high) == (-1.0, 0.0, 1.0)


def test_what_cannot_be_compared_is_one_clear_line() -> None:
    run, other = made("single"), made("single", 1)
    fewer = Predictions(run.keys[:-1], run.truth[:-1], run.scores[:-1], "single", CLASSES)
    for a, b, said in (
        ([run], [run, run], "as many runs"),
        ([run], [fewer], "59 in common"),
        ([run], [other], "other labels"),
    ):
        with pytest.raises(BandstreamError, match=said):
            difference(a, b, "accuracy")
    with pytest.raises(BandstreamError, match="accuracy, macro_f1"):
        interval([run], "macro_map")
    with pytest.raises(BandstreamError, match="two at least"):
        interval([Predictions(run.keys[:1], run.truth[:1], run.scores[:1], "single", CLASSES)], "accuracy")


@pytest.mark.parametrize("kind", list(SCORES))
def test_predictions_come_back_as_they_were_saved(kind: str, tmp_path) -> None:
    run = made(kind)
    save_predictions(tmp_path, run.keys, run.truth, run.scores, kind, CLASSES)
    back = load_predictions(tmp_path)
    assert (back.kind, back.classes) == (kind, CLASSES)
    assert all(np.array_equal(getattr(back, n), getattr(run, n)) for n in ("keys", "truth", "scores"))
    with pytest.raises(ValueError, match="truth"):
        save_predictions(tmp_path, run.keys[:-1], run.truth, run.scores, kind, CLASSES)
    (tmp_path / "test_predictions.npz").write_bytes(b"PK damaged")
    with pytest.raises(BandstreamError, match="cannot be read"):
        load_predictions(tmp_path)
    with pytest.raises(BandstreamError, match="evaluate or fine-tune"):
        load_predictions(tmp_path / "nowhere")
