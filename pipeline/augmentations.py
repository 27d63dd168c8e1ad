"""The augmentations, one function each, as DALI operators on (C, H, W) views; nothing in here is random.

Each takes the view and its draws, the same on `cpu` and `gpu`. Per-band draws come as float32 (C, 1, 1). DALI's
`normalize`, given mean and divisor, is its quickest per-band multiply-add on a CPU, several times quicker than its
arithmetic operators with broadcasting.
"""

from typing import Any

import numpy as np
from nvidia.dali import fn, types

Node = Any
"""A DataNode of a DALI graph: a batch of tensors."""


def resampled_crop(planes: Node, start: Node, end: Node, size: tuple[int, int], dtype: Any) -> Node:
    """The window from `start` to `end` (y, x; shares of height and width), resampled straight to `size`.

    Linear interpolation, with a triangular filter as wide as the step between output pixels where the view is coarser
    than the patch. One relative window fits arrays of any GSD. `start` above `end` flips that axis.
    """
    return fn.resize(
        planes,
        size=list(size),
        roi_start=start,
        roi_end=end,
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        dtype=dtype,
    )


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
    """Gaussian of `sigma` pixels of the view, where `blurred` is true; samples that are not cost nothing.

    DALI refuses sigma 0, hence the flag. Window of 2 * ceil(3 sigma) + 1 pixels, mirrored without the edge pixel.
    """
    if blurred:
        soft = fn.gaussian_blur(view, sigma=sigma, dtype=types.FLOAT)
    else:
        soft = fn.cast(view, dtype=types.FLOAT)
    return soft


def standardise(view: Node, mean: Node, std: Node, dtype: Any) -> Node:
    """(view - mean) / std per band. Values are never clipped.

    Gain g and offset o (in standard deviations) are folded into it: (g x - m) / s + o = (x - (m - s o) / g) / (s / g).
    """
    return fn.normalize(view, mean=mean, stddev=std, dtype=dtype)


def folded(mean: np.ndarray, std: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and divisor for `standardise` from statistics (C,) and the draws (N, C): each float32 (N, C, 1, 1)."""
    shift = ((mean - std * offset.astype(np.float64)) / gain).astype(np.float32)
    divisor = (std / gain.astype(np.float64)).astype(np.float32)
    return shift[:, :, None, None], divisor[:, :, None, None]


def sensor_noise(view: Node, tile: np.ndarray, position: Node, sigma: Node, size: tuple[int, int]) -> Node:
    """Add white noise: the part of a constant noise tile (C, H', W') that begins at `position`, times `sigma`."""
    constant = types.Constant(tile, device="cpu")
    part = fn.slice(constant, position, list(size), axes=[1, 2])
    if view.device == "gpu":
        part = part.gpu()
    return view + part * sigma


def spectral_grey(view: Node, grey: Node, bands: int) -> Node:
    """Replace all bands by their mean where `grey` is true."""
    if grey:
        mean = fn.reductions.mean(view, axes=[0], keep_dims=True)
        level = fn.cat(*[mean] * bands, axis=0)
    else:
        level = view
    return level


def band_dropout(view: Node, divisor: Node, bands: int) -> Node:
    """Set bands to 0, their mean over the train split: divide by infinity where a band is dropped, by 1 elsewhere."""
    return fn.normalize(view, mean=np.zeros((bands, 1, 1), np.float32), stddev=divisor)
