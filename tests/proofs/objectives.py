"""Every objective learns: a ResNet-18 pretrained on made-up patches beats image statistics and random weights.

By a linear probe, over several seeds. What is done is kept in $BANDSTREAM_PROOF (default: a folder in the system's
temporary one), so that a proof that was killed goes on there.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from models.objectives import METHODS
from tests.proofs.linear_probe import bandstream

REPOSITORY = Path(__file__).parents[2]
PATCHES, SEEDS = 4000, 3
RECIPE = """
encoder = "resnet18"
batch_size = 128
epochs = 40
optimiser = "adamw"
lr = 1e-3
warmup_epochs = 4
validate_epochs = 0
[view]
size = 32
crop_scale = [0.15, 0.7]
gain = 0.1
offset = 0.1
noise = 0.1
grey = 0.05
band_dropout = 0.1
[objective]
"""
KNOBS = {  # heads, queues and averages of a size that fits some hundred steps
    "simclr": "temperature = 0.2\nprojection_hidden = 512",
    "moco-v2": "queue = 2048\nmomentum = 0.98\nprojection_hidden = 512",
    "moco-v3": "momentum = 0.98\nprojection_hidden = 512\nprediction_hidden = 512",
    "byol": "momentum = 0.98\nprojection_hidden = 512\nprediction_hidden = 512",
    "simsiam": "projection_hidden = 512\nprojection_out = 512\nprediction_hidden = 128",
    "vicreg": "projection_hidden = 512\nprojection_out = 512",
}


def shards(folder: Path) -> Path:
    """The set of PATCHES made-up patches, made once."""
    if not (folder / "shards" / "dataset.json").exists():
        bandstream("synth", folder / "archive", "--patches", PATCHES, "--seed", 0)
        bandstream("ingest", "bigearthnet", folder / "archive", folder / "shards")
    return folder / "shards"


def probe(folder: Path, encoder: object, name: str, seed: int) -> float:
    """Macro average precision on test of a linear probe of all stages, on whole patches."""
    out = folder / f"probe-{name}"
    if not (out / "results.json").exists():
        level = () if encoder == "statistics" else ("--features", "stages")
        words = ("evaluate", shards(folder), "--encoder", encoder, "--seed", seed, "--view-size", 64, "--out", out)
        bandstream(*words, *level)
    found: float = json.loads((out / "results.json").read_text())["test"]["macro_map"]
    return found


def pretrained(folder: Path, method: str, seed: int) -> Path:
    """The run of a method, begun or gone on with."""
    recipe, out = folder / f"{method}.toml", folder / f"run-{method}-{seed}"
    recipe.write_text(RECIPE + KNOBS.get(method, ""))
    if not (out / "summary.json").exists():
        words = ["--out", str(out), "--recipe", str(recipe), "--method", method, "--seed", str(seed), "--resume"]
        subprocess.run([sys.executable, str(REPOSITORY / "train.py"), str(shards(folder)), *words], check=True)
    return out


def main() -> dict[str, Any]:
    """Every run of every method beats the better floor of its seed."""
    folder = Path(os.environ.get("BANDSTREAM_PROOF", Path(tempfile.gettempdir()) / "bandstream-objectives"))
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[float]] = {"image statistics": [probe(folder, "statistics", "statistics", 0)]}
    for seed in range(SEEDS):
        scores.setdefault("random", []).append(probe(folder, "random:resnet18", f"random-{seed}", seed))
        for method in METHODS:
            run = pretrained(folder, method, seed)
            scores.setdefault(method, []).append(probe(folder, run, f"{method}-{seed}", seed))
            print(f"{method}, seed {seed}: {scores[method][-1]:.3f}", file=sys.stderr)
    floor = max(*scores["image statistics"], *scores["random"])
    seconds = {
        method: [
            json.loads((folder / f"run-{method}-{seed}" / "summary.json").read_text())["seconds"]
            for seed in range(SEEDS)
        ]
        for method in METHODS
    }
    below = {method: scores[method] for method in METHODS if min(scores[method]) <= floor}
    assert not below, f"not above the floor of {floor:.3f}: {below}"
    return {
        "outcome": ", ".join(f"{name} {mean(found):.3f}" for name, found in scores.items()),
        "score": "macro average precision on test, linear probe on all train labels, pooled maps of all stages",
        "patches": PATCHES, "seeds": SEEDS, "recipe": RECIPE, "knobs": KNOBS, "scores": scores,
        "deviation": {name: stdev(found) for name, found in scores.items() if len(found) > 1}, "training_s": seconds,
    }  # fmt: skip
