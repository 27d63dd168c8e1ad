"""Every augmentation from the graph equals NumPy and SciPy from the same draw, on each stored type, grid and device."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.augmentations import colour_matrix
from pipeline.draws import Draws
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
    "uint16, 3 bands": {"arrays": {"10m.npy": (BANDS[1:4], 41)}, "dtype": "uint16"},
    "float32, odd": {"arrays": {"10m.npy": (THIRTEEN, 37)}, "dtype": "float32"},
    "uint16, oblong": {"arrays": OBLONG, "dtype": "uint16"},
    "int16, reflectance 0 stored as 1000": {
        "arrays": {"10m.npy": (THIRTEEN, 40)},
        "dtype": "int16",
        "reflectance": {"scale": 1e-4, "offset": -0.1, "level": "L1C"},
    },
}
BATCH, VIEW = 8, 45
TOLERANCE = 2e-4
"""Of float32 against float64, in standard deviations."""
HALF = 0.5 + 0.06
"""How far a resampling to whole numbers may be from the exact one: half of one, and float32's weights (1.2e-5 of the
5,000 that pixels differ by)."""


@dataclass(frozen=True)
class Parity:
    """How far served views are from the truth, and how far they may be, in standard deviations.

    `otherwise`: the share of pixels farther than `TOLERANCE`, which only 16-bit numbers may be: a value half-way
    between two is rounded either way. `half_ulps`: the largest distance in roundings of the served type, float16.
    """

    deviation: float
    bound: float
    otherwise: float
    half_ulps: float = 0.0


def recipes_for(layout: dict[str, Any]) -> dict[str, ViewRecipe]:
    """What can be tried on a layout, by name: at a size of its own, and on the patches' own grid."""
    of = ALONE | (OF_PICTURES if len(next(iter(layout["arrays"].values()))[0]) == 3 else {})
    recipes = {name: ViewRecipe(**{"size": VIEW, **fields}) for name, fields in of.items()}
    own = of["everything of pictures" if "hue" in of else "everything"]
    return recipes | {"everything, own grid": ViewRecipe(**{**own, "size": None, "rotate90": 0})}


def parity(loader: Loader) -> Parity:
    """Compare the first batch of a loader of the train split with `reference`."""
    batch = next(iter(loader))
    draws = loader.draws(batch.indices.numpy())
    rounded = next(iter(loader.shard_set.manifest.arrays.values())).dtype in ("uint16", "int16")
    worst, apart, total, ulps = 0.0, 0, 0, 0.0
    for number, view in enumerate(batch.views):
        for n, index in enumerate(batch.indices.tolist()):
            sample = loader.shard_set.read(loader.split, index)
            truth = reference.view_of(loader, sample, draws[number], n, number, rounded=rounded)
            found = view[n].numpy(force=True)
            distance = np.abs(found.astype(np.float64) - truth)
            if found.dtype == np.float16:
                distance = np.maximum(distance - np.spacing(np.abs(found)).astype(np.float64) / 2, 0)
                ulps = max(ulps, float((np.abs(found - truth) / np.spacing(np.abs(found))).max()))
            worst, apart, total = (
                max(worst, distance.max()),
                apart + (distance > TOLERANCE).sum(),
                total + distance.size,
            )
    unit = max(map(_rise, draws)) / loader.statistics[1].min() if rounded else 0.0
    return Parity(float(worst), TOLERANCE + unit, float(apart / total), ulps)


def _rise(draws: Draws) -> float:
    """By how much at most one stored number more or less in a pixel changes a value before it is standardised."""
    pulled = draws.contrast + np.abs(1 - draws.contrast)
    coloured = np.abs(colour_matrix(draws.saturation, draws.hue, np.zeros(len(pulled), bool))).sum(2).max(1)
    return float((draws.gain.max(1) * draws.brightness * pulled * coloured).max())


def check(found: Parity, what: str) -> None:
    """Raise AssertionError, naming `what`, where views are not what they should be."""
    assert found.deviation <= found.bound, (what, found)
    assert found.otherwise < (0.05 if found.bound > TOLERANCE else 1e-12), (what, found)


def stored_deviation(folder: Path, recipe: ViewRecipe, device: str) -> float:
    """How far the geometry alone is from the exact one, in stored numbers."""
    bands = Loader(folder, "train", BATCH, [recipe], threads=1).bands
    loader = _loader(folder, [recipe], device, statistics=dict.fromkeys(bands, (0.0, 1.0)))
    batch = next(iter(loader))
    (draws,) = loader.draws(batch.indices.numpy())
    worst = 0.0
    for n, index in enumerate(batch.indices.tolist()):
        exact = reference.view_of(loader, loader.shard_set.read("train", index), draws, n, 0, rounded=False)
        worst = max(worst, float(np.abs(batch.views[0][n].numpy(force=True) - exact).max()))
    loader.close()
    return worst


def _loader(folder: Path, recipes: Sequence[ViewRecipe], device: str, **options: Any) -> Loader:
    return Loader(folder, "train", BATCH, recipes, seed=5, device=device, threads=1, **options)


def main() -> dict[str, Any]:
    """The table: augmentation by layout by device, each within its bound."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows: list[dict[str, Any]] = []

    def add(folder: Path, name: str, layout: str, device: str, recipes: Sequence[ViewRecipe], **options: Any) -> None:
        loader = _loader(folder, recipes, device, **options)
        found = parity(loader)
        check(found, f"{name}, {layout}, {device}, {options}")
        row = {
            "augmentation": name,
            "dtype": LAYOUTS[layout]["dtype"],
            "bands": len(loader.bands),
            "grid": list(loader.shard_set.grid),
            "layout": layout,
            "device": device,
            "deviation": round(found.deviation, 8),
            "bound": round(found.bound, 8),
            "otherwise": round(found.otherwise, 8),
        }
        loader.close()
        if options.get("dtype") == "float16":
            row |= {"served": "float16", "half_ulps": round(found.half_ulps, 4)}
        if name in GEOMETRY and found.bound > TOLERANCE:
            row["stored_numbers"] = round(stored_deviation(folder, recipes[0], device), 6)
            assert row["stored_numbers"] <= HALF, row
        rows.append(row)

    with tempfile.TemporaryDirectory() as name:
        for number, (layout, options) in enumerate(LAYOUTS.items()):
            folder = make_set(Path(name) / str(number), {"train": BATCH}, **options)
            dated = make_set(Path(name) / f"{number}d", {"train": BATCH}, dates=3, **options)
            recipes = recipes_for(options)
            last = recipes["everything"]
            several = last.multi_crop(3, 24)
            for device in devices:
                for augmentation, recipe in recipes.items():
                    add(folder, augmentation, layout, device, [recipe] * 2)
                add(folder, "everything, as float16", layout, device, [last] * 2, dtype="float16")
                add(folder, "multi-crop", layout, device, several)
                add(folder, "a recipe a view", layout, device, [recipes["crop"], recipes["blur"]])
                seasons: Seasons
                for seasons in ("same", "different"):
                    add(dated, f"seasons: {seasons}", layout, device, [last] * 4, seasons=seasons)
    floats = max(row["deviation"] for row in rows if row["bound"] <= TOLERANCE)
    whole = max(row["stored_numbers"] for row in rows if "stored_numbers" in row)
    return {
        "outcome": f"{len(rows)} rows on {' and '.join(devices)}: within {floats:.1e} standard deviations; 16-bit "
        f"resampling within {whole:.4f} of a stored number",
        "truth": "tests/pipeline/reference.py: NumPy and SciPy in float64 from the same draws, nothing folded",
        "pixels": "independent uniform noise over the type's range, 8 samples, at least 2 views",
        "deviation": "largest absolute one, standard deviations; of float16, beyond half a rounding",
        "bound": f"{TOLERANCE}, and what one stored number makes where the resampling rounds to 16-bit numbers",
        "otherwise": f"share of pixels farther than {TOLERANCE}: values half-way between two stored numbers",
        "stored_numbers": "largest distance of the rounded resampling from the exact one",
        "half_ulps": "largest distance of a float16 view from the truth, in units of its last place",
        "gpu": "cuda" in devices,
        "rows": rows,
    }
