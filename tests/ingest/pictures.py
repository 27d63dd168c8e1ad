"""Made-up pictures, and their bytes in a format of Pillow's."""

import io
from typing import Any

import numpy as np
from PIL import Image


def pixels(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth made-up picture, uint8 (H, W, 3), that differs in every corner and channel."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format, **options)
    return stream.getvalue()
