"""Queries and their neighbours as a picture: right ones framed and ticked, wrong ones dashed and crossed."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.pictures import FAINT, GAP, INK, WHITE, colour_picture, short_name
from shards.manifest import LabelSpec
from shards.shardset import ShardSet

TILE, LINE = 104, 13
RIGHT, WRONG = (0, 130, 95), (200, 80, 0)
CAPTION_LINES = 3


def neighbour_sheet(
    shard_set: ShardSet, label: tuple[str, LabelSpec], queries: np.ndarray, neighbours: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Rows of a test patch, then its nearest train patches (nearest first), in true colour: uint8 (H, W, 3).

    `queries` (q,) sample numbers of test, `neighbours` (q, k) of train, `right` bool (q, k). Right and wrong differ in
    colour, in the frame (whole or dashed) and in the mark (tick or cross). Captions: the labels.
    """
    font = ImageFont.load_default(11)
    rows, columns = neighbours.shape
    cell, height = TILE + GAP, TILE + LINE * CAPTION_LINES + GAP + 4
    sheet = Image.new("RGB", (GAP + cell * (columns + 1) + GAP, 24 + rows * height), WHITE)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 6), "asked", INK, font)
    pen.text((2 * GAP + cell, 6), "nearest train patches, nearest first; tick: of its kind, cross: not", INK, font)
    for row in range(rows):
        y = 24 + row * height
        cells: list[tuple[str, int, bool | None]] = [("test", int(queries[row]), None)]
        cells += [("train", int(n), bool(r)) for n, r in zip(neighbours[row], right[row], strict=True)]
        for column, (split, index, correct) in enumerate(cells):
            x = GAP + column * cell + (GAP if column else 0)
            picture, told = _patch(shard_set, label, split, index)
            sheet.paste(picture, (x, y))
            if correct is not None:
                _mark(pen, x, y, correct)
            for line, text in enumerate(textwrap.wrap(told, TILE // 6)[:CAPTION_LINES]):
                pen.text((x, y + TILE + 3 + LINE * line), text, INK if correct is None else FAINT, font)
    return np.asarray(sheet)


def _patch(shard_set: ShardSet, label: tuple[str, LabelSpec], split: str, index: int) -> tuple[Image.Image, str]:
    sample = shard_set.read(split, index)
    manifest = shard_set.manifest
    picture = colour_picture(shard_set.upsampled(sample), manifest.band_names, manifest.reflectance, infrared=False)
    name, spec = label
    value = sample.labels[name]
    present: Sequence[int] = np.flatnonzero(value).tolist() if isinstance(value, np.ndarray) else [value]
    told = ", ".join(short_name(spec.classes[k]) for k in present) or "no label"
    return Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.NEAREST), told


def _mark(pen: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """A frame and, on a white disc in the corner, a tick or a cross: drawn, for small fonts have neither."""
    ink, last = (RIGHT if right else WRONG), TILE - 1
    if right:
        pen.rectangle((x, y, x + last, y + last), outline=ink, width=3)
    else:
        for start in range(0, TILE, 12):
            end = min(start + 6, last)
            for line in ((x + start, y, x + end, y + 2), (x + start, y + last - 2, x + end, y + last),
                         (x, y + start, x + 2, y + end), (x + last - 2, y + start, x + last, y + end)):  # fmt: skip
                pen.rectangle(line, fill=ink)
    at_x, at_y = x + TILE - 22, y + 4
    pen.ellipse((at_x, at_y, at_x + 17, at_y + 17), WHITE, ink)
    if right:
        pen.line([(at_x + 4, at_y + 9), (at_x + 8, at_y + 13), (at_x + 14, at_y + 5)], ink, 3)
    else:
        pen.line([(at_x + 5, at_y + 5), (at_x + 13, at_y + 13)], ink, 3)
        pen.line([(at_x + 13, at_y + 5), (at_x + 5, at_y + 13)], ink, 3)
