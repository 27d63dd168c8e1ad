"""Meeting other bands by name: the input weights of an encoder's first convolution, picked, ordered and rescaled."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from shards.bands import PICTURE, SAME_LIGHT, SENTINEL2, Fallback
from shards.errors import BandstreamError

_SAME_LIGHT = SAME_LIGHT | {band: colour for colour, band in SAME_LIGHT.items()}
WAVELENGTH_LIMIT_NM = 60
"""A band stands in for another (`fallback="wavelength"`) where their central wavelengths are at most so far apart."""

# How bands go together, as measured over five BigEarthNet patches and sixty made-up ones: within and between the
# visible with the red edge at 704 nm, the near infrared, and the short-wave infrared; and how pixels do, by distance.
REGION_ENDS_NM = (725.0, 1200.0)
REGIONS = torch.tensor([[0.9, 0.5, 0.8], [0.5, 0.95, 0.65], [0.8, 0.65, 0.95]], dtype=torch.float64)
PIXELS = 18.0
"""Distance in pixels over which the correlation of two pixels of a band falls by a factor e."""


class Adaptation(BaseModel):
    """How a stem was fitted to the bands at hand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trained: list[str]
    """The bands of the weights, in their order."""
    sources: dict[str, list[str]]
    """Band at hand → the trained bands whose weights it got: the mean of several; none: zero, not looked at."""
    scale: float = Field(gt=0, allow_inf_nan=False)
    """What the weights were multiplied by then, to keep the size of the activations."""

    def __str__(self) -> str:
        moved = [f"{band} from {' and '.join(of) or 'zero'}" for band, of in self.sources.items() if of != [band]]
        left = [band for band in self.trained if not any(band in sources for sources in self.sources.values())]
        parts = [f"{len(self.sources)} bands out of {len(self.trained)}", *moved]
        parts += [f"left out: {', '.join(left)}"] * bool(left)
        return "; ".join([*parts, f"weights × {self.scale:.3g}"])


def wavelength_of(band: str) -> float | None:
    """Central wavelength in nanometres of a band that the registry knows, else None."""
    known = SENTINEL2.get(band) or PICTURE.get(band)
    return float(known.wavelength_nm) if known else None


def find_stem(net: nn.Module, in_channels: int, size: int) -> str:
    """The name, in `net.state_dict()`, of the weight (out, in, k, k) that meets the bands.

    It is the convolution that runs first when a view (1, `in_channels`, `size`, `size`) goes through, wherever the
    library put it (`conv1`, `stem.0`, `patch_embed.proj`, …). Raises BandstreamError where that is no plain one over
    all bands, or where others take the bands too.
    """
    ran: list[tuple[str, nn.Conv2d, torch.Tensor]] = []

    def note(name: str) -> Any:
        return lambda module, inputs: ran.append((name, module, inputs[0]))

    hooks = [m.register_forward_pre_hook(note(n)) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    modes = [(module, module.training) for module in net.modules()]
    device = next(net.parameters()).device
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, in_channels, size, size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    plain = ran and ran[0][1].weight.shape[1] == in_channels
    if not plain or any(met is ran[0][2] for _, _, met in ran[1:]):
        raise BandstreamError(
            f"{type(net).__name__} has no single convolution over its {in_channels} bands: it cannot be given others; "
            "take an encoder with one stem, such as a ResNet, ConvNeXt or ViT"
        )
    return f"{ran[0][0]}.weight"


def match_bands(
    trained: Mapping[str, float], wanted: Sequence[str], fallback: Fallback = "none"
) -> dict[str, list[str]]:
    """Which trained bands (name → wavelength in nm) each wanted band takes its weights from: the one of its name, or
    that which sees the same light (a picture's red is B04, its green B03, its blue B02, and the other way round).

    `fallback` says what becomes of a band that was never seen: `none`, an error that names it; `wavelength`, the
    nearest trained band within WAVELENGTH_LIMIT_NM, or the error; `zero`, no weights, so it is not looked at until it
    is trained. Raises BandstreamError.
    """
    if fallback not in get_args(Fallback):
        raise BandstreamError(f"fallback {fallback!r} is not known: take {', '.join(get_args(Fallback))}")
    twice = {band for band in wanted if list(wanted).count(band) > 1}
    if twice or not wanted:
        raise BandstreamError(f"bands {', '.join(wanted) or 'none'}: name each wanted band once, and at least one")
    sources, missed = {}, []
    for band in wanted:
        wavelength = wavelength_of(band)
        if band in trained:
            sources[band] = [band]
        elif (same := _SAME_LIGHT.get(band, "")) in trained:
            sources[band] = [same]
        elif fallback == "zero":
            sources[band] = []
        elif fallback == "wavelength" and wavelength is not None:
            nearest = min(trained, key=lambda other: abs(trained[other] - wavelength))
            if abs(trained[nearest] - wavelength) <= WAVELENGTH_LIMIT_NM:
                sources[band] = [nearest]
            else:
                missed.append(f"{band} (nearest is {nearest}, {abs(trained[nearest] - wavelength):.0f} nm away)")
        else:
            missed.append(band)
    if missed:
        beyond = f" within {WAVELENGTH_LIMIT_NM} nm" if fallback == "wavelength" else ""
        raise BandstreamError(
            f"the encoder never saw {', '.join(missed)}{beyond}: it was trained on {', '.join(trained)}; "
            "leave those bands out, pretrain with them, or say what stands in for them: "
            + ("--fallback zero" if beyond else "--fallback wavelength, or zero")
        )
    if not any(sources.values()):
        raise BandstreamError(f"the encoder saw none of {', '.join(wanted)}: it was trained on {', '.join(trained)}")
    return sources


def rgb_sources(wanted: Sequence[str]) -> dict[str, list[str]]:
    """As `match_bands`, of weights for red, green and blue: B04, B03 and B02 by name, every other band their mean."""
    return {band: [colour] if (colour := _COLOURS.get(band)) else list(PICTURE) for band in wanted}


_COLOURS = {**{sentinel: colour for colour, sentinel in SAME_LIGHT.items()}, **{colour: colour for colour in PICTURE}}


def adapt_stem(
    weight: torch.Tensor, trained: Mapping[str, float], sources: Mapping[str, Sequence[str]]
) -> tuple[torch.Tensor, Adaptation]:
    """The weight (out, C, k, k) of bands `trained` (name → wavelength in nm), for those of `sources`, in their order.

    Each band's weights are the mean of its sources' (none: zero); all are then multiplied by the one factor that keeps
    the mean variance of the output for standardised input (`expected_variance`), so that what follows, such as batch
    normalisation with running statistics, meets activations of the size that it knows. On made-up landscapes the output
    then has .86 to 1.22 of its standard deviation, for random, smooth and edge kernels and for bands that share one;
    scaled by the number of bands it would have up to 3.3, by the root of that down to .35.
    """
    names = list(trained)
    columns = [
        weight[:, [names.index(source) for source in picked]].mean(1) if picked else torch.zeros_like(weight[:, 0])
        for picked in sources.values()
    ]
    fitted = torch.stack(columns, 1)
    scale = 1.0
    if sorted(map(list, sources.values())) != sorted([name] for name in names):  # not just another order
        here = [trained.get(band) or wavelength_of(band) or _mean(trained, sources[band]) for band in sources]
        before = expected_variance(weight, list(trained.values()))
        after = expected_variance(fitted, here)
        scale = (before / after) ** 0.5 if after > 0 else 1.0
    told = Adaptation(trained=names, sources={band: list(picked) for band, picked in sources.items()}, scale=scale)
    return fitted * scale, told


def _mean(trained: Mapping[str, float], sources: Sequence[str]) -> float:
    picked = [trained[source] for source in sources or trained]
    return sum(picked) / len(picked)


def band_correlation(wavelengths: Sequence[float]) -> torch.Tensor:
    """(B, B), float64: the correlation of two bands' pixels that `REGIONS` states, 1 for equal wavelengths."""
    regions = [sum(wavelength > end for end in REGION_ENDS_NM) for wavelength in wavelengths]
    correlation = REGIONS[regions][:, regions].clone()
    same = torch.tensor([[a == b for b in wavelengths] for a in wavelengths])
    correlation[same] = 1.0
    return correlation


def expected_variance(weight: torch.Tensor, wavelengths: Sequence[float]) -> float:
    """The variance of a convolution's output, mean over its channels, for standardised bands that go together as said.

    `weight`: (out, B, k, k). Bands correlate as `band_correlation` says, pixels at distance d by exp(-d / PIXELS), and
    a band's pixel with another's by the product. One factor for bands that were all alike would be B / B', for
    unrelated ones its root; neither is true of Sentinel-2.
    """
    height, width = weight.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).double()  # (k * k, 2)
    pixels = torch.exp(-torch.cdist(places, places) / PIXELS)  # (K, K)
    taps = weight.detach().cpu().double().flatten(2)  # (out, B, K)
    products = torch.einsum("obk,kl,ocl->bc", taps, pixels, taps) / len(taps)
    return float((products * band_correlation(wavelengths)).sum())
