"""What users would otherwise run on the same shards: WebDataset, NumPy and batched torch resampling, in a WebLoader."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.nn import functional as F

from pipeline.views import ViewRecipe
from shards.manifest import Manifest


def decoded(sample: dict[str, Any], members: list[str]) -> list[torch.Tensor]:
    """The arrays of one sample, uint16 as stored."""
    return [torch.from_numpy(np.load(io.BytesIO(sample[member]))) for member in members]


class TwoViews:
    """The bench's views by torch: crop and flips in one batched `grid_sample` an array, gains, standardisation."""

    def __init__(self, manifest: Manifest, recipe: ViewRecipe) -> None:
        self.recipe = recipe
        held = [band for array in manifest.arrays.values() for band in array.bands]
        self.order = torch.tensor([held.index(band) for band in manifest.band_names])
        values = [manifest.statistics[band] for band in manifest.band_names]
        self.mean = torch.tensor([value.mean for value in values])[:, None, None]
        self.std = torch.tensor([value.std for value in values])[:, None, None]

    def __call__(self, arrays: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Arrays, each (N, c, h, w), → two views, each float32 (N, C, S, S)."""
        floats = [array.float() for array in arrays]
        return self._view(floats), self._view(floats)

    def _view(self, arrays: list[torch.Tensor]) -> torch.Tensor:
        count, size = len(arrays[0]), self.recipe.size or arrays[0].shape[-1]
        low, high = self.recipe.crop_scale or (1.0, 1.0)
        area = torch.empty(count).uniform_(low, high)
        ratio = torch.exp(torch.empty(count).uniform_(*np.log(self.recipe.crop_ratio)))
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = width * torch.where(torch.rand(count) < self.recipe.flip_horizontal, -1, 1)
        theta[:, 1, 1] = height * torch.where(torch.rand(count) < self.recipe.flip_vertical, -1, 1)
        theta[:, 0, 2] = (2 * torch.rand(count) - 1) * (1 - width)
        theta[:, 1, 2] = (2 * torch.rand(count) - 1) * (1 - height)
        grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
        view = torch.cat([F.grid_sample(a, grid, align_corners=False, padding_mode="border") for a in arrays], 1)
        view = view[:, self.order]
        gain = torch.empty(count, view.shape[1], 1, 1).uniform_(1 - self.recipe.gain, 1 + self.recipe.gain)
        return (view * gain - self.mean) / self.std


def batches(
    shards: list[Path], manifest: Manifest, recipe: ViewRecipe | None, batch_size: int, workers: int
) -> Iterator[list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor]]:
    """Endless shuffled batches: of two views, or of the arrays as stored where `recipe` is None."""
    members = list(manifest.arrays)
    views = None if recipe is None else TwoViews(manifest, recipe)

    def collated(samples: list[list[torch.Tensor]]) -> list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor]:
        arrays = [torch.stack(group) for group in zip(*samples, strict=True)]
        return arrays if views is None else views(arrays)

    dataset = webdataset.WebDataset(
        [str(path) for path in shards], resampled=True, shardshuffle=False, nodesplitter=webdataset.split_by_node
    )
    dataset = dataset.shuffle(256).map(lambda sample: decoded(sample, members))
    dataset = dataset.batched(batch_size, collation_fn=collated, partial=False)
    loader = webdataset.WebLoader(
        dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None,
        worker_init_fn=lambda number: torch.set_num_threads(1),
    )  # fmt: skip
    return iter(loader)
