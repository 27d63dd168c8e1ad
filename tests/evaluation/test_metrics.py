"""Scores against scikit-learn and against loops written from the definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as judge

from evaluation import metrics

CLASSES = [f"class {k}" for k in range(6)]


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Sum over thresholds of (recall gained) × precision, ties taken together."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        hits = int((truth[taken] == 1).sum())
        recall, precision = hits / truth.sum(), hits / taken.sum()
        total += (recall - recall_before) * precision
        recall_before = recall
    return total


def loops(truth: np.ndarray, found: np.ndarray, classes: int) -> tuple[list[list[int]], dict[int, float]]:
    """Confusion matrix and IoU a class, pixel by pixel."""
    table = [[0] * classes for _ in range(classes)]
    for true, guess in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
        if true != 255:
            table[true][guess] += 1
    iou = {}
    for k in range(classes):
        union = sum(table[k]) + sum(row[k] for row in table) - table[k][k]
        if sum(table[k]):
            iou[k] = table[k][k] / union
    return table, iou


@pytest.fixture
def multilabel() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = (rng.random((200, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.0]).astype(np.uint8)
    scores = np.round(np.clip(truth * 0.3 + rng.random((200, 6)) * 0.7, 0, 1), 2)  # rounded: ties
    return truth, scores


def test_multilabel_equals_scikit_learn_and_the_definition(multilabel: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = multilabel
    there = truth.any(0)
    assert not there[5], "a class without a positive must be among them"
    scored = metrics.multilabel(truth, scores, CLASSES)
    each = [average_precision(truth[:, k], scores[:, k]) for k in range(5)]
    assert scored["macro_map"] == pytest.approx(np.mean(each))
    assert list(scored["per_class"]["average_precision"].values()) == pytest.approx(each)
    assert scored["macro_map"] == pytest.approx(
        judge.average_precision_score(truth[:, there], scores[:, there], average="macro")
    )
    found = scores > 0.5
    assert scored["macro_f1"] == pytest.approx(judge.f1_score(truth[:, there], found[:, there], average="macro"))
    hit, wrong, missed = (found & (truth == 1)).sum(), (found & (truth == 0)).sum(), (~found & (truth == 1)).sum()
    assert scored["micro_f1"] == pytest.approx(2 * hit / (2 * hit + wrong + missed))
    assert scored["support"] == {f"class {k}": int(truth[:, k].sum()) for k in range(5)}


def test_a_class_absent_from_the_truth_is_in_no_macro_mean(multilabel: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = multilabel
    scored = metrics.multilabel(truth, scores, CLASSES)
    worse = scores.copy()
    worse[:, 5] = 0.99  # false alarms for the class that is not there
    again = metrics.multilabel(truth, worse, CLASSES)
    assert "class 5" not in scored["per_class"]["average_precision"]
    assert again["macro_map"] == scored["macro_map"] and again["macro_f1"] == scored["macro_f1"]
    assert again["micro_f1"] < scored["micro_f1"], "but pooled over all decisions they are mistakes"


def test_micro_average_precision_is_scikit_learns_over_all_decisions(
    multilabel: tuple[np.ndarray, np.ndarray],
) -> None:
    truth, scores = multilabel
    scored = metrics.multilabel(truth, scores, CLASSES)
    assert scored["micro_map"] == pytest.approx(judge.average_precision_score(truth, scores, average="micro"))
    assert scored["micro_map"] == pytest.approx(average_precision(truth.ravel(), scores.ravel()))
    none = metrics.multilabel(np.zeros((4, 6), np.uint8), np.full((4, 6), 0.4), CLASSES)
    assert (none["macro_map"], none["micro_map"], none["micro_f1"], none["support"]) == (0, 0, 0, {})


def test_perfect_and_worst_scores_have_their_known_values() -> None:
    truth = np.eye(6, dtype=np.uint8)
    perfect = metrics.multilabel(truth, truth.astype(float), CLASSES)
    assert [perfect[name] for name in ("macro_map", "micro_map", "macro_f1", "micro_f1")] == [1, 1, 1, 1]
    worst = metrics.multilabel(truth, 1 - truth.astype(float), CLASSES)
    assert worst["macro_map"] == pytest.approx(1 / 6) and worst["micro_f1"] == 0


def test_single_label_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 5, 300)  # class 5 never occurs, but is predicted
    scores = rng.random((300, 6)) + 0.5 * np.eye(6)[truth]
    found = scores.argmax(1)
    assert (found == 5).any()
    scored = metrics.single_label(truth, scores, CLASSES)
    assert scored["accuracy"] == pytest.approx(judge.accuracy_score(truth, found))
    assert scored["macro_f1"] == pytest.approx(judge.f1_score(truth, found, labels=range(5), average="macro"))
    assert np.array_equal(scored["confusion"], judge.confusion_matrix(truth, found, labels=range(6)))


def test_segmentation_equals_loops_over_pixels_with_ignored_ones() -> None:
    rng = np.random.default_rng(2)
    truth = rng.choice([0, 1, 2, 4, 255], (3, 20, 20), p=[0.4, 0.3, 0.1, 0.1, 0.1]).astype(np.uint8)
    found = np.where(rng.random(truth.shape) < 0.6, truth % 6, rng.integers(0, 6, truth.shape)).astype(np.int64)
    table = metrics.confusion(truth, found, 6)
    naive, iou = loops(truth, found, 6)
    assert table.tolist() == naive and table.dtype == np.int64
    scored = metrics.segmentation(table, CLASSES)
    assert scored["per_class"]["iou"] == pytest.approx({CLASSES[k]: value for k, value in iou.items()})
    assert scored["macro_iou"] == pytest.approx(np.mean(list(iou.values())))
    known = truth != 255
    there = sorted(iou)
    assert there == [0, 1, 2, 4]
    truth_there, found_there = truth[known], found[known]
    assert scored["macro_iou"] == pytest.approx(
        judge.jaccard_score(truth_there, found_there, labels=there, average="macro")
    )
    assert scored["macro_f1"] == pytest.approx(judge.f1_score(truth_there, found_there, labels=there, average="macro"))
    assert scored["accuracy"] == pytest.approx((truth_there == found_there).mean())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**31))
def test_confusion_adds_up_over_batches(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.choice([0, 1, 2, 255], (n, 4, 4)), rng.integers(0, 3, (n, 4, 4))) for n in sizes]
    added = sum(metrics.confusion(truth, found, 3) for truth, found in parts)
    whole = metrics.confusion(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), 3)
    assert np.array_equal(added, whole)


def test_nothing_but_ignored_pixels_scores_zero_and_does_not_fail() -> None:
    truth = np.full((2, 8, 8), 255, np.uint8)
    table = metrics.confusion(truth, np.zeros((2, 8, 8), np.int64), 6)
    assert not table.any()
    scored = metrics.segmentation(table, CLASSES)
    assert scored["macro_iou"] == scored["macro_f1"] == scored["accuracy"] == 0 and scored["per_class"]["iou"] == {}


@pytest.mark.parametrize("seed", range(30))
def test_scores_of_exclusive_classes_are_scikit_learns(seed: int) -> None:
    """Random maps: classes that are absent from the truth, from what was found, or from both; ignored pixels."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(6, 0.4)) * (rng.random(6) < 0.7)
    share = share / share.sum() if share.sum() else np.eye(6)[0]
    truth = rng.choice(6, (2, 9, 11), p=share)
    found = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 5, truth.shape))
    truth = np.where(rng.random(truth.shape) < 0.2, 255, truth)
    scored = metrics.segmentation(metrics.confusion(truth, found, 6), CLASSES)
    known = truth != 255
    one, other, there = truth[known], found[known], sorted(set(truth[known].tolist()))
    assert list(scored["support"]) == [CLASSES[k] for k in there]
    options = {"labels": there, "average": None, "zero_division": 0}
    for name, score in (
        ("iou", judge.jaccard_score), ("f1", judge.f1_score), ("precision", judge.precision_score),
        ("recall", judge.recall_score),
    ):  # fmt: skip
        expected = score(one, other, **options)
        assert list(scored["per_class"][name].values()) == pytest.approx(expected.tolist()), name
        if f"macro_{name}" in scored:
            assert scored[f"macro_{name}"] == pytest.approx(expected.mean())
    assert scored["accuracy"] == pytest.approx(judge.accuracy_score(one, other))
    assert np.array_equal(scored["confusion"], judge.confusion_matrix(one, other, labels=range(6)))


@pytest.mark.parametrize("seed", range(30))
def test_scores_of_several_labels_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random((40, 6)) < rng.uniform(0, 0.4, 6) * (rng.random(6) < 0.8)).astype(np.uint8)
    truth[0, 0] = 1
    scores = np.round(np.clip(truth * rng.uniform(0, 0.5) + rng.random(truth.shape) * 0.6, 0, 1), 2)
    scored, there, found = metrics.multilabel(truth, scores, CLASSES), truth.any(0), scores > 0.5
    options = {"average": None, "zero_division": 0}
    for name, expected in (
        ("average_precision", judge.average_precision_score(truth[:, there], scores[:, there], average=None)),
        ("f1", judge.f1_score(truth[:, there], found[:, there], **options)),
        ("precision", judge.precision_score(truth[:, there], found[:, there], **options)),
        ("recall", judge.recall_score(truth[:, there], found[:, there], **options)),
    ):
        assert list(scored["per_class"][name].values()) == pytest.approx(np.atleast_1d(expected).tolist()), name
    assert scored["micro_f1"] == pytest.approx(judge.f1_score(truth, found, average="micro", zero_division=0))


def test_the_256th_class_of_pictures_is_a_class() -> None:
    truth, scores = np.array([255, 255, 3]), np.eye(300)[[255, 7, 3]]
    scored = metrics.single_label(truth, scores, [f"class {k}" for k in range(300)])
    assert scored["accuracy"] == pytest.approx(2 / 3) and scored["support"] == {"class 3": 1, "class 255": 2}
