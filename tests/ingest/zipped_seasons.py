"""SSL4EO-S12 1.1, made up, in both of its forms: zipped Zarr of a place, or of many."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
TIMES = ["20200323T162931", "20200621T162901", "20200924T162929", "20201228T163711"]
LEFT, TOP = 500_000.0, 4_000_020.0


def pixels(number: int) -> np.ndarray:
    """Bands of a place, int16 (time, band, y, x), B8A like B08."""
    rng = np.random.default_rng(number)
    scene = rng.integers(200, 4000, (4, 1, 8, 8)).repeat(33, 2).repeat(33, 3)
    gains = rng.uniform(0.3, 0.8, (1, 12, 1, 1))
    gains[0, [7, 8]] = 1
    return (scene * gains + rng.integers(-300, 60, (4, 12, 264, 264))).astype(np.int16)


def products(number: int) -> list[str]:
    return [f"{time}_{time}_T{number % 60 + 1:02}TXX" for time in TIMES]


def zipped(arrays: dict[str, np.ndarray], chunks: dict[str, tuple[int, ...]], codec: int = zipfile.ZIP_STORED) -> bytes:
    store = MemoryStore()
    group = zarr.open_group(store, mode="w", zarr_format=2)
    for name, values in arrays.items():
        values = np.asarray(values)
        target = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=chunks.get(name) or (values.shape or "auto")
        )
        target[...] = values
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", codec) as archive:
        for name, value in sorted(store._store_dict.items()):
            archive.writestr(name, value.to_bytes())
    return data.getvalue()


def place(number: int, order: list[int] | None = None, **changes: Any) -> bytes:
    """One place as in the WebDataset form; `order`: in which its bands and dates lie."""
    times = [2, 0, 1, 3] if order is None else order
    x = LEFT + 3000 * number + 5 + 10 * np.arange(264)
    y = TOP - 5 - 10 * np.arange(264)
    arrays = {
        "bands": pixels(number)[times],
        "band": np.array(BANDS),
        "file_id": np.array(products(number))[times],
        "center_lon": np.float64(8.0),
        "center_lat": np.float64(36.0),
        "crs": np.int64(32632),
        "sample": np.array(f"{number:07d}"),
        "x": x,
        "y": y,
    } | changes  # fmt: skip
    return zipped(arrays, {"bands": (1, *arrays["bands"].shape[1:])})


def name_of(number: int, split: str = "train", digits: int = 7) -> str:
    return f"ssl4eos12_{split}_seasonal_data_{number:0{digits}d}"


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def chunk(numbers: list[int]) -> bytes:
    """Many places as in the form of Zarr chunks: numbers 1000 larger."""
    count = len(numbers)
    x = np.stack([LEFT + 3000 * number + 5 + 10 * np.arange(264) for number in numbers])
    arrays = {
        "bands": np.stack([np.maximum(pixels(number), 0) + np.int16(1000) for number in numbers]),
        "band": np.array(BANDS),
        "sample": np.array([f"{number:07d}" for number in numbers]),
        "file_id": np.array([products(number) for number in numbers]),
        "center_lon": np.full(count, 8.0),
        "center_lat": np.full(count, 36.0),
        "crs": np.full(count, 32632),
        "x": np.arange(264),
        "y": np.arange(264),
        "x_": x,
        "y_": np.tile(TOP - 5 - 10 * np.arange(264), (count, 1)),
    }
    return zipped(arrays, {"bands": (count, 1, 12, 264, 264)})
