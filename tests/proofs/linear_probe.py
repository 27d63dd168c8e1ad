"""A ResNet-18 pretrained on made-up data beats image statistics and random weights by linear probe."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes" / "demo.toml"
PATCHES, EPOCHS, SEEDS = 2400, 16, 3
NATIVE, VIEW = 120, 80  # pixels; a whole patch at 80 has the scale of the median crop that 64-pixel views are made of


def bandstream(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "cli", *map(str, words)], cwd=REPOSITORY, check=True, stdout=sys.stderr)


def probe(shards: Path, encoder: object, seed: int, view: int, out: Path) -> float:
    """Macro average precision on the test split of a linear probe on all labels of the train split."""
    bandstream("evaluate", shards, "--encoder", encoder, "--seed", seed, "--view-size", view, "--out", out)
    found: float = json.loads((out / "results.json").read_text())["test"]["macro_map"]
    return found


def main() -> dict[str, Any]:
    """Pretrain with recipes/demo.toml from three seeds; every pretrained encoder must beat every floor."""
    pretrained, random = [], {NATIVE: [], VIEW: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = folder / "shards"
        bandstream("synth", folder / "archive", "--patches", PATCHES, "--seed", 0)
        bandstream("ingest", "bigearthnet", folder / "archive", shards)
        image_statistics = probe(shards, "statistics", 0, NATIVE, folder / "statistics")
        for seed in range(SEEDS):
            for view, scores in random.items():
                scores.append(probe(shards, "random:resnet18", seed, view, folder / f"random-{view}-{seed}"))
            run = folder / f"run{seed}"
            bandstream("train", shards, "--out", run, "--recipe", RECIPE, "--epochs", EPOCHS, "--seed", seed)
            pretrained.append(probe(shards, run, seed, VIEW, folder / f"pretrained-{seed}"))
    scores = {
        "image statistics": [image_statistics],
        **{f"random resnet18, {view} px": values for view, values in random.items()},
        f"pretrained resnet18, {VIEW} px": pretrained,
    }
    floor = max(image_statistics, *random[NATIVE], *random[VIEW])
    assert min(pretrained) > floor, scores
    return {
        "outcome": f"pretrained {median(pretrained):.3f} (lowest {min(pretrained):.3f}), highest floor {floor:.3f}",
        "score": "macro average precision on the test split, linear probe on all train labels",
        "patches": PATCHES,
        "epochs": EPOCHS,
        "seeds": SEEDS,
        "scores": scores,
    }
