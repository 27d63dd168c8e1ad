"""`encoder.json`: everything that is needed to use an encoder's weights rightly."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.stem import Adaptation
from shards.errors import BandstreamError

DESCRIPTION = "encoder.json"
MOST_BYTES = 4 * 1024 * 1024
"""Descriptions come from strangers: a longer one is not read."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class EncoderBand(BaseModel):
    """A band that the encoder expects, with the statistics (stored numbers) that its input is standardised with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    wavelength_nm: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    mean: Number
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EncoderInfo(BaseModel):
    """What `encoder.json` holds, and what `load_encoder` gives back, then about the bands at hand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    encoder: Name
    library: Literal["smp", "timm"]
    options: dict[str, bool | int | None] = {}
    """What the library is given beside name and bands, so that the weights load strictly there."""
    num_features: Annotated[int, Field(ge=1)]
    bands: Annotated[list[EncoderBand], Field(min_length=1, max_length=1024)]
    view_size: Annotated[int, Field(ge=1, le=8192)]
    reflectance: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    scores: dict[str, float]
    versions: dict[str, str]
    licence: Annotated[str, Field(max_length=200)] | None = None
    """Of the weights, as whoever gives them away says (an identifier such as `cc-by-4.0`)."""
    adapted: Adaptation | None = None
    """How the stem came to these bands, where that was from others: before training, or now that it is loaded."""

    @property
    def band_names(self) -> list[str]:
        return [band.name for band in self.bands]


def read_description(folder: Path) -> EncoderInfo:
    """The description in a folder. Raises FileNotFoundError, and BandstreamError where it is none."""
    path = folder / DESCRIPTION
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BandstreamError(f"{path} is longer than {MOST_BYTES >> 20} MiB: that is no encoder's description")
        info = EncoderInfo.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise BandstreamError(f"{path} cannot be read ({said}): export the encoder again") from None
    except (ValueError, RecursionError) as error:
        raise BandstreamError(f"{path} cannot be read ({_short(error)}): export the encoder again") from None
    names = info.band_names
    if len(set(names)) != len(names):
        raise BandstreamError(f"{path} names a band twice ({', '.join(names)}): export the encoder again")
    return info


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
