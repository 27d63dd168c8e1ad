"""Scores against closed forms and naive loops; a score with its sign turned round fails."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, mahalanobis
from scipy.stats import norm
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import average_precision_score, roc_curve

from evaluation.ood import scores
from evaluation.ood.classifiers import Head
from evaluation.ood.detection import detection
from evaluation.probe import Linear
from shards.errors import BandstreamError


@pytest.mark.parametrize("distance", [0.5, 1.5, 3.0])
def test_two_gaussians_are_told_apart_as_the_closed_form_says(distance: float) -> None:
    """Inside N(0, 1), outside N(d, 1): AUROC is Φ(d / √2), FPR95 is Φ(z95 - d). Turned round: the complement."""
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=20000), rng.normal(distance, size=20000)
    found = detection(inside, outside, resamples=50)
    expected = norm.cdf(distance / np.sqrt(2))
    assert found["auroc"] == pytest.approx(expected, abs=0.01)
    assert found["fpr95"] == pytest.approx(norm.cdf(norm.ppf(0.95) - distance), abs=0.015)
    assert found["auroc_95"][0] < found["auroc"] < found["auroc_95"][1]
    assert detection(-inside, -outside, resamples=50)["auroc"] == pytest.approx(1 - expected, abs=0.01)


def test_measures_are_those_of_scikit_learn_with_each_side_as_the_positive_one() -> None:
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(size=90).round(1), rng.normal(1, size=40).round(1)
    found = detection(inside, outside, resamples=50)
    out, both = np.repeat([0, 1], [90, 40]), np.concatenate([inside, outside])
    assert found["aupr_out"] == pytest.approx(average_precision_score(out, both))
    assert found["aupr_in"] == pytest.approx(average_precision_score(1 - out, -both))
    false, true, _ = roc_curve(1 - out, -both)  # inside is the positive side; the first threshold that accepts 95 %
    assert found["fpr95"] == pytest.approx(false[np.argmax(true >= 0.95)])


def test_one_sample_from_outside_is_judged_too() -> None:
    found = detection(np.arange(50.0), np.array([30.5]), resamples=50)
    assert found["auroc"] == pytest.approx(31 / 50) and found["auroc_95"][0] < 31 / 50 < found["auroc_95"][1]


def test_an_empty_side_and_broken_scores_are_one_clear_line() -> None:
    for inside, outside, said in (
        ([1.0], [], "no samples"),
        ([], [1.0], "no samples"),
        ([1.0, np.nan], [1.0], "finite"),
    ):
        with pytest.raises(BandstreamError, match=said):
            detection(np.array(inside), np.array(outside))


# a classifier that is sure inside: the mean of class k is 6 long, over 20 features; outside lies at the origin
AXES = np.repeat(np.eye(3), 20, axis=1) * 6 / np.sqrt(20)
RNG = np.random.default_rng(2)
TRAIN_LABELS = np.arange(600) % 3
TRAIN = AXES[TRAIN_LABELS] + RNG.normal(size=(600, 60))
INSIDE = AXES[np.arange(300) % 3] + RNG.normal(size=(300, 60))
MIDDLE = RNG.normal(size=(300, 60))


def logits(features: np.ndarray) -> np.ndarray:
    """The Bayes-optimal ones of three unit Gaussians, up to a constant: x·mean - |mean|²/2."""
    return features @ AXES.T - 18


@pytest.mark.parametrize("multi", [False, True])
def test_every_score_is_higher_outside(multi: bool) -> None:
    head = Head.of_probe(Linear(np.zeros(60), np.ones(60), AXES.astype(np.float32), np.full(3, -18, np.float32), multi))
    hot = np.eye(3)[TRAIN_LABELS]
    gaussians = scores.Mahalanobis(TRAIN, TRAIN_LABELS)
    near = scores.Neighbours(TRAIN, 10)
    found = {
        "max_softmax": [scores.max_softmax(logits(x), multi) for x in (INSIDE, MIDDLE)],
        "energy": [scores.energy(logits(x), multi) for x in (INSIDE, MIDDLE)],
        "entropy": [scores.entropy(scores.mean_probabilities(logits(x)[None], multi), multi) for x in (INSIDE, MIDDLE)],
        "mutual_information": [
            scores.mutual_information(head.passes(x.astype(np.float32), 30, 0.3, 0), multi) for x in (INSIDE, MIDDLE)
        ],
        "mahalanobis": [gaussians.score(x) for x in (INSIDE, MIDDLE)],
        "knn": [near.score(x) for x in (INSIDE, MIDDLE)],
    }
    if multi:  # none of its classes is what is unusual of a multi-label sample that no sigmoid is sure of
        for name in ("entropy", "mutual_information"):
            found.pop(name)
        assert scores.Mahalanobis(TRAIN, hot).means.shape == (1, 60)
    for name, (inside, outside) in found.items():
        assert detection(inside, outside, resamples=20)["auroc"] > 0.8, name


def test_logit_scores_are_those_of_the_papers() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(0, 3, (20, 5))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    q = 1 / (1 + np.exp(-z))
    assert np.allclose(scores.max_softmax(z, False), -np.log(p.max(1)))
    assert np.allclose(scores.max_softmax(z, True), -np.log(q.max(1)))
    assert np.allclose(scores.energy(z, False), -np.log(np.exp(z).sum(1)))
    assert np.allclose(scores.energy(z, True), -np.log1p(np.exp(z)).sum(1))
    assert np.allclose(scores.entropy(p, False), -(p * np.log(p)).sum(1))
    assert np.allclose(scores.entropy(q, True), -(q * np.log(q) + (1 - q) * np.log(1 - q)).sum(1))
    passes = rng.normal(0, 3, (7, 20, 5))
    each = [np.exp(one) / np.exp(one).sum(1, keepdims=True) for one in passes]
    mean = sum(each) / 7
    expected = -(mean * np.log(mean)).sum(1) + sum((one * np.log(one)).sum(1) for one in each) / 7
    assert np.allclose(scores.mutual_information(passes, False), expected)
    assert np.allclose(scores.mutual_information(np.repeat(z[None], 4, 0), False), 0), "passes that agree"
    sure = scores.max_softmax(np.array([[60.0, 0], [80.0, 0]]), False)
    assert sure[0] > sure[1] > 0, "no ties where all are sure"


def test_mahalanobis_is_scipys_with_a_shrunk_covariance() -> None:
    gaussians = scores.Mahalanobis(TRAIN, TRAIN_LABELS)
    means = np.stack([TRAIN[k == TRAIN_LABELS].mean(0) for k in range(3)])
    covariance, shrinkage = ledoit_wolf(TRAIN - means[TRAIN_LABELS], assume_centered=True)
    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(x, mean, inverse) ** 2 for mean in means) for x in MIDDLE[:20]]
    assert np.allclose(gaussians.score(MIDDLE[:20]), expected)
    assert gaussians.shrinkage == pytest.approx(shrinkage)
    few = scores.Mahalanobis(TRAIN[:6], TRAIN_LABELS[:6])
    assert np.isfinite(few.score(MIDDLE)).all(), "fewer samples than features"
    single = scores.Mahalanobis(AXES, np.arange(3))
    assert single.means.shape == (1, 60) and single.score(MIDDLE).std() > 0, "a sample a class has no spread of its own"
    constant = np.concatenate([TRAIN, np.full((600, 1), 5.0)], 1)
    assert np.isfinite(scores.Mahalanobis(constant, TRAIN_LABELS).score(constant)).all()
    with pytest.raises(BandstreamError, match="covariance"):
        scores.Mahalanobis(TRAIN[:1], TRAIN_LABELS[:1])


def test_neighbour_distance_is_scipys_of_unit_vectors() -> None:
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (MIDDLE, TRAIN)]
    expected = np.sort(cdist(*unit), 1)[:, 6]
    assert np.allclose(scores.Neighbours(TRAIN, 7).score(MIDDLE), expected)
    with pytest.raises(BandstreamError, match="fewer than 7"):
        scores.Neighbours(TRAIN[:6], 7)


def test_passes_use_the_heads_own_dropout_where_it_has_some() -> None:
    x = MIDDLE.astype(np.float32)
    torch.manual_seed(0)
    plain, own = torch.nn.Linear(60, 3), torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(60, 3))
    own[1].load_state_dict(plain.state_dict())
    heads = Head(plain), Head(own)
    assert np.array_equal(heads[0].logits(x), heads[1].logits(x)), "no dropout without passes"
    a, b = (head.passes(x, 400, 0.5, 1) for head in heads)
    assert a.shape == (400, 300, 3) and np.array_equal(a, heads[0].passes(x, 400, 0.5, 1)), "a function of the seed"
    assert np.allclose(a.mean(0), heads[0].logits(x), atol=0.5), "dropout leaves the mean where it was"
    assert np.allclose(a.std(0), b.std(0), rtol=0.3)
    assert np.array_equal(heads[1].passes(x, 5, 0.01, 1), heads[1].passes(x, 5, 0.99, 1)), "its own, not the option's"
    assert np.array_equal(heads[0].logits(x), heads[1].logits(x)), "and it is off again"
