"""Encoders of segmentation_models_pytorch and timm, with as many input channels as there are bands."""

import difflib

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from shards.errors import BandstreamError


class Encoder(nn.Module):
    """An encoder whose features always come out the same way: (N, C, H, W) → (N, `num_features`).

    `net` is the library's own module, untouched, so that its weights load elsewhere without renaming. The features of a
    convolutional encoder are its last map, averaged over the picture; those of a transformer are what timm pools.
    """

    def __init__(self, net: nn.Module, name: str, library: str, in_channels: int, num_features: int) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.library = library
        self.in_channels = in_channels
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised views (N, C, H, W) → features (N, D)."""
        if self.library == "timm":
            pooled: torch.Tensor = self.net(x)
            return pooled
        last: torch.Tensor = self.net(x)[-1]  # (N, D, H/32, W/32)
        return last.mean((2, 3))


def build_encoder(name: str, in_channels: int, view_size: int | None = None) -> Encoder:
    """An encoder with random weights.

    `name`: one of smp's encoders (`resnet18`, `tu-convnext_tiny`, …), or any timm model (`vit_small_patch16_224`, …);
    `view_size` in pixels is what a transformer's positions are made for. Raises BandstreamError on an unknown name.
    """
    if name in smp.encoders.encoders or name.startswith("tu-"):
        try:
            net = smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=None)
        except (KeyError, RuntimeError, ValueError) as error:
            raise BandstreamError(f"encoder {name!r} cannot be built: {error}") from None
        return Encoder(net, name, "smp", in_channels, net.out_channels[-1])
    if not timm.is_model(name):
        known = [*smp.encoders.encoders, *timm.list_models()]
        close = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see smp.encoders.encoders and timm.list_models()"
        raise BandstreamError(f"no encoder {name!r} in segmentation_models_pytorch or timm: {hint}")
    options = {"img_size": view_size} if view_size and name.startswith(("vit", "deit", "swin")) else {}
    net = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **options)
    return Encoder(net, name, "timm", in_channels, net.num_features)
