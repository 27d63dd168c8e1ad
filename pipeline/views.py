"""What a view is: a recipe of augmentations, each off or on with its strength."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]


class ViewRecipe(BaseModel):
    """One augmented view of a sample, square, `size` pixels wide. Augmentations apply in the order of the fields.

    A probability or strength of 0 takes the operator out of the graph. Strengths of radiometric augmentations are
    factors on reflectance (`gain`) or multiples of a band's standard deviation over the train split (`offset`,
    `noise`).
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
    gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Each band of a view is multiplied by its own factor, uniform in [1 - gain, 1 + gain]."""
    offset: Annotated[float, Field(ge=0)] = 0.0
    """Each band is shifted by its own offset, uniform in [-offset, offset] standard deviations."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """White Gaussian noise in every pixel; its sigma, a number a view, is uniform in [0, noise] standard deviations."""
    grey: Probability = 0.0
    """Probability that every band is replaced by the mean of all: what is left is texture and shape."""
    band_dropout: Probability = 0.0
    """Probability that bands are set to 0, their mean over the train split."""
    band_dropout_max: Annotated[int, Field(ge=1)] = 2
    """How many bands at most are dropped together; their number is uniform from 1."""

    @model_validator(mode="after")
    def _ranges(self) -> "ViewRecipe":
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} is no range within (0, 1]")
        for name, (low, high) in {"crop_ratio": self.crop_ratio, "blur_sigma": self.blur_sigma}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} {(low, high)} is no range above 0")
        return self

    @classmethod
    def plain(cls, size: int | None = None) -> "ViewRecipe":
        """The view for evaluation: the whole patch, nothing drawn."""
        return cls(size=size, crop_scale=None, flip_horizontal=0, flip_vertical=0, rotate90=0)
