"""Foreign WebDataset samples, made up: bands as npy and TIFF, a class map, a class, a JSON."""

import io
import json
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rasterio.io import MemoryFile

CLASSES = ["water", "forest", "city"]
FINE, COARSE = ("B08", "B02", "B03", "B04"), ("B12", "B05", "B06", "B07", "B8A", "B11")


def tif(array: np.ndarray, **options: Any) -> bytes:
    count, height, width = array.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore")  # it lies nowhere
        with memory.open(
            driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, **options
        ) as target:
            target.write(array)
        return bytes(memory.getbuffer())


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def picture(array: np.ndarray, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format)
    return stream.getvalue()


def sample(number: int) -> dict[str, Any]:
    """A made-up sample: bands as npy (CHW), as npy (HWC) and as TIFF, a class map, a class, a JSON."""
    rng = np.random.default_rng(number)
    near = rng.integers(0, 9999, (12, 12))
    fine = np.stack([near, *(near // k + rng.integers(0, 9, (12, 12)) for k in (2, 3, 4))]).astype(np.uint16)
    coarse = rng.integers(0, 9999, (4, 4, 6)).astype(np.uint16)
    coarse[:, :, 4] = near.reshape(4, 3, 4, 3).mean((1, 3))
    return {
        "__key__": f"some/{number:06d}",
        "s2.npy": npy(fine),
        "s2_20m.npy": npy(coarse),
        "coarse.tif": tif(rng.integers(0, 999, (3, 2, 2)).astype(np.uint16)),
        "seg.png": picture(rng.choice([0, 1, 2, 255], (12, 12)).astype(np.uint8)),
        "cls": str(number % 3).encode(),
        "json": json.dumps(
            {
                "name": f"scene {number}",
                "at": {"lon": 8 + number / 7, "lat": -40.5},
                "date": f"2021-03-{1 + number:02d}T10:00:00Z",
                "cover": CLASSES[number % 3],
                "tags": [CLASSES[number % 3], "city"],
                "anything": [None, {"": 1e300}],
            }
        ).encode(),
        "pyd": pickle.dumps(Path),
        "txt": CLASSES[number % 3].encode() + b"\n",
    }


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    """A tar of samples whose members are bytes, as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for one in samples:
            for member, data in one.items():
                if member != "__key__":
                    info = tarfile.TarInfo(f"{one['__key__']}.{member}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return path


TEXT: dict[str, Any] = {
    "arrays": [f"s2.npy={','.join(FINE)}", f"s2_20m.npy={','.join(COARSE)}", "coarse.tif=B09,-,B01"],
    "labels": ["cls", "json:tags=tags"],
    "masks": ["seg.png=cover"],
    "id": "json:name",
    "place": "json:at.lon,at.lat",
    "date": "json:date",
}
