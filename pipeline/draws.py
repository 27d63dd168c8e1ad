"""What is random about a view, as data: a pure function of (seed, epoch, sample, view)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.hashing import combine, uniform
from pipeline.views import Seasons, ViewRecipe

DRAWS_VERSION = 2
"""Raised with every change by which the same integers draw another view, so that no run is resumed across it."""

CROP_TRIES = 10
NOISE_MARGIN = 128
"""The noise tile is so many pixels larger than a view, in both directions, and is cut at a drawn position."""

ONCE = (
    "flip y", "flip x", "turned", "turns", "blur", "blur sigma", "jitter", "brightness", "contrast", "saturation",
    "hue", "solarise", "noise sigma", "grey", "drop", "dropped bands", "crop y", "crop x", "cutout", "cutout number",
)  # fmt: skip
EACH_BAND = ("gain", "offset", "which bands")
EACH_TRY = ("crop area", "crop ratio")
EACH_HOLE = ("cutout area", "cutout ratio", "cutout y", "cutout x")
"""The names of all that is drawn a view, and of what is drawn of it several times."""
Fresh = Mapping[str, np.ndarray]
"""Name → uniform in [0, 1), (N,) or (N, times)."""


@dataclass(frozen=True)
class Draws:
    """The draws of one view for N samples of C bands, of at most R rectangles cut out.

    date            int (N,)           number of the date among the place's
    start, end      float32 (N, 2)     crop window (y, x), in shares of the patch's height and width
    flip            bool (N, 2)        upside down, left to right
    turns           int (N,)           quarter turns counter-clockwise, after the flips
    blur_sigma      float32 (N,)       pixels of the view; 0: not blurred
    gain            float32 (N, C)     factor on the reflectance of a band
    brightness      float32 (N,)       factor on the reflectance of all bands
    contrast        float32 (N,)       factor on the distance from the view's band mean
    saturation      float32 (N,)       factor on a picture's chroma
    hue             float32 (N,)       parts of a full turn, from red to green
    solarised       bool (N,)
    offset          float32 (N, C)     standard deviations
    noise_sigma     float32 (N,)       standard deviations
    noise_position  int32 (N, 2)       (y, x) of the view's corner in the noise tile
    grey            bool (N,)
    dropped         bool (N, C)
    holes           float32 (N, R, 4)  rectangles (top, left, bottom, right), in shares of the view; all 0: none
    """

    date: np.ndarray
    start: np.ndarray
    end: np.ndarray
    flip: np.ndarray
    turns: np.ndarray
    blur_sigma: np.ndarray
    gain: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    solarised: np.ndarray
    offset: np.ndarray
    noise_sigma: np.ndarray
    noise_position: np.ndarray
    grey: np.ndarray
    dropped: np.ndarray
    holes: np.ndarray

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

    def rectangles(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The holes in pixels of a view of `size` (height, width): corner (y, x) and extent, each float32 (N, R, 2).

        To the nearest pixel, at least one; 0 where a sample has fewer than R.
        """
        holes = self.holes * np.array([*size, *size], np.float32)
        corner = np.minimum(np.rint(holes[..., :2]), np.array(size, np.float32) - 1)
        extent = np.maximum(np.rint(holes[..., 2:]) - corner, 1)
        return corner, np.where(np.any(holes, axis=-1, keepdims=True), extent, 0)


def draw(
    recipe: ViewRecipe,
    seed: int,
    epoch: int,
    samples: np.ndarray,
    view: int,
    bands: int,
    aspect: float = 1.0,
    dates: int = 1,
    seasons: Seasons = "first",
) -> Draws:
    """Draw one view for sample numbers (N,) of places with so many `bands` and `dates`.

    `aspect` is the patch's width over its height, in pixels.
    """
    once = uniform(ONCE, seed, epoch, samples, view)  # (names, N)
    fresh = dict(zip(ONCE, once, strict=True))
    for number, names in ((bands, EACH_BAND), (CROP_TRIES, EACH_TRY), (recipe.cutout_max, EACH_HOLE)):
        drawn = uniform(names, seed, epoch, samples[:, None], view, np.arange(number)[None, :])  # (names, N, number)
        fresh |= zip(names, drawn, strict=True)
    start, end = _crop_window(recipe, fresh, aspect)
    flip = np.stack([fresh["flip y"] < recipe.flip_vertical, fresh["flip x"] < recipe.flip_horizontal], 1)
    turned = fresh["turned"] < recipe.rotate90
    turns = np.where(turned, 1 + (fresh["turns"] * 3).astype(int), 0)
    low, high = recipe.blur_sigma
    sigma = low + (high - low) * fresh["blur sigma"]
    jittered = fresh["jitter"] < recipe.jitter

    def factor(name: str, strength: float) -> np.ndarray:
        return np.where(jittered, 1 + strength * (2 * fresh[name] - 1), 1).astype(np.float32)

    gain = np.where(jittered[:, None], 1 + recipe.gain * (2 * fresh["gain"] - 1), 1)
    dropped_bands = np.where(
        fresh["drop"] < recipe.band_dropout, 1 + (fresh["dropped bands"] * recipe.band_dropout_max).astype(int), 0
    )
    rank = fresh["which bands"].argsort(1, kind="stable").argsort(1, kind="stable")
    position = combine("noise position", seed, epoch, samples[:, None], view, np.arange(2)[None, :])
    return Draws(
        date=_date(seasons, seed, epoch, samples, view, dates),
        start=start.astype(np.float32),
        end=end.astype(np.float32),
        flip=flip,
        turns=turns,
        blur_sigma=np.where(fresh["blur"] < recipe.blur, sigma, 0).astype(np.float32),
        gain=gain.astype(np.float32),
        brightness=factor("brightness", recipe.brightness),
        contrast=factor("contrast", recipe.contrast),
        saturation=factor("saturation", recipe.saturation),
        hue=np.where(jittered, recipe.hue * (2 * fresh["hue"] - 1), 0).astype(np.float32),
        solarised=fresh["solarise"] < recipe.solarise,
        offset=(recipe.offset * (2 * fresh["offset"] - 1)).astype(np.float32),
        noise_sigma=(recipe.noise * fresh["noise sigma"]).astype(np.float32),
        noise_position=(position % np.uint64(NOISE_MARGIN + 1)).astype(np.int32),
        grey=fresh["grey"] < recipe.grey,
        dropped=rank < np.minimum(dropped_bands, bands - 1)[:, None],
        holes=_holes(recipe, fresh, 1.0 if recipe.size else aspect).astype(np.float32),
    )


def _date(seasons: Seasons, seed: int, epoch: int, samples: np.ndarray, view: int, dates: int) -> np.ndarray:
    """All views of a sample share one drawn order of its dates: the first two of it are never the same."""
    if seasons == "first":
        return np.zeros(len(samples), int)
    order = uniform("date", seed, epoch, samples[:, None], np.arange(dates)[None, :]).argsort(1, kind="stable")
    chosen: np.ndarray = order[:, view % dates if seasons == "different" else 0]
    return chosen


def _crop_window(recipe: ViewRecipe, fresh: Fresh, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Area and aspect as in Szegedy et al. 2015 (Inception): the first of ten tries that fits inside the patch, or else
    the largest window of the first one's aspect."""
    count = len(fresh["crop y"])
    if recipe.crop_scale is None:
        return np.zeros((count, 2)), np.ones((count, 2))
    low, high = recipe.crop_scale
    area = low + (high - low) * fresh["crop area"]
    least, most = np.log(recipe.crop_ratio)
    ratio = np.exp(least + (most - least) * fresh["crop ratio"])
    height, width = np.sqrt(area / ratio * aspect), np.sqrt(area * ratio / aspect)
    fits = (height <= 1) & (width <= 1)
    first = fits.argmax(1)
    row = np.arange(count)
    size = np.stack([height[row, first], width[row, first]], 1)
    size /= np.maximum(size.max(1, keepdims=True), 1)
    corner = np.stack([fresh["crop y"], fresh["crop x"]], 1) * (1 - size)
    return corner, corner + size


def _holes(recipe: ViewRecipe, fresh: Fresh, aspect: float) -> np.ndarray:
    """Rectangles (N, R, 4) of a view of this aspect; one that would be wider or higher than the view is made less
    slender, so that its area is the one that was drawn."""
    most = recipe.cutout_max
    number = np.where(fresh["cutout"] < recipe.cutout, 1 + (fresh["cutout number"] * most).astype(int), 0)
    low, high = recipe.cutout_area
    area = low + (high - low) * fresh["cutout area"]
    narrow, wide = np.log(recipe.cutout_ratio)
    ratio = np.exp(narrow + (wide - narrow) * fresh["cutout ratio"])
    height = np.clip(np.sqrt(area / ratio * aspect), area, 1)
    size = np.stack([height, area / height], -1)
    corner = np.stack([fresh["cutout y"], fresh["cutout x"]], -1) * (1 - size)
    there = np.arange(most) < number[:, None]
    return np.where(there[..., None], np.concatenate([corner, corner + size], -1), 0)


def noise_tile(bands: int, size: tuple[int, int]) -> np.ndarray:
    """White Gaussian noise of unit variance, the same for every run: float32 (bands, H + margin, W + margin)."""
    shape = (bands, size[0] + NOISE_MARGIN, size[1] + NOISE_MARGIN)
    return np.random.Generator(np.random.Philox(key=0)).standard_normal(shape, np.float32)
