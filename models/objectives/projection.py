"""Heads: what the loss sees of features, and what is thrown away afterwards."""

from itertools import pairwise

from torch import nn


def head(widths: list[int], norm: str, last_norm: bool = False) -> nn.Sequential:
    """An MLP (N, widths[0]) → (N, widths[-1]): linear layers, between them `norm` (batch, layer or none) and ReLU.

    `last_norm`: the output is normalised, too, without scale and shift of its own.
    """
    parts: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        normed = norm != "none" and (not last or last_norm)
        parts.append(nn.Linear(before, after, bias=not normed))
        if normed:
            parts.append(_norm(norm, after, affine=not last))
        if not last:
            parts.append(nn.ReLU(inplace=True))
    return nn.Sequential(*parts)


def _norm(norm: str, width: int, affine: bool) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm1d(width, affine=affine)
    return nn.LayerNorm(width, elementwise_affine=affine)
