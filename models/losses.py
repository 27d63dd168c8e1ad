"""Losses of fine-tuning, of logits (N, K, ...) in float32: what is ignored and what is absent counts in none of them.

segmentation_models_pytorch has such losses too. They are not taken: its `DiceLoss` counts classes that a batch does not
hold as perfect, its `FocalLoss` makes K binary problems of one of K classes and is not a number where a whole batch is
ignored, and neither takes the soft targets of mixing.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional as F

from shards.errors import BandstreamError

IGNORE = 255
"""In a mask: not known."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(terms: Mapping[str, float], kind: str, weight: torch.Tensor | None = None, gamma: float = 2.0) -> Loss:
    """The sum of `terms` (name → factor; none: `ce`, of multi-label `bce`) as one function of logits and target.

    `kind`: `single`, target int64 (N,) or soft (N, K); `multilabel`, multi-hot (N, K); `segment`, int64 (N, H, W) with
    255 for ignored pixels. `weight` (K,) as `inverse_frequency` makes it. Raises BandstreamError on a term that does
    not go with the kind.
    """
    terms = terms or {"bce" if kind == "multilabel" else "ce": 1.0}
    exclusive = kind != "multilabel"
    wrong = set(terms) & ({"bce"} if exclusive else {"ce"})
    if wrong:
        what = "one class a sample or pixel" if exclusive else "several labels a sample"
        raise BandstreamError(f"loss {wrong.pop()!r} is not for {what}: take {'ce' if exclusive else 'bce'}")
    ignore = IGNORE if kind == "segment" else -1  # of 256 classes or more, 255 is one

    def each(name: str, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if name == "dice":
            return dice(logits, target, weight, exclusive=exclusive, ignore=ignore)
        power = gamma if name == "focal" else 0.0
        if exclusive:
            return cross_entropy(logits, target, weight, gamma=power, ignore=ignore)
        return binary_cross_entropy(logits, target, weight, gamma=power)

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.stack([factor * each(name, logits, target) for name, factor in terms.items()]).sum()

    return loss


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    gamma: float = 0.0,
    ignore: int = IGNORE,
) -> torch.Tensor:
    """Mean of -w (1 - p)^gamma log p of the true class, over the sum of w: 0 where nothing is known.

    `target`: int64 (N, ...) or shares of the classes, floating (N, K, ...). With gamma > 0 the focal loss of Lin et al.
    2017, "Focal loss for dense object detection", in its softmax form.
    """
    log_p = logits.log_softmax(1)  # (N, K, ...)
    if target.is_floating_point():
        share = target
        if weight is not None:
            share = share * weight.view(-1, *[1] * (logits.ndim - 2))
    else:
        known = target != ignore
        chosen = torch.where(known, target, 0)
        log_p = log_p.gather(1, chosen.unsqueeze(1)).squeeze(1)  # (N, ...)
        share = known.to(logits.dtype) if weight is None else known * weight[chosen]
    losses = -log_p
    if gamma:
        losses = losses * (-torch.expm1(log_p)).clamp(min=1e-7) ** gamma
    return (share * losses).sum() / share.sum().clamp(min=1e-12)


def binary_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, *, gamma: float = 0.0
) -> torch.Tensor:
    """Mean over samples and classes (N, K) of -w t (1 - p)^gamma log p - (1 - t) p^gamma log(1 - p)."""
    present, absent = -F.logsigmoid(logits), -F.logsigmoid(-logits)  # -log p, -log(1 - p)
    if gamma:
        p = logits.sigmoid()
        present, absent = present * (1 - p).clamp(min=1e-7) ** gamma, absent * p.clamp(min=1e-7) ** gamma
    if weight is not None:
        present = present * weight
    return (target * present + (1 - target) * absent).mean()


def dice(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    exclusive: bool = True,
    ignore: int = IGNORE,
) -> torch.Tensor:
    """1 - 2 Σpt / (Σp + Σt) of each class over the whole batch; the (weighted) mean over the classes in the target.

    Milletari et al. 2016, "V-Net", without squares. `exclusive`: probabilities are a softmax, else sigmoids. Pixels of
    `ignore` count in no sum; a batch without a known one has the loss 0.
    """
    p = logits.softmax(1) if exclusive else logits.sigmoid()
    if target.is_floating_point():
        share = target
    else:
        known = (target != ignore).unsqueeze(1)
        chosen = target.unsqueeze(1) * known
        share = torch.zeros_like(p).scatter_(1, chosen, known.to(p.dtype))
        p = p * known
    axes = [0, *range(2, p.ndim)]
    both, total, true = (p * share).sum(axes), (p + share).sum(axes), share.sum(axes)  # (K,) each
    counted = (true > 0).to(p.dtype) if weight is None else (true > 0) * weight
    return (counted * (1 - 2 * both / total.clamp(min=1e-12))).sum() / counted.sum().clamp(min=1e-12)


def inverse_frequency(counts: np.ndarray, samples: int | None = None) -> torch.Tensor:
    """Class weights float32 (K,) out of how often classes occur, (K,); those that never do have the weight 1.

    Of exclusive classes: total / (classes present x count), scikit-learn's `balanced`. Given `samples`, of labels that
    occur together: the weight of a positive, (samples - count) / count, at most 100.
    """
    counts = np.asarray(counts, np.float64)
    weights = np.ones(len(counts), np.float32)
    if samples is None:
        there = counts > 0
        weights[there] = counts.sum() / (there.sum() * counts[there])
    else:
        there = (counts > 0) & (counts < samples)
        weights[there] = np.minimum((samples - counts[there]) / counts[there], 100)
    return torch.from_numpy(weights)
