"""A ResNet-18 pretrained on made-up data beats image statistics and random weights by linear probe."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).parents[2]
OPTIONS = ["--recipe", REPOSITORY / "recipes" / "demo.toml", "--encoder", "resnet18", "--epochs", 24]
UNLABELLED, LABELLED, SEEDS, VIEW = 20_000, 6000, 2, 120


def bandstream(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "cli", *map(str, words)], cwd=REPOSITORY, check=True, stdout=sys.stderr)


def made_up(folder: Path, patches: int, seed: int) -> Path:
    """A shard set of so many made-up patches."""
    bandstream("synth", folder / f"archive{seed}", "--patches", patches, "--seed", seed)
    bandstream("ingest", "bigearthnet", folder / f"archive{seed}", folder / f"shards{seed}")
    return folder / f"shards{seed}"


def probe(shards: Path, encoder: object, seed: int, out: Path, *options: object) -> float:
    """Macro average precision on the test split of a linear probe on all labels of the train split."""
    bandstream("evaluate", shards, "--encoder", encoder, "--seed", seed, "--view-size", VIEW, "--out", out, *options)
    found: float = json.loads((out / "results.json").read_text())["test"]["macro_map"]
    print(f"{encoder}, seed {seed}, {options}: {found:.3f}", file=sys.stderr)
    return found


def main() -> dict[str, Any]:
    """Pretrain on one archive, probe on another; by either kind of features, every run must beat every floor."""
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labelled, unlabelled = made_up(folder, LABELLED, 0), made_up(folder, UNLABELLED, 1)
        scores["image statistics"] = [probe(labelled, "statistics", 0, folder / "statistics")]
        for seed in range(SEEDS):
            run = folder / f"run{seed}"
            bandstream("train", unlabelled, "--out", run, *OPTIONS, "--seed", seed)
            for kind, encoder in (("pretrained", run), ("random", "random:resnet18")):
                for level in ("last", "stages"):
                    out = folder / f"{kind}-{level}-{seed}"
                    score = probe(labelled, encoder, seed, out, "--features", level)
                    scores.setdefault(f"{kind} resnet18, {level}", []).append(score)
    floor = max(score for name, found in scores.items() if "pretrained" not in name for score in found)
    pretrained = {level: scores[f"pretrained resnet18, {level}"] for level in ("last", "stages")}
    assert min(map(min, pretrained.values())) > floor, scores
    return {
        "outcome": ", ".join(f"pretrained, {level}: {median(found):.3f}" for level, found in pretrained.items())
        + f"; highest floor {floor:.3f}",
        "score": "macro average precision on the test split, linear probe on all train labels, whole patches",
        "features": "last: the last map, pooled; stages: the pooled maps of all stages, side by side",
        "patches": {"unlabelled": UNLABELLED, "labelled": LABELLED},
        "training": " ".join(str(word).removeprefix(f"{REPOSITORY}/") for word in OPTIONS),
        "seeds": SEEDS,
        "scores": scores,
    }
