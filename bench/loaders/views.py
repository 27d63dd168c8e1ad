"""The bench's two views, as users of Kornia and of plain torch write them, on whole batches.

A view is a random resized crop, flips, a factor a band, and standardisation: see `bench.loader.VIEWS`. Both take the
arrays of a batch at their native resolutions, uint16 (N, c, h, w) each, and return two float32 (N, C, S, S).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.views import ViewRecipe
from shards.layout import finest_grid
from shards.manifest import Manifest

Arrays = list[torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Definition:
    """What every peer's views have in common: `order`, for each band of the view its plane in the concatenated
    arrays; `mean` and `std` of the bands (C, 1, 1); the finest `grid`; the recipe."""

    order: list[int]
    mean: torch.Tensor
    std: torch.Tensor
    grid: tuple[int, int]
    recipe: ViewRecipe

    @classmethod
    def of(cls, manifest: Manifest, recipe: ViewRecipe) -> "Definition":
        held = [band for array in manifest.arrays.values() for band in array.bands]
        values = [manifest.statistics[band] for band in manifest.band_names]
        return cls(
            [held.index(band) for band in manifest.band_names],
            torch.tensor([value.mean for value in values])[:, None, None],
            torch.tensor([value.std for value in values])[:, None, None],
            finest_grid(manifest),
            recipe,
        )

    def to(self, device: str) -> "Definition":
        """The same, for arrays on a device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    @property
    def size(self) -> tuple[int, int]:
        return (self.recipe.size, self.recipe.size) if self.recipe.size else self.grid

    def standardised(self, view: torch.Tensor) -> torch.Tensor:
        """(view · gain - mean) / std with a gain a band of each sample drawn anew, in one pass over the view."""
        gain = torch.empty(len(view), len(self.order), 1, 1, device=view.device)
        gain.uniform_(1 - self.recipe.gain, 1 + self.recipe.gain)
        return torch.addcmul(-self.mean / self.std, view, gain / self.std)


class KorniaViews:
    """Bands upsampled to the finest grid once a batch; for each view Kornia's crop and flips, gains, standardisation.

    `crop`: Kornia's cropping mode, `slice` (sample by sample) or `resample` (a warp of the batch). Kornia does not
    filter where a view is coarser than its crop.
    """

    def __init__(self, definition: Definition, crop: str = "slice") -> None:
        import kornia.augmentation as K

        self.definition, recipe = definition, definition.recipe
        scale, ratio = (recipe.crop_scale, recipe.crop_ratio) if recipe.crop_scale else ((1.0, 1.0), (1.0, 1.0))
        self.augmented = nn.Sequential(
            K.RandomResizedCrop(definition.size, scale=scale, ratio=ratio, cropping_mode=crop, align_corners=False),
            K.RandomHorizontalFlip(p=recipe.flip_horizontal),
            K.RandomVerticalFlip(p=recipe.flip_vertical),
        )

    def __call__(self, arrays: Arrays) -> Pair:
        floats = [array.float() for array in arrays]
        fine = [
            array
            if array.shape[2:] == self.definition.grid
            else F.interpolate(array, self.definition.grid, mode="bilinear", align_corners=False)
            for array in floats
        ]
        planes = [array[:, n : n + 1] for array in fine for n in range(array.shape[1])]
        patch = torch.cat([planes[n] for n in self.definition.order], 1)  # (N, C, H, W)
        first, second = (self.definition.standardised(self.augmented(patch)) for _ in range(2))
        return first, second


class GridSampleViews:
    """Crop and flips by one batched `grid_sample` an array, from its own resolution; gains, standardisation."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition

    def __call__(self, arrays: Arrays) -> Pair:
        floats = [array.float() for array in arrays]
        return self._view(floats), self._view(floats)

    def _view(self, arrays: Arrays) -> torch.Tensor:
        recipe, count = self.definition.recipe, len(arrays[0])
        theta = torch.zeros(count, 2, 3)  # drawn on the CPU: a few numbers a sample, then one copy
        width, height = torch.ones(count), torch.ones(count)
        if recipe.crop_scale:
            area = torch.empty(count).uniform_(*recipe.crop_scale)
            ratio = torch.exp(torch.empty(count).uniform_(*np.log(recipe.crop_ratio)))
            width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        theta[:, 0, 0] = width * torch.where(torch.rand(count) < recipe.flip_horizontal, -1, 1)
        theta[:, 1, 1] = height * torch.where(torch.rand(count) < recipe.flip_vertical, -1, 1)
        theta[:, 0, 2] = (2 * torch.rand(count) - 1) * (1 - width)
        theta[:, 1, 2] = (2 * torch.rand(count) - 1) * (1 - height)
        grid = F.affine_grid(theta.to(arrays[0].device), [count, 1, *self.definition.size], align_corners=False)
        sampled = [F.grid_sample(a, grid, align_corners=False, padding_mode="border") for a in arrays]
        return self.definition.standardised(torch.cat(sampled, 1)[:, self.definition.order])


VIEWS: dict[str, type[KorniaViews] | type[GridSampleViews]] = {
    "KorniaViews": KorniaViews,
    "GridSampleViews": GridSampleViews,
}
