"""What numbers of a raster mean that there is no data, how much of it a sample may have, and what is stored for it.

Statistics are over every stored number and need finite ones, and pixels are stored as they are: so NaN and infinity
are rejected, unless the user names a number to store in their place.
"""

import math
from dataclasses import dataclass

import numpy as np

from ingest.reading.geotiff import RasterError
from ingest.reading.raster import Raster
from shards.errors import BandstreamError


def representable(value: float | None, dtype: str) -> float | None:
    """A number as a type holds it; None where it cannot."""
    if value is None or not math.isfinite(value):
        return None
    if dtype == "float32":
        return float(np.float32(value)) if abs(value) <= np.finfo(np.float32).max else None
    limits = np.iinfo(dtype)
    return float(value) if value == int(value) and limits.min <= value <= limits.max else None


@dataclass(frozen=True)
class Nodata:
    """`option`: the number that the user says means nodata, None: what each file declares, which must be `usual`;
    `fill`: what to store for it and for what is not finite; `most`: the largest share of it in a sample."""

    dtype: str
    usual: float | None
    option: float | None
    fill: float | None
    most: float | None

    def __post_init__(self) -> None:
        for option, value in (("--nodata", self.option), ("--nodata-fill", self.fill)):
            if value is not None and representable(value, self.dtype) is None:
                raise BandstreamError(f"{option} {value:g} is no number of {self.dtype}, which the rasters hold")
        if self.most is not None and self.stored is None:
            raise BandstreamError(
                "--max-nodata needs to know what nodata is, and the rasters declare none: say --nodata"
            )

    @property
    def stored(self) -> float | None:
        """The number that means nodata in the set."""
        return representable(self._meant if self.fill is None else self.fill, self.dtype)

    @property
    def _meant(self) -> float | None:
        return self.usual if self.option is None else representable(self.option, self.dtype)

    def apply(self, raster: Raster, pixels: np.ndarray) -> None:
        """Fill what has no data, where that is asked for. Raises RasterError: `wrong-nodata`, `not-finite`, `nodata`
        (too much of it, or nothing else)."""
        declared = representable(raster.nodata, self.dtype)
        if self.option is None and declared != self.usual:
            found, other = (f"{value:g}" if value is not None else "none" for value in (declared, self.usual))
            raise RasterError("wrong-nodata", f"it declares nodata {found}, others {other}: say what it is by --nodata")
        meant = self._meant
        missing = np.zeros(pixels.shape, bool) if meant is None else pixels == pixels.dtype.type(meant)
        if pixels.dtype.kind == "f":
            infinite = ~np.isfinite(pixels)
            if self.fill is None and infinite.any():
                share = f"{infinite.mean():.2%} of its numbers are NaN or infinite"
                raise RasterError("not-finite", f"{share}: say by --nodata-fill what to store for them")
            missing |= infinite
        if not missing.any():
            return
        share_ = float(missing.mean())
        if share_ == 1 or share_ > (1 if self.most is None else self.most):
            raise RasterError("nodata", f"{share_:.2%} of its numbers are nodata")
        if self.fill is not None:
            pixels[missing] = self.fill
