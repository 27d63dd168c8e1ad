"""Encoders that travel: `encoder.safetensors`, `encoder.json` (what they expect) and `README.md`, the model card."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from models.card import CARD, model_card
from models.description import DESCRIPTION, EncoderBand, EncoderInfo, read_description
from models.encoder import Encoder, build_encoder
from models.hub import WEIGHTS, local_folder, push_encoder
from models.stem import adapt_stem, find_stem, match_bands, wavelength_of
from shards import atomic
from shards.bands import Fallback
from shards.errors import BandstreamError

__all__ = ["EncoderBand", "EncoderInfo", "load_encoder", "push_encoder", "save_encoder"]

FLOATS = {"F64", "F32", "F16", "BF16"}


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
    licence: str | None = None,
) -> None:
    """Write weights, description and model card; the weights are exactly `encoder.net`'s state."""
    info = EncoderInfo(
        encoder=encoder.name,
        library=encoder.library,  # type: ignore[arg-type]
        options=encoder.options,
        num_features=encoder.num_features,
        bands=list(bands),
        view_size=view_size,
        reflectance=reflectance,
        data=data,
        recipe=recipe,
        scores=scores,
        versions={name: version(name) for name in ("bandstream", "torch", "segmentation-models-pytorch", "timm")},
        licence=licence,
        adapted=encoder.adaptation,
    )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.net.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / WEIGHTS, save(state))
    atomic.write_text(folder / CARD, model_card(info))
    atomic.write_json(folder / DESCRIPTION, info.model_dump(mode="json"))


def load_encoder(
    source: Path | str, bands: Sequence[str] | None = None, fallback: Fallback = "none"
) -> tuple[Encoder, EncoderInfo]:
    """An encoder, ready for the bands at hand, in their order (default: those it was trained on), and its description.

    `source`: the folder of a run or of a copy, or a repository `user/name` on the Hugging Face Hub. Bands are met by
    name; `fallback` says what becomes of one that the encoder never saw: `none` (an error), `wavelength` or `zero`, see
    `models.stem.match_bands`. The description is of the bands at hand: names, statistics (a stand-in's are its
    source's; those of a band at zero are its nearest neighbour's), and in `adapted` what was done to the stem.

    Nothing is unpickled, and weights are looked at only after their names, shapes and types fit the named encoder.
    Raises BandstreamError where files are missing, damaged or of another model, and on a band that it never saw.
    """
    folder = local_folder(source)
    try:
        info = read_description(folder)
        path = folder / WEIGHTS
        shapes = _shapes(path)
    except FileNotFoundError as error:
        missing = Path(error.filename or folder).name
        raise BandstreamError(
            f"{source} holds no encoder ({missing} is missing): name the folder of a finished run, or a repository"
        ) from None
    except (OSError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise BandstreamError(f"the encoder in {folder} cannot be read ({first}): export it again") from None
    names = info.band_names
    wanted = list(bands) if bands is not None else names
    trained = {band.name: band.wavelength_nm for band in info.bands}
    sources = match_bands(trained, wanted, fallback)
    skeleton = _skeleton(info)
    _check_fit(skeleton, shapes, path, info)
    state = load_file(path)
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise BandstreamError(f"{path} holds numbers that are not finite: take another checkpoint")
    encoder = build_encoder(info.encoder, len(wanted), info.view_size)
    if wanted != names:
        stem = find_stem(encoder.net, len(wanted), info.view_size)
        state[stem], adapted = adapt_stem(state[stem], trained, sources)
        info = info.model_copy(update={"bands": _bands_at_hand(info, sources), "adapted": adapted})
    encoder.adaptation = info.adapted
    # not by the method of smp's encoders, some of which take no `strict`
    nn.Module.load_state_dict(encoder.net, state, strict=True)
    return encoder, info


def _shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and type of every tensor, from the file's header alone."""
    path.stat()
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        return {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}


def _skeleton(info: EncoderInfo) -> Encoder:
    """The encoder that a description names, without memory for its weights where the library can do that."""
    try:
        with torch.device("meta"):
            return build_encoder(info.encoder, len(info.bands), info.view_size)
    except (BandstreamError, NotImplementedError, RuntimeError):
        return build_encoder(info.encoder, len(info.bands), info.view_size)


def _check_fit(skeleton: Encoder, shapes: Mapping[str, tuple[tuple[int, ...], str]], path: Path, info: Any) -> None:
    expected = skeleton.net.state_dict()
    wrong = ""
    if missing := [name for name in expected if name not in shapes]:
        wrong = f"{missing[0]} is missing"
    elif surplus := [name for name in shapes if name not in expected]:
        wrong = f"it has no {surplus[0]}"
    elif (skeleton.library, skeleton.num_features) != (info.library, info.num_features):
        wrong = f"{DESCRIPTION} says {info.num_features} features of {info.library}, not {skeleton.num_features}"
    else:
        for name, tensor in expected.items():
            shape, kind = shapes[name]
            if shape != tuple(tensor.shape):
                wrong = f"{name} is {shape}, not {tuple(tensor.shape)}"
            elif (kind in FLOATS) != tensor.is_floating_point():
                wrong = f"{name} is of type {kind}"
            if wrong:
                break
    if wrong:
        raise BandstreamError(f"{path} is not of a {info.encoder} on {len(info.bands)} bands: {wrong}")


def _bands_at_hand(info: EncoderInfo, sources: Mapping[str, Sequence[str]]) -> list[EncoderBand]:
    """The bands of `sources`, standardised like the trained band that each takes its weights from."""
    trained = {band.name: band for band in info.bands}
    at_hand = []
    for name, picked in sources.items():
        wavelength = wavelength_of(name)
        if picked:
            like = trained[picked[0]]
        else:
            like = min(info.bands, key=lambda band: abs(band.wavelength_nm - (wavelength or band.wavelength_nm)))
        own = like.wavelength_nm if name in trained or wavelength is None else wavelength
        at_hand.append(like.model_copy(update={"name": name, "wavelength_nm": own}))
    return at_hand
