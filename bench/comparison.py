"""`bandstream bench compare`: what got slower between two records of the same bench."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from shards.errors import BandstreamError

RATES = ("samples_per_s", "patches_per_s")
LEAST_RUNS = 3
LEAST_CHANGE = 0.02


@dataclass(frozen=True)
class Change:
    """One run's rate (or memory), before and after: summaries of n, median, min, max."""

    name: str
    measure: str
    old: Mapping[str, float]
    new: Mapping[str, float]

    @property
    def change(self) -> float:
        """Of the median, as a share of the old one."""
        return self.new["median"] / self.old["median"] - 1

    @property
    def verdict(self) -> str:
        """See `compare`."""
        more, less = ("faster", "slower") if self.measure in RATES else ("more memory", "less memory")
        if min(self.old["n"], self.new["n"]) < LEAST_RUNS:
            return "too few runs to say"
        if abs(self.change) >= LEAST_CHANGE:
            if self.new["min"] > self.old["max"]:
                return more
            if self.new["max"] < self.old["min"]:
                return less
        return "the same, within the spread"


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--anyway", is_flag=True, help="Compare records of other machines or set-ups, with a warning.")
def compare(old: Path, new: Path, anyway: bool) -> None:
    """What got slower from the record OLD to the record NEW of one bench; exit code 1 if anything did.

    A run is slower (or faster) where both records have at least 3 repeats of it, its medians differ by 2 % or more, and
    no repeat of one reaches into the range of the other's: by chance alone, of two times 5 repeats, that happens to
    1 in 126.
    """
    before, after = record_of(old), record_of(new)
    common = [name for name in before["runs"] if name in after["runs"]]
    if before.get("bench") != after.get("bench") or not common:
        raise BandstreamError(f"{old} and {new} are records of different benches: nothing to compare")
    for reason in differences(before, after):
        if not anyway:
            raise BandstreamError(f"{old} and {new} differ in {reason}: say --anyway to compare them all the same")
        click.echo(f"warning: they differ in {reason}", err=True)
    packages = before["machine"].get("packages", {}), after["machine"].get("packages", {})
    for name in sorted({*packages[0], *packages[1]}):
        if packages[0].get(name) != packages[1].get(name):
            click.echo(f"{name}: {packages[0].get(name, 'unknown')} then, {packages[1].get(name, 'unknown')} now")
    found = [change for name in common for change in changes(name, before["runs"][name], after["runs"][name])]
    width = max(len(change.name) for change in found)
    for change in found:
        unit = "MB" if change.measure == "peak_mb" else change.measure.replace("_per_s", "/s")
        click.echo(
            f"{change.name:<{width}}  {spread(change.old)} → {spread(change.new)} {unit:<10}{change.change:+7.1%}  "
            f"{change.verdict}"
        )
    for path, record, other in ((old, before, after), (new, after, before)):
        for name in record["runs"]:
            if name not in other["runs"]:
                click.echo(f"{name}: only in {path}")
    slower = [change.name for change in found if change.verdict == "slower"]
    if slower:
        raise BandstreamError(f"{len(slower)} of {len(common)} got slower: {'; '.join(slower)}")


def record_of(path: Path) -> dict[str, Any]:
    """A record of one of our benches. Raises BandstreamError where it is none."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BandstreamError(f"{path} cannot be read as a bench's record: {error}") from None
    runs = record.get("runs") if isinstance(record, dict) else None
    if not isinstance(runs, dict) or not all(any(rate in run for rate in RATES) for run in runs.values()) or not runs:
        raise BandstreamError(f"{path} is no record of a bench with rates of its runs: run the bench anew")
    return record


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """In what the machines, or what the benches were told, differ."""
    for name in ("cpu", "cores", "gpu"):
        values = tuple(record["machine"].get(name, "none") for record in (before, after))
        if values[0] != values[1]:
            yield f"{name} ({values[0]} then, {values[1]} now)"
    for name in before:
        if isinstance(before[name], int | str) and name not in ("repeats", "what") and before[name] != after.get(name):
            yield f"{name} ({before[name]} then, {after.get(name)} now)"


def changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """The rate of a run, and its memory where both records have it."""
    for measure in (*RATES, "peak_mb"):
        if measure in before and measure in after:
            yield Change(name, measure, before[measure], after[measure])


def spread(summary: Mapping[str, float]) -> str:
    """The median, with the lowest and the highest."""
    return f"{summary['median']:,.0f} ({summary['min']:,.0f} to {summary['max']:,.0f})"
