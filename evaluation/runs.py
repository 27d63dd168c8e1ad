"""What folders hold: shard sets, pretraining runs, probes and fine-tuning runs, as they lie on disk."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import BandstreamError
from shards.manifest import FILE
from training.monitor import METRICS

STAGES = "stages.json"

Run = tuple[Path, dict[str, Any]]
"""A folder and the content of its results.json."""


@dataclass
class Found:
    """What the named folders hold: shard sets, and of runs their folder and content."""

    shards: list[Path] = field(default_factory=list)
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


def discover(paths: Iterable[Path]) -> Found:
    """Shard sets and runs among `paths`, or in folders right below one. Raises BandstreamError on one with neither."""
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
    return found


def grouped(runs: list[Run], keys: Sequence[str]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run[1][key] for key in keys]), []).append(run)
    return list(groups.values())


def is_pretrained(content: dict[str, Any]) -> bool:
    if content.get("stage") == "evaluate":
        return str(content["encoder"]).startswith("pretrained")
    return bool(content["init"] != "scratch")


def label(content: dict[str, Any]) -> str:
    if content.get("stage") == "evaluate":
        return str(content["encoder"]) + (", all stages" if content["level"] == "stages" else "")
    start = {"scratch": "from scratch"}.get(content["init"], str(content.get("init_kind", "pretrained")))
    frozen = {"encoder": ", encoder frozen", "progressive": ", unfrozen by and by"}
    return start + frozen.get(content["freeze"], "")


def times(found: Found) -> list[dict[str, Any]]:
    """Without the stages of a whole: what each run recorded of itself."""
    rows = []
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
