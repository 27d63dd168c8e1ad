"""A ResNet-18 pretrained on made-up data beats image statistics and random weights by linear probe."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).parents[2]
OPTIONS = ["--recipe", REPOSITORY / "recipes" / "demo.toml", "--encoder", "resnet18", "--epochs", 10]
PATCHES, SEEDS, VIEW = 6000, 3, 120


def bandstream(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "cli", *map(str, words)], cwd=REPOSITORY, check=True, stdout=sys.stderr)


def probe(shards: Path, encoder: object, seed: int, out: Path, *options: object) -> float:
    """Macro average precision on the test split of a linear probe on all labels of the train split."""
    bandstream("evaluate", shards, "--encoder", encoder, "--seed", seed, "--view-size", VIEW, "--out", out, *options)
    found: float = json.loads((out / "results.json").read_text())["test"]["macro_map"]
    return found


def main() -> dict[str, Any]:
    """Pretrain from three seeds; by its stages' features, every encoder must beat every floor."""
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = folder / "shards"
        bandstream("synth", folder / "archive", "--patches", PATCHES, "--seed", 0)
        bandstream("ingest", "bigearthnet", folder / "archive", shards)
        scores["image statistics"] = [probe(shards, "statistics", 0, folder / "statistics")]
        for seed in range(SEEDS):
            run = folder / f"run{seed}"
            bandstream("train", shards, "--out", run, *OPTIONS, "--seed", seed)
            for kind, encoder in (("pretrained", run), ("random", "random:resnet18")):
                for level in ("stages", "last"):
                    out = folder / f"{kind}-{level}-{seed}"
                    score = probe(shards, encoder, seed, out, "--features", level)
                    scores.setdefault(f"{kind} resnet18, {level}", []).append(score)
    pretrained = scores["pretrained resnet18, stages"]
    floor = max(scores["image statistics"] + scores["random resnet18, stages"])
    assert min(pretrained) > floor, scores
    return {
        "outcome": f"pretrained {median(pretrained):.3f} (lowest {min(pretrained):.3f}), highest floor {floor:.3f}",
        "score": "macro average precision on the test split, linear probe on all train labels, whole patches",
        "features": "last: the last map, pooled; stages: the pooled maps of all stages, side by side",
        "patches": PATCHES,
        "training": " ".join(str(word).removeprefix(f"{REPOSITORY}/") for word in OPTIONS),
        "seeds": SEEDS,
        "scores": scores,
    }
