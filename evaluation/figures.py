"""Figures of results, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.pictures import short_name

ACCENTS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#b83280", "#4a5568")


def curves(lines: Mapping[str, Sequence[float]], steps: Sequence[float], x_label: str) -> bytes:
    """Small panels, one a quantity, over the same steps."""
    figure, axes = panels(len(lines), width=3.6, height=2.6)
    for axis, (name, values), colour in zip(axes, lines.items(), ACCENTS * 3, strict=False):
        axis.plot(steps[: len(values)], values, color=colour, linewidth=1.6)
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xlabel(x_label, fontsize=8)
    return png_of(figure)


def class_bars(runs: Mapping[str, Mapping[str, float]], title: str) -> bytes:
    """Horizontal bars, a group a class and a bar a run: a PNG."""
    return png_of(bars_figure(runs, title))


def bars_figure(runs: Mapping[str, Mapping[str, float]], title: str) -> Any:
    """Horizontal bars, a group a class and a bar a run: a figure of matplotlib."""
    classes = list(dict.fromkeys(name for values in runs.values() for name in values))
    figure, (axis,) = panels(1, width=7.5, height=1 + 0.13 * len(classes) * (len(runs) + 1))
    thick = 0.8 / max(len(runs), 1)
    for number, ((run, values), colour) in enumerate(zip(runs.items(), ACCENTS * 3, strict=False)):
        places = np.arange(len(classes)) + (number - (len(runs) - 1) / 2) * thick
        axis.barh(places, [values.get(name, 0) for name in classes], thick, color=colour, label=legend_name(run))
    axis.set_yticks(np.arange(len(classes)), [legend_name(name) for name in classes], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_title(title.replace("$", r"\$"), fontsize=10, loc="left")
    figure.legend(fontsize=8, frameon=False, loc="outside lower left", ncols=min(len(runs), 3))
    return figure


def confusion_figure(table: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """A confusion matrix, each row as shares of its true class; classes that occur nowhere are left out."""
    there = np.flatnonzero(np.sum(table, 0) + np.sum(table, 1))
    side = 2.2 + 0.34 * len(there)
    figure, (axis,) = panels(1, width=side + 1.2, height=side)
    confusion_axes(axis, table, classes)
    return png_of(figure)


def confusion_axes(axis: Any, table: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw what `confusion_figure` shows onto one axis."""
    counts = np.asarray(table)
    there = np.flatnonzero(counts.sum(0) + counts.sum(1)).tolist()
    counts = counts[np.ix_(there, there)]
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [legend_name(classes[k]) for k in there]
    axis.set_xticks(range(len(there)), names, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(there)), names, fontsize=8)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    axis.spines[:].set_visible(False)
    for row, column in np.ndindex(shares.shape):
        if shares[row, column] >= 0.005:
            ink = "white" if shares[row, column] > 0.55 else "#1a202c"
            axis.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=6, color=ink)


def reliability_figure(diagrams: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Reliability diagrams of `evaluation.calibration`, side by side: how often what is said with some confidence is
    right; dots grow with the number of samples."""
    figure, axes = panels(len(diagrams), width=3.4, height=3.4)
    for axis, (name, found) in zip(axes, diagrams.items(), strict=True):
        bins = found["bins"]
        counts = np.array([b["count"] for b in bins])
        confidence, right = [b["confidence"] for b in bins], [b["right"] for b in bins]
        axis.plot([0, 1], [0, 1], color="#a0aec0", linewidth=1, linestyle="--")
        axis.plot(confidence, right, color=ACCENTS[0], linewidth=1.4)
        axis.scatter(confidence, right, s=6 + 60 * counts / counts.max(), color=ACCENTS[0])
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_title(f"{name}: ECE {found['ece']:.3f}", fontsize=10, loc="left")
        axis.set_xlabel("confidence", fontsize=8)
        axis.set_ylabel("share right", fontsize=8)
    return png_of(figure)


def separation_figure(scores: Mapping[str, tuple[np.ndarray, np.ndarray]], titles: Mapping[str, str]) -> bytes:
    """A panel a score: its distribution over samples of the set (filled) and over those from outside (dashed line)."""
    figure, axes = panels(len(scores), width=3.4, height=2.6)
    for axis, (name, (inside, outside)) in zip(axes, scores.items(), strict=True):
        low, high = np.quantile(np.concatenate([inside, outside]), [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for values, style in (
            (inside, {"histtype": "stepfilled", "color": ACCENTS[0], "alpha": 0.45, "label": "of the set"}),
            (outside, {"histtype": "step", "color": "#c05621", "linestyle": "--", "label": "from outside"}),
        ):
            axis.hist(values, edges, density=True, **style)
        axis.set_yticks([])
        axis.set_title(titles[name], fontsize=9, loc="left")
        axis.legend(fontsize=7, frameon=False)
    return png_of(figure)


def legend_name(name: str) -> str:
    """A class name as matplotlib shows it unchanged: it takes $ for mathematics, and leaves out what begins with _."""
    shown = short_name(name).replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of `count` panels in rows of three, each `width` by `height` inches, and its axes."""
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def png_of(figure: Any) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
