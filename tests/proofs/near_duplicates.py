"""What `bandstream audit` finds of near copies: recall by kind of change, precision, samples a second, memory.

    python -m tests.proofs near_duplicates

A set of made-up patches in BigEarthNet's shape, to which changed copies of some are added: with noise, requantised,
brighter and darker, shifted by a pixel, and left as they are. Where real pictures are at hand (EuroSAT RGB in
$BANDSTREAM_REAL_DATA or shared/data), the same with them.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ingest.checking.audit import EXACT, NEAR, Audit
from ingest.synthetic.archive import make_patch
from tests.pipeline.making import SENTINEL2_ARRAYS, make_set

PATCHES, COPIES, SEED = 2000, 100, 0
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(share: float, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, its deviation a share of each band's mean."""
    return planes + rng.normal(0, 1, planes.shape) * planes.mean((1, 2), keepdims=True) * share


def requantised(levels: int, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """So many levels from 0 to the largest number."""
    step = planes.max() / levels
    return np.round(planes / step) * step


def brighter(share: float, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return planes * (1 + share)


def shifted(pixels: int, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """To the right by pixels of the 120-pixel grid; a band of half as many by half of it, interpolated."""
    amount = pixels * planes.shape[2] / 120 if planes.shape[2] in (120, 60, 20) else pixels
    whole, part = int(amount), amount - int(amount)
    one, other = (
        np.concatenate([planes[..., :1]] * n + [planes], 2)[..., : planes.shape[2]] for n in (whole, whole + 1)
    )
    return one * (1 - part) + other * part


CHANGES: dict[str, Change] = {
    "unchanged": lambda planes, rng: planes,
    "noise 0.5 %": partial(noise, 0.005),
    "noise 2 %": partial(noise, 0.02),
    "noise 5 %": partial(noise, 0.05),
    "128 levels": partial(requantised, 128),
    "2 % brighter": partial(brighter, 0.02),
    "2 % darker": partial(brighter, -0.02),
    "shifted by 1 px": partial(shifted, 1),
    "shifted by 1 px, 2 % noise, 2 % brighter": lambda p, rng: noise(
        0.02, shifted(1, brighter(0.02, p, rng), rng), rng
    ),
}


def measure(
    folder: Path, count: int, originals: Callable[[int], dict[str, np.ndarray]], **shape: Any
) -> dict[str, Any]:
    """Recall and precision on a set of `count` originals, in train, and COPIES of each change of them, in test."""
    names = list(CHANGES)

    def image(number: int, bands: list[str], size: tuple[int, int, int], dtype: str) -> np.ndarray:
        change = None
        if number >= count:
            kind, number = divmod(number - count, COPIES)
            change = CHANGES[names[kind]]
        held = originals(number)
        planes = np.stack([held[band] for band in bands])
        if change is None:
            return planes
        rng = np.random.default_rng([number, size[1], len(bands)])
        top = np.iinfo(dtype).max
        return np.round(change(planes.astype(np.float64), rng)).clip(0, top).astype(dtype)

    target = make_set(
        folder / "set", {"train": count, "test": COPIES * len(names)}, image=image, shard_samples=128, **shape
    )
    audit = Audit(target)
    begin = time.perf_counter()
    audit._pass()
    middle = time.perf_counter()
    found = audit.run()
    seconds = time.perf_counter() - middle
    pairs = {tuple(pair) for kind in (EXACT, NEAR) for pair in found.pairs[kind].tolist()}

    def original(number: int) -> int:
        return number if number < count else (number - count) % COPIES

    right = {pair for pair in pairs if original(pair[0]) == original(pair[1])}
    recall = {
        name: sum((number, count + kind * COPIES + number) in pairs for number in range(COPIES)) / COPIES
        for kind, name in enumerate(names)
    }
    return {
        "samples": found.samples,
        "recall": recall,
        "pairs": len(pairs),
        "precision": len(right) / len(pairs) if pairs else 1.0,
        "wrong_pairs": len(pairs - right),
        "samples_per_s_read": round(found.samples / (middle - begin)),
        "samples_per_s_all": round(found.samples / seconds),
        "notes": found.notes,
    }


def made_up(number: int) -> dict[str, np.ndarray]:
    return make_patch(SEED, number)[1]


def pictures() -> list[np.ndarray] | None:
    """EuroSAT RGB, uint8 (3, 64, 64) each."""
    from PIL import Image

    root = Path(os.environ.get("BANDSTREAM_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / "eurosat_rgb.tar").exists():
        return None
    with tarfile.open(root / "eurosat_rgb.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))
        every = names[:: max(1, len(names) // PATCHES)]
        return [
            np.asarray(Image.open(io.BytesIO(tar.extractfile(name).read()))).transpose(2, 0, 1)  # type: ignore[union-attr]
            for name in every
        ]


SCALE = """
import json, resource, sys, time
import numpy as np
from ingest.checking import leakage
from ingest.checking import likeness
n = int(sys.argv[1])
rng = np.random.default_rng(0)
# as skewed as pictures are: a thousand prototypes, of whose bits a third is turned
packed = np.empty((n, 3), np.uint64)
for first in range(0, n, 1000):
    if not first:
        prototypes = rng.integers(0, 2, (1000, 192), np.uint8)
    bits = prototypes ^ (rng.random(prototypes.shape, np.float32) < 0.33)
    packed[first : first + 1000] = np.packbits(bits, axis=1).view(np.uint64)
# BigEarthNet's grid: squares of 1.2 km side by side on tiles of 75 x 75, three dates, splits drawn
number = np.arange(n)
tile, row, column = number // 3 // 5625, number // 3 % 5625 // 75, number // 3 % 75
left, bottom = 3e5 + 1e5 * (tile % 4) + 1200 * column, 4e6 + 1e5 * (tile // 4) + 1200 * row
bounds = np.stack([left, bottom, left + 1200, bottom + 1200], 1).astype(float)
centres = np.stack([15 + (left - 5e5) / 7.2e4, bottom / 1.112e5], 1)
places = leakage.Footprints(np.zeros(n, np.int16), bounds, centres, [1.0])
split = rng.choice(3, n, p=[0.5, 0.25, 0.25]).astype(np.uint8)
begin = time.perf_counter()
found = likeness.candidates(packed)
middle = time.perf_counter()
overlaps = leakage.overlaps(places, split, 3)
end = time.perf_counter()
print(json.dumps({
    "samples": n, "candidates_s": round(middle - begin, 1), "candidates": len(found.pairs), "crowded": found.crowded,
    "overlaps_s": round(end - middle, 1), "overlaps": overlaps.total,
    "most_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
}))
"""


def scale(count: int) -> dict[str, Any]:
    """Seconds and memory of the searches, without a pixel read, among so many samples."""
    told = subprocess.run([sys.executable, "-c", SCALE, str(count)], capture_output=True, text=True, check=True)
    scaled: dict[str, Any] = json.loads(told.stdout)
    return scaled


def main(patches: int = PATCHES) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        results["made_up_sentinel2"] = measure(Path(folder) / "s2", patches, made_up, arrays=SENTINEL2_ARRAYS)
        held = pictures()
        if held is not None:
            colours = ["red", "green", "blue"]
            results["eurosat_rgb"] = measure(
                Path(folder) / "rgb",
                len(held),
                lambda number: dict(zip(colours, held[number], strict=True)),
                arrays={"rgb.npy": (colours, 64)},
                dtype="uint8",
            )
    least = min(min(each["recall"].values()) for each in results.values())
    return {
        "outcome": f"recall of every kind of change at least {least:.2f}",
        **results,
        "most_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "searches": scale(549_000),
    }
