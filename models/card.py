"""The model card: `README.md` beside the weights, as Hugging Face shows it."""

import json

from models.description import EncoderInfo

CARD = "README.md"


def model_card(info: EncoderInfo) -> str:
    """Markdown with YAML front matter: data, input, use, adaptation, scores, recipe and licence."""
    rows = "\n".join(f"| {b.name} | {b.wavelength_nm:g} | {b.mean:.1f} | {b.std:.1f} |" for b in info.bands)
    scores = "\n".join(f"- {name}: {value:.4g}" for name, value in info.scores.items()) or "- none recorded"
    data = "\n".join(f"- {name}: {value}" for name, value in info.data.items())
    licence = f"license: {json.dumps(info.licence)}\n" if info.licence else ""  # a JSON string is a YAML one
    terms = (
        f"The weights are given under {info.licence}."
        if info.licence
        else "The licence of the weights follows that of the data they were trained on."
    )
    supervised = "target" in info.data
    kind = "Supervised" if supervised else "Self-supervised"
    tags = ["remote-sensing", "sentinel-2", kind.lower(), info.encoder]
    adapted = f"\n\nThe stem was fitted by band name, before training: {info.adapted}." if info.adapted else ""
    return f"""---
library_name: bandstream
{licence}tags: {json.dumps(tags)}
---

# {info.encoder}, trained on {len(info.bands)} bands

{kind} encoder for Sentinel-2 imagery, written by bandstream {info.versions.get("bandstream", "(unknown)")}.

## Data

{data}

{terms}

## Input

(N, {len(info.bands)}, H, W), float, each band standardised as (stored - mean) / std, in this order; trained on views of
{info.view_size} pixels. Stored numbers × {info.reflectance.get("scale", 1)} + {info.reflectance.get("offset", 0)} are \
reflectance ({info.reflectance.get("level", "unknown level")}).{adapted}

| band | wavelength (nm) | mean | std |
|---|---|---|---|
{rows}

## Use

```python
from models import load_encoder

# a folder or user/name; any of the bands, in any order, by name
encoder, info = load_encoder("FOLDER", bands={json.dumps(info.band_names)})
features = encoder.eval()(views)  # (N, {info.num_features})
```

`encoder.safetensors` is the state of {info.library}'s own module and loads strictly there, without bandstream:

```python
{_plain_use(info)}
```

## Scores

{scores}

## Recipe

```json
{json.dumps(info.recipe, indent=1)}
```
"""


def _plain_use(info: EncoderInfo) -> str:
    options = "".join(f", {name}={value}" for name, value in info.options.items())
    bands = len(info.bands)
    if info.library == "timm":
        return (
            "import timm\nfrom safetensors.torch import load_file\n\n"
            f'net = timm.create_model("{info.encoder}", num_classes=0, in_chans={bands}{options})\n'
            'net.load_state_dict(load_file("FOLDER/encoder.safetensors"), strict=True)'
        )
    ours = "import models.cnn  # bandstream's own encoder: smp learns of it\n" if info.encoder == "cnn" else ""
    return (
        f"{ours}import segmentation_models_pytorch as smp\nfrom safetensors.torch import load_file\n\n"
        f'net = smp.Unet("{info.encoder}", encoder_weights=None, in_channels={bands}, classes=10{options})\n'
        'net.encoder.load_state_dict(load_file("FOLDER/encoder.safetensors"), strict=True)'
    )
