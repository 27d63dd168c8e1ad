"""Losses from their definitions; models scored over batches as over the whole."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from evaluation import metrics
from evaluation.scoring import loss_of, score_model


@dataclass
class Batch:
    views: list[torch.Tensor]
    labels: torch.Tensor | None = None
    mask: torch.Tensor | None = None


def test_losses_from_their_definitions() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4))
    hot = rng.integers(0, 2, (3, 4))
    share = 1 / (1 + np.exp(-logits))
    expected = -np.mean(hot * np.log(share) + (1 - hot) * np.log(1 - share))
    got = loss_of(torch.tensor(logits), torch.tensor(hot, dtype=torch.float64), "multilabel")
    assert got.item() == pytest.approx(expected)
    index = np.array([0, 3, 1])
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean(np.log(chance[np.arange(3), index]))
    assert loss_of(torch.tensor(logits), torch.tensor(index), "single").item() == pytest.approx(expected)


def test_segmentation_loss_is_the_mean_over_the_pixels_that_count() -> None:
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, 3, (2, 4, 4))
    mask[0] = 255
    chance = logits.detach().softmax(1)[1]
    expected = -np.mean([np.log(chance[int(mask[1, y, x]), y, x].item()) for y in range(4) for x in range(4)])
    assert loss_of(logits, mask, "segment").item() == pytest.approx(expected)
    nothing = loss_of(logits, torch.full_like(mask, 255), "segment")
    nothing.backward()
    assert nothing.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_scores_over_batches_are_those_over_the_whole() -> None:
    torch.manual_seed(0)
    views, hot, index = torch.randn(7, 3, 8, 8), torch.randint(0, 2, (7, 4)).float(), torch.randint(0, 4, (7,))
    mask = torch.where(torch.rand(7, 8, 8) < 0.2, 255, torch.randint(0, 4, (7, 8, 8))).to(torch.uint8)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    dense = torch.nn.Conv2d(3, 4, 3, padding=1)
    classes, cpu = list("abcd"), torch.device("cpu")

    def batches(**targets: torch.Tensor) -> list[Batch]:
        return [Batch([views[i : i + 3]], **{k: v[i : i + 3] for k, v in targets.items()}) for i in (0, 3, 6)]

    with torch.inference_mode():
        scores, pixels = flat(views), dense(views).argmax(1)
    got = score_model(flat, batches(labels=hot), "multilabel", classes, cpu, half=False)
    assert got == metrics.multilabel(hot.numpy(), scores.sigmoid().numpy(), classes)
    got = score_model(flat, batches(labels=index), "single", classes, cpu, half=False)
    assert got["accuracy"] == pytest.approx((scores.argmax(1) == index).float().mean().item())
    got = score_model(dense, batches(mask=mask), "segment", classes, cpu, half=False)
    known = mask != 255
    assert got["accuracy"] == pytest.approx((pixels[known] == mask[known]).float().mean().item())
    assert np.sum(got["confusion"]) == known.sum()
