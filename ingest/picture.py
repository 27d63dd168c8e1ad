"""8-bit pictures (JPEG, PNG, ...) through Pillow."""

import io
import warnings

import numpy as np

from ingest.geotiff import RasterError

MAX_PIXELS = 1 << 26
"""A picture of more pixels is not decoded: 200 MB as red, green and blue."""


def read_picture(data: bytes, path: str, size: tuple[int, int] | None) -> np.ndarray:
    """The red, green and blue of a picture, upright by its EXIF orientation: uint8 (3, H, W).

    `path` is what a person calls it; `size`, (height, width), is what it must have, None where anything will do. Raises
    RasterError: `unreadable` or `wrong-size`.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise RasterError("wrong-size", f"{picture.width} x {picture.height} pixels are too many")
                pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except RasterError:
        raise
    except Exception as error:  # on damaged bytes Pillow raises OSError, SyntaxError, struct.error, ValueError, ...
        text = " ".join(str(error).split()).replace(path, "it")
        raise RasterError("unreadable", text or type(error).__name__) from None
    if size is not None and pixels.shape[:2] != size:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise RasterError("wrong-size", f"{found} pixels, not {size[1]} x {size[0]}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
