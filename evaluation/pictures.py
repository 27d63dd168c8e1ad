"""Pictures a person can judge: true colour, near-infrared false colour, class maps, pairs of views.

Every picture of reflectance uses one fixed stretch, so that pictures can be compared: true colour shows reflectance 0
to 0.25, false colour (near infrared, red, green) 0 to 0.5, 0.25 and 0.25, both with gamma 1/1.5.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards import atomic
from shards.bands import false_colour, true_colour
from shards.errors import BandstreamError
from shards.manifest import Manifest, Reflectance
from shards.shardset import ShardSet

GAMMA = 1 / 1.5
WHITE, INK, FAINT = (255, 255, 255), (30, 34, 40), (110, 116, 124)
INKS = {None: INK, True: (26, 127, 55), False: FAINT}
GAP = 8
IGNORE = 255
Caption = tuple[str, bool | None]
"""A text, and whether what it says is right (green), not quite (grey) or no matter."""

_LAND_COVER = {
    "Urban fabric": (230, 0, 77),
    "Industrial or commercial units": (204, 77, 242),
    "Arable land": (255, 255, 168),
    "Permanent crops": (242, 166, 77),
    "Pastures": (190, 230, 90),
    "Complex cultivation patterns": (255, 230, 77),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (230, 204, 77),
    "Agro-forestry areas": (242, 204, 166),
    "Broad-leaved forest": (100, 220, 0),
    "Coniferous forest": (0, 140, 30),
    "Mixed forest": (60, 190, 80),
    "Natural grassland and sparsely vegetated areas": (204, 242, 120),
    "Moors, heathland and sclerophyllous vegetation": (150, 170, 60),
    "Transitional woodland, shrub": (166, 242, 0),
    "Beaches, dunes, sands": (225, 215, 190),
    "Inland wetlands": (140, 120, 220),
    "Coastal wetlands": (190, 170, 255),
    "Inland waters": (60, 180, 240),
    "Marine waters": (0, 80, 200),
}
"""The legend of CORINE Land Cover, with the greens of the 19 classes set further apart."""


def class_colours(classes: Sequence[str]) -> np.ndarray:
    """A colour a class, uint8 (K, 3): CORINE's where the name is one of the 19 classes, else spread over the hues."""
    import colorsys

    spread = [colorsys.hsv_to_rgb(i * 0.618 % 1, 0.55 + 0.3 * (i % 2), 0.9) for i in range(len(classes))]
    chosen = [
        _LAND_COVER.get(name, tuple(int(255 * v) for v in hue)) for name, hue in zip(classes, spread, strict=True)
    ]
    return np.array(chosen, np.uint8).reshape(-1, 3)


def colour_picture(stored: np.ndarray, bands: Sequence[str], reflectance: Reflectance, *, infrared: bool) -> np.ndarray:
    """Stored numbers (C, H, W) of named bands → uint8 (H, W, 3). Without the bands for colour: the first, in grey.

    A picture of `red green blue` is shown as it is.
    """
    names = list(bands)
    chosen = (false_colour(names) if infrared else None) or true_colour(names) or (names[0],) * 3
    picture = np.stack([stored[names.index(name)] for name in chosen], -1).astype(np.float64)
    if "red" in names:
        return np.clip(picture * (255 * reflectance.scale), 0, 255).astype(np.uint8)
    white = np.array([0.5, 0.25, 0.25] if infrared and false_colour(names) else [0.25] * 3)
    shown = np.clip((picture * reflectance.scale + reflectance.offset) / white, 0, 1) ** GAMMA
    rounded: np.ndarray = (shown * 255).round().astype(np.uint8)
    return rounded


def mask_picture(mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A class map (H, W) → uint8 (H, W, 3); what is ignored is white."""
    colours = class_colours(classes)
    shown = np.full((*mask.shape, 3), 255, np.uint8)
    known = mask < len(classes)
    shown[known] = colours[mask[known]]
    return shown


def contact_sheet(shard_set: ShardSet, split: str, count: int, seed: int) -> np.ndarray:
    """Patches drawn by `seed`: true colour, false colour and mask side by side, labels below: uint8 (H, W, 3)."""
    manifest = shard_set.manifest
    chosen = np.random.default_rng(seed).permutation(shard_set.size(split))[:count]
    mask_name, mask_spec = next(iter(manifest.masks.items()), (None, None))
    label_spec = next(iter(manifest.labels.items()), None)
    cells: list[tuple[list[np.ndarray], list[Caption]]] = []
    for index in chosen.tolist():
        sample = shard_set.read(split, index)
        image = shard_set.upsampled(sample)
        pictures = [colour_picture(image, manifest.band_names, manifest.reflectance, infrared=False)]
        if false_colour(manifest.band_names):
            pictures.append(colour_picture(image, manifest.band_names, manifest.reflectance, infrared=True))
        if mask_name and mask_spec:
            pictures.append(mask_picture(sample.masks[mask_name], mask_spec.classes))
        told = [sample.key]
        if label_spec:
            name, spec = label_spec
            value = sample.labels[name]
            present = np.flatnonzero(value).tolist() if isinstance(value, np.ndarray) else [value]
            told = [short_name(spec.classes[i]) for i in present]
        cells.append((pictures, [(", ".join(told), None)]))
    legend = mask_spec.classes if mask_spec else []
    return _grid(cells, legend, zoom=max(1, 132 // shard_set.grid[0]))


def view_sheet(views: Sequence[np.ndarray], manifest: Manifest, bands: Sequence[str]) -> np.ndarray:
    """Pairs of standardised views, each (N, C, S, S): both in true colour, then both in false; a column a sample.

    Standardisation is undone with the manifest's statistics; augmented values are shown as the encoder sees them.
    """
    mean = np.array([manifest.statistics[band].mean for band in bands])[:, None, None]
    std = np.array([manifest.statistics[band].std for band in bands])[:, None, None]
    rows = []
    for infrared in (False, True) if false_colour(bands) else (False,):
        for view in views:
            row = [colour_picture(v * std + mean, bands, manifest.reflectance, infrared=infrared) for v in view]
            rows.append(np.concatenate([_framed(picture) for picture in row], 1))
    sheet = np.concatenate(rows)
    zoom = max(1, round(1000 / sheet.shape[1]))
    return sheet.repeat(zoom, 0).repeat(zoom, 1)


def save_views(path: Path, views: Sequence[Any], manifest: Manifest, bands: Sequence[str]) -> None:
    """The first pair of `views`, tensors (N, C, S, S) on any device, of up to eight samples, as a PNG."""
    pair = [view[:8].float().numpy(force=True) for view in views[:2]]
    save_picture(path, view_sheet(pair, manifest, bands))


def prediction_sheet(
    rows: Sequence[tuple[np.ndarray, ...]], classes: Sequence[str], names: Sequence[str] = ("predicted",)
) -> np.ndarray:
    """Of each (true colour, truth (H, W), one class map (H, W) a name): all beside one another, with the legend.

    Pixels that the truth ignores are white in every map, for they count in no score.
    """
    cells: list[tuple[list[np.ndarray], list[Caption]]] = []
    for picture, truth, *maps in rows:
        shown = [mask_picture(np.where(truth == IGNORE, IGNORE, found), classes) for found in (truth, *maps)]
        cells.append(([picture, *shown], []))
    return _grid(cells, classes, zoom=1, headings=("image", "truth", *names))


def labelled_sheet(cells: Sequence[tuple[list[np.ndarray], list[Caption]]]) -> np.ndarray:
    """Pictures (H, W, 3) of each patch with captions below: (text, whether that is right, or None)."""
    return _grid(cells, (), zoom=1)


def short_name(name: str) -> str:
    """A class name that fits under a picture."""
    shorter = name.split(",")[0].replace("Land principally occupied by agriculture", "Agriculture + natural")
    return shorter if len(shorter) < 30 else shorter[:28] + "…"


def short_names(names: Sequence[str]) -> list[str]:
    """Short names of classes that stand beside each other: whole ones where the short ones would be the same."""
    short = [short_name(name) for name in names]
    return [told if short.count(told) == 1 else name for name, told in zip(names, short, strict=True)]


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG, atomically."""
    atomic.write_bytes(path, png(picture))


def png(picture: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=255)


def _grid(
    cells: Sequence[tuple[list[np.ndarray], list[Caption]]],
    legend: Sequence[str],
    zoom: int,
    headings: Sequence[str] = (),
) -> np.ndarray:
    """Cells of pictures in columns, captions under each, a legend of colours under all."""
    if not cells:
        raise BandstreamError("there is nothing to draw: ask for at least one patch")
    font = ImageFont.load_default(12)
    height, width = (side * zoom for side in cells[0][0][0].shape[:2])
    cell_width = len(cells[0][0]) * (width + 2) + GAP
    columns = max(1, min(len(cells), 1200 // cell_width))
    wrap = max(10, cell_width // 6)
    captions = [
        [(line, INKS[right]) for text, right in told for line in textwrap.wrap(text, wrap, subsequent_indent="  ")]
        for _, told in cells
    ]
    lines = max(map(len, captions))
    cell_height = height + 15 * lines + GAP + 4
    rows = -(-len(cells) // columns)
    top = GAP + (16 if headings else 0)
    keys = max(1, (columns * cell_width) // 230)
    sheet = Image.new(
        "RGB", (columns * cell_width + GAP, top + rows * cell_height + 18 * -(-len(legend) // keys) + GAP), WHITE
    )
    pen = ImageDraw.Draw(sheet)
    for number, (pictures, _) in enumerate(cells):
        x, y = GAP + number % columns * cell_width, top + number // columns * cell_height
        for i, picture in enumerate(pictures):
            enlarged = Image.fromarray(picture.repeat(zoom, 0).repeat(zoom, 1))
            sheet.paste(enlarged, (x + i * (width + 2), y))
            if headings and number < columns:
                pen.text((x + i * (width + 2), GAP - 2), headings[i], INK, font)
        for line, (text, ink) in enumerate(captions[number]):
            pen.text((x, y + height + 2 + 15 * line), text, ink, font)
    colours = class_colours(legend)
    for number, name in enumerate(legend):
        x, y = GAP + number % keys * 230, top + rows * cell_height + 18 * (number // keys)
        pen.rectangle((x, y + 2, x + 14, y + 13), tuple(colours[number].tolist()), FAINT)
        pen.text((x + 20, y), short_name(name), INK, font)
    return np.asarray(sheet)
