"""Encoders that begin with ImageNet's weights, whose stem is fitted to the bands at hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.encoder import IMAGENET, Encoder, library_of, make_encoder
from models.hub import quietly
from models.stem import adapt_stem, find_stem, rgb_sources
from shards.bands import PICTURE
from shards.errors import BandstreamError

USUAL_SIZE = 224


def from_imagenet(
    name: str, in_channels: int, view_size: int | None, weights: str | Path, bands: Sequence[str] | None
) -> Encoder:
    """The library's RGB weights, placed by band name: red → B04, green → B03, blue → B02.

    Every other band starts as the mean of the three: the kernels' shapes (edges, texture) carry over, their colours
    cannot. The stem is then rescaled so that its output keeps its size for standardised views (`adapt_stem`).
    Raises BandstreamError where weights cannot be fetched or read, and where the bands have no names.
    """
    if bands is None or len(bands) != in_channels:
        raise BandstreamError(f"weights {str(weights)!r} are placed by band name: name the {in_channels} bands")
    if name == "cnn":
        raise BandstreamError("cnn has no ImageNet weights: take weights none, or another encoder such as resnet18")
    if str(weights) == IMAGENET:
        pictures = _fetched(name, view_size)
    else:
        pictures = _read(name, view_size, Path(weights))
    state = dict(pictures.net.state_dict())
    stem = find_stem(pictures.net, 3, view_size or USUAL_SIZE)
    wavelengths = {colour: float(band.wavelength_nm) for colour, band in PICTURE.items()}
    state[stem], told = adapt_stem(state[stem], wavelengths, rgb_sources(bands))
    encoder = make_encoder(name, in_channels, view_size)
    nn.Module.load_state_dict(encoder.net, state, strict=True)
    encoder.adaptation = told
    return encoder


def _fetched(name: str, view_size: int | None) -> Encoder:
    smps = library_of(name) == "smp"
    chosen: dict[str, Any] = {"pretrained": True}
    if smps:
        chosen = {"weights": True if name.startswith("tu-") else IMAGENET}
    try:
        with quietly():
            return make_encoder(name, 3, view_size, **chosen)
    except BandstreamError:
        raise
    except Exception as error:  # libraries and network stacks raise their own kinds
        said = (str(error).splitlines() or [""])[0]
        raise BandstreamError(
            f"the ImageNet weights of {name} could not be fetched ({type(error).__name__}: {said}): fetch them where "
            "huggingface.co can be reached (HF_HOME names the cache), give weights a .safetensors file of them, or none"
        ) from None


def _read(name: str, view_size: int | None, file: Path) -> Encoder:
    if file.suffix != ".safetensors":
        raise BandstreamError(f"weights {str(file)!r}: take none, imagenet, or a .safetensors file of a {name}")
    try:
        held = load_file(file)
    except (OSError, SafetensorError) as error:
        raise BandstreamError(f"weights {file} cannot be read ({error}): name a .safetensors file") from None
    try:
        if library_of(name) == "smp" and not name.startswith("tu-"):
            encoder = make_encoder(name, 3, view_size)
            nn.Module.load_state_dict(encoder.net, dict(held), strict=True)
        else:
            chosen = {"weights": True} if name.startswith("tu-") else {"pretrained": True}
            encoder = make_encoder(name, 3, view_size, **chosen, pretrained_cfg_overlay={"file": str(file)})
    except (RuntimeError, KeyError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise BandstreamError(f"weights {file} are not of a {name} for RGB: {said}") from None
    # timm passes over what does not fit where only features are asked for: look whether the weights came in
    state = encoder.net.state_dict()
    came = sum(any(_equal(tensor, other) for other in held.values()) for tensor in state.values())
    if came < 0.9 * len(state):
        raise BandstreamError(f"weights {file} are not of a {name} for RGB: {came} of {len(state)} tensors are in it")
    return encoder


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other.to(one.dtype)))
