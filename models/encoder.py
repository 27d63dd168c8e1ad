"""Encoders of segmentation_models_pytorch and timm, with as many input channels as there are bands."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders.efficientnet import EfficientNetEncoder
from segmentation_models_pytorch.encoders.resnet import BasicBlock, Bottleneck
from segmentation_models_pytorch.encoders.timm_efficientnet import EfficientNetBaseEncoder
from torch import nn

from models import cnn  # noqa: F401 (smp learns of it)
from models.checkpointing import set_checkpointing
from models.stem import Adaptation
from shards.errors import BandstreamError

NO_WEIGHTS, IMAGENET = "none", "imagenet"


class Encoder(nn.Module):
    """An encoder whose features always come out the same way: (N, C, H, W) → (N, `num_features`).

    `net` is the library's own module, untouched, so that its weights load elsewhere without renaming; `options` are
    what it was made with beside its name and channels. The features of smp's encoders are their last map, averaged over
    the picture; those of timm's models are what timm pools. `adaptation` says how its stem came from other bands, if it
    did.
    """

    def __init__(
        self,
        net: nn.Module,
        name: str,
        library: str,
        in_channels: int,
        num_features: int,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.library = library
        self.in_channels = in_channels
        self.num_features = num_features
        self.options = options or {}
        self.adaptation: Adaptation | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised views (N, C, H, W) → features (N, D)."""
        if self.library == "timm":
            pooled: torch.Tensor = self.net(x)
            return pooled
        last: torch.Tensor = self.net(x)[-1]  # (N, D, H/32, W/32)
        return last.mean((2, 3))

    def stages(self, x: torch.Tensor) -> torch.Tensor:
        """The maps of every stage, each averaged over the picture, side by side: (N, C, H, W) → (N, sum of widths).

        Early stages keep spectra and fine texture, which a contrastive loss drops from the last. Those of a transformer
        of one width are its tokens after each quarter of its depth; the last is what timm pools. The few models of
        timm's that show no stages give that alone.
        """
        if self.library == "smp":
            maps = self.net(x)[1:]  # the first of smp's is the input itself
            return torch.cat([stage.mean((2, 3)) for stage in maps if stage.shape[1]], 1)
        net: Any = self.net
        reductions = [stage["reduction"] for stage in getattr(net, "feature_info", None) or []]
        if not reductions or not hasattr(net, "forward_intermediates"):
            return self.forward(x)
        depth = len(reductions)
        indices = list(range(depth)) if len(set(reductions)) > 1 else [depth * k // 4 - 1 for k in (1, 2, 3, 4)]
        last, maps = net.forward_intermediates(x, indices=indices, norm=False)  # maps: (N, D, h, w) each
        return torch.cat([*(stage.mean((2, 3)) for stage in maps[:-1]), net.forward_head(last)], 1)

    def check(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Raises BandstreamError where it cannot take views of one of these heights and widths, in pixels."""
        modes = {part: part.training for part in self.modules()}
        self.eval()
        device = next(self.parameters()).device
        for height, width in sorted(set(sizes)):
            try:
                with torch.no_grad():
                    self(torch.zeros(1, self.in_channels, height, width, device=device))
            except (AssertionError, RuntimeError, ValueError) as error:
                raise BandstreamError(
                    f"encoder {self.name!r} cannot take views of {height} × {width} pixels: {_first_line(error)}"
                ) from None
        for part, mode in modes.items():
            part.training = mode

    def checkpointing(self, on: bool = True) -> None:
        """Compute blocks again on the way back instead of keeping them: less memory, a third more time, same gradients.

        Raises BandstreamError for the few encoders that cannot.
        """
        set_checkpointing(self.net, self.name, on)


def build_encoder(
    name: str,
    in_channels: int,
    view_size: int | None = None,
    weights: str | Path = NO_WEIGHTS,
    bands: Sequence[str] | None = None,
) -> Encoder:
    """An encoder with random weights, or with those of ImageNet.

    `name`: `cnn` (ours), one of smp's encoders (`resnet18`, `tu-convnext_tiny`, …), or any timm model
    (`vit_small_patch16_224`, …); `view_size` in pixels is what a transformer's positions are made for. `weights`:
    `none`, `imagenet` (the library's default ones, fetched to its cache), or a .safetensors file of the same, for
    machines without a network; they are placed by the names in `bands`, see `models.imagenet`. Raises BandstreamError
    on an unknown name, and where weights cannot be had.
    """
    if str(weights) != NO_WEIGHTS:
        from models.imagenet import from_imagenet

        return from_imagenet(name, in_channels, view_size, weights, bands)
    return make_encoder(name, in_channels, view_size)


def make_encoder(name: str, in_channels: int, view_size: int | None, **pretrained: Any) -> Encoder:
    """As `build_encoder`; `pretrained` are the library's own options for weights, whose errors pass through."""
    library = library_of(name)
    kinds: list[dict[str, Any]] = [{}]
    # transformers are made for `view_size`, and take other sizes too where timm can interpolate their positions
    if library == "timm":
        sized = {"img_size": view_size}
        dynamic = {"dynamic_img_size": True, "dynamic_img_pad": True}
        kinds = [sized | dynamic, sized | {"strict_img_size": False}, sized, {}]
    elif name.startswith("tu-swin"):
        kinds = [{"img_size": view_size, "strict_img_size": False}]
    errors: tuple[type[Exception], ...] = (AssertionError, KeyError, RuntimeError, ValueError)
    for options in kinds:
        try:
            if library == "smp":
                net = smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, **options, **pretrained)
                if not pretrained:
                    begin_as_identities(net)
                if isinstance(net, EfficientNetEncoder | EfficientNetBaseEncoder):
                    freeze_head(net)
                return Encoder(net, name, "smp", in_channels, net.out_channels[-1], options)
            net = timm.create_model(name, num_classes=0, in_chans=in_channels, **options, **pretrained)
            width = getattr(net, "head_hidden_size", None) or net.num_features  # some have a layer before their head
            return Encoder(net, name, "timm", in_channels, width, options)
        except TypeError:  # timm's way of saying that this architecture knows no such option
            continue
        except errors as error:
            if pretrained:
                raise
            views = f"for views of {view_size} pixels" if view_size else f"with {in_channels} bands"
            raise BandstreamError(f"encoder {name!r} cannot be built {views}: {_first_line(error)}") from None
    raise BandstreamError(f"encoder {name!r} cannot be built with {in_channels} bands")


def begin_as_identities(net: nn.Module) -> None:
    """Residual blocks of torchvision's begin as identities: the scale of their last normalisation is 0.

    Goyal et al. 2017, "Accurate, large minibatch SGD", section 5.1; so do SimCLR, SimSiam and VICReg in their authors'
    code, and timm's models by themselves. (MoCo v2's code leaves torchvision's default, a scale of 1.)
    """
    for part in net.modules():
        if isinstance(part, BasicBlock | Bottleneck):
            nn.init.zeros_((part.bn3 if isinstance(part, Bottleneck) else part.bn2).weight)


def freeze_head(net: nn.Module) -> None:
    """No gradient is looked for in the last layers of smp's EfficientNets, which it keeps and does not use: where there
    are several processes, DistributedDataParallel would wait for one."""
    for name, part in net.named_children():
        if name in ("_conv_head", "_bn1", "conv_head", "bn2"):
            part.requires_grad_(False)


def library_of(name: str) -> str:
    """`smp` or `timm`. Raises BandstreamError, with names that are close, where neither knows the encoder."""
    if name in smp.encoders.encoders or (name.startswith("tu-") and timm.is_model(name[3:])):
        return "smp"
    if timm.is_model(name):
        return "timm"
    known = {*smp.encoders.encoders, *timm.list_models(), *(f"tu-{model}" for model in timm.list_models())}
    close = difflib.get_close_matches(name, sorted(known), 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see smp.encoders.encoders and timm.list_models()"
    raise BandstreamError(f"no encoder {name!r} in segmentation_models_pytorch or timm: {hint}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
