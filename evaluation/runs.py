"""What folders hold: shard sets, comparisons, pretraining runs, probes and fine-tuning runs, as they lie on disk."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import BandstreamError
from shards.manifest import FILE
from training.monitor import METRICS

STAGES, COMPARISON = "stages.json", "comparison.json"

Run = tuple[Path, dict[str, Any]]
"""A folder and the content of its results.json."""


@dataclass
class Found:
    """What the named folders hold: shard sets, and of comparisons and runs their folder and content."""

    shards: list[Path] = field(default_factory=list)
    comparisons: list[Run] = field(default_factory=list)
    pretraining: list[Path] = field(default_factory=list)
    probes: list[Run] = field(default_factory=list)
    finetuning: list[Run] = field(default_factory=list)
    studies: list[Run] = field(default_factory=list)
    """Of `evaluate` with another protocol than a probe: clusters, retrieval, maps, out-of-distribution detection."""
    stages: list[dict[str, Any]] = field(default_factory=list)

    def take(self, folder: Path) -> bool:
        """Sort one folder in; False where it is none of these."""
        if (folder / FILE).exists():
            self.shards.append(folder)
        elif (folder / COMPARISON).exists():
            content = read_json(folder / COMPARISON)
            version = content.get("format_version") if isinstance(content, dict) else None
            if version != 1:
                raise BandstreamError(
                    f"{folder / COMPARISON} is of format {version}, and format 1 can be read: "
                    "run `bandstream compare` again"
                )
            self.comparisons.append((folder, content))
        elif (folder / "results.json").exists():
            content = read_json(folder / "results.json")
            runs = self.finetuning
            if content.get("stage") == "evaluate":
                runs = self.probes if content["protocol"] in ("linear", "knn") else self.studies
            runs.append((folder, content))
        elif (folder / "recipe.json").exists() and (folder / METRICS).exists():
            self.pretraining.append(folder)
        else:
            return False
        return True

    def without_doubles(self) -> "Found":
        """Each folder once; runs that lie in a comparison's folder are shown by that, not again by themselves."""
        whole = [folder.resolve() for folder, _ in self.comparisons]

        def alone(folder: Path) -> bool:
            return not any(folder.resolve().is_relative_to(other) for other in whole)

        def once(runs: list[Run]) -> list[Run]:
            return list({folder.resolve(): (folder, content) for folder, content in runs if alone(folder)}.values())

        pretraining = {folder.resolve(): folder for folder in self.pretraining if alone(folder)}
        return Found(
            list({folder.resolve(): folder for folder in self.shards}.values()),
            list({folder.resolve(): (folder, content) for folder, content in self.comparisons}.values()),
            list(pretraining.values()), once(self.probes), once(self.finetuning), once(self.studies), self.stages,
        )  # fmt: skip


def discover(paths: Iterable[Path]) -> Found:
    """Shard sets, comparisons and runs among `paths`, or in folders right below one.

    Raises BandstreamError on one with neither.
    """
    found = Found()
    for path in paths:
        if not path.is_dir():
            raise BandstreamError(f"{path} is no folder: name runs, shard sets, or a folder that holds some")
        taken = found.take(path)
        if not taken:
            for folder in sorted(inner for inner in path.iterdir() if inner.is_dir()):
                taken = found.take(folder) or taken
            if (path / STAGES).exists():
                found.stages += read_json(path / STAGES)
        if not taken:
            raise BandstreamError(f"{path} holds no run and no shard set: name the folder that `--out` wrote")
    return found.without_doubles()


def grouped(runs: list[Run], keys: Sequence[str]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run[1].get(key) for key in keys]), []).append(run)
    return list(groups.values())


def is_pretrained(content: dict[str, Any]) -> bool:
    if content.get("stage") == "evaluate":
        return str(content["encoder"]).startswith("pretrained")
    return bool(content["init"] != "scratch")


STARTS = {"scratch": "from scratch", "supervised": "pretrained with labels", "pretrained": "pretrained"}
"""How a fine-tuning run began, by `origin`."""


def origin(content: dict[str, Any]) -> str:
    """Of a fine-tuning run: scratch, pretrained (without labels), or supervised (what another fine-tuning wrote)."""
    if content["init"] == "scratch":
        return "scratch"
    return "supervised" if content.get("init_kind") == "supervised" else "pretrained"


def label(content: dict[str, Any]) -> str:
    if content.get("stage") == "evaluate":
        return str(content["encoder"]) + (", all stages" if content["level"] == "stages" else "")
    start = STARTS[origin(content)]
    frozen = {"encoder": ", encoder frozen", "progressive": ", unfrozen by and by"}
    return start + frozen.get(content["freeze"], "")


def times(found: Found) -> list[dict[str, Any]]:
    """Without the stages of a whole: what each run recorded of itself."""
    rows = [
        {"stage": f"comparison ({folder.name})", "seconds": content["seconds"]} for folder, content in found.comparisons
    ]
    for folder in found.pretraining:
        if (folder / "summary.json").exists():
            rows.append(
                {"stage": f"pretraining ({folder.name})", "seconds": read_json(folder / "summary.json")["seconds"]}
            )
    for folder, content in (*found.probes, *found.studies, *found.finetuning):
        rows.append({"stage": f"{label(content)} ({folder.name})", "seconds": content["seconds"]["all"]})
    return rows


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BandstreamError(f"{path} cannot be read ({error}): run that stage again") from None
