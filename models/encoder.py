"""Encoders of segmentation_models_pytorch and timm, with as many input channels as there are bands."""

import difflib
from typing import Any

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

    def stages(self, x: torch.Tensor) -> torch.Tensor:
        """The maps of every stage, each averaged over the picture, side by side: (N, C, H, W) → (N, sum of widths).

        Early stages keep spectra and fine texture, which a contrastive loss drops from the last. A transformer has no
        stages: its pooled features.
        """
        if self.library == "timm":
            return self.forward(x)
        maps = self.net(x)[1:]  # the first of smp's is the input itself
        return torch.cat([stage.mean((2, 3)) for stage in maps if stage.shape[1]], 1)


def build_encoder(name: str, in_channels: int, view_size: int | None = None) -> Encoder:
    """An encoder with random weights.

    `name`: one of smp's encoders (`resnet18`, `tu-convnext_tiny`, …), or any timm model (`vit_small_patch16_224`, …);
    `view_size` in pixels is what a transformer's positions are made for. Raises BandstreamError on an unknown name.
    """
    if name in smp.encoders.encoders or (name.startswith("tu-") and timm.is_model(name[3:])):
        try:
            net = smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=None)
        except (KeyError, RuntimeError, ValueError) as error:
            raise BandstreamError(f"encoder {name!r} cannot be built: {error}") from None
        return Encoder(net, name, "smp", in_channels, net.out_channels[-1])
    if not timm.is_model(name):
        known = {*smp.encoders.encoders, *timm.list_models(), *(f"tu-{model}" for model in timm.list_models())}
        close = difflib.get_close_matches(name, sorted(known), 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see smp.encoders.encoders and timm.list_models()"
        raise BandstreamError(f"no encoder {name!r} in segmentation_models_pytorch or timm: {hint}")
    net = _timm_model(name, in_channels, view_size)
    return Encoder(net, name, "timm", in_channels, net.num_features)


def _timm_model(name: str, in_channels: int, view_size: int | None) -> Any:
    """Transformers are made for `view_size`, and take other sizes too where timm can interpolate their positions."""
    sized = {"img_size": view_size}
    for options in ({**sized, "dynamic_img_size": True, "dynamic_img_pad": True}, sized, {}):
        try:
            return timm.create_model(name, num_classes=0, in_chans=in_channels, **options)
        except TypeError:  # timm's way of saying that this architecture knows no such option
            continue
        except (AssertionError, RuntimeError, ValueError) as error:
            raise BandstreamError(
                f"encoder {name!r} cannot be built for views of {view_size} pixels: {error}"
            ) from None
    raise BandstreamError(f"encoder {name!r} cannot be built with {in_channels} bands")
