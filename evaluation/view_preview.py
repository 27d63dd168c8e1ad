"""Views as training sees them, beside the patches that they were cut from, with what was drawn for each in words."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.pictures import FAINT, GAP, INK, WHITE, colour_picture
from pipeline.describe import describe
from pipeline.draws import Draws
from pipeline.loader import Loader
from pipeline.views import Seasons, ViewRecipe
from shards.bands import false_colour
from shards.shardset import Sample, ShardSet

TILE = 240
"""Pictures are enlarged, by whole numbers, to at most so many pixels, unless they are larger; all views alike."""
WIDTH = 1300
"""The views of a patch that do not fit beside each other in so many pixels go on in a line below."""
LINE = 15
FONT = ImageFont.load_default(12)
HEADING = "patch in true colour with its views' windows, each view in true colour{infrared}, and what was drawn for it"
OUTLINES = (
    (214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 150, 170), (200, 80, 170),
    (140, 86, 75),
)  # fmt: skip
Colour = tuple[int, int, int]


def views_preview(
    shard_set: ShardSet,
    split: str,
    count: int,
    seed: int,
    views: Sequence[ViewRecipe],
    *,
    views_seed: int = 0,
    seasons: Seasons = "first",
    bands: Sequence[str] | None = None,
) -> np.ndarray:
    """Patches drawn by `seed`, a row each: the patch with the outlines of its views' windows (once a date that they
    show), then each view in true colour and in near-infrared false colour, with its draws: uint8 (H, W, 3).

    The views are those that training with `views_seed` takes in its first epoch, with their standardisation undone;
    nothing is stretched for the eye, so that views compare with patches and with each other.
    """
    chosen = np.random.default_rng(seed).permutation(shard_set.size(split))[:count]
    loader = Loader(shard_set, split, len(chosen), views, seed=views_seed, training=False, subset=chosen,
                    seasons=seasons, bands=bands)  # fmt: skip
    batch = next(iter(loader))
    indices = batch.indices.numpy()
    draws = loader.draws(indices)
    mean, std = (values[:, None, None] for values in loader.statistics)
    zoom = min(_zoom(*view.shape[2:]) for view in batch.views)
    rows = []
    for n, index in enumerate(indices.tolist()):
        sample = shard_set.read(split, index)
        blocks = _patches(shard_set, sample, draws, n)
        for number, view in enumerate(batch.views):
            stored = view[n].numpy() * std + mean
            kinds = (False, True) if false_colour(loader.bands) else (False,)
            shown = [
                colour_picture(stored, loader.bands, shard_set.manifest.reflectance, infrared=infrared)
                for infrared in kinds
            ]
            told = ", ".join(describe(draws[number], n, loader.bands))
            blocks.append(_block(shown, [(f"view {number + 1}", _outline(number)), (told, INK)], zoom))
        rows.append(_flow(blocks))
    loader.close()
    infrared = " and near-infrared false colour" if false_colour(loader.bands) else ""
    return _stacked(rows, HEADING.format(infrared=infrared))


def _outline(view: int) -> Colour:
    return OUTLINES[view % len(OUTLINES)]


def _patches(shard_set: ShardSet, sample: Sample, draws: Sequence[Draws], n: int) -> list[Image.Image]:
    """The patch at each date that a view shows, in true colour, with the windows of those views."""
    manifest = shard_set.manifest
    times = sorted({array.time for array in manifest.arrays.values()})
    names = sample.json.get("dates") or [sample.json.get("date", "")]
    blocks = []
    for date in dict.fromkeys(int(drawn.date[n]) for drawn in draws):
        stored = shard_set.upsampled(sample, times[date])
        shown = colour_picture(stored, manifest.band_names, manifest.reflectance, infrared=False)
        zoom = _zoom(*shown.shape[:2])
        picture = Image.fromarray(shown.repeat(zoom, 0).repeat(zoom, 1))
        pen = ImageDraw.Draw(picture)
        for number, drawn in enumerate(draws):
            if int(drawn.date[n]) == date:
                top, left = drawn.start[n] * shown.shape[:2] * zoom
                bottom, right = drawn.end[n] * shown.shape[:2] * zoom - 1
                pen.rectangle((left, top, right, bottom), outline=_outline(number), width=2)
        when = str(names[date])[:10] if date < len(names) else f"date {date}"
        blocks.append(_block([np.asarray(picture)], [(sample.key, FAINT), (when, FAINT)], 1))
    return blocks


def _zoom(height: int, width: int) -> int:
    return max(1, TILE // max(height, width))


def _block(pictures: Sequence[np.ndarray], told: Sequence[tuple[str, Colour]], zoom: int) -> Image.Image:
    """Pictures (H, W, 3) beside each other, with texts below."""
    height, width = (side * zoom for side in pictures[0].shape[:2])
    whole = max(len(pictures) * (width + 2) - 2, 2 * TILE // 3)
    lines = [(line, ink) for text, ink in told for line in _wrapped(text, whole)]
    block = Image.new("RGB", (whole, height + 4 + LINE * len(lines)), WHITE)
    for i, picture in enumerate(pictures):
        block.paste(Image.fromarray(picture.repeat(zoom, 0).repeat(zoom, 1)), (i * (width + 2), 0))
    pen = ImageDraw.Draw(block)
    for line, (text, ink) in enumerate(lines):
        pen.text((0, height + 2 + LINE * line), text, ink, FONT)
    return block


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many pixels."""
    letters = len(text) or 1
    while max((FONT.getlength(line) for line in textwrap.wrap(text, letters)), default=0) > width and letters > 1:
        letters -= 1
    return textwrap.wrap(text, letters)


def _flow(blocks: Sequence[Image.Image]) -> Image.Image:
    """Blocks from left to right, and on in lines below."""
    places, x, y, below = [], GAP, GAP, 0
    for block in blocks:
        if x > GAP and x + block.width + GAP > WIDTH:
            x, y, below = GAP, y + below + GAP, 0
        places.append((x, y))
        x, below = x + block.width + 2 * GAP, max(below, block.height)
    widest = max(left + block.width for (left, _), block in zip(places, blocks, strict=True))
    flow = Image.new("RGB", (widest + GAP, y + below + GAP), WHITE)
    for place, block in zip(places, blocks, strict=True):
        flow.paste(block, place)
    return flow


def _stacked(rows: Sequence[Image.Image], heading: str) -> np.ndarray:
    """Rows under each other below a heading, thin lines between them."""
    width = max(row.width for row in rows)
    lines = _wrapped(heading, width - 2 * GAP)
    y = GAP + LINE * len(lines)
    sheet = Image.new("RGB", (width, y + sum(row.height for row in rows)), WHITE)
    pen = ImageDraw.Draw(sheet)
    for line, text in enumerate(lines):
        pen.text((GAP, GAP // 2 + LINE * line), text, FAINT, FONT)
    for row in rows:
        sheet.paste(row, (0, y))
        pen.line((0, y, width, y), (225, 228, 232))
        y += row.height
    return np.asarray(sheet)
