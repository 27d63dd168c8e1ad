"""Five published set-ups, each by its own spec of recipes/compare, run small to the report.

Smaller are the data, the encoders where a step of theirs takes seconds, views, epochs and labels' shares; the commands,
recipes, objectives, protocols and sections of the report are those of the spec. What of the data was real, each entry
says. Real tiles are those of $BANDSTREAM_REAL_DATA (or of ../shared/data), without which this proof cannot be made.
Reports and runs stay in $BANDSTREAM_PROOF (default: a folder in the system's temporary one).
"""

import json
import os
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ingest.levels import BANDS, make_levels
from tests.proofs.linear_probe import REPOSITORY, bandstream

SPECS = REPOSITORY / "recipes" / "compare"
REAL = Path(os.environ.get("BANDSTREAM_REAL_DATA", REPOSITORY.parent / "shared" / "data")) / "eurosat_rgb.tar"
TRAINING = {"epochs": 2, "batch_size": 16, "view.size": 32, "warmup_epochs": 0, "validate_samples": 64}
TUNING = {"epochs": 2, "batch_size": 16, "view.size": 32, "validate_steps": 5}


@dataclass(frozen=True)
class SetUp:
    """How its data are made in a folder, what is real of them, and what of its spec is smaller or other."""

    data: Callable[[Path], dict[str, Path]]
    real: str
    spec: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)


def cerrado(folder: Path) -> dict[str, Path]:
    """Rasters with masks at two levels."""
    make_levels(folder / "cerrado", 160)
    masks = [word for level in ("L1", "L2") for word in ("--masks", f"{level}={folder / 'cerrado' / level}",
             "--classes", f"{level}={folder / 'cerrado' / level}.txt")]  # fmt: skip
    bandstream("ingest", "geotiff", folder / "cerrado" / "msi", folder / "shards", "--bands", BANDS, *masks)
    return {"shards": folder / "shards"}


def pictures(folder: Path, classes: int, each: int) -> dict[str, Path]:
    """Real tiles as pictures in class folders."""
    with tarfile.open(REAL) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".jpg"))
        kinds = sorted({Path(name).parent.name for name in names})[:classes]
        for kind in kinds:
            (folder / "pictures" / kind).mkdir(parents=True)
            for name in [name for name in names if Path(name).parent.name == kind][:each]:
                content = archive.extractfile(name)
                assert content is not None
                (folder / "pictures" / kind / Path(name).name).write_bytes(content.read())
    bandstream("ingest", "images", folder / "pictures", folder / "shards")
    return {"shards": folder / "shards"}


def two_sensors(folder: Path) -> dict[str, Path]:
    """Twelve bands without labels that are used, and real tiles in true colour."""
    bandstream("synth", folder / "archive", "--patches", 300, "--seed", 3)
    bandstream("ingest", "bigearthnet", folder / "archive", folder / "pretraining")
    return pictures(folder, 10, 40) | {"pretraining": folder / "pretraining"}


SETUPS = {
    "cerradata": SetUp(
        cerrado, "nothing: made-up rasters of 3 bands with masks of 3 and 14 classes", {"label_fractions": [0.2]},
        {"encoder": "resnet18"}, {"encoder": "resnet18", "view.size": 32},
    ),
    "pictures-resnet18": SetUp(lambda folder: pictures(folder, 3, 80), "pictures: 240 EuroSAT tiles of 3 classes"),
    "pictures-resnet50": SetUp(
        lambda folder: pictures(folder, 3, 80), "pictures: 240 EuroSAT tiles of 3 classes",
        {"label_fractions": [0.1, 1.0]},
    ),
    "bigearthnet": SetUp(
        two_sensors,
        "fine-tuning: 400 EuroSAT tiles in true colour. Pretraining: 300 made-up patches of 12 bands. Instead of the "
        "twelve bands of EuroSAT, of which but two tiles are at hand, its three; outside is a class held back, by "
        "encoders instead of classifiers; t-SNE for UMAP",
        {"label_fractions": [0.5, 1.0], "seeds": [0, 1]},
    ),
    "pictures-small": SetUp(
        lambda folder: pictures(folder, 5, 60), "pictures: 300 EuroSAT tiles of 5 classes",
        {"label_fractions": [0.2, 1.0], "seeds": [0, 1]}, {"objective.projection_hidden": 64},
    ),
}  # fmt: skip


def smaller(spec: dict[str, Any], made: SetUp, folder: Path) -> dict[str, Any]:
    """The spec with the set-up's changes; what it names are files of `SPECS`, from anywhere."""
    spec = spec | {"seeds": spec["seeds"][:2]} | made.spec
    for table in spec["encoders"].values():
        for how in ("pretrain", "supervised"):
            if how in table:
                table[how] = str((SPECS / table[how]).resolve())
                knobs = TRAINING if how == "pretrain" else TUNING
                table["knobs"] = table.get("knobs", {}) | knobs | made.training
        if "vit" in str(table.get("pretrain", "")) + str(table.get("encoder", "")):
            vit = {"encoder": "vit_tiny_patch16_224"}
            table.update({"knobs": table["knobs"] | vit} if "pretrain" in table else vit)
    for table in spec["protocols"].values():
        if "finetune" in table:
            table["finetune"] = str((SPECS / table["finetune"]).resolve())
            table["knobs"] = table.get("knobs", {}) | TUNING | made.tuning
    return spec


def toml(value: Any) -> str:
    """A value of JSON as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def compared(name: str, folder: Path) -> dict[str, Any]:
    """Run a set-up, or go on with it; what it was, and what its report tells."""
    made = SETUPS[name]
    spec_file, out = folder / "spec.toml", folder / "out"
    if not spec_file.exists():
        sets = made.data(folder)
        spec = smaller(tomllib.loads((SPECS / f"{name}.toml").read_text()), made, folder)
        spec["shards"] = str(sets.pop("shards"))
        spec["sets"] = {known: str(place) for known, place in sets.items()}
        if name == "bigearthnet":
            spec["protocols"]["finetune"]["knobs"].pop("bands")
            del spec["protocols"]["finetune-rgb"]
            held_out = {"evaluate": "ood", "options": {"hold_out": ["Forest"]}, "label_fractions": [1.0]}
            spec["protocols"]["ood"] = held_out
            spec["protocols"]["map"]["options"] = {"method": "tsne"}
        spec_file.write_text("".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in spec.items()))
    bandstream("compare", spec_file, "--out", out)
    found = json.loads((out / "comparison.json").read_text())
    page = (out / "report.html").read_text()
    missing = [row["encoder"] for row in found["rows"] if row["encoder"] not in page]
    assert not found["failed"] and found["rows"] and not missing, (name, found["failed"], missing)
    return {
        "spec": f"recipes/compare/{name}.toml", "real": made.real, "rows": len(found["rows"]),
        "protocols": sorted({row["protocol"] for row in found["rows"]}),
        "encoders": sorted({row["encoder"] for row in found["rows"]}), "seconds": round(found["seconds"], 1),
        "report_bytes": len(page.encode()),
    }  # fmt: skip


def main() -> dict[str, Any]:
    """Each set-up ends with a report of all its encoders and protocols, and no run of it failed."""
    top = Path(os.environ.get("BANDSTREAM_PROOF", Path(tempfile.gettempdir()) / "bandstream-setups"))
    found = {}
    for name in SETUPS:
        (top / name).mkdir(parents=True, exist_ok=True)
        found[name] = compared(name, top / name)
        print(f"{name}: {found[name]['rows']} rows, {found[name]['seconds']:.0f} s", file=sys.stderr)
    assert found.keys() == {path.stem for path in SPECS.glob("*.toml")}, "a set-up without a small run"
    return {"outcome": f"{len(found)} set-ups, each to its report", "setups": found}
