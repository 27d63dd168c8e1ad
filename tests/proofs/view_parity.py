"""Every augmentation from the graph equals NumPy and SciPy from the same draw, on each stored type, grid and device."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.loader import Loader
from pipeline.views import Seasons, ViewRecipe
from tests.pipeline import reference
from tests.pipeline.making import BANDS, SENTINEL2_ARRAYS, make_set

OFF: dict[str, Any] = {"crop_scale": None, "flip_horizontal": 0, "flip_vertical": 0, "rotate90": 0}
GEOMETRY: dict[str, dict[str, Any]] = {
    "plain": OFF,
    "crop": OFF | {"crop_scale": (0.2, 1.0)},
    "flips": OFF | {"flip_horizontal": 0.5, "flip_vertical": 0.5},
    "rotate90": OFF | {"rotate90": 0.75},
}
ALONE = GEOMETRY | {
    "blur": OFF | {"blur": 0.7},
    "gain": OFF | {"gain": 0.3},
    "brightness": OFF | {"brightness": 0.5},
    "contrast": OFF | {"contrast": 0.8},
    "jitter": OFF | {"jitter": 0.5, "gain": 0.3, "brightness": 0.4, "contrast": 0.4},
    "offset": OFF | {"offset": 0.5},
    "noise": OFF | {"noise": 0.5},
    "grey": OFF | {"grey": 0.5},
    "band_dropout": OFF | {"band_dropout": 0.8, "band_dropout_max": 3},
    "cutout": OFF | {"cutout": 0.8, "cutout_max": 3},
    "everything": {
        "blur": 0.5, "jitter": 0.9, "gain": 0.2, "brightness": 0.4, "contrast": 0.4, "offset": 0.1, "noise": 0.1,
        "grey": 0.3, "band_dropout": 0.5, "cutout": 0.5, "cutout_max": 2,
    },
}  # fmt: skip
OF_PICTURES = {
    "saturation": OFF | {"saturation": 1.0},
    "hue": OFF | {"hue": 0.5},
    "solarise": OFF | {"solarise": 0.5},
    "everything of pictures": ALONE["everything"] | {"saturation": 0.8, "hue": 0.2, "solarise": 0.4},
}

RGB = ["red", "green", "blue"]
LIGHT = {"scale": 1 / 255, "offset": 0, "level": "picture"}
SHIFTED = {"scale": 1e-4, "offset": -0.1, "level": "L1C"}
THIRTEEN = [*BANDS[:10], "B10", *BANDS[10:]]
OBLONG: dict[str, Any] = {
    "10m.npy": (SENTINEL2_ARRAYS["10m.npy"][0], (60, 96)),
    "20m.npy": (SENTINEL2_ARRAYS["20m.npy"][0], (30, 48)),
    "60m.npy": (SENTINEL2_ARRAYS["60m.npy"][0], (10, 16)),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "uint16, 12 bands": {"arrays": SENTINEL2_ARRAYS, "dtype": "uint16"},
    "int16, 13 bands": {"arrays": {"10m.npy": (THIRTEEN, 64)}, "dtype": "int16"},
    "float32, 12 bands": {"arrays": SENTINEL2_ARRAYS, "dtype": "float32"},
    "uint8, 3 bands": {"arrays": {"rgb.npy": (RGB, 50)}, "dtype": "uint8", "reflectance": LIGHT},
    "uint16, 3 bands, reflectance 0 stored as 1000": {
        "arrays": {"10m.npy": (BANDS[1:4], 41)},
        "dtype": "uint16",
        "reflectance": SHIFTED,
    },
    "float32, odd": {"arrays": {"10m.npy": (THIRTEEN, 37)}, "dtype": "float32"},
    "uint16, oblong": {"arrays": OBLONG, "dtype": "uint16"},
    "int16, reflectance 0 stored as 1000": {
        "arrays": {"10m.npy": (THIRTEEN, 40)},
        "dtype": "int16",
        "reflectance": SHIFTED,
    },
}
BATCH, VIEW = 8, 45
RANGE = {"uint8": 255, "uint16": 5000, "int16": 5000, "float32": 5000}
"""Of the pixels' values: independent and uniform, the hardest picture for a resampler."""
WEIGHTS = 2e-5
"""How far a resampled value may be from the exact one, in ranges of the pixels' values: by DALI's float32 positions,
whose last place is 7.6e-6 on an axis of 120 pixels."""
MASKS = 1e-3
"""Share of a mask's pixels that may be another than the nearest: those between two, by float32 positions."""
TOLERANCE = 1e-5
"""How far all that follows may be from float64, in standard deviations; values lie within 20 of them."""


@dataclass(frozen=True)
class Parity:
    """How far served views are from the truth.

    `geometry`: of the resampled and turned patch from the exact one, in stored numbers. `radiometry`: of the view from
    what the truth makes of that patch, in standard deviations; of float16, beyond half a rounding.
    """

    geometry: float
    radiometry: float

    def check(self, dtype: str, what: str) -> None:
        """Raise AssertionError, naming `what`, where views of arrays of this type are not what they should be."""
        assert self.geometry <= WEIGHTS * RANGE[dtype] + (0.5 if dtype in ("uint16", "int16") else 0.0), (what, self)
        assert self.radiometry <= TOLERANCE, (what, self)


def classes(number: int, grid: tuple[int, int]) -> np.ndarray:
    """A mask without structure, the hardest to resample."""
    return np.random.default_rng(number).integers(0, 19, grid, np.uint8)


def recipes_for(layout: dict[str, Any]) -> dict[str, ViewRecipe]:
    """What can be tried on a layout, by name: at a size of its own, and on the patches' own grid."""
    of = ALONE | (OF_PICTURES if len(next(iter(layout["arrays"].values()))[0]) == 3 else {})
    recipes = {name: ViewRecipe(**{"size": VIEW, **fields}) for name, fields in of.items()}
    own = of["everything of pictures" if "hue" in of else "everything"]
    return recipes | {"everything, own grid": ViewRecipe(**{**own, "size": None, "rotate90": 0})}


def parity(loader: Loader, device: str = "cpu") -> Parity:
    """Compare the first batch of a loader of the train split with `reference`."""
    batch = next(iter(loader))
    draws = loader.draws(batch.indices.numpy())
    bare = Loader(
        loader.shard_set, loader.split, len(batch.indices), [geometry_of(recipe) for recipe in loader.views],
        seed=loader.seed, device=device, threads=1, bands=loader.bands, seasons=loader.seasons,
        statistics=dict.fromkeys(loader.bands, (0.0, 1.0)),
    )  # fmt: skip
    patches = next(iter(bare))
    assert torch.equal(patches.indices, batch.indices)
    geometry = radiometry = 0.0
    for number, view in enumerate(batch.views):
        for n, index in enumerate(batch.indices.tolist()):
            sample = loader.shard_set.read(loader.split, index)
            exact = reference.geometry(loader, sample, draws[number], n, number)
            patch = patches.views[number][n].numpy(force=True).astype(np.float64)
            geometry = max(geometry, float(np.abs(patch - exact).max()))
            found = view[n].numpy(force=True)
            distance = np.abs(found - reference.radiometry(loader, patch, draws[number], n, number))
            if found.dtype == np.float16:
                distance = distance - np.spacing(np.abs(found)).astype(np.float64) / 2
            radiometry = max(radiometry, float(distance.max()))
    bare.close()
    return Parity(geometry, radiometry)


def mask_parity(loader: Loader) -> float:
    """The share of a mask's pixels that are not the nearest of the stored ones, at most, in a loader's first batch."""
    batch = next(iter(loader))
    (draws,) = loader.draws(batch.indices.numpy())
    differing = []
    for n, index in enumerate(batch.indices.tolist()):
        stored = loader.shard_set.read(loader.split, index).masks["land_cover"]
        found = batch.mask[n].numpy(force=True)
        nearest = reference.nearest(stored, draws.start[n], draws.end[n], found.shape)
        differing.append((reference.heading(nearest, draws.flip[n], int(draws.turns[n])) != found).mean())
    return float(max(differing))


def geometry_of(recipe: ViewRecipe) -> ViewRecipe:
    """What of a recipe moves pixels, which is drawn the same without the rest."""
    names = ("size", "crop_scale", "crop_ratio", "flip_horizontal", "flip_vertical", "rotate90")
    return ViewRecipe(**{name: getattr(recipe, name) for name in names})


def main() -> dict[str, Any]:
    """The table: augmentation by layout by device, each within its bound."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []

    def add(folder: Path, name: str, layout: str, device: str, recipes: Sequence[ViewRecipe], **options: Any) -> None:
        loader = Loader(folder, "train", BATCH, recipes, seed=5, device=device, threads=1, **options)
        found = parity(loader, device)
        dtype = LAYOUTS[layout]["dtype"]
        found.check(dtype, f"{name}, {layout}, {device}, {options}")
        rows.append(
            {
                "augmentation": name,
                "layout": layout,
                "dtype": dtype,
                "bands": len(loader.bands),
                "grid": list(loader.shard_set.grid),
                "device": device,
                "geometry": round(found.geometry, 6),
                "radiometry": round(found.radiometry, 9),
            }
        )
        loader.close()

    with tempfile.TemporaryDirectory() as name:
        for number, (layout, options) in enumerate(LAYOUTS.items()):
            folder = make_set(Path(name) / str(number), {"train": BATCH}, **options)
            dated = make_set(Path(name) / f"{number}d", {"train": BATCH}, dates=3, **options)
            masked = make_set(Path(name) / f"{number}m", {"train": BATCH}, mask=classes, **options)
            recipes = recipes_for(options)
            last = recipes["everything"]
            several = last.multi_crop(3, 24)
            for device in devices:
                for augmentation, recipe in recipes.items():
                    add(folder, augmentation, layout, device, [recipe] * 2)
                add(folder, "everything, as float16", layout, device, [last] * 2, dtype="float16")
                add(folder, "multi-crop", layout, device, several)
                add(folder, "a recipe a view", layout, device, [recipes["crop"], recipes["blur"]])
                loader = Loader(masked, "train", BATCH, [last], seed=5, device=device, threads=1, masks="land_cover")
                share = mask_parity(loader)
                loader.close()
                assert share <= MASKS, (layout, device, share)
                masks.append({"layout": layout, "device": device, "differing": share})
                seasons: Seasons
                for seasons in ("same", "different"):
                    add(dated, f"seasons: {seasons}", layout, device, [last] * 4, seasons=seasons)
    whole = [row["geometry"] for row in rows if row["dtype"] in ("uint16", "int16")]
    weights = max(row["geometry"] / RANGE[row["dtype"]] for row in rows if row["dtype"] in ("uint8", "float32"))
    return {
        "outcome": f"{len(rows)} rows on {' and '.join(devices)}: resampling to whole numbers within {max(whole):.4f} "
        f"of one, to float32 within {weights:.1e} of the pixels' range; all that follows within "
        f"{max(row['radiometry'] for row in rows):.1e} standard deviations; of masks, at most "
        f"{max(row['differing'] for row in masks):.1e} of the pixels are not the nearest",
        "truth": "tests/pipeline/reference.py: NumPy and SciPy in float64 from the same draws, nothing folded",
        "pixels": f"independent and uniform in 0 to 5000 (uint8: 255); {BATCH} samples, at least two views of each",
        "geometry": "largest distance of the resampled and turned patch from the exact one, in stored numbers",
        "radiometry": "largest distance of the view from what the truth makes of that patch, in standard deviations; "
        "of float16, beyond half a rounding",
        "bounds": {
            "geometry": f"{WEIGHTS} of the pixels' range, and 0.5 where arrays are of 16 bits",
            "radiometry": TOLERANCE,
        },
        "gpu": "cuda" in devices,
        "rows": rows,
        "masks": masks,
    }
