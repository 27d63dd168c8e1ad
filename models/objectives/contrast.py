"""Contrastive losses: which of many is the partner."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from models.objectives.gathering import gathered, place


class Contrast(NamedTuple):
    """The loss, and how often the partner is the nearest (or among the five nearest) of all there are."""

    loss: torch.Tensor
    top1: torch.Tensor
    top5: torch.Tensor

    @property
    def metrics(self) -> dict[str, torch.Tensor]:
        return {"top1": self.top1.detach(), "top5": self.top5.detach()}


def contrast(logits: torch.Tensor, partner: torch.Tensor) -> Contrast:
    """Cross-entropy of logits (n, K) with the columns `partner` (n,), where -inf leaves a column out."""
    loss = F.cross_entropy(logits, partner)
    with torch.no_grad():
        # a tie, but for rounding, counts against: embeddings that have become one point are no hits
        wanted = logits.gather(1, partner[:, None])  # (n, 1)
        closer = (logits >= wanted - 1e-5 * wanted.abs()).sum(1) - 1  # (n,)
    return Contrast(loss, (closer < 1).float().mean(), (closer < 5).float().mean())


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> Contrast:
    """NT-Xent: Chen et al. 2020 (SimCLR), equation 1, in float32.

    `first`, `second`: embeddings (n, D) of this rank's samples. Under torch.distributed the negatives are gathered from
    all ranks, with gradients; each rank returns the mean over its own 2n anchors, so that the mean over ranks is the
    loss of the joined batch. At random embeddings it is near log(2N - 1) for N samples over all ranks.
    """
    with torch.autocast(first.device.type, enabled=False):
        first = F.normalize(first.float(), dim=1)
        second = F.normalize(second.float(), dim=1)
        n = len(first)
        rank, world = place()
        anchors = torch.cat([first, second])  # (2n, D)
        everyone = torch.cat([gathered(first), gathered(second)])  # (2N, D), N = n * world
        similarity = anchors @ everyone.T / temperature  # (2n, 2N)
        own = rank * n + torch.arange(n, device=first.device)
        itself = torch.cat([own, own + n * world])  # (2n,): an anchor's own column
        partner = torch.cat([own + n * world, own])  # (2n,): its other view's
        return contrast(similarity.scatter(1, itself[:, None], float("-inf")), partner)


def mean(contrasts: list[Contrast]) -> Contrast:
    """The mean of several losses; hits are those of the first."""
    return Contrast(torch.stack([each.loss for each in contrasts]).mean(), contrasts[0].top1, contrasts[0].top5)
