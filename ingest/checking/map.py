"""Where the samples of a shard set lie, as a picture: points by split, or their density where they are many.

Longitude and latitude are drawn as they are (plate carrée), stretched so that at the middle latitude a kilometre is as
long from west to east as from south to north.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ingest.checking.overview import batches
from shards import atomic
from shards.errors import BandstreamError
from shards.shardset import ShardSet

POINTS = 20_000
"""More samples than these are drawn as a density."""
COLOURS = {"train": "#0072b2", "val": "#e69f00", "test": "#d55e00"}
"""Of Okabe and Ito's palette, which people tell apart whatever their colour vision."""
COUNTRIES = 60
"""Names of more countries would cover the map."""
CELLS = 300
"""Of the density's grid, along the longer side."""


class _Places:
    """Longitude and latitude, float32 (n,), number of the split and of the country, of the samples whose place is
    known: 11 bytes a sample."""

    def __init__(self, opened: ShardSet) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.splits = list(opened.manifest.splits)
        self.countries: list[str] = []
        parts: list[tuple[np.ndarray, ...]] = []
        self.unknown = 0
        for batch in batches(opened, ["split", "lon", "lat", "country"]):
            known = pc.and_(pc.is_valid(batch["lon"]), pc.is_valid(batch["lat"])).to_numpy(zero_copy_only=False)
            self.unknown += int((~known).sum())
            split = pc.index_in(batch["split"], pa.array(self.splits)).to_numpy(zero_copy_only=False)
            country = np.full(len(batch), -1, np.int16)
            if "country" in batch.schema.names:
                names = pc.fill_null(batch["country"], "")
                self.countries += sorted(set(pc.unique(names).to_pylist()) - {*self.countries, ""})
                found = pc.fill_null(pc.index_in(names, pa.array(self.countries, pa.string())), -1)
                country = found.to_numpy(zero_copy_only=False).astype("i2")
            lon, lat = (batch[name].to_numpy(zero_copy_only=False) for name in ("lon", "lat"))
            parts.append((lon[known].astype("f4"), lat[known].astype("f4"), split[known].astype("u1"), country[known]))
        nothing = (np.empty(0, "f4"), np.empty(0, "f4"), np.empty(0, "u1"), np.empty(0, "i2"))
        columns = [np.concatenate(column) for column in zip(nothing, *parts, strict=True)]
        self.lon, self.lat, self.split, self.country = columns


def draw(place: Path | str, path: Path) -> int:
    """Write the map as a PNG; how many samples it shows. Raises BandstreamError where no place is known."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    opened = ShardSet.open(place)
    places = _Places(opened)
    if not len(places.lon):
        raise BandstreamError(f"{place}: the place of not one sample is known: there is nothing to map")
    west, east = _widened(float(places.lon.min()), float(places.lon.max()))
    south, north = _widened(float(places.lat.min()), float(places.lat.max()))
    stretch = 1 / max(math.cos(math.radians((south + north) / 2)), 0.2)
    shape = (north - south) * stretch / (east - west)  # height by width
    width = 8.0 if shape < 1 else max(8.0 / shape, 4.0)
    figure = Figure(figsize=(width + 1.6, min(max(width * shape, 3.0), 9.0) + 1.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("#f4f6f8")
    axes.grid(color="#c5ccd3", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(places.lon) <= POINTS:
        _points(axes, places)
    else:
        _density(figure, axes, places, (west, east), (south, north), shape)
    _names(axes, places)
    axes.set_xlim(max(west, -180), min(east, 180))
    axes.set_ylim(max(south, -90), min(north, 90))
    axes.set_aspect(stretch)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees(value, "EW"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "NS"))
    axes.tick_params(length=0, labelsize=8, colors="#4a5560")
    for spine in axes.spines.values():
        spine.set_color("#9aa4ae")
    unknown = f"; the place of {places.unknown:,} is unknown" if places.unknown else ""
    axes.set_title(f"{opened.manifest.name}: {len(places.lon):,} samples{unknown}", fontsize=10, loc="left")
    with atomic.replacing(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15)
    return len(places.lon)


def _points(axes: Any, places: _Places) -> None:
    """A point a sample, the smaller splits over the larger."""
    numbers = np.bincount(places.split, minlength=len(places.splits))
    size = float(np.clip(4000 / len(places.lon), 4, 40))
    for order, split in enumerate(np.argsort(-numbers, kind="stable")):
        own = places.split == split
        name = places.splits[split]
        axes.scatter(
            places.lon[own],
            places.lat[own],
            s=size,
            color=COLOURS.get(name, "#555555"),
            alpha=0.75,
            linewidths=0,
            label=f"{name} {numbers[split]:,}",
            zorder=3 + order,
        )
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    for handle in legend.legend_handles:
        handle.set_sizes([36])
        handle.set_alpha(1)


def _density(
    figure: Any, axes: Any, places: _Places, x: tuple[float, float], y: tuple[float, float], shape: float
) -> None:
    """Samples by cell of a grid, in logarithmic steps of colour; how many a split has beside it."""
    from matplotlib.colors import LogNorm

    cells = (CELLS, max(int(CELLS * shape), 8)) if shape < 1 else (max(int(CELLS / shape), 8), CELLS)
    counts = np.histogram2d(places.lon, places.lat, cells, (x, y))[0].T
    shown = axes.imshow(
        np.ma.masked_equal(counts, 0),
        origin="lower",
        extent=(*x, *y),
        cmap="viridis",
        norm=LogNorm(1, max(counts.max(), 2)),
        interpolation="nearest",
        zorder=3,
    )
    side = (y[1] - y[0]) / cells[1] * 111.2
    bar = figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(f"samples a cell of {side:.2g} km", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    numbers = np.bincount(places.split, minlength=len(places.splits))
    told = "   ".join(f"{name} {number:,}" for name, number in zip(places.splits, numbers, strict=True))
    axes.set_xlabel(told, fontsize=9)


def _names(axes: Any, places: _Places) -> None:
    """The countries' names, each over the densest of its samples: the map has no coastlines to go by."""
    from matplotlib.patheffects import withStroke

    if len(places.countries) > COUNTRIES:
        return
    for number, name in enumerate(places.countries):
        own = np.flatnonzero(places.country == number)
        if len(own):
            cells = np.floor(places.lon[own] / 2) * 1000 + np.floor(places.lat[own] / 2)  # of two degrees
            values, counts = np.unique(cells, return_counts=True)
            own = own[cells == values[counts.argmax()]]
            axes.annotate(
                name,
                (float(np.median(places.lon[own])), float(places.lat[own].max())),
                xytext=(0, 4),
                textcoords="offset points",
                fontsize=8,
                color="#1d2730",
                ha="center",
                va="bottom",
                zorder=9,
                path_effects=[withStroke(linewidth=2.2, foreground="white", alpha=0.85)],
            )


def _widened(low: float, high: float) -> tuple[float, float]:
    """A span with a margin: a twentieth on each side, at least 0.02 degrees."""
    margin = max((high - low) / 20, 0.02)
    return low - margin, high + margin


def _degrees(value: float, ends: str) -> str:
    return f"{abs(value):.6g}°{ends[int(value < 0)] if value else ''}"
