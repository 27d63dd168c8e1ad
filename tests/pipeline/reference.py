"""The view graph once more, written plainly with NumPy and SciPy: the independent truth for its tests."""

import numpy as np
from scipy import ndimage


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


def view_of(image_arrays, draws, n, recipe, mean, std, tile, *, integers):
    """One view (C, S, S), float64, of the sample whose arrays [(planes, channels)] are given, from its draws."""
    size = (recipe.size, recipe.size)
    view = np.empty((len(mean), *size))
    for planes, channels in image_arrays:
        view[channels] = resample(planes, draws.start[n], draws.end[n], size)
    if integers:
        view = np.rint(view)
    view = heading(view, draws.flip[n], draws.turns[n])
    if draws.blur_sigma[n] > 0:
        sigma = float(draws.blur_sigma[n])
        radius = int(np.ceil(3 * sigma))
        view = ndimage.gaussian_filter(view, (0, sigma, sigma), mode="mirror", radius=(0, radius, radius))
    view = view * draws.gain[n][:, None, None].astype(np.float64)
    view = (view - mean[:, None, None]) / std[:, None, None]
    view = view + draws.offset[n][:, None, None]
    if recipe.noise:
        y, x = draws.noise_position[n]
        view = view + draws.noise_sigma[n] * tile[:, y : y + size[0], x : x + size[1]]
    if draws.grey[n]:
        view = np.broadcast_to(view.mean(0), view.shape)
    return np.where(draws.dropped[n][:, None, None], 0, view)
