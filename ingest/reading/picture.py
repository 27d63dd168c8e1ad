"""Pictures (JPEG, PNG, WebP, BMP, TIFF) of 8 bits a channel as red, green and blue, decoded by Pillow.

What a picture shows is what is taken: it is turned as its EXIF orientation says, grey and palette colours become red,
green and blue, transparent pixels are laid over black, CMYK is converted without a colour profile (profiles are not
applied to any picture), and of several frames or pages the first is read. What has more than 8 bits a channel is
refused: to make 8 bits of it, one would have to know its range. So are bands beyond red, green, blue and alpha.
"""

import io
import re
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ingest.reading.deflate import check_tags
from ingest.reading.geotiff import RasterError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of files that are taken for pictures, in lower case."""
MOST_PIXELS = 1 << 26
"""A picture of more is refused by its header, before anything is allocated: decoded, it takes up to four times as many
bytes in each worker."""
MOST_BYTES = 1 << 27
"""A file of more is not read."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits a channel that convert to RGB."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation (EXIF 2.32, tag 274)."""
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, EXTRA_SAMPLES = 274, 258, 262, 277, 338
"""Tags of TIFF 6.0."""


def read_picture(data: bytes | memoryview, path: str, size: tuple[int, int] | None) -> np.ndarray:
    """A picture's red, green and blue, uint8 (3, H, W), from the whole file's bytes.

    `size`: the (H, W) wanted, None for the picture's own. One of another size is scaled to cover it (bicubic,
    antialiased where it shrinks) and cropped about its centre; one that has it is taken bit for bit. `path`: how the
    file is named, for errors. Raises RasterError: `unreadable`, `truncated`, `wrong-type`, `wrong-bands`, `too-large`.
    """
    with _decoding(path), _opened(data) as image:
        _check(image)
        _check_sums(image, data)
        image.load()
        picture = _rgb(image)
        # after load: of a TIFF, Pillow has by then applied the orientation and removed the tag
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        if turn is not None:
            picture = picture.transpose(turn)
        if size is not None and picture.size != size[::-1]:
            picture = ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def read_indices(data: bytes | memoryview, path: str) -> np.ndarray:
    """Numbers that a grey or palette picture stores, uint8 (H, W), such as classes: no colour is looked up, nothing is
    turned or scaled. Raises RasterError."""
    with _decoding(path), _opened(data) as image:
        _check(image)
        if image.mode not in ("L", "P"):
            raise RasterError("wrong-bands", f"{image.mode} pixels where class numbers of 8 bits are wanted")
        if image.getexif().get(ORIENTATION, 1) != 1:
            raise RasterError("wrong-type", "it is stored turned (EXIF orientation)")
        _check_sums(image, data)
        return np.array(image)


def _opened(data: bytes | memoryview) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


class _decoding:
    """Turns whatever Pillow raises into RasterError, and keeps it from printing what it would warn of."""

    def __init__(self, path: str) -> None:
        self.name = path.rpartition("/")[2]
        self.quiet = warnings.catch_warnings()

    def __enter__(self) -> None:
        self.quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.quiet.__exit__(None, None, None)
        if error is None or isinstance(error, RasterError) or not isinstance(error, Exception):
            return
        if isinstance(error, Image.DecompressionBombError):
            raise RasterError("too-large", f"more than {MOST_PIXELS:,} pixels by its header") from None
        if isinstance(error, UnidentifiedImageError):
            known = ", ".join(FORMATS)
            raise RasterError("unreadable", f"{self.name} is none of {known}, or its header is damaged") from None
        # Pillow's words, without the addresses of objects that would differ from run to run
        text = re.sub(r"<[^>]*>|0x[0-9a-f]+", "it", " ".join(str(error).split())) or type(error).__name__
        short = "truncated" in text.lower() or "not enough" in text.lower() or isinstance(error, EOFError)
        raise RasterError("truncated" if short else "unreadable", f"{self.name} cannot be decoded ({text})") from None


def _check(image: Image.Image) -> None:
    """Raises RasterError where a header tells of what cannot be taken."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise RasterError("too-large", f"{width} x {height} pixels by its header, more than {MOST_PIXELS:,}")
    deep = image.mode not in MODES
    if image.format == "PNG":  # Pillow takes the upper 8 of 16 bits without a word
        deep |= any(";16" in str(tile[3]) for tile in image.tile)  # type: ignore[attr-defined]
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        deep |= max(tags.get(BITS_PER_SAMPLE, (1,)), default=1) > 8
        samples, extra = tags.get(SAMPLES_PER_PIXEL, 1), tags.get(EXTRA_SAMPLES, ())
        own = {0: 1, 1: 1, 3: 1, 5: 4}.get(tags.get(PHOTOMETRIC, 2), 3)
        # a fourth channel that is not said to be alpha is some other band
        if samples > own and not (samples == own + 1 and tuple(extra) in ((1,), (2,))):
            raise RasterError("wrong-bands", f"{samples} bands, not red, green, blue and alpha: it is no picture")
    if deep:
        raise RasterError(
            "wrong-type", f"more than 8 bits a channel, or no colours (mode {image.mode}): make it 8 bits"
        )


def _check_sums(image: Image.Image, data: bytes | memoryview) -> None:
    """Compare the checksums that a format has of its pixels and Pillow passes over. Raises what Pillow does, or
    RasterError."""
    if image.format == "PNG":
        with _opened(data) as again:  # it cannot be read any more afterwards
            again.verify()
    if image.format == "TIFF":
        check_tags(image.tag_v2, data)  # type: ignore[attr-defined]


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB, transparent pixels over black."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, layer).convert("RGB")
    return image.convert("RGB")
