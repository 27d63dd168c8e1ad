"""MixUp and CutMix of a batch with single labels."""

import numpy as np
import torch

from shards.errors import BandstreamError


def mix(
    views: torch.Tensor, shares: torch.Tensor, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (N, C, H, W) and shares of the classes (N, K), each mixed with another sample's.

    MixUp (Zhang et al. 2018) blends, CutMix (Yun et al. 2019) pastes a rectangle; both with a share out of
    Beta(alpha, alpha), the alphas being `mixup` and `cutmix`, of which 0 turns one off; where both are on, each batch
    takes either. What was given is left as it is.
    """
    pasting = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if pasting else mixup
    kept = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(views))).to(views.device)
    if pasting:
        height, width = views.shape[-2:]
        rows, columns = (_span(size, np.sqrt(1 - kept), rng) for size in (height, width))
        mixed = views.clone(memory_format=torch.preserve_format)
        mixed[..., rows, columns] = views[partner][..., rows, columns]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        mixed = kept * views + (1 - kept) * views[partner]
    return mixed, kept * shares + (1 - kept) * shares[partner]


def mixes(mixup: float, cutmix: float, kind: str, target: str) -> bool:
    """Whether batches are mixed. Raises BandstreamError where the target's kind is not `single`."""
    if (mixup or cutmix) and kind != "single":
        raise BandstreamError(f"mixup and cutmix are for single labels, {target} is {kind}: set them to 0")
    return bool(mixup or cutmix)


def _span(size: int, share: float, rng: np.random.Generator) -> slice:
    """A span of `share` of the pixels around a drawn centre, cut off at the borders."""
    centre, length = int(rng.integers(size)), int(size * share)
    return slice(max(0, centre - length // 2), min(size, centre + (length + 1) // 2))
