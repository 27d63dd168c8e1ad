"""The view graph: one DALI definition for `cpu` and `gpu`, a pure function of bytes and draws.

Bytes of whole samples come in as uint8 (bytes,), draws as small arrays. Bands that lie next to each other in a sample
are sliced out together, so that nothing but the concatenation puts them in channel order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from pipeline import augmentations as augment
from pipeline.draws import Draws, draw, noise_tile
from pipeline.views import ViewRecipe
from shards.errors import BandstreamError
from shards.layout import SampleLayout, finest_grid
from shards.manifest import Manifest

_DALI_TYPES = {
    "uint8": types.UINT8,
    "uint16": types.UINT16,
    "int16": types.INT16,
    "float32": types.FLOAT,
    "float16": types.FLOAT16,
}
_GEOMETRY_TYPES = {"uint8": types.FLOAT, "uint16": types.UINT16, "int16": types.INT16, "float32": types.FLOAT}
"""16-bit numbers stay so through the resampling (rounded by at most half a stored unit, below the sensor's own step)
at half the memory traffic; 8-bit pictures, whose steps are coarse, become float at once."""


@dataclass(frozen=True)
class Planes:
    """Adjacent bands of one array: where their bytes lie in a sample, and what they are."""

    at: int
    shape: tuple[int, int, int]
    dtype: str

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def planes_in_order(manifest: Manifest, bands: Sequence[str], time: int = 0) -> list[Planes]:
    """Where the bands lie, in the order asked for, adjacent ones together. Raises BandstreamError on unknown ones."""
    place: dict[str, tuple[str, int]] = {}
    for name, array in manifest.arrays.items():
        if array.time == time:
            place |= {band: (name, number) for number, band in enumerate(array.bands)}
    unknown = [band for band in bands if band not in place]
    if unknown:
        raise BandstreamError(
            f"{manifest.name} has no band {', '.join(unknown)}: it has {', '.join(manifest.band_names)}"
        )
    runs = []
    numbered = [(place[band], position) for position, band in enumerate(bands)]
    for (name, _), run in groupby(numbered, key=lambda item: (item[0][0], item[0][1] - item[1])):
        array = manifest.arrays[name]
        count, height, width = len(members := list(run)), *array.shape[1:]
        plane = height * width * np.dtype(array.dtype).itemsize
        runs.append(Planes(array.offset + members[0][0][1] * plane, (count, height, width), array.dtype))
    return runs


class ViewGraph:
    """A compiled graph and what feeds it.

    Parameters: `source` returns, call by call, the arrays of one batch, in the order of `inputs()`, or raises
    StopIteration; `statistics`, (mean, std) of the bands in stored numbers, each (C,); `mask`, the mask member to
    resample along with the only view.
    """

    def __init__(
        self,
        manifest: Manifest,
        layout: SampleLayout,
        recipes: Sequence[ViewRecipe],
        bands: Sequence[str],
        statistics: tuple[np.ndarray, np.ndarray],
        *,
        batch_size: int,
        source: Callable[[], tuple[np.ndarray, ...]],
        mask: str | None,
        device: str,
        threads: int,
        dtype: str,
    ) -> None:
        self.recipes = recipes
        self.bands = bands
        self.planes = planes_in_order(manifest, bands)
        self.mask = layout[mask] if mask else None
        self.grid = finest_grid(manifest)
        self.mean, self.std = (np.asarray(value, np.float64) for value in statistics)
        self.dtype = dtype
        for recipe in recipes:
            if recipe.size is None and recipe.rotate90 and self.grid[0] != self.grid[1]:
                raise BandstreamError(f"patches of {self.grid} pixels cannot be turned: set a size, or rotate90 to 0")
        still = draw(ViewRecipe.plain(), 0, 0, np.zeros(1, np.int64), 0, len(self.bands))
        self.input_count = len(self.inputs(np.zeros((1, 1), np.uint8), [still] * len(recipes)))
        on_gpu = device == "cuda"
        self.pipe = pipeline_def(
            self._define, batch_size=batch_size, num_threads=threads, device_id=_device_number() if on_gpu else None,
            enable_conditionals=True, prefetch_queue_depth=2,
        )(source, on_gpu)  # fmt: skip
        self.pipe.build()

    def size(self, recipe: ViewRecipe) -> tuple[int, int]:
        """Height and width of a view."""
        return (recipe.size, recipe.size) if recipe.size else self.grid

    def inputs(self, samples: np.ndarray, draws: Sequence[Draws]) -> tuple[np.ndarray, ...]:
        """What the graph takes for a batch: the bytes of N samples (N, bytes) and their draws, one entry a view."""
        arrays = [samples]
        for recipe, drawn in zip(self.recipes, draws, strict=True):
            start, end, transposed = drawn.window
            shift, divisor = augment.folded(self.mean, self.std, drawn.gain, drawn.offset)
            arrays += [start, end, shift, divisor]
            if recipe.rotate90:
                arrays.append(transposed)
            if recipe.blur:
                arrays += [drawn.blur_sigma > 0, np.maximum(drawn.blur_sigma, 1e-3)]
            if recipe.noise:
                arrays += [drawn.noise_position, drawn.noise_sigma]
            if recipe.grey:
                arrays.append(drawn.grey)
            if recipe.band_dropout:
                arrays.append(np.where(drawn.dropped, np.inf, 1).astype(np.float32)[:, :, None, None])
        return tuple(np.ascontiguousarray(array) for array in arrays)

    def _define(self, source: Callable[[], tuple[np.ndarray, ...]], on_gpu: bool) -> tuple[Any, ...]:
        raw, *drawn = fn.external_source(source=source, num_outputs=self.input_count, batch=True)
        if on_gpu:
            raw = raw.gpu()
        arrays = [_sliced(raw, planes.at, planes.size, planes.dtype, planes.shape) for planes in self.planes]
        inputs = iter(drawn)
        outputs = [self._view(arrays, recipe, inputs) for recipe in self.recipes]
        if self.mask is not None:
            start, end, *rest = drawn
            shape = (1, *self.mask.shape)  # type: ignore[misc]
            mask = _sliced(raw, self.mask.data_at, int(np.prod(shape)), "uint8", shape)
            mask = augment.resampled_mask(mask, start, end, self.size(self.recipes[0]))
            if self.recipes[0].rotate90:
                mask = augment.transposition(mask, rest[2])
            outputs.append(fn.squeeze(mask, axes=[0]))
        return tuple(outputs)

    def _view(self, arrays: list[Any], recipe: ViewRecipe, inputs: Any) -> Any:
        size = self.size(recipe)
        kinds = {planes.dtype for planes in self.planes}
        dtype = _GEOMETRY_TYPES[kinds.pop()] if len(kinds) == 1 else types.FLOAT
        start, end, shift, divisor = (next(inputs) for _ in range(4))
        view = fn.cat(*[augment.resampled_crop(array, start, end, size, dtype) for array in arrays], axis=0)
        if recipe.rotate90:
            view = augment.transposition(view, next(inputs))
        if recipe.blur:
            view = augment.gaussian_blur(view, next(inputs), next(inputs))
        more = recipe.noise or recipe.grey or recipe.band_dropout
        last = _DALI_TYPES[self.dtype]
        view = augment.standardise(view, shift, divisor, types.FLOAT if more else last)
        if recipe.noise:
            tile = noise_tile(len(self.bands), size)
            view = augment.sensor_noise(view, tile, next(inputs), next(inputs), size)
        if recipe.grey:
            view = augment.spectral_grey(view, next(inputs), len(self.bands))
        if recipe.band_dropout:
            view = augment.band_dropout(view, next(inputs), len(self.bands))
        return fn.cast(view, dtype=last) if more and last != types.FLOAT else view


def _sliced(raw: Any, at: int, size: int, dtype: str, shape: tuple[int, ...]) -> Any:
    part = fn.slice(raw, at, size, axes=[0])
    return fn.reinterpret(part, dtype=_DALI_TYPES[dtype], shape=list(shape), layout="CHW")


def _device_number() -> int:
    import torch

    return torch.cuda.current_device()
