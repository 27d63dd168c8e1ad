"""SimCLR: Chen et al. 2020, "A simple framework for contrastive learning of visual representations".

Two views of a sample attract, the views of all other samples of the global batch repel.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import nn
from torch.nn import functional as F

from models.encoder import Encoder
from models.projection import projection_head


class SimCLR(nn.Module):
    """Encoder and projection head; two views of N samples → their embeddings, each float32 (N, D), not normalised."""

    def __init__(self, encoder: Encoder, hidden: int, out_features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = projection_head(encoder.num_features, hidden, out_features)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # one pass over both views, (2N, C, S, S) → (2N, D): batch statistics are those of all 2N, as in the paper
        embedded = self.head(self.encoder(torch.cat([first, second])))
        one, other = embedded.float().chunk(2)
        return one, other


class Contrast(NamedTuple):
    """The loss, and how often a view's partner is its nearest (or among its five nearest) of all 2N - 1 others."""

    loss: torch.Tensor
    top1: torch.Tensor
    top5: torch.Tensor


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> Contrast:
    """NT-Xent, equation 1 of the paper, in float32.

    `first`, `second`: embeddings (n, D) of this rank's samples. Under torch.distributed the negatives are gathered from
    all ranks, with gradients; each rank returns the mean over its own 2n anchors, so that the mean over ranks, which
    DistributedDataParallel's gradients are of, is the loss of the joined batch. At random embeddings it is near
    log(2N - 1) for N samples over all ranks.
    """
    with torch.autocast(first.device.type, enabled=False):
        first = F.normalize(first.float(), dim=1)
        second = F.normalize(second.float(), dim=1)
        n = len(first)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        all_first, all_second = _gathered(first), _gathered(second)  # (N, D), N = n * world
        anchors = torch.cat([first, second])  # (2n, D)
        everyone = torch.cat([all_first, all_second])  # (2N, D)
        similarity = anchors @ everyone.T / temperature  # (2n, 2N)
        own = rank * n + torch.arange(n, device=first.device)
        itself = torch.cat([own, own + n * world])  # (2n,): an anchor's own column
        partner = torch.cat([own + n * world, own])  # (2n,): its other view's
        similarity = similarity.scatter(1, itself[:, None], float("-inf"))
        loss = F.cross_entropy(similarity, partner)
        with torch.no_grad():
            # a tie counts against: embeddings that have become one point are no hits
            closer = (similarity >= similarity.gather(1, partner[:, None])).sum(1) - 1  # (2n,)
        return Contrast(loss, (closer < 1).float().mean(), (closer < 5).float().mean())


def _gathered(local: torch.Tensor) -> torch.Tensor:
    """(n, D) of every rank, joined to (N, D), differentiable in all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    return torch.cat(dist_nn.all_gather(local.contiguous()))
