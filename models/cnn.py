"""`cnn`: a small plain CNN of ours, for short runs, CPUs, and as the plain baseline beside residual networks."""

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import nn

NAME = "cnn"
WIDTHS = (32, 64, 128, 256, 256)


class PlainCNN(nn.Module, EncoderMixin):
    """Six 3×3 convolutions, each with batch normalisation and ReLU; 1.13 M weights at 12 bands.

    (N, C, H, W) → six maps: the input itself, and those at strides 2, 4, 8, 16 and 32 with `WIDTHS` channels, as
    smp's encoders give them, so that it serves in `smp.Unet` too. The third stage has two convolutions.
    """

    def __init__(self, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        self._depth, self._output_stride, self._in_channels = depth, output_stride, 3
        self._out_channels = [3, *WIDTHS]
        self.stage1 = nn.Sequential(_layer(3, WIDTHS[0], 2))
        self.stage2 = nn.Sequential(_layer(WIDTHS[0], WIDTHS[1], 2))
        self.stage3 = nn.Sequential(_layer(WIDTHS[1], WIDTHS[2], 2), _layer(WIDTHS[2], WIDTHS[2], 1))
        self.stage4 = nn.Sequential(_layer(WIDTHS[2], WIDTHS[3], 2))
        self.stage5 = nn.Sequential(_layer(WIDTHS[3], WIDTHS[4], 2))

    def get_stages(self) -> dict[int, list[nn.Module]]:
        """What smp dilates for a smaller output stride."""
        return {16: [self.stage4], 32: [self.stage5]}

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = [x]
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4, self.stage5)[: self._depth]:
            maps.append(stage(maps[-1]))
        return maps


def _layer(inner: int, outer: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


# smp's own table of encoders: from here on `smp.Unet("cnn")` and `smp.encoders.get_encoder("cnn")` know it
smp.encoders.encoders[NAME] = {"encoder": PlainCNN, "pretrained_settings": {}, "params": {}}
