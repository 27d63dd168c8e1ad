"""The report: runs and their comparison as one HTML page that needs nothing beside it."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.report.comparison.section import comparison_section
from evaluation.report.sections import dataset_section, finetuning_section, pretraining_section, probes_section
from evaluation.report.studies import calibration_section, study_section
from evaluation.report.words import figure
from evaluation.runs import Found, Run, discover, grouped, read_json, times
from shards import atomic
from shards.errors import BandstreamError
from shards.manifest import CREATED_BY, FILE
from shards.shardset import ShardSet


def write_report(paths: Sequence[Path], out: Path, title: str) -> None:
    """Write the page of all that `paths` hold to `out`."""
    import jinja2

    found = discover(paths)
    datasets = {ShardSet.open(folder).manifest.fingerprint(): folder for folder in found.shards} | _compared_on(found)
    comparisons = [comparison_section(folder, content, datasets) for folder, content in found.comparisons]
    groups = [
        finetuning_section(group, datasets)
        for group in grouped(found.finetuning, ("kind", "data", "target", "label_fraction"))
    ]
    probes = [
        probes_section(group) for group in grouped(found.probes, ("protocol", "data", "target", "label_fraction"))
    ]
    studies = [study_section(group) for group in grouped(found.studies, ("protocol", "data", "hold_out", "against"))]
    calibrated = calibration_section([run for run in found.probes if run[1]["protocol"] == "linear"])
    studies += [calibrated] if calibrated else []
    data = [dataset_section(folder) for folder in datasets.values()]
    pretraining = [pretraining_section(folder) for folder in found.pretraining]
    took = found.stages or times(found)
    total = sum(row["seconds"] for row in took)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["figure"] = figure
    page = environment.get_template("page.html").render(
        title=title,
        version=CREATED_BY,
        date=f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC",
        verdicts=[
            *(
                verdict | ({"title": f"{comparison['title']}: {verdict['title']}"} if len(comparisons) > 1 else {})
                for comparison in comparisons
                for verdict in comparison["verdicts"]
            ),
            *(verdict for group in (*groups, *probes) if (verdict := group["verdict"])),
        ],
        contents=_contents(comparisons, data, pretraining, probes, groups, studies),
        comparisons=comparisons,
        datasets=data,
        pretraining=pretraining,
        probes=probes,
        finetuning=groups,
        studies=studies,
        times=[
            {
                "name": row["stage"],
                "seconds": row["seconds"],
                "share": row["seconds"] / max(total, 1e-9),
                "told": row.get("told", ""),
            }
            for row in took
        ],
        total=total,
        commands=[row["command"] for row in found.stages if row.get("command")],
        machine=f"This page was written on {_processor()} (CPU cores in use: {len(os.sched_getaffinity(0))}), "
        f"{platform.system()} {platform.machine()}.",
        chance=_chance(found.finetuning),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out, page)


def _compared_on(found: Found) -> dict[str, Path]:
    """Fingerprint → folder of the shard sets that comparisons name, where they are on this machine."""
    there = {}
    for folder, _ in found.comparisons:
        try:
            place = Path(str(read_json(folder / "spec.json")["shards"]))
            if (place / FILE).is_file():
                there[ShardSet.open(place).manifest.fingerprint()] = place
        except (BandstreamError, KeyError, TypeError):
            continue
    return there


def _contents(
    comparisons: list[Any], data: list[Any], pretraining: list[Any], probes: list[Any], finetuning: list[Any],
    studies: list[Any],
) -> list[tuple[str, str]]:  # fmt: skip
    """(anchor, name) of each section, in the order of the page."""
    names = {
        "comparison": [f"Comparison: {one['title']}" for one in comparisons],
        "data": [f"Data: {one['name']}" for one in data],
        "pretraining": [f"Pretraining: {one['name']}" for one in pretraining],
        "probes": [one["title"] for one in probes],
        "finetuning": [one["title"] for one in finetuning],
        "study": [one["title"] for one in studies],
    }
    found = [(f"{kind}-{number}", name) for kind, each in names.items() for number, name in enumerate(each, 1)]
    return [*found, ("time", "Where the time went"), ("how", "How to read this")]


def _chance(runs: list[Run]) -> str:
    seeds = {content["seed"] for _, content in runs}
    if not runs:
        return ""
    if len(seeds) == 1:
        return (
            "All fine-tuning runs here have one seed: small differences may be chance, of the weights they started "
            "from and of which patches were labelled. Runs with further --seed say how much."
        )
    return f"Fine-tuning runs have {len(seeds)} seeds; the figures at the top are means over the runs of a kind."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "an unknown processor"
