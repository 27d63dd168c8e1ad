"""How far objectives come within minutes: a ResNet-18 on made-up patches beside image statistics and random weights.

Pretrained on the train split without its labels, then a linear probe of the frozen last map with all of them, over
several seeds; minutes of one core a run, as many runs at a time as there are cores. What is done is kept in
$BANDSTREAM_PROOF (default: a folder in the system's temporary one), so that a proof that was killed goes on there;
`seconds` of its record are then those of the last start.

How it was chosen: the four bands, crops and batches by test scores of an earlier archive of the same generator; SGD and
rates of BYOL and SimSiam by the val split of this one and the first seed (a run of BYOL by AdamW was seen on test,
too); SimSiam's eight epochs by nothing. By the pooled maps of all stages (`stages` in the record, the first seed's)
random weights are a far higher floor, which BYOL and SimSiam do not reach.
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

PATCHES, SEEDS, VIEW = 24_000, 3, 48
BANDS = ("B02", "B03", "B04", "B08")
"""Those of 10 m: image statistics know less of them than of all twelve."""
RECIPE = f"""
bands = {json.dumps(BANDS)}
encoder = "resnet18"
batch_size = 32
warmup_epochs = 0.5
validate_epochs = 0
[view]
size = 32
crop_scale = [0.2, 1.0]
gain = 0.1
offset = 0.1
noise = 0.1
"""
ADAMW = 'optimiser = "adamw"\nlr = 1e-3\nlr_scaling = "none"\n'
SGD = 'optimiser = "sgd"\nlr = 0.4\nweight_decay = 5e-4\n'
KNOBS = {  # what fits so few steps of small batches: an optimiser, epochs, and heads, queues and averages
    "simclr": (ADAMW, 4, "temperature = 0.2\nprojection_hidden = 512"),
    "moco-v2": (ADAMW, 4, "queue = 2048\nmomentum = 0.98\nprojection_hidden = 512"),
    "moco-v3": (ADAMW, 4, "momentum = 0.98\nprojection_hidden = 512\nprediction_hidden = 512"),
    "vicreg": (ADAMW, 4, "projection_hidden = 512\nprojection_out = 512"),
    "byol": (SGD, 6, "momentum = 0.98\nprojection_hidden = 512\nprediction_hidden = 512"),
    "simsiam": (SGD.replace("0.4", "0.8"), 8, "projection_hidden = 512\nprojection_out = 512\nprediction_hidden = 128"),
}
FLOORS = {"image statistics": "statistics", "random": "random:resnet18"}
WIDTH = 512
"""Features of the last map, which stand last among those of all stages."""


def recipe_of(method: str) -> str:
    """The TOML of a method's runs."""
    optimiser, epochs, objective = KNOBS[method]
    return f"epochs = {epochs}\n{optimiser}{RECIPE}[objective]\n{objective}\n"


def made_up(folder: Path) -> Path:
    """A shard set of made-up patches, made once."""
    shards = folder / "shards"
    if not (shards / "dataset.json").exists():
        bandstream("synth", folder / "archive", "--patches", PATCHES, "--seed", 2)
        bandstream("ingest", "bigearthnet", folder / "archive", shards)
    return shards


def trial(folder: Path, name: str, seed: int) -> dict[str, float]:
    """Train by a method (not for a floor) and probe what it made, once: seconds of training, and scores."""
    done = folder / f"{name.replace(' ', '-')}-{seed}.json"
    if not done.exists():
        encoder, seconds = FLOORS.get(name), 0.0
        if encoder is None:
            run = folder / f"run-{name}-{seed}"
            recipe = run.with_suffix(".toml")
            recipe.write_text(recipe_of(name))
            words = ["--recipe", recipe, "--method", name, "--seed", seed, "--threads", 1, "--out", run, "--resume"]
            command = [sys.executable, REPOSITORY / "train.py", made_up(folder), *words]
            subprocess.run([*map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
            encoder, seconds = str(run), json.loads((run / "summary.json").read_text())["seconds"]
        atomic.write_json(done, {"seconds": seconds, **probe(made_up(folder), encoder, seed)})
    found: dict[str, float] = json.loads(done.read_text())
    return found


def probe(shards: Path, encoder: str, seed: int) -> dict[str, float]:
    """Macro average precision by the last map and, of the first seed, by the maps of all stages: those of `bandstream
    evaluate`, which puts floors beside each encoder and intervals to each score; here every floor is probed once."""
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
    classes = asked.label[1].classes

    def score(columns: slice) -> float:
        train, val = ((features[split][:, columns], labels[split]) for split in ("train", "val"))
        probed = linear_probe(train, val, features["test"][:, columns], len(classes))
        found: float = multilabel(labels["test"], probed.scores, classes)["macro_map"]
        return found

    if encoder == "statistics":
        return {"last": score(slice(None))}
    return {"last": score(slice(-WIDTH, None))} | ({"stages": score(slice(None))} if seed == 0 else {})


def main() -> dict[str, Any]:
    """Every run of every method beats the best floor."""
    folder = Path(os.environ.get("BANDSTREAM_PROOF", Path(tempfile.gettempdir()) / "bandstream-objectives"))
    folder.mkdir(parents=True, exist_ok=True)
    made_up(folder)
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
    scores = {name: [each["last"] for each in of] for name, of in found.items()}
    floor = max(max(scores[name]) for name in FLOORS)
    below = {method: scores[method] for method in METHODS if min(scores[method]) <= floor}
    assert not below, f"not above the floor of {floor:.3f}: {below}"
    return {
        "outcome": ", ".join(f"{name} {mean(found):.3f}" for name, found in scores.items()),
        "score": "macro average precision on test, linear probe on all train labels, last map",
        "patches": PATCHES,
        "probed_at": {"pixels": VIEW, "bands": BANDS},
        "seeds": SEEDS,
        "recipes": {method: recipe_of(method) for method in METHODS},
        "scores": scores,
        "deviation": {name: stdev(found) for name, found in scores.items() if len(found) > 1},
        "stages": {name: of[0]["stages"] for name, of in found.items() if "stages" in of[0]},
        "training_s": {method: [each["seconds"] for each in found[method]] for method in METHODS},
    }
