"""Losses against loops in NumPy, sample by sample and pixel by pixel."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from models.losses import binary_cross_entropy, build_loss, cross_entropy, dice, inverse_frequency
from shards.errors import BandstreamError

K = 4
SEEDS = range(12)


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def pixels(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (2, K, 3, 5), a mask in which class 2 never occurs and much is ignored, weights."""
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 3, 255], (2, 3, 5), p=[0.5, 0.2, 0.1, 0.2])
    return rng.normal(0, 2, (2, K, 3, 5)), mask, rng.uniform(0.2, 5, K)


def places(mask: np.ndarray) -> list[tuple[int, ...]]:
    return [place for place in np.ndindex(mask.shape) if mask[place] != 255]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_and_focal_loss_of_pixels_are_the_loop(gamma: float, weighted: bool) -> None:
    for seed in SEEDS:
        logits, mask, weight = pixels(seed)
        weight = weight if weighted else np.ones(K)
        above = below = 0.0
        for n, y, x in places(mask):
            k = mask[n, y, x]
            p = softmax(logits)[n, k, y, x]
            above += weight[k] * (1 - p) ** gamma * -np.log(p)
            below += weight[k]
        got = cross_entropy(torch.tensor(logits), torch.tensor(mask), torch.tensor(weight), gamma=gamma)
        assert got.item() == pytest.approx(above / below)
    if not gamma:
        theirs = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(mask), torch.tensor(weight), ignore_index=255
        )
        assert got.item() == pytest.approx(theirs.item())


@pytest.mark.parametrize("weighted", [False, True])
def test_dice_is_the_loop_over_the_classes_that_are_there(weighted: bool) -> None:
    for seed in SEEDS:
        logits, mask, weight = pixels(seed)
        p = softmax(logits)
        losses, weights = [], []
        for k in range(K):
            both = total = true = 0.0
            for n, y, x in places(mask):
                both += p[n, k, y, x] * (mask[n, y, x] == k)
                total += p[n, k, y, x] + (mask[n, y, x] == k)
                true += mask[n, y, x] == k
            if true:
                losses.append(1 - 2 * both / total)
                weights.append(weight[k] if weighted else 1)
        assert len(losses) < K
        given = torch.tensor(weight) if weighted else None
        got = dice(torch.tensor(logits), torch.tensor(mask), given)
        assert got.item() == pytest.approx(np.average(losses, weights=weights))


def test_dice_of_a_perfect_map_is_zero_and_of_a_wrong_one_is_one() -> None:
    mask = torch.randint(0, K, (2, 8, 8))
    right = torch.nn.functional.one_hot(mask, K).movedim(3, 1) * 200.0
    assert dice(right, mask).item() == pytest.approx(0, abs=1e-6)
    assert dice(right.roll(1, 1), mask).item() == pytest.approx(1)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_losses_of_several_labels_are_the_loop(gamma: float) -> None:
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        logits, hot, weight = rng.normal(0, 2, (5, K)), rng.integers(0, 2, (5, K)), rng.uniform(0.2, 5, K)
        hot[:, 1] = 0
        p, sums, shares = sigmoid(logits), 0.0, []
        for n, k in np.ndindex(5, K):
            if hot[n, k]:
                sums += weight[k] * (1 - p[n, k]) ** gamma * -np.log(p[n, k])
            else:
                sums += p[n, k] ** gamma * -np.log(1 - p[n, k])
        inputs = torch.tensor(logits), torch.tensor(hot, dtype=torch.float64)
        got = binary_cross_entropy(*inputs, torch.tensor(weight), gamma=gamma)
        assert got.item() == pytest.approx(sums / (5 * K))
        for k in np.flatnonzero(hot.any(0)):
            shares.append(1 - 2 * (p[:, k] * hot[:, k]).sum() / (p[:, k] + hot[:, k]).sum())
        assert dice(*inputs, exclusive=False).item() == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("name", ["ce", "dice", "focal"])
def test_soft_targets_that_are_hard_change_nothing(name: str) -> None:
    logits, target, weight = torch.randn(6, K), torch.tensor([0, 3, 1, 1, 0, 2]), torch.rand(K) + 0.1
    loss = build_loss({name: 1.0}, "single", weight)
    hard, soft = loss(logits, target), loss(logits, torch.nn.functional.one_hot(target, K).float())
    assert soft.item() == pytest.approx(hard.item(), rel=1e-5)


def test_cross_entropy_of_shares_is_the_mean_of_those_of_the_parts() -> None:
    logits = torch.randn(6, K)
    one, other = torch.randint(0, K, (6,)), torch.randint(0, K, (6,))
    shares = 0.3 * torch.nn.functional.one_hot(one, K) + 0.7 * torch.nn.functional.one_hot(other, K)
    expected = 0.3 * cross_entropy(logits, one) + 0.7 * cross_entropy(logits, other)
    assert cross_entropy(logits, shares).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["ce", "dice", "focal"])
def test_a_batch_that_is_ignored_altogether_has_no_loss_and_no_gradient(name: str) -> None:
    logits = torch.randn(2, K, 4, 4, requires_grad=True)
    for weight in (None, torch.ones(K)):
        loss = build_loss({name: 1.0}, "segment", weight)(logits, torch.full((2, 4, 4), 255))
        loss.backward()
        assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", ["ce", "dice", "focal"])
def test_ignored_pixels_and_sure_ones_leave_gradients_finite(name: str) -> None:
    logits = (torch.tensor([[300.0, -300.0], [-300.0, 300.0]]).view(2, 2, 1, 1) + torch.zeros(2, 2, 3, 3)).clone()
    logits.requires_grad_(True)
    target = torch.tensor([0, 0]).view(2, 1, 1).repeat(1, 3, 3)
    target[:, 0] = 255
    loss = build_loss({name: 1.0}, "segment")(logits, target)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
    assert not logits.grad[:, :, 0].any()


def test_terms_add_up_by_their_factors() -> None:
    logits, mask = torch.randn(2, K, 5, 5), torch.randint(0, K, (2, 5, 5))
    got = build_loss({"ce": 1.0, "dice": 0.5, "focal": 2.0}, "segment", gamma=1.0)(logits, mask)
    expected = cross_entropy(logits, mask) + 0.5 * dice(logits, mask) + 2 * cross_entropy(logits, mask, gamma=1.0)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    assert build_loss({}, "segment")(logits, mask) == cross_entropy(logits, mask)


def test_the_256th_class_of_single_labels_is_not_taken_for_ignored() -> None:
    logits, target = torch.randn(3, 300), torch.tensor([255, 255, 255])
    expected = torch.nn.functional.cross_entropy(logits, target)
    assert build_loss({}, "single")(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "kind", "instead"), [("bce", "segment", "ce"), ("ce", "multilabel", "bce")])
def test_a_term_that_does_not_fit_is_refused(name: str, kind: str, instead: str) -> None:
    with pytest.raises(BandstreamError, match=f"loss '{name}' is not for .*take {instead}"):
        build_loss({name: 1.0}, kind)


def test_inverse_frequencies_are_scikit_learns_balance() -> None:
    labels = np.random.default_rng(0).choice([0, 1, 3], 200, p=[0.7, 0.25, 0.05])
    balanced = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    got = inverse_frequency(np.bincount(labels, minlength=5)).numpy()
    np.testing.assert_allclose(got, [balanced[0], balanced[1], 1, balanced[2], 1], rtol=1e-6)
    np.testing.assert_allclose(inverse_frequency(np.array([0, 20, 50, 100, 1]), 100), [1, 4, 1, 1, 99])
    assert inverse_frequency(np.array([1, 5]), 1000).tolist() == [100, 100]
