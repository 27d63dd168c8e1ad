"""`bandstream bench chart`: a record's rates as horizontal bars, readable on light and on dark pages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bench.comparison import RATES, record_of
from bench.loaders import OURS
from shards.errors import BandstreamError

INK, FAINT, OTHERS, OWN = "#7d8590", "#7d859055", "#8b949e", "#2f81f7"
"""Of middle lightness: each stands out from white as from GitHub's #0d1117, and nothing is drawn behind."""
PANELS = {
    "loader": {"two views": "Pairs of 12-band views, samples/s", "read": "Reading alone, shuffled, samples/s"},
    "ingest": {"": "Ingest, patches/s on one core"},
}


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A .svg or .png file.")
def chart(record: Path, out: Path) -> None:
    """Draw a RECORD of `bench loader` or `bench ingest`: medians as bars, the lowest and the highest as whiskers."""
    if out.suffix not in (".svg", ".png"):
        raise BandstreamError(f"{out}: a chart is a .svg or a .png")
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(record_of(record), out)
    click.echo(out)


def panels(record: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float]]]:
    """Title → name → summary of its rate, ours first, the others by their median, quickest first."""
    found = {}
    bench = record.get("bench", "ingest")
    if bench not in PANELS:
        raise BandstreamError(f"no chart is known for a record of {bench}: there are {', '.join(PANELS)}")
    for kind, title in PANELS[bench].items():
        ending = f", {kind}" if kind else ""
        rates = {
            name.removesuffix(ending): next(run[rate] for rate in RATES if rate in run)
            for name, run in record["runs"].items()
            if name.endswith(ending)
        }
        names = sorted(rates, key=lambda name: (not name.startswith(OURS), -rates[name]["median"]))
        found[title] = {name: rates[name] for name in names}
    return found


def draw(record: Mapping[str, Any], out: Path) -> None:
    """Draw to a file whose ending says the format."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    found = panels(record)
    heights = [len(rates) for rates in found.values()]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bandstream", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 0.7 * len(found) + 0.31 * sum(heights)), layout="constrained", dpi=150)
        axes = figure.subplots(len(found), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axis, (title, rates) in zip(axes, found.items(), strict=True):
            _bars(axis, title, rates)
        figure.savefig(out, transparent=True, metadata={"Date": None} if out.suffix == ".svg" else None)


def _bars(axis: Any, title: str, rates: Mapping[str, Mapping[str, float]]) -> None:
    medians = [rate["median"] for rate in rates.values()]
    reach = [
        [rate["median"] - rate["min"] for rate in rates.values()],
        [rate["max"] - rate["median"] for rate in rates.values()],
    ]
    colours = [OWN if name.startswith(OURS) else OTHERS for name in rates]
    axis.barh(range(len(rates)), medians, 0.66, color=colours, xerr=reach, error_kw={"ecolor": INK, "capsize": 2.5})
    most = max(rate["max"] for rate in rates.values())
    for place, rate in enumerate(rates.values()):
        axis.text(rate["max"] + most * 0.015, place, f"{rate['median']:,.0f}", color=INK, va="center", fontsize=9)
    axis.set_yticks(range(len(rates)), list(rates), fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, most * 1.1)
    axis.set_title(title, fontsize=10, loc="left", color=INK, fontweight="bold")
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.xaxis.set_visible(False)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(FAINT)
