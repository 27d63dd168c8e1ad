"""The view graph once more, written plainly with NumPy and SciPy: the independent truth for its tests.

Each augmentation stands where DESIGN's order has it, acts on reflectance or on standard deviations as it is defined,
and is folded into nothing.
"""

import numpy as np
from scipy import ndimage

from pipeline.draws import Draws, noise_tile
from pipeline.loader import Loader
from shards.bands import true_colour
from shards.shardset import Sample


def resampling_matrix(source: int, target: int, start: float, end: float) -> np.ndarray:
    """(target, source) weights of a linear resampling of [start, end) (shares of the axis), antialiased.

    Output pixel i lies at start + (i + 1/2) (end - start) / target; its weights fall off as a triangle that reaches
    one source pixel far, or one output pixel where these are farther apart. Beyond the border the border is repeated.
    """
    begin, finish = start * source, end * source
    step = (finish - begin) / target
    reach = max(1.0, abs(step))
    beyond = int(np.ceil(reach)) + 1
    pixels = np.arange(-beyond, source + beyond)
    centres = begin + (np.arange(target) + 0.5) * step
    triangles = np.maximum(0, 1 - np.abs(pixels + 0.5 - centres[:, None]) / reach)
    weights = np.zeros((target, source))
    np.add.at(weights.T, np.clip(pixels, 0, source - 1), triangles.T)
    return weights / weights.sum(1, keepdims=True)


def resample(planes: np.ndarray, start: np.ndarray, end: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, H, W) → float64 (C, *size)."""
    rows = resampling_matrix(planes.shape[1], size[0], float(start[0]), float(end[0]))
    columns = resampling_matrix(planes.shape[2], size[1], float(start[1]), float(end[1]))
    return rows @ planes.astype(np.float64) @ columns.T


def nearest(mask: np.ndarray, start: np.ndarray, end: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) → (*size), the source pixel in which each output pixel's centre lies."""
    index = []
    for axis in range(2):
        length = mask.shape[axis]
        at = start[axis] + (np.arange(size[axis]) + 0.5) * (end[axis] - start[axis]) / size[axis]
        index.append(np.clip(np.floor(at * length), 0, length - 1).astype(int))
    return mask[np.ix_(*index)]


def heading(view: np.ndarray, flip: np.ndarray, turns: int) -> np.ndarray:
    """Flip (upside down, left to right), then turn counter-clockwise: (..., H, W) → (..., H, W)."""
    if flip[0]:
        view = np.flip(view, -2)
    if flip[1]:
        view = np.flip(view, -1)
    return np.rot90(view, turns, (-2, -1))


def recoloured(picture: np.ndarray, saturation: float, hue: float, grey: bool) -> np.ndarray:
    """(red, green, blue) (3, H, W): chroma as a complex number, I + iQ, multiplied; or luminance alone."""
    red, green, blue = picture
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    if grey:
        return np.stack([luminance] * 3)
    i = 0.595716 * red - 0.274453 * green - 0.321263 * blue
    q = 0.211456 * red - 0.522591 * green + 0.311135 * blue
    chroma = (i + 1j * q) * saturation * np.exp(-2j * np.pi * hue)
    to_rgb = np.linalg.inv([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    return np.einsum("ij,jhw->ihw", to_rgb, np.stack([luminance, chroma.real, chroma.imag]))


def geometry(loader: Loader, sample: Sample, draws: Draws, n: int, view: int) -> np.ndarray:
    """The drawn window of the drawn date, resampled and turned: float64 (C, H, W), in stored numbers."""
    manifest, size = loader.shard_set.manifest, loader.views[view].size
    patch = np.empty((len(loader.bands), *((size, size) if size else loader.shard_set.grid)))
    for name, array in manifest.arrays.items():
        if array.time == draws.date[n]:
            bands = [band for band in loader.bands if band in array.bands]
            planes = sample.arrays[name][[array.bands.index(band) for band in bands]]
            places = [loader.bands.index(band) for band in bands]
            patch[places] = resample(planes, draws.start[n], draws.end[n], patch.shape[1:])
    return heading(patch, draws.flip[n], int(draws.turns[n]))


def radiometry(loader: Loader, patch: np.ndarray, draws: Draws, n: int, view: int) -> np.ndarray:
    """All that follows the geometry, on stored numbers (C, H, W) → standardised float64 (C, H, W)."""
    light = loader.shard_set.manifest.reflectance
    mean, std = (value[:, None, None] for value in loader.statistics)
    colours = true_colour(loader.bands) if len(loader.bands) == 3 else None
    if draws.blur_sigma[n] > 0:
        sigma = float(draws.blur_sigma[n])
        radius = int(np.ceil(3 * sigma))
        patch = ndimage.gaussian_filter(patch, (0, sigma, sigma), mode="mirror", radius=(0, radius, radius))
    reflectance = patch * light.scale + light.offset
    reflectance = reflectance * draws.gain[n][:, None, None].astype(np.float64) * float(draws.brightness[n])
    middle = reflectance.mean((1, 2), keepdims=True)
    reflectance = middle + float(draws.contrast[n]) * (reflectance - middle)
    if colours:
        places = [loader.bands.index(band) for band in colours]
        picture = recoloured(reflectance[places], float(draws.saturation[n]), float(draws.hue[n]), bool(draws.grey[n]))
        reflectance[places] = np.where(draws.solarised[n] & (picture >= 0.5), 1 - picture, picture)
    standard = ((reflectance - light.offset) / light.scale - mean) / std
    standard = standard + draws.offset[n][:, None, None]
    if loader.views[view].noise:
        tile = noise_tile(len(standard), standard.shape[1:])
        y, x = draws.noise_position[n]
        part = tile[:, y : y + standard.shape[1], x : x + standard.shape[2]]
        standard = standard + float(draws.noise_sigma[n]) * part
    if draws.grey[n] and not colours:
        standard = np.broadcast_to(standard.mean(0), standard.shape)
    standard = np.where(draws.dropped[n][:, None, None], 0, standard)
    for hole in draws.holes[n]:
        if hole.any():
            top, left, bottom, right = (
                round(float(edge)) for edge in hole * np.array([*standard.shape[1:]] * 2, np.float32)
            )
            standard[:, top:bottom, left:right] = 0
    return standard
