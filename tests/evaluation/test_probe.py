"""Probes against scikit-learn and naive loops; what they choose, they choose without the test split."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from evaluation import probe
from evaluation.features import extract, frozen, image_statistics
from shards.errors import BandstreamError


def task(seed: int, multi: bool, count: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n, 10) of uneven scales, and labels that depend on them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 10)).astype(np.float32)
    logits = features @ np.random.default_rng(99).normal(size=(10, 4)) + rng.normal(size=(count, 4))
    scaled = (features * np.geomspace(0.01, 100, 10) + 5).astype(np.float32)
    return scaled, (logits > 1).astype(np.float32) if multi else logits.argmax(1)


@pytest.mark.parametrize("multi", [True, False])
def test_linear_probe_is_logistic_regression_chosen_on_val(multi: bool) -> None:
    (x, y), val, test = task(0, multi), task(1, multi, 400), task(2, multi, 300)
    got = probe.linear_probe((x, y), val, test[0], 4)
    mean, std = x.mean(0), x.std(0)

    def judge(strength: float) -> list[np.ndarray]:
        """On val and on test. Scikit-learn minimises sum(loss) + w²/2C, here mean(loss) + strength w²."""
        c, inputs = 1 / (2 * strength * len(x)), [(part - mean) / std for part in (x, val[0], test[0])]
        if not multi:
            fitted = LogisticRegression(C=c, max_iter=1000).fit(inputs[0], y)
            return [fitted.predict_proba(part) for part in inputs[1:]]
        each = [LogisticRegression(C=c, max_iter=1000).fit(inputs[0], y[:, k]) for k in range(4)]
        return [np.stack([fitted.predict_proba(part)[:, 1] for fitted in each], 1) for part in inputs[1:]]

    judged = {strength: judge(strength) for strength in probe.STRENGTHS}

    def score(strength: float) -> float:
        found = judged[strength][0]
        if multi:
            return float(np.mean([average_precision_score(val[1][:, k], found[:, k]) for k in range(4)]))
        return float((found.argmax(1) == val[1]).mean())

    assert score(got.chosen) == pytest.approx(max(map(score, probe.STRENGTHS)), abs=0.003)
    assert np.abs(got.scores - judged[got.chosen][1]).max() < 0.02


def test_probes_do_not_depend_on_the_scale_or_the_other_samples_of_test() -> None:
    train, val, test = task(0, True), task(1, True), task(2, True)
    scale = np.geomspace(1000, 0.001, 10).astype(np.float32)
    one = probe.linear_probe(train, val, test[0], 4)
    other = probe.linear_probe((train[0] * scale, train[1]), (val[0] * scale, val[1]), test[0] * scale, 4)
    assert np.abs(one.scores - other.scores).max() < 0.02
    for made in (probe.linear_probe, probe.knn):
        alone = made(train, val, test[0][:3], 4)
        assert np.allclose(alone.scores, made(train, val, test[0], 4).scores[:3], atol=1e-5)


def test_constant_features_and_a_class_without_positives_do_no_harm() -> None:
    (x, y), val, test = task(0, True), task(1, True), task(2, True)
    constant = [np.concatenate([part, np.full((len(part), 1), 7, np.float32)], 1) for part in (x, val[0], test[0])]
    y = y.copy()
    y[:, 3] = 0
    for made in (probe.linear_probe, probe.knn):
        scores = made((constant[0], y), (constant[1], val[1]), constant[2], 4).scores
        assert np.isfinite(scores).all() and scores.shape == (len(test[0]), 4)
        assert scores[:, 3].max() < 0.1


@pytest.mark.parametrize("multi", [True, False])
def test_knn_equals_loops(multi: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "NEIGHBOURS", (5,))
    (x, y), val, test = task(0, multi), task(1, multi), task(2, multi, 20)
    got = probe.knn((x, y), val, test[0], 4)
    hot = y if multi else np.eye(4)[y]
    for query, row in zip(test[0], got.scores, strict=True):
        cosine = [float(query @ other) / float(np.linalg.norm(query) * np.linalg.norm(other)) for other in x]
        nearest = sorted(range(len(x)), key=lambda i: -cosine[i])[:5]
        expected = sum(cosine[i] * hot[i] for i in nearest) / sum(cosine[i] for i in nearest)
        assert row == pytest.approx(expected, abs=1e-4)


def test_knn_takes_what_there_is_where_samples_are_few() -> None:
    (x, y), val, test = task(0, True), task(1, True), task(2, True)
    assert np.isfinite(probe.knn((x[:3], y[:3]), val, test[0], 4).scores).all()


@pytest.mark.parametrize("made", [probe.linear_probe, probe.knn])
def test_val_without_any_label_chooses_nothing(made: object) -> None:
    train, val, test = task(0, True), task(1, True), task(2, True)
    with pytest.raises(BandstreamError, match="val split has no label at all"):
        made(train, (val[0], np.zeros_like(val[1])), test[0], 4)  # type: ignore[operator]


def test_neighbours_that_are_all_alike_vote_alike() -> None:
    """Ties in similarity, k of them at a time: which are taken is open, but a vote is a mean of labels, and certain."""
    train = np.ones((40, 3), np.float32), np.arange(40) % 2
    found = probe.knn(train, (train[0], train[1]), np.full((5, 3), 2, np.float32), 2)
    assert np.allclose(found.scores.sum(1), 1) and (found.scores == found.scores[0]).all()
    opposite = probe.knn((train[0], np.full(40, 1)), (train[0], np.full(40, 1)), -train[0][:3], 2)
    assert np.allclose(opposite.scores, [0, 1]), "neighbours on the other side still vote"


def test_image_statistics_equal_numpy() -> None:
    views = torch.randn(3, 4, 9, 11)
    pixels = views.numpy().reshape(3, 4, -1)
    parts = [pixels.mean(2), pixels.std(2, ddof=1)]
    parts += [np.quantile(pixels, q, axis=2) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert np.allclose(image_statistics(views).numpy(), np.concatenate(parts, 1), atol=1e-5)


def test_image_statistics_of_a_large_batch_are_those_of_small_ones() -> None:
    views = torch.randn(20, 4, 512, 512, generator=torch.Generator().manual_seed(0))  # 21 million pixels
    assert torch.equal(image_statistics(views)[15:], image_statistics(views[15:]))


def test_features_that_are_no_numbers_are_refused() -> None:
    batch = SimpleNamespace(views=[torch.full((2, 3, 8, 8), torch.nan)], labels=torch.zeros(2))
    with pytest.raises(BandstreamError, match="features are not finite"):
        extract([batch], image_statistics)


def test_features_are_frozen_and_in_the_order_of_the_batches() -> None:
    class Batch:
        def __init__(self, number: int) -> None:
            self.views = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(number))]
            self.labels = torch.full((2,), number)

    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(192, 5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    features, labels = extract([Batch(0), Batch(1)], frozen(net, torch.device("cpu")))
    assert features.shape == (4, 5) and features.dtype == np.float32 and labels.tolist() == [0, 0, 1, 1]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    alone, _ = extract([Batch(1)], frozen(net, torch.device("cpu")))
    assert np.allclose(alone, features[2:])
