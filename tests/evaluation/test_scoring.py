"""Models scored over batches as over the whole."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from evaluation import metrics
from evaluation.scoring import known, predict, score_model, scores_of
from shards.errors import BandstreamError


@dataclass
class Batch:
    views: list[torch.Tensor]
    labels: torch.Tensor | None = None
    mask: torch.Tensor | None = None


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
    there = mask != 255
    assert got["accuracy"] == pytest.approx((pixels[there] == mask[there]).float().mean().item())
    assert np.sum(got["confusion"]) == there.sum()

    truth, tables = predict(dense, batches(mask=mask), "segment", classes, cpu, half=False)
    assert truth.shape == (7, 0) and tables.dtype == np.int64
    for n in range(7):  # a sample each, in order
        assert np.array_equal(tables[n], metrics.confusion(mask[n].numpy(), pixels[n].numpy(), 4))
    assert scores_of(truth, tables, "segment", classes) == got
    truth, found = predict(flat, batches(labels=index), "single", classes, cpu, half=False)
    assert np.array_equal(truth, index.numpy()) and found == pytest.approx(scores.softmax(1).numpy())


@pytest.mark.parametrize("kind", ["single", "multilabel", "segment"])
def test_pictures_with_pixels_that_are_no_numbers_are_one_line(kind: str) -> None:
    views = torch.zeros(2, 3, 8, 8)
    views[1, 0, 3, 3] = torch.nan
    with pytest.raises(BandstreamError, match="outputs are not finite"):
        score_model(torch.nn.Conv2d(3, 4, 1), [Batch([views])], kind, list("abcd"), torch.device("cpu"), half=False)


def test_a_split_without_truth_and_a_mask_of_another_class_are_one_line() -> None:
    dense, classes, cpu = torch.nn.Conv2d(3, 4, 1), list("abcd"), torch.device("cpu")
    for value, said in ((255, "the test split knows no class of soil"), (4, "holds the class 4, of 4 from 0 on")):
        batch = Batch([torch.randn(2, 3, 8, 8)], mask=torch.full((2, 8, 8), value, dtype=torch.uint8))
        with pytest.raises(BandstreamError, match=said):
            known(score_model(dense, [batch], "segment", classes, cpu, half=False), "test", "soil")
