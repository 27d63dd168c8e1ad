"""Heads for few labels: a linear layer on pooled features, or a U-Net around the encoder."""

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

from models.encoder import Encoder
from shards.errors import BandstreamError

STRIDE = 32


class Classifier(nn.Module):
    """(N, C, H, W) → logits (N, K)."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(x))
        return logits


class Segmenter(nn.Module):
    """`smp.Unet` (Ronneberger et al. 2015) on an encoder: (N, C, H, W) → logits (N, K, H, W) at the same size.

    The decoder needs multiples of 32 pixels: views are padded by reflection and the logits cut back. Raises
    BandstreamError where smp has no such encoder.
    """

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        if encoder.library != "smp":
            raise BandstreamError(f"{encoder.name} gives no feature maps to a U-Net: take an encoder of smp's")
        self.net = smp.Unet(encoder.name, encoder_weights=None, in_channels=encoder.in_channels, classes=classes)
        self.net.encoder.load_state_dict(encoder.net.state_dict(), strict=True)

    @property
    def encoder(self) -> nn.Module:
        """The part that a pretrained encoder's weights went into."""
        part: nn.Module = self.net.encoder
        return part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        below, right = -height % STRIDE, -width % STRIDE
        padded = F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2), mode="reflect")
        logits: torch.Tensor = self.net(padded)
        return logits[..., below // 2 : below // 2 + height, right // 2 : right // 2 + width]
