"""Label fractions: nested, stratified, a function of the seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.fractions import labelled_subset, stratified_order
from shards.errors import BandstreamError

SIZES = [1000, 500, 300, 150, 50]
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


def multilabels(count: int, seed: int) -> np.ndarray:
    """Multi-hot uint8 (n, 12), classes of 60 % down to 2 %, pairs of them correlated, some samples without any."""
    rng = np.random.default_rng(seed)
    shares = np.geomspace(0.6, 0.02, 12)
    labels = rng.random((count, 12)) < shares
    labels[:, 1] |= labels[:, 0] & (rng.random(count) < 0.5)
    labels[rng.random(count) < 0.03] = False
    return labels.astype(np.uint8)


def unevenness(labels: np.ndarray, subset: np.ndarray) -> float:
    """How far the class shares of a subset are from those of all, relative to the chance spread of a random one."""
    share = labels.mean(0)
    spread = np.sqrt(share * (1 - share) / len(subset) * (1 - len(subset) / len(labels)))
    return float(np.sqrt((((labels[subset].mean(0) - share) / spread) ** 2).mean()))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(0, 1000), st.booleans())
def test_fractions_are_nested_sorted_and_of_the_size_asked_for(count: int, seed: int, multi: bool) -> None:
    labels = multilabels(count, seed) if multi else np.random.default_rng(seed).integers(0, 5, count)
    before: set[int] = set()
    for fraction in FRACTIONS:
        subset = labelled_subset(labels, fraction, seed)
        assert subset.dtype == np.int64 and (np.diff(subset) > 0).all()
        assert len(subset) == max(1, round(fraction * count))
        assert before <= set(subset.tolist())
        before = set(subset.tolist())
    assert before == set(range(count))


def test_the_seed_decides_and_nothing_else() -> None:
    labels = multilabels(600, 0)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = labelled_subset(labels, 0.05, 3)
    assert np.array_equal(first, labelled_subset(labels, 0.05, 3))
    assert not np.array_equal(first, labelled_subset(labels, 0.05, 4))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_multilabel_prefixes_are_nearer_to_the_whole_than_random_ones(fraction: float) -> None:
    stratified, drawn = [], []
    for seed in range(5):
        labels = multilabels(2000, seed)
        subset = labelled_subset(labels, fraction, seed)
        stratified.append(unevenness(labels, subset))
        rng = np.random.default_rng(seed)
        drawn.append(np.mean([unevenness(labels, rng.permutation(2000)[: len(subset)]) for _ in range(20)]))
    assert np.mean(drawn) == pytest.approx(1, abs=0.2), "the yardstick: 1 is chance"
    assert np.mean(stratified) < 0.5


def test_single_label_prefixes_hold_each_class_in_its_share() -> None:
    labels = np.repeat(np.arange(5), SIZES)
    for fraction in (0.1, 0.2, 0.5):
        counts = np.bincount(labels[labelled_subset(labels, fraction, 0)], minlength=5)
        assert np.abs(counts - fraction * np.array(SIZES)).max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_no_sample_has_change_no_choice(seed: int) -> None:
    """Fine-tuning knows all classes by name, a probe those there are: both must use the same labels."""
    labels = np.random.default_rng(seed).integers(0, 5, 200)
    hot = np.eye(19, dtype=np.uint8)[labels]
    for fraction in (0.05, 0.3, 0.8):
        assert np.array_equal(labelled_subset(labels, fraction, seed), labelled_subset(hot, fraction, seed))


def test_order_is_a_permutation_even_where_no_sample_has_a_label() -> None:
    assert sorted(stratified_order(np.zeros((30, 4), np.uint8), 0).tolist()) == list(range(30))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(BandstreamError, match="label fraction"):
        labelled_subset(multilabels(20, 0), fraction, 0)
