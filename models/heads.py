"""Heads for few labels: a linear layer on pooled features, or a decoder of smp on the encoder."""

from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

from models.encoder import Encoder
from shards.errors import BandstreamError

STRIDE = 32
DECODERS = {
    "unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus, "deeplabv3plus": smp.DeepLabV3Plus, "fpn": smp.FPN,
    "segformer": smp.Segformer, "upernet": smp.UPerNet, "dpt": smp.DPT,
}  # fmt: skip


class Classifier(nn.Module):
    """(N, C, H, W) → logits (N, K), with dropout before the linear layer."""

    def __init__(self, encoder: Encoder, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.decoder = None
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.num_features, classes)

    @property
    def body(self) -> nn.Module:
        """The part whose state is that of `Encoder.net`."""
        return self.encoder.net

    @property
    def rest(self) -> list[nn.Module]:
        """The parts that begin with random weights."""
        return [self.head]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.encoder(x)))
        return logits


class Segmenter(nn.Module):
    """A decoder on an encoder: (N, C, H, W) → logits (N, K, H, W) at the same size.

    `decoder` is a key of `DECODERS` (Ronneberger et al. 2015 for `unet`, Chen et al. 2018 for `deeplabv3plus`, Xiao et
    al. 2018 for `upernet`, Xie et al. 2021 for `segformer`, Ranftl et al. 2021 for `dpt`, ...); `dropout` takes whole
    maps before the last convolution. The encoder's weights are loaded strictly. Decoders need multiples of 32 pixels:
    views are padded by reflection and the logits cut back. Raises BandstreamError where encoder and decoder do not go
    together.
    """

    def __init__(self, encoder: Encoder, classes: int, decoder: str = "unet", dropout: float = 0.0) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise BandstreamError(f"no decoder {decoder!r}: there are {', '.join(DECODERS)}")
        self.net: Any
        if decoder == "dpt":
            self.net = _transformer_net(encoder, classes)
        else:
            if encoder.library != "smp":
                raise BandstreamError(
                    f"{encoder.name} gives no feature maps to {decoder}: take decoder dpt for a vision transformer, or "
                    "an encoder of smp's"
                )
            try:
                self.net = DECODERS[decoder](
                    encoder.name, encoder_weights=None, in_channels=encoder.in_channels, classes=classes,
                    **encoder.options,
                )  # fmt: skip
            except (KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                raise BandstreamError(f"{decoder} cannot be built on {encoder.name}: {error}") from None
            # not by the method of smp's encoders, some of which take no `strict`
            nn.Module.load_state_dict(self.net.encoder, encoder.net.state_dict(), strict=True)
        self.decoder = decoder
        self.dropout = nn.Dropout2d(dropout)

    @property
    def encoder(self) -> nn.Module:
        """smp's encoder, which a pretrained encoder's weights went into."""
        part: nn.Module = self.net.encoder
        return part

    @property
    def body(self) -> nn.Module:
        """The part whose state is that of `Encoder.net`."""
        part: nn.Module = self.net.encoder.model if self.decoder == "dpt" else self.net.encoder
        return part

    @property
    def rest(self) -> list[nn.Module]:
        """The parts that begin with random weights."""
        return [self.net.decoder, self.net.segmentation_head]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        below, right = -height % STRIDE, -width % STRIDE
        sides = (right // 2, right - right // 2, below // 2, below - below // 2)
        reflects = sides[1] < width and sides[3] < height
        features = self.net.encoder(F.pad(x, sides, mode="reflect" if reflects else "replicate"))
        maps = self.net.decoder(*features) if self.decoder == "dpt" else self.net.decoder(features)
        logits: torch.Tensor = self.net.segmentation_head(self.dropout(maps))
        return logits[..., below // 2 : below // 2 + height, right // 2 : right // 2 + width]


def with_head(
    encoder: Encoder, kind: str, classes: int, decoder: str | None = None, dropout: float = 0.0
) -> Classifier | Segmenter:
    """The model for a kind of target; to segment, without a decoder named, a U-Net, or DPT on a transformer."""
    if kind != "segment":
        return Classifier(encoder, classes, dropout)
    return Segmenter(encoder, classes, decoder or ("dpt" if encoder.library == "timm" else "unet"), dropout)


def _transformer_net(encoder: Encoder, classes: int) -> Any:
    """smp's DPT around the vision transformer itself. Raises BandstreamError where it is none."""
    patch = getattr(getattr(encoder.net, "patch_embed", None), "patch_size", (0, 0))
    if encoder.library != "timm" or not hasattr(encoder.net, "blocks") or patch[0] not in (4, 8, 16, 32):
        raise BandstreamError(
            f"dpt is for vision transformers with patches of 4, 8, 16 or 32 pixels, not for {encoder.name}: "
            "take decoder unet"
        )
    readout = "cat" if getattr(encoder.net, "num_prefix_tokens", 0) else "ignore"
    net = smp.DPT(
        f"tu-{encoder.name}", encoder_weights=None, in_channels=encoder.in_channels, classes=classes,
        decoder_readout=readout,
    )  # fmt: skip
    net.encoder.model = encoder.net
    return net
