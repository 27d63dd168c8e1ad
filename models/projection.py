"""The projection head: what the contrastive loss sees, and what is thrown away afterwards."""

from torch import nn


def projection_head(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """The two-layer MLP of Chen et al. 2020, with batch normalisation: (N, in_features) → (N, out_features)."""
    return nn.Sequential(
        nn.Linear(in_features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out_features),
    )
