"""What is random about a view, as data: a pure function of (seed, epoch, sample, view)."""

from dataclasses import dataclass

import numpy as np

from pipeline.hashing import combine, uniform
from pipeline.views import ViewRecipe

DRAWS_VERSION = 1
"""Raised with every change by which the same integers draw another view, so that no run is resumed across it."""

CROP_TRIES = 10
NOISE_MARGIN = 128
"""The noise tile is so many pixels larger than a view, in both directions, and is cut at a drawn position."""


@dataclass(frozen=True)
class Draws:
    """The draws of one view for N samples of C bands.

    start, end      float32 (N, 2)  crop window (y, x), in shares of the patch's height and width
    flip            bool (N, 2)     upside down, left to right
    turns           int (N,)        quarter turns counter-clockwise, after the flips
    blur_sigma      float32 (N,)    pixels of the view; 0: not blurred
    gain            float32 (N, C)  factor on the stored numbers of a band
    offset          float32 (N, C)  standard deviations
    noise_sigma     float32 (N,)    standard deviations
    noise_position  int32 (N, 2)    (y, x) of the view's corner in the noise tile
    grey            bool (N,)
    dropped         bool (N, C)
    """

    start: np.ndarray
    end: np.ndarray
    flip: np.ndarray
    turns: np.ndarray
    blur_sigma: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    noise_sigma: np.ndarray
    noise_position: np.ndarray
    grey: np.ndarray
    dropped: np.ndarray

    @property
    def window(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flips and turns folded into the window: roi start and end, float32 (N, 2), inverted where the axis is
        flipped, and bool (N,), whether the resampled view is transposed as the last step.

        A quarter turn is a flip, then a transposition: `rot90(x, 1) = flip(x, 1).T`, `rot90(x, 3) = flip(x, 0).T`.
        """
        upside, mirrored = self.flip.T
        upside = upside ^ ((self.turns == 2) | (self.turns == 3))
        mirrored = mirrored ^ ((self.turns == 1) | (self.turns == 2))
        inverted = np.stack([upside, mirrored], 1)
        start = np.where(inverted, self.end, self.start)
        end = np.where(inverted, self.start, self.end)
        return start, end, self.turns % 2 == 1


def draw(
    recipe: ViewRecipe, seed: int, epoch: int, samples: np.ndarray, view: int, bands: int, aspect: float = 1.0
) -> Draws:
    """Draw one view for sample numbers (N,). `aspect` is the patch's width over its height, in pixels."""
    count = len(samples)

    def fresh(name: str, *more: int | np.ndarray) -> np.ndarray:
        return uniform(name, seed, epoch, samples, view, *more)

    def each_band(name: str) -> np.ndarray:
        return uniform(name, seed, epoch, samples[:, None], view, np.arange(bands)[None, :])

    start, end = _crop_window(recipe, fresh, count, aspect)
    flip = np.stack([fresh("flip y") < recipe.flip_vertical, fresh("flip x") < recipe.flip_horizontal], 1)
    turned = fresh("turned") < recipe.rotate90
    turns = np.where(turned, 1 + (fresh("turns") * 3).astype(int), 0)
    low, high = recipe.blur_sigma
    sigma = low + (high - low) * fresh("blur sigma")
    dropped_bands = np.where(
        fresh("drop") < recipe.band_dropout, 1 + (fresh("dropped bands") * recipe.band_dropout_max).astype(int), 0
    )
    rank = each_band("which bands").argsort(1, kind="stable").argsort(1, kind="stable")
    position = combine("noise position", seed, epoch, samples[:, None], view, np.arange(2)[None, :])
    return Draws(
        start=start.astype(np.float32),
        end=end.astype(np.float32),
        flip=flip,
        turns=turns,
        blur_sigma=np.where(fresh("blur") < recipe.blur, sigma, 0).astype(np.float32),
        gain=(1 + recipe.gain * (2 * each_band("gain") - 1)).astype(np.float32),
        offset=(recipe.offset * (2 * each_band("offset") - 1)).astype(np.float32),
        noise_sigma=(recipe.noise * fresh("noise sigma")).astype(np.float32),
        noise_position=(position % np.uint64(NOISE_MARGIN + 1)).astype(np.int32),
        grey=fresh("grey") < recipe.grey,
        dropped=rank < np.minimum(dropped_bands, bands - 1)[:, None],
    )


def _crop_window(recipe: ViewRecipe, fresh, count: int, aspect: float) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
    """Area and aspect as in Szegedy et al. 2015 (Inception): the first of ten tries that fits inside the patch."""
    if recipe.crop_scale is None:
        return np.zeros((count, 2)), np.ones((count, 2))
    tries = np.arange(CROP_TRIES)
    low, high = recipe.crop_scale
    area = np.stack([low + (high - low) * fresh("crop area", int(i)) for i in tries], 1)
    least, most = np.log(recipe.crop_ratio)
    ratio = np.exp(np.stack([least + (most - least) * fresh("crop ratio", int(i)) for i in tries], 1))
    height, width = np.sqrt(area / ratio * aspect), np.sqrt(area * ratio / aspect)
    fits = (height <= 1) & (width <= 1)
    first = fits.argmax(1)
    row = np.arange(count)
    size = np.minimum(np.stack([height[row, first], width[row, first]], 1), 1)
    corner = np.stack([fresh("crop y"), fresh("crop x")], 1) * (1 - size)
    return corner, corner + size


def noise_tile(bands: int, size: tuple[int, int]) -> np.ndarray:
    """White Gaussian noise of unit variance, the same for every run: float32 (bands, H + margin, W + margin)."""
    shape = (bands, size[0] + NOISE_MARGIN, size[1] + NOISE_MARGIN)
    return np.random.Generator(np.random.Philox(key=0)).standard_normal(shape, np.float32)
