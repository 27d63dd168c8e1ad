"""The view graph: one DALI definition for `cpu` and `gpu`, a pure function of bytes and draws.

Bytes of whole samples come in as uint8 (bytes,), draws as small arrays. Bands that lie next to each other in a sample
are sliced out and resampled together, and put in channel order behind that, by the concatenation. Of a place with
several dates, the drawn one is sliced out, at an offset into the sample that comes in as data, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, get_args

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.tensors import TensorListCPU

from pipeline import augmentations as augment
from pipeline.draws import Draws, draw, noise_tile
from pipeline.views import Seasons, ViewRecipe
from shards.bands import true_colour
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


STACKED = 4
"""Bands that are resampled together at most: DALI has quick loops for up to four interleaved channels on a CPU."""


@dataclass(frozen=True)
class Planes:
    """Adjacent bands of one array: where their bytes lie in a sample, what they are, and which channels they become."""

    at: int
    shape: tuple[int, int, int]
    dtype: str
    channels: tuple[int, ...]


def planes_of_dates(manifest: Manifest, bands: Sequence[str]) -> list[list[Planes]]:
    """`planes_of` each date, in order of time. Raises BandstreamError where a date is stored differently."""
    times = sorted({array.time for array in manifest.arrays.values()})
    dates = [planes_of(manifest, bands, time) for time in times]
    for time, planes in zip(times, dates, strict=True):
        if [replace(each, at=0) for each in planes] != [replace(each, at=0) for each in dates[0]]:
            raise BandstreamError(
                f"{manifest.name} stores date {time} in other shapes, types or order than date {times[0]}: "
                "views of drawn dates need them alike; take seasons = 'first'"
            )
    return dates


def planes_of(manifest: Manifest, bands: Sequence[str], time: int = 0) -> list[Planes]:
    """Where the bands lie, adjacent ones together, up to four. Raises BandstreamError on unknown ones."""
    place: dict[str, tuple[str, int]] = {}
    for name, array in manifest.arrays.items():
        if array.time == time:
            place |= {band: (name, number) for number, band in enumerate(array.bands)}
    unknown = [band for band in bands if band not in place]
    if unknown:
        raise BandstreamError(
            f"{manifest.name} has no band {', '.join(unknown)}: it has {', '.join(manifest.band_names)}"
        )
    planes = []
    stored = sorted((*place[band], channel) for channel, band in enumerate(bands))
    for (name, _), run in groupby(enumerate(stored), key=lambda item: (item[1][0], item[1][1] - item[0])):
        array = manifest.arrays[name]
        height, width = array.shape[1:]
        plane = height * width * np.dtype(array.dtype).itemsize
        members = [(number, channel) for _, (_, number, channel) in run]
        for some in np.array_split(np.array(members), -(-len(members) // STACKED)):
            at, channels = array.offset + int(some[0, 0]) * plane, tuple(some[:, 1].tolist())
            planes.append(Planes(at, (len(channels), height, width), array.dtype, channels))
    return planes


class ViewGraph:
    """A compiled graph and what feeds it.

    Parameters: `source` returns, call by call, the arrays of one batch, in the order of `inputs()`, or raises
    StopIteration; they stay as they are until the outputs are there, and the first lies in pinned memory where those
    are on a GPU; `statistics`, (mean, std) of the bands in stored numbers, each (C,); `seasons`, which date of a place
    each view shows; `mask`, the mask member to resample along with the only view.
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
        seasons: Seasons = "first",
    ) -> None:
        self.recipes = recipes
        self.bands = bands
        self.seasons = seasons
        drawn = seasons != "first"
        self.planes = planes_of_dates(manifest, bands) if drawn else [planes_of(manifest, bands)]
        self.mask = layout[mask] if mask else None
        self.grid = finest_grid(manifest)
        self.mean, self.std = (np.asarray(value, np.float64) for value in statistics)
        light = manifest.reflectance
        self.dark, self.half = ((level - light.offset) / light.scale for level in (0.0, 0.5))
        self.colours = [bands.index(band) for band in true_colour(bands) or ()] if len(bands) == 3 else []
        self.dtype = dtype
        self._check(manifest)
        still = [draw(recipe, 0, 0, np.zeros(1, np.int64), 0, len(bands)) for recipe in recipes]
        self.names = [list(self._view_inputs(recipe, each)) for recipe, each in zip(recipes, still, strict=True)]
        self.input_count = len(self.inputs(np.zeros((1, 1), np.uint8), still))
        on_gpu = device == "cuda"

        def fed() -> tuple[Any, ...]:
            """A batch, its bytes as one list where they lie: of an array, or of pinned memory that it is not told of,
            DALI copies sample by sample into pinned memory of its own. (Made here, since DALI rewrites what is made in
            the graph's definition, and all that it calls.)"""
            samples, *drawn = source()
            return TensorListCPU(samples, is_pinned=on_gpu), *drawn

        self.pipe = pipeline_def(
            self._define, batch_size=batch_size, num_threads=threads, device_id=_device_number() if on_gpu else None,
            enable_conditionals=True, prefetch_queue_depth=2,
        )(fed, on_gpu)  # fmt: skip
        self.pipe.build()

    def _check(self, manifest: Manifest) -> None:
        """Raise BandstreamError on what this set cannot give."""
        if self.seasons not in get_args(Seasons):
            raise BandstreamError(f"seasons = {self.seasons!r}: there are {', '.join(map(repr, get_args(Seasons)))}")
        if self.seasons != "first" and len(self.planes) == 1:
            raise BandstreamError(
                f"{manifest.name} holds one date of each place, of which none can be drawn: take seasons = 'first'"
            )
        if self.seasons == "different" and len(self.recipes) == 1:
            raise BandstreamError("different dates take a pair of views: for one, take seasons = 'same', or 'first'")
        for recipe in self.recipes:
            if recipe.size is None and recipe.rotate90 and self.grid[0] != self.grid[1]:
                raise BandstreamError(f"patches of {self.grid} pixels cannot be turned: set a size, or rotate90 to 0")
            for name in ("saturation", "hue", "solarise"):
                if getattr(recipe, name) and not self.colours:
                    raise BandstreamError(
                        f"{name} is for pictures of red, green and blue: set it to 0 for {', '.join(self.bands)}"
                    )

    @property
    def dates(self) -> int:
        """How many dates of a place the views are drawn from."""
        return len(self.planes)

    @property
    def slots(self) -> int:
        """How many different dates of a place the views of one sample show."""
        return min(self.dates, len(self.recipes)) if self.seasons == "different" else 1

    def size(self, recipe: ViewRecipe) -> tuple[int, int]:
        """Height and width of a view."""
        return (recipe.size, recipe.size) if recipe.size else self.grid

    def inputs(self, samples: np.ndarray, draws: Sequence[Draws]) -> tuple[np.ndarray, ...]:
        """What the graph takes for a batch: the bytes of N samples (N, bytes) and their draws, one entry a view."""
        arrays = [samples]
        if self.dates > 1:
            places = np.array([[planes.at for planes in date] for date in self.planes], np.int32)
            for drawn in draws[: self.slots]:
                arrays += list(places[drawn.date].T[..., None])
        for recipe, drawn in zip(self.recipes, draws, strict=True):
            arrays += self._view_inputs(recipe, drawn).values()
        return tuple(np.ascontiguousarray(array) for array in arrays)

    def _view_inputs(self, recipe: ViewRecipe, drawn: Draws) -> dict[str, np.ndarray]:
        """What the operators of one view take; what is off takes nothing."""
        start, end, transposed = drawn.window
        factor = drawn.gain * drawn.brightness[:, None]
        shift, divisor = augment.folded(self.mean, self.std, self.dark, factor, drawn.offset)
        given = {"start": start, "end": end, "shift": shift, "divisor": divisor}
        if recipe.rotate90:
            given["transposed"] = transposed
        if recipe.blur:
            given |= {"blurred": drawn.blur_sigma > 0, "sigma": np.maximum(drawn.blur_sigma, 1e-3)}
        if self._has_colour(recipe):
            given |= self._colour_inputs(drawn)
        if recipe.contrast:
            given["contrast"] = drawn.contrast
        if recipe.solarise:
            half = (self.half - self.mean) / self.std + drawn.offset
            given |= {"solarised": drawn.solarised, "bend": (2 * half).astype(np.float32)[:, :, None, None]}
        if recipe.noise:
            given |= {"position": drawn.noise_position, "noise": drawn.noise_sigma}
        if recipe.grey and not self.colours:
            given["grey"] = drawn.grey
        if recipe.band_dropout:
            given["dropout"] = np.where(drawn.dropped, np.inf, 1).astype(np.float32)[:, :, None, None]
        if recipe.cutout:
            corner, extent = drawn.rectangles(self.size(recipe))
            given |= {"corner": corner, "extent": extent}
        return given

    def _has_colour(self, recipe: ViewRecipe) -> bool:
        return bool(recipe.saturation or recipe.hue or (recipe.grey and self.colours))

    def _colour_inputs(self, drawn: Draws) -> dict[str, np.ndarray]:
        """Colours belong after the gains, which the standardisation holds: so they are undone before and done after."""
        order = np.argsort(self.colours)
        matrix = augment.colour_matrix(drawn.saturation, drawn.hue, drawn.grey)[:, order[:, None], order]
        gain = drawn.gain.astype(np.float64)
        matrix = matrix * gain[:, None, :] / gain[:, :, None]
        lift = self.dark * (1 - matrix.sum(2))
        coloured = (drawn.saturation != 1) | (drawn.hue != 0) | drawn.grey
        return {"coloured": coloured, "matrix": matrix.astype(np.float32), "lift": lift.astype(np.float32)}

    def _define(self, source: Callable[[], tuple[Any, ...]], on_gpu: bool) -> tuple[Any, ...]:
        raw, *drawn = fn.external_source(source=source, num_outputs=self.input_count, batch=True, no_copy=True)
        if on_gpu:
            raw = raw.gpu()
        inputs = iter(drawn)
        dated = [
            [
                augment.interleaved(sliced(raw, next(inputs) if self.dates > 1 else [p.at], p.dtype, p.shape))
                for p in self.planes[0]
            ]
            for _ in range(self.slots)
        ]
        outputs: list[Any] = []
        given: dict[str, Any] = {}
        for number, recipe in enumerate(self.recipes):
            given = {name: next(inputs) for name in self.names[number]}
            outputs.append(self._view(dated[number % self.slots], recipe, given))
        if self.mask is not None:
            shape = (1, *self.mask.shape)  # type: ignore[misc]
            mask = sliced(raw, [self.mask.data_at], "uint8", shape)
            mask = augment.resampled_mask(mask, given["start"], given["end"], self.size(self.recipes[0]))
            if self.recipes[0].rotate90:
                mask = augment.transposition(mask, given["transposed"])
            outputs.append(fn.squeeze(mask, axes=[0]))
        return tuple(outputs)

    def _view(self, arrays: list[Any], recipe: ViewRecipe, given: dict[str, Any]) -> Any:
        size, bands = self.size(recipe), len(self.bands)
        kinds = {planes.dtype for planes in self.planes[0]}
        dtype = _GEOMETRY_TYPES[kinds.pop()] if len(kinds) == 1 else types.FLOAT
        crops = [augment.resampled_crop(array, given["start"], given["end"], size, dtype) for array in arrays]
        view = self.in_order(crops)
        if recipe.rotate90:
            view = augment.transposition(view, given["transposed"])
        if recipe.blur:
            view = augment.gaussian_blur(view, given["blurred"], given["sigma"])
        if self._has_colour(recipe):
            view = augment.colour(view, given["coloured"], given["matrix"], given["lift"])
        grey = recipe.grey and not self.colours
        if recipe.contrast:
            view = augment.contrast(view, given["shift"], given["divisor"], given["contrast"])
        else:
            view = augment.standardise(view, given["shift"], given["divisor"])
        if recipe.solarise:
            view = augment.solarise(view, given["solarised"], given["bend"])
        if recipe.noise:
            tile = noise_tile(bands, size)
            view = augment.sensor_noise(view, tile, given["position"], given["noise"], size)
        if grey:
            view = augment.spectral_grey(view, given["grey"], bands)
        if recipe.band_dropout:
            view = augment.band_dropout(view, given["dropout"])
        if recipe.cutout:
            view = augment.cutout(view, given["corner"], given["extent"])
        return view if self.dtype == "float32" else fn.cast(view, dtype=_DALI_TYPES[self.dtype])

    def in_order(self, crops: list[Any]) -> Any:
        """Channels in the order of `bands`, out of those of the planes, each (C, H, W)."""
        place = {
            channel: (number, row)
            for number, planes in enumerate(self.planes[0])
            for row, channel in enumerate(planes.channels)
        }
        parts = []
        for (number, _), run in groupby(
            sorted(place), key=lambda channel: (place[channel][0], place[channel][1] - channel)
        ):
            rows = [place[channel][1] for channel in run]
            whole = len(rows) == len(self.planes[0][number].channels)
            parts.append(
                crops[number] if whole else fn.slice(crops[number], start=rows[:1], shape=[len(rows)], axes=[0])
            )
        return fn.cat(*parts, axis=0)


def sliced(raw: Any, at: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """The array of this type and shape (C, H, W) that begins at byte `at` of each sample, uint8 (bytes,)."""
    part = fn.slice(raw, start=at, shape=[int(np.prod(shape)) * np.dtype(dtype).itemsize], axes=[0])
    return fn.reinterpret(part, dtype=_DALI_TYPES[dtype], shape=list(shape), layout="CHW")


def _device_number() -> int:
    import torch

    return torch.cuda.current_device()
