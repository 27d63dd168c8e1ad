"""Small shard sets of any shape, written with the format's own layout."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shards import catalogue
from shards.bands import SENTINEL2
from shards.layout import TRAILER, SampleLayout, finest_grid
from shards.manifest import CREATED_BY, Manifest, SplitSpec

BANDS = [name for name in SENTINEL2 if name != "B10"]
Side = int | tuple[int, int]
SENTINEL2_ARRAYS: dict[str, tuple[list[str], Side]] = {
    "10m.npy": (["B02", "B03", "B04", "B08"], 120),
    "20m.npy": (["B05", "B06", "B07", "B8A", "B11", "B12"], 60),
    "60m.npy": (["B01", "B09"], 20),
}
Image = Callable[[int, list[str], tuple[int, int, int], str], np.ndarray]


def noise_image(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Independent pixels: the hardest picture for a resampler."""
    rng = np.random.default_rng([number, shape[1], len(bands)])
    high = 255 if dtype == "uint8" else 5000
    return rng.uniform(0, high, shape).astype(dtype)


def make_set(
    folder: Path,
    sizes: dict[str, int],
    *,
    arrays: dict[str, tuple[list[str], Side]] = SENTINEL2_ARRAYS,
    dates: int = 1,
    dtype: str = "uint16",
    image: Image = noise_image,
    mask: Callable[[int, tuple[int, int]], np.ndarray] | None = None,
    label: Callable[[int], int] = lambda number: number % 19,
    single: bool = False,
    reflectance: dict[str, Any] | None = None,
    shard_samples: int = 10,
) -> Path:
    """A shard set with `sizes` samples a split, a label of 19 each (multi-hot or `single`) and, given `mask`, masks.

    `arrays`: member → bands and side, or (height, width). With several `dates`, each has them all: `t1.10m.npy`, ...
    """
    folder.mkdir(parents=True)
    held = [band for bands, _ in arrays.values() for band in bands]
    bands = [b for b in SENTINEL2 if b in held] if set(held) <= set(SENTINEL2) else held
    times = {f"t{time}.{name}" if time else name: time for time in range(dates) for name in arrays}
    arrays = {name: arrays[name.removeprefix(f"t{time}.")] for name, time in times.items()}
    sides = {name: (side, side) if isinstance(side, int) else side for name, (_, side) in arrays.items()}
    shapes = {name: ((len(b), *sides[name]), dtype) for name, (b, _) in arrays.items()}
    grid = max(side[0] for side in sides.values()), max(side[1] for side in sides.values())
    masks = {"mask.npy": (grid, "uint8")} if mask else {}
    layout = SampleLayout(shapes, {"cls": 2} if single else {"labels.npy": ((19,), "uint8")}, masks, 64)
    splits, rows, number = {}, {name: [] for name in [*catalogue.COLUMNS, "labels"]}, 0
    for split, count in sizes.items():
        shards = []
        for first in range(0, count, shard_samples):
            keys, data = [], bytearray()
            for position in range(min(shard_samples, count - first)):
                key = f"P{number:05d}"
                content = {n: image(number + 10**6 * times[n], b, shapes[n][0], dtype) for n, (b, _) in arrays.items()}
                if single:
                    content["cls"] = f"{label(number):02}".encode()
                else:
                    content["labels.npy"] = np.eye(19, dtype=np.uint8)[label(number)]
                content["json"] = b"{}".ljust(64)
                if mask:
                    content["mask.npy"] = mask(number, grid)
                data += layout.pack(key, content)
                keys.append(key)
                file = f"{split}-{first // shard_samples:06d}.tar"
                row = (key, split, file, position, 0.0, 0.0, "2017-06-01", [label(number)])
                for name, value in zip(rows, row, strict=True):
                    rows[name].append(value)
                number += 1
            data += TRAILER
            (folder / file).write_bytes(data)
            (folder / file).with_suffix(".idx").write_text(layout.index(keys))
            shards.append(
                {
                    "file": file,
                    "samples": len(keys),
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "idx_sha256": hashlib.sha256(layout.index(keys).encode()).hexdigest(),
                }
            )
        splits[split] = SplitSpec(samples=count, shards=shards)
    with catalogue.writing(folder, {}, ["labels"]) as add:
        add(rows)
    (folder / "rejected.jsonl").touch()
    files = {name: (folder / name).read_bytes() for name in (catalogue.FILE, "rejected.jsonl")}
    statistics = {
        b: {"mean": 900.0 + 70 * i, "std": 300.0 + 40 * i, "min": 0, "max": 1, "p02": 0, "p98": 1, "count": 1}
        for i, b in enumerate(bands)
    }
    manifest = Manifest.model_validate(
        {
            "format_version": 1,
            "name": "made for a test",
            "source": {},
            "seed": 0,
            "created_by": CREATED_BY,
            "bands": [
                {"name": b, "wavelength_nm": SENTINEL2[b].wavelength_nm if b in SENTINEL2 else 500, "gsd_m": 10}
                for b in bands
            ],
            "sample_bytes": layout.sample_bytes,
            "arrays": {
                n: {"bands": b, "shape": shapes[n][0], "dtype": dtype, "offset": layout[n].data_at, "time": times[n]}
                for n, (b, _) in arrays.items()
            },
            "reflectance": reflectance or {"scale": 1e-4, "offset": 0, "level": "L2A"},
            "labels": {
                "land_cover": {
                    "member": "cls" if single else "labels.npy",
                    "kind": "single" if single else "multilabel",
                    "classes": [f"class {i}" for i in range(19)],
                }
            },
            "masks": {"land_cover": {"member": "mask.npy", "classes": [f"class {i}" for i in range(19)]}}
            if mask
            else {},
            "statistics": statistics,
            "splits": splits,
            "rejected": {},
            "files": {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()},
        }
    )
    manifest.write(folder)
    assert finest_grid(manifest) == grid
    return folder
