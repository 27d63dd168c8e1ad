"""Encoders that travel: `encoder.safetensors`, `encoder.json` (what they expect) and `README.md`, the model card."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from models.encoder import Encoder, build_encoder
from models.stem import adapt_stem
from shards import atomic
from shards.errors import BandstreamError

WEIGHTS, DESCRIPTION, CARD = "encoder.safetensors", "encoder.json", "README.md"


class EncoderBand(BaseModel):
    """A band that the encoder expects, with the statistics (stored numbers) that its input is standardised with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    wavelength_nm: float
    mean: float
    std: Annotated[float, Field(gt=0)]


class EncoderInfo(BaseModel):
    """`encoder.json`: everything that is needed to use the weights rightly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    encoder: str
    library: Literal["smp", "timm"]
    num_features: int
    bands: list[EncoderBand]
    view_size: int
    reflectance: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    scores: dict[str, float]
    versions: dict[str, str]

    @property
    def band_names(self) -> list[str]:
        return [band.name for band in self.bands]


def save_encoder(
    folder: Path,
    encoder: Encoder,
    *,
    bands: Sequence[EncoderBand],
    view_size: int,
    reflectance: dict[str, Any],
    data: dict[str, Any],
    recipe: dict[str, Any],
    scores: dict[str, float],
) -> None:
    """Write weights, description and model card; the weights are exactly `encoder.net`'s state."""
    info = EncoderInfo(
        encoder=encoder.name,
        library=encoder.library,  # type: ignore[arg-type]
        num_features=encoder.num_features,
        bands=list(bands),
        view_size=view_size,
        reflectance=reflectance,
        data=data,
        recipe=recipe,
        scores=scores,
        versions={name: version(name) for name in ("bandstream", "torch", "segmentation-models-pytorch", "timm")},
    )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.net.state_dict().items()}
    atomic.write_bytes(folder / WEIGHTS, save(state))
    atomic.write_text(folder / CARD, _card(info))
    atomic.write_json(folder / DESCRIPTION, info.model_dump(mode="json"))


def load_encoder(folder: Path | str, bands: Sequence[str] | None = None) -> tuple[Encoder, EncoderInfo]:
    """The encoder of a run, ready for the bands at hand, in their order (default: those it was trained on).

    Bands are met by name. Raises BandstreamError where files are missing or damaged, and on a band it never saw.
    """
    folder = Path(folder)
    try:
        info = EncoderInfo.model_validate(json.loads((folder / DESCRIPTION).read_bytes()))
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise BandstreamError(
            f"{folder} holds no encoder ({Path(error.filename).name} is missing): name the folder of a finished run"
        ) from None
    except (ValueError, ValidationError, SafetensorError, OSError) as error:
        first = str(error).splitlines()[0]
        raise BandstreamError(f"the encoder in {folder} cannot be read ({first}): export it again") from None
    wanted = list(bands) if bands is not None else info.band_names
    encoder = build_encoder(info.encoder, len(wanted), info.view_size)
    try:
        encoder.net.load_state_dict(adapt_stem(state, info.band_names, wanted), strict=True)
    except RuntimeError as error:
        raise BandstreamError(f"{folder / WEIGHTS} is not of a {info.encoder}: {str(error).splitlines()[0]}") from None
    return encoder, info


def _card(info: EncoderInfo) -> str:
    rows = "\n".join(f"| {b.name} | {b.wavelength_nm:g} | {b.mean:.1f} | {b.std:.1f} |" for b in info.bands)
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in info.scores.items()) or "- none recorded"
    data = "\n".join(f"- {name}: {value}" for name, value in info.data.items())
    recipe = json.dumps(info.recipe, indent=1)
    return f"""---
library_name: bandstream
tags: [remote-sensing, sentinel-2, self-supervised, {info.encoder}]
---

# {info.encoder}, pretrained on {len(info.bands)} bands

Self-supervised encoder for Sentinel-2 imagery, written by bandstream {info.versions["bandstream"]}.

## Data

{data}

The licence of the weights follows that of the data they were trained on.

## Input

(N, {len(info.bands)}, H, W), float, each band standardised as (stored - mean) / std, in this order; trained on views of
{info.view_size} pixels. Stored numbers × {info.reflectance.get("scale", 1)} + {info.reflectance.get("offset", 0)} are \
reflectance ({info.reflectance.get("level", "unknown level")}).

| band | wavelength (nm) | mean | std |
|---|---|---|---|
{rows}

## Use

```python
from models.export import load_encoder

encoder, info = load_encoder("this folder", bands=[...])  # any subset, any order, by name
features = encoder(views)  # (N, {info.num_features})
```

`encoder.safetensors` is the state of `{info.encoder}` in {info.library} with in_channels={len(info.bands)}: it loads \
strictly there too.

## Scores at the end of training

{scores}

## Recipe

```json
{recipe}
```
"""
