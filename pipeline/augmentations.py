"""The augmentations, one function each, as DALI operators on (C, H, W) views; nothing in here is random.

Each takes the view and its draws, the same on `cpu` and `gpu`. Per-band draws come as float32 (C, 1, 1), draws of whole
views as scalars. DALI's `normalize`, given mean and divisor, is its quickest per-band multiply-add on a CPU, several
times quicker than its arithmetic operators with broadcasting. What is dear and only some views undergo is an `if` on a
draw, so that it costs the others nothing.
"""

from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

Node = Any
"""A DataNode of a DALI graph: a batch of tensors."""

RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
"""Luminance and two axes of chroma (FCC 1953, NTSC); the luminance is that of ITU-R BT.601, as in Pillow's greys."""


def interleaved(planes: Node) -> Node:
    """Planes (C, H, W) as `resampled_crop` takes them: on a CPU pixels (H, W, C), of few channels, which DALI resamples
    more than twice as quickly; on a GPU as they are."""
    return planes if planes.device == "gpu" else fn.transpose(planes, perm=[1, 2, 0])


def resampled_crop(planes: Node, start: Node, end: Node, size: tuple[int, int], dtype: Any) -> Node:
    """The window from `start` to `end` (y, x; shares of height and width), resampled straight to `size`: (C, H, W).

    Linear interpolation, with a triangular filter as wide as the step between output pixels where the view is coarser
    than the patch. One relative window fits arrays of any GSD. `start` above `end` flips that axis. The crop is that of
    Szegedy et al. 2015 (Inception), as in SimCLR.
    """
    crop = fn.resize(
        planes,
        size=list(size),
        roi_start=start,
        roi_end=end,
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        dtype=dtype,
    )
    return crop if planes.device == "gpu" else fn.transpose(crop, perm=[2, 0, 1])


def resampled_mask(mask: Node, start: Node, end: Node, size: tuple[int, int]) -> Node:
    """The same window of a class map, nearest neighbour: no class is made up."""
    return fn.resize(
        mask,
        size=list(size),
        roi_start=start,
        roi_end=end,
        roi_relative=True,
        interp_type=types.INTERP_NN,
        dtype=types.UINT8,
    )


def transposition(view: Node, transposed: Node) -> Node:
    """Swap rows and columns where `transposed` is true: with flips, all eight headings of a square."""
    if transposed:
        turned = fn.transpose(view, perm=[0, 2, 1], transpose_layout=False)
    else:
        turned = view
    return turned


def gaussian_blur(view: Node, blurred: Node, sigma: Node) -> Node:
    """Gaussian of `sigma` pixels of the view, where `blurred` is true (Chen et al. 2020, SimCLR, appendix A).

    DALI refuses sigma 0, hence the flag. Window of 2 * ceil(3 sigma) + 1 pixels, mirrored without the edge pixel.
    """
    if blurred:
        soft = fn.gaussian_blur(view, sigma=sigma, dtype=types.FLOAT)
    else:
        soft = fn.cast(view, dtype=types.FLOAT)
    return soft


def colour(view: Node, coloured: Node, matrix: Node, lift: Node) -> Node:
    """Saturation, hue and grey of a picture, where `coloured` is true: `matrix` (3, 3) times each pixel plus `lift`."""
    if coloured:
        pixels = fn.coord_transform(fn.transpose(view, perm=[1, 2, 0]), M=matrix, T=lift, dtype=types.FLOAT)
        shown = fn.transpose(pixels, perm=[2, 0, 1])
    else:
        shown = fn.cast(view, dtype=types.FLOAT)
    return shown


def colour_matrix(saturation: np.ndarray, hue: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Factor and turn (N,) of chroma as matrices on (red, green, blue), float64 (N, 3, 3); `grey` leaves no chroma.

    Chroma is a plane of YIQ: a factor stretches it, hue turns it, greys and luminance stay. The factor is the one of
    Pillow's and torchvision's saturation; the turn is linear, unlike theirs by HSV (Haeberli 1993, "Matrix operations
    for image processing").
    """
    factor, angle = np.where(grey, 0.0, saturation), 2 * np.pi * hue.astype(np.float64)
    chroma = np.zeros((len(factor), 3, 3))
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = factor * np.cos(angle)
    chroma[:, 1, 2] = factor * np.sin(angle)
    chroma[:, 2, 1] = -chroma[:, 1, 2]
    matrix: np.ndarray = np.linalg.inv(RGB_TO_YIQ) @ chroma @ RGB_TO_YIQ
    return matrix


def standardise(view: Node, mean: Node, std: Node) -> Node:
    """(view - mean) / std per band. Values are never clipped.

    Gain, brightness and offset are folded into it: see `folded`.
    """
    return fn.normalize(view, mean=mean, stddev=std, dtype=types.FLOAT)


def folded(
    mean: np.ndarray, std: np.ndarray, dark: float, gain: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and divisor for `standardise`, each float32 (N, C, 1, 1), from statistics (C,), the stored number `dark` of
    reflectance 0, and factors on reflectance and offsets in standard deviations, each (N, C).

    (d + g (x - d) - m) / s + o = (x - (d + (m - d - s o) / g)) / (s / g)
    """
    factor = gain.astype(np.float64)
    shift = (dark + (mean - dark - std * offset) / factor).astype(np.float32)
    divisor = (std / factor).astype(np.float32)
    return shift[:, :, None, None], divisor[:, :, None, None]


def contrast(view: Node, shift: Node, divisor: Node, factor: Node) -> Node:
    """`standardise`, and each band's distance from its own mean over the view times `factor` (above 0).

    Before the gains or after them is the same. SimCLR's jitter takes the distance from the mean luminance, which bands
    do not have. On a CPU it is folded into the standardisation, which takes its arguments from there alone.
    """
    if view.device == "gpu":
        even = standardise(view, shift, divisor)
        factor = factor.gpu()
        mean = fn.reductions.mean(even, axes=[1, 2], keep_dims=True)
        stretched = even * factor + mean * (1 - factor)
    else:
        mean = fn.reductions.mean(view, axes=[1, 2], keep_dims=True, dtype=types.FLOAT)
        stretched = standardise(view, mean + (shift - mean) / factor, divisor / factor)
    return stretched


def solarise(view: Node, solarised: Node, bend: Node) -> Node:
    """Invert what is brighter than half of white, where `solarised` is true (Grill et al. 2020, BYOL, appendix B).

    The value that half of white has in a band of the view is `bend` / 2; about it, x becomes `bend` - x.
    """
    if view.device == "gpu":
        bend = bend.gpu()
    if solarised:
        bent = math.min(view, bend - view)
    else:
        bent = view
    return bent


def sensor_noise(view: Node, tile: np.ndarray, position: Node, sigma: Node, size: tuple[int, int]) -> Node:
    """Add white noise: the part of a constant noise tile (C, H', W') that begins at `position`, times `sigma`."""
    part = fn.slice(types.Constant(tile, device=view.device), start=position, shape=list(size), axes=[1, 2])
    if view.device == "gpu":
        sigma = sigma.gpu()
    return view + part * sigma


def spectral_grey(view: Node, grey: Node, bands: int) -> Node:
    """Replace all bands by their mean where `grey` is true: SimCLR's greyscale for bands without a luminance."""
    if grey:
        mean = fn.reductions.mean(view, axes=[0], keep_dims=True)
        level = fn.cat(*[mean] * bands, axis=0)
    else:
        level = view
    return level


def band_dropout(view: Node, divisor: Node) -> Node:
    """Set bands to 0, their mean over the train split: `divisor` is infinite where a band is dropped, 1 elsewhere.

    All views pass through it, for an `if` costs as much as it saves.
    """
    return fn.normalize(view, mean=0.0, stddev=divisor)


def cutout(view: Node, corner: Node, extent: Node) -> Node:
    """Set rectangles to 0, each band's mean over the train split.

    `corner` (y, x) and `extent` in pixels of the view, float32 (R, 2); an extent of 0 cuts nothing. All views pass
    through it, for an `if` costs as much as it saves. DeVries and Taylor 2017 (Cutout); Zhong et al. 2020 (Random
    Erasing).
    """
    return fn.erase(view, anchor=corner, shape=extent, axes=[1, 2], fill_value=0.0)
