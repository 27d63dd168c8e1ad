"""Test samples on which an encoder does worst, and best, beside whom it is held against."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.intervals import align
from evaluation.pictures import class_colours, colour_picture, mask_picture, png, short_names
from evaluation.predictions import Predictions
from evaluation.report.comparison.rows import Row, labels_told, predictions, told
from evaluation.report.words import picture, signed
from evaluation.runs import read_json
from evaluation.samples import sample_keys
from shards.errors import BandstreamError
from shards.shardset import ShardSet

SHOWN = 6
ABOUT = {
    "single": "the probability that is given to the true class",
    "multilabel": "the mean probability, over classes, of what is true (that a class is there, or that it is not)",
    "segment": "the share of pixels that are right",
}
RIGHT = {"single": "{:.2f} for the true class", "multilabel": "{:.2f} right", "segment": "{:.2f} of pixels right"}


def examples(out: Path, row: Row, beside: Row, datasets: dict[str, Path]) -> dict[str, Any] | None:
    """Both kinds of samples, with pictures where the shard set is at hand; None without predictions of both rows."""
    try:
        ours, theirs = predictions(out, row), predictions(out, beside)
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return None
        runs = align([*(ours[seed] for seed in seeds), *(theirs[seed] for seed in seeds)])
    except BandstreamError:
        return None
    sides = runs[: len(seeds)], runs[len(seeds) :]
    a, b = (np.mean([rightness(run) for run in side], 0) for side in sides)
    ahead = a - b
    known = np.flatnonzero(np.isfinite(ahead))
    order = known[np.argsort(ahead[known], kind="stable")]
    pictures = _Pictures(out, row, runs[0], datasets)
    groups = []
    for title, chosen in (
        (f"Worst: {told(row)} is furthest behind {told(beside)}", [k for k in order[:SHOWN] if ahead[k] < 0]),
        (f"Best: {told(row)} is furthest ahead", [k for k in order[::-1][:SHOWN] if ahead[k] > 0]),
    ):
        cells = [
            {"key": str(runs[0].keys[k]), **pictures.of(str(runs[0].keys[k])), "truth": _truth(runs[0], k),
             "said": [{"name": told(one), "text": _said(side, k), "right": RIGHT[runs[0].kind].format(right[k])}
                      for one, side, right in ((beside, sides[1], b), (row, sides[0], a))],
             "difference": signed(float(ahead[k]))}
            for k in chosen
        ]  # fmt: skip
        if cells:
            groups.append({"title": title, "cells": cells})
    if not groups:
        return None
    return {
        "text": f"{told(row)} beside {told(beside)}, {labels_told([row])}, by {ABOUT[runs[0].kind]}"
        + (f", with scores that are means over {len(seeds)} seeds" if len(seeds) > 1 else "")
        + f": {int((ahead[known] > 0).sum()):,} of {len(known):,} test samples got better, "
        f"{int((ahead[known] < 0).sum()):,} worse.",
        "groups": groups, "legend": pictures.legend(),
    }  # fmt: skip


def rightness(run: Predictions) -> np.ndarray:
    """How right a run is on each sample, 0 to 1, float64 (n,): see `ABOUT`. NaN where nothing is known."""
    scores = run.scores.astype(np.float64)
    if run.kind == "single":
        found: np.ndarray = scores[np.arange(len(scores)), run.truth]
    elif run.kind == "multilabel":
        found = np.where(run.truth > 0, scores, 1 - scores).mean(1)
    else:
        total = scores.sum((1, 2))
        found = np.where(total > 0, np.trace(scores, axis1=1, axis2=2) / np.maximum(total, 1), np.nan)
    return found


def _truth(run: Predictions, k: int) -> str:
    classes = short_names(run.classes)
    if run.kind == "single":
        return classes[int(run.truth[k])]
    if run.kind == "multilabel":
        return ", ".join(classes[c] for c in np.flatnonzero(run.truth[k])) or "no class"
    shares = run.scores[k].sum(1)
    return _shares(shares, classes)


def _said(side: Sequence[Predictions], k: int) -> str:
    scores = np.mean([run.scores[k] for run in side], 0)
    classes = short_names(side[0].classes)
    if side[0].kind == "single":
        return classes[int(scores.argmax())]
    if side[0].kind == "multilabel":
        return ", ".join(classes[c] for c in np.flatnonzero(scores > 0.5)) or "no class"
    return _shares(scores.sum(0), classes)


def _shares(pixels: np.ndarray, classes: Sequence[str]) -> str:
    """The three largest classes of a map, with their shares."""
    order = [c for c in np.argsort(-pixels, kind="stable")[:3].tolist() if pixels[c] > 0]
    return ", ".join(f"{classes[c]} {pixels[c] / pixels.sum():.0%}" for c in order) or "nothing"


class _Pictures:
    """Of test samples by key: true colour, and the class map where the comparison segments."""

    def __init__(self, out: Path, row: Row, run: Predictions, datasets: dict[str, Path]) -> None:
        self.run, self.shown = run, set[int]()
        self.set: ShardSet | None = None
        self.target = ""
        try:
            results = read_json(out / row["folders"][0] / "results.json")
            place = datasets.get(results["data"]["manifest"])
            if place is not None:
                self.set = ShardSet.open(place)
                self.numbers = {key: k for k, key in enumerate(sample_keys(self.set, "test").tolist())}
                self.target = results.get("target") or next(iter(self.set.manifest.masks), "")
        except (BandstreamError, KeyError, IndexError, TypeError):
            self.set = None

    def of(self, key: str) -> dict[str, Any]:
        """`picture`, and `map` of a segmentation: data URIs, or None."""
        if self.set is None or key not in self.numbers:
            return {"picture": None, "map": None}
        sample, manifest = self.set.read("test", self.numbers[key]), self.set.manifest
        image = colour_picture(self.set.upsampled(sample), manifest.band_names, manifest.reflectance, infrared=False)
        mask = None
        if self.run.kind == "segment" and self.target in sample.masks:
            held = sample.masks[self.target]
            self.shown |= {k for k in np.unique(held).tolist() if k < len(self.run.classes)}
            mask = picture(png(mask_picture(held, self.run.classes)))
        return {"picture": picture(png(image)), "map": mask}

    def legend(self) -> list[dict[str, str]]:
        colours = class_colours(self.run.classes)
        return [{"name": self.run.classes[k], "colour": "#{:02x}{:02x}{:02x}".format(*colours[k].tolist())}
                for k in sorted(self.shown)]  # fmt: skip
