"""Figures of a comparison as files, for papers and talks: label efficiency, classes, confusions."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.figures import ACCENTS, bars_figure, confusion_axes, legend_name, panels
from evaluation.report.comparison.classes import MEASURES, class_names
from evaluation.report.comparison.contest import contest
from evaluation.report.comparison.rows import (
    Row,
    identity,
    in_lead,
    is_baseline,
    main_score,
    ranked,
    told,
)
from evaluation.report.words import NAMES, percent, sentence
from evaluation.runs import COMPARISON, read_json
from shards import atomic

FOLDER = "figures"
GREY = "#6e7781"
MARKERS = "sD^vPXo"
LINES = 7


def write_figures(out: Path) -> list[Path]:
    """Write OUT/figures/*.png and *.svg from OUT/comparison.json; returns the files.

    `efficiency-PROTOCOL`: score over label fraction, where there are several. `classes-PROTOCOL`: bars of each class
    with the fewest labels. `confusion-PROTOCOL`: of the best encoder and of whom it is held against, fewest labels.
    Raises BandstreamError where comparison.json cannot be read.
    """
    comparison = read_json(out / COMPARISON)
    (out / FOLDER).mkdir(exist_ok=True)
    written = []
    for name, figure in _figures(out, comparison):
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            # dates left out: the same numbers give the same file
            figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
            path = out / FOLDER / f"{name}.{kind}"
            atomic.write_bytes(path, buffer.getvalue())
            written.append(path)
    return written


def _figures(out: Path, comparison: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for protocol in comparison["protocols"]:
        rows = in_lead([row for row in comparison["rows"] if row["protocol"] == protocol["name"]])
        if not rows:
            continue
        slug = re.sub(r"[^\w.]+", "-", protocol["name"]).strip("-") or "protocol"
        fractions = sorted({row["label_fraction"] for row in rows})
        if len(fractions) > 1:
            yield f"efficiency-{slug}", _efficiency(rows, comparison, fractions, protocol["name"])
        few = [row for row in rows if row["label_fraction"] == fractions[0]]
        best, beside = contest(out, few, comparison)
        share = f"{percent(fractions[0])} of the labels"
        measure = MEASURES.get(few[0]["score"], "f1")
        shown = {told(row): row["per_class"][measure] for row in (beside, best)
                 if row and measure in (row.get("per_class") or {})}  # fmt: skip
        if shown:
            title = f"{protocol['name']}: {NAMES[measure]} of each class, {share}"
            yield f"classes-{slug}", bars_figure(shown, title)
        tables = [row for row in (beside, best) if row and row.get("confusion")]
        if tables:
            yield f"confusion-{slug}", _confusions(out, tables, share)


def _efficiency(rows: Sequence[Row], comparison: dict[str, Any], fractions: Sequence[float], name: str) -> Any:
    from matplotlib.ticker import NullLocator

    figure, (axis,) = panels(1, width=6.2, height=4.2)
    style = floors = 0
    for one in ranked(rows):
        own = sorted((row for row in rows if identity(row) == one), key=lambda row: float(row["label_fraction"]))
        xs, found = [row["label_fraction"] for row in own], [main_score(row) for row in own]
        means, label = [score["mean"] for score in found], legend_name(told(own[0]))
        if own[0].get("floor"):
            dashes = ("--", ":", "-.")[floors % 3]
            axis.plot(xs, means, dashes, color=GREY, linewidth=1.2, label=f"{label} (floor)")
            floors += 1
            continue
        colour, marker = GREY, "o"
        if not is_baseline(own[0], comparison):
            if style == LINES - 1:
                continue
            colour, marker = ACCENTS[style % len(ACCENTS)], MARKERS[style % len(MARKERS)]
            style += 1
        axis.fill_between(xs, [score["low"] for score in found], [score["high"] for score in found], color=colour,
                          alpha=0.12, linewidth=0)  # fmt: skip
        axis.plot(xs, means, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)
    axis.set_xscale("log")
    axis.set_xticks(fractions, [percent(fraction) for fraction in fractions])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("labels of the train split", fontsize=9)
    score = NAMES.get(rows[0]["score"], rows[0]["score"])
    axis.set_ylabel(f"{score} on the test split", fontsize=9)
    axis.set_title(sentence(f"{legend_name(name)}: {score} over labels, 95 % intervals"), fontsize=10, loc="left")
    axis.legend(fontsize=8, frameon=False, loc="best")
    return figure


def _confusions(out: Path, rows: Sequence[Row], share: str) -> Any:
    size = len(rows[0]["confusion"])
    side = 2.2 + 0.34 * size
    figure, axes = panels(len(rows), width=side + 1.2, height=side)
    for axis, row in zip(axes, rows, strict=True):
        confusion_axes(axis, row["confusion"], class_names(out, row, size))
        axis.set_title(f"{legend_name(told(row))}, {share}", fontsize=10, loc="left")
    return figure
