"""What a view is: a recipe of augmentations, each off or on with its strength."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, lt=1)]
"""Of a factor: it is uniform in [1 - strength, 1 + strength]."""
Seasons = Literal["first", "same", "different"]
"""Which date of a place that has several a view shows: the first; one that is drawn, the same for all views; or drawn,
another for each view of a pair."""


class ViewRecipe(BaseModel):
    """One augmented view of a sample, square, `size` pixels wide. Augmentations apply in the order of the fields.

    A probability or strength of 0 takes the operator out of the graph. Strengths of radiometric augmentations are
    factors on reflectance (`gain`, `brightness`, `contrast`) or multiples of a band's standard deviation over the train
    split (`offset`, `noise`). `saturation`, `hue` and `solarise` are for pictures, that is for three bands which show
    red, green and blue; on anything else they are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=8)] | None = 112
    """Height and width in pixels; None: the finest array's own grid."""
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    """Share of the patch's area that the crop covers, uniform between the two; None: the whole patch."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect (width over height, in pixels) of the crop, log-uniform between the two."""
    flip_horizontal: Probability = 0.5
    flip_vertical: Probability = 0.5
    rotate90: Probability = 0.75
    """Probability of a quarter, half or three-quarter turn, each as likely; 0.75 makes all four headings alike."""
    blur: Probability = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the Gaussian in pixels of the view, uniform between the two."""
    jitter: Probability = 1.0
    """Probability that a view is given its gains, brightness, contrast, saturation and hue at all."""
    gain: Strength = 0.0
    """Strength of a factor on the reflectance of each band, a number a band."""
    brightness: Strength = 0.0
    """Strength of a factor on the reflectance of all bands, a number a view."""
    contrast: Strength = 0.0
    """Strength of a factor on each band's distance from its own mean over the view, a number a view."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of a factor on a picture's chroma; its luminance stays."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """A picture's colours turn about grey by a part of a full turn, uniform in [-hue, hue]; its luminance stays."""
    solarise: Probability = 0.0
    """Probability that what is brighter than half of a picture's white is inverted."""
    offset: Annotated[float, Field(ge=0)] = 0.0
    """Each band is shifted by its own offset, uniform in [-offset, offset] standard deviations: haze."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """White Gaussian noise in every pixel; its sigma, a number a view, is uniform in [0, noise] standard deviations."""
    grey: Probability = 0.0
    """Probability that every band is replaced by the mean of all, in standard deviations: what is left is texture and
    shape. A picture is replaced by its luminance, before it is solarised and standardised."""
    band_dropout: Probability = 0.0
    """Probability that bands are set to 0, their mean over the train split."""
    band_dropout_max: Annotated[int, Field(ge=1)] = 2
    """How many bands at most are dropped together; their number is uniform from 1. One band always stays."""
    cutout: Probability = 0.0
    """Probability that rectangles of the view are set to 0, each band's mean over the train split."""
    cutout_area: tuple[float, float] = (0.02, 0.2)
    """Share of the view's area that a rectangle covers, uniform between the two."""
    cutout_ratio: tuple[float, float] = (1 / 3, 3.0)
    """Aspect (width over height, in pixels) of a rectangle, log-uniform between the two, as far as it fits."""
    cutout_max: Annotated[int, Field(ge=1)] = 1
    """How many rectangles at most are cut out together; their number is uniform from 1. They may overlap."""

    @model_validator(mode="after")
    def _ranges(self) -> "ViewRecipe":
        for name, within in {"crop_scale": self.crop_scale, "cutout_area": self.cutout_area}.items():
            if within is not None and not 0 < within[0] <= within[1] <= 1:
                raise ValueError(f"{name} {within} is no range within (0, 1]")
        for name in ("crop_ratio", "blur_sigma", "cutout_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} {(low, high)} is no range above 0")
        return self

    @classmethod
    def plain(cls, size: int | None = None) -> "ViewRecipe":
        """The view for evaluation: the whole patch, nothing drawn."""
        return cls(size=size, crop_scale=None, flip_horizontal=0, flip_vertical=0, rotate90=0)

    def multi_crop(
        self, count: int = 6, size: int = 48, crop_scale: tuple[float, float] = (0.05, 0.25)
    ) -> "list[ViewRecipe]":
        """Two global views by this recipe, then `count` local ones, which differ in their size and in what they cover.

        Caron et al. 2020 (SwAV), section 3.3.
        """
        local = ViewRecipe(**{**self.model_dump(), "size": size, "crop_scale": crop_scale})
        return [self, self, *[local] * count]
