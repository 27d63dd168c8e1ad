"""A learning rate far too high is stopped and named within an epoch, whatever the method; a healthy run never is.

Each method trains a small transformer on made-up patches, at a rate that suits it and at one far too high, from several
seeds. (What batch normalisation follows does not depend on the size of its weights: such networks shrink their own
rates, and SimCLR's went on learning at 10⁴ times a good one.)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from models.objectives import METHODS
from tests.proofs.linear_probe import bandstream

REPOSITORY = Path(__file__).parents[2]
PATCHES, SEEDS, EPOCHS = 8000, 5, 2
RATES = {"healthy": 1e-3, "high": 10.0}
ENCODERS = ("test_vit",)
RECIPE = """
batch_size = 64
optimiser = "adamw"
warmup_epochs = 0.25
validate_epochs = 0
log_steps = 1
[view]
size = 32
crop_scale = [0.15, 0.7]
gain = 0.1
noise = 0.1
[objective]
"""
SMALL = ("projection_hidden", "projection_out", "prediction_hidden")
NAMED = ("collapsed", "not finite", "no longer tells samples apart", "grew")


def trained(shards: Path, folder: Path, method: str, encoder: str, kind: str, seed: int) -> dict[str, Any]:
    """One run: whether it was stopped, at which step, and what was said."""
    known = METHODS[method].Knobs.model_fields
    recipe, out = folder / "recipe.toml", folder / f"{method}-{encoder}-{kind}-{seed}"
    small = "".join(f"{name} = 256\n" for name in SMALL if name in known) + "queue = 1024\n" * ("queue" in known)
    recipe.write_text(RECIPE + small)
    words = ["--out", str(out), "--recipe", str(recipe), "--method", method, "--encoder", encoder, "--seed", str(seed)]
    words += ["--lr", str(RATES[kind]), "--epochs", str(EPOCHS), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), str(shards), *words], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = int(done.stdout.partition(" steps an epoch")[0].split()[-1])
    told = {"method": method, "encoder": encoder, "kind": kind, "seed": seed, "epoch_steps": steps}
    return told | {"code": done.returncode, "last_step": lines[-1]["step"] + 1, "said": done.stderr.strip()[-300:]}


def main() -> dict[str, Any]:
    """All runs, then what was wrong with any."""
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bandstream("synth", folder / "archive", "--patches", PATCHES, "--seed", 0)
        bandstream("ingest", "bigearthnet", folder / "archive", folder / "shards")
        for method in METHODS:
            for encoder in ENCODERS:
                for kind in RATES:
                    for seed in range(SEEDS):
                        runs.append(trained(folder / "shards", folder, method, encoder, kind, seed))
                        print(runs[-1], file=sys.stderr, flush=True)
    fired = [run for run in runs if run["kind"] == "healthy" and run["code"]]
    assert not fired, f"healthy runs were stopped: {fired}"
    high = [run for run in runs if run["kind"] == "high"]
    missed = [run for run in high if run["code"] != 1 or run["last_step"] > run["epoch_steps"]]
    unnamed = [run for run in high if run["code"] == 1 and not any(word in run["said"] for word in NAMED)]
    assert not missed and not unnamed, f"missed: {missed}; not named: {unnamed}"
    return {
        "outcome": f"{len(high)} runs at a rate far too high stopped and named within an epoch; "
        f"{len(runs) - len(high)} healthy ones left alone",
        "rates": RATES, "epochs": EPOCHS, "seeds": SEEDS, "encoders": ENCODERS, "recipe": RECIPE, "runs": runs,
    }  # fmt: skip
