"""Losses and gradients against those of the library lightly."""

import pytest
import torch
from torch.nn import functional as F

from tests.models.objectives.tiny import tiny

pytest.importorskip("lightly")
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, VICRegLoss


def leaves(count: int, n: int = 8, width: int = 6, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=generator).requires_grad_() for _ in range(count)]


def agree(found: torch.Tensor, wanted: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(found, tensors), torch.autograd.grad(wanted, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_simclr(temperature):
    first, second = leaves(2)
    found = tiny("simclr", temperature=temperature).loss([first, second]).loss
    agree(found, NTXentLoss(temperature)(first, second), [first, second])


def test_moco_v2_while_the_queue_fills_and_wraps():
    objective = tiny("moco-v2", queue=16)
    library = NTXentLoss(0.2, memory_bank_size=(16, 6))
    library.memory_bank.bank.copy_(objective.queue)
    for step in range(5):
        query, key = leaves(2, seed=step)
        key = key.detach()
        agree(objective.loss([query, key]).loss, library(query, key), [query])
        objective.after_step(step, 5)
        torch.testing.assert_close(objective.queue, library.memory_bank.bank)
    assert not torch.equal(objective.queue[:8], F.normalize(leaves(2, seed=0)[1].detach(), dim=1))


def test_vicreg():
    first, second = leaves(2)
    agree(tiny("vicreg").loss([first, second]).loss, VICRegLoss()(first, second), [first, second])


def test_simsiam_and_byol():
    library = NegativeCosineSimilarity()
    first, second, *targets = leaves(4)
    targets = [target.detach() for target in targets]
    both = library(first, targets[1]) + library(second, targets[0])
    agree(tiny("simsiam").loss([first, second, *targets]).loss, both / 2, [first, second])
    both = library(first, targets[1]) + library(second, targets[0])
    agree(tiny("byol").loss([first, second, *targets]).loss, 4 + 2 * both, [first, second])
