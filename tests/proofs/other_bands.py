"""Pretraining on twelve bands never hurts: fine-tuning on all of them, on three, and on all in another order.

Published CNNs, pretrained on twelve bands and fine-tuned on pictures, lost four to five points against a random start.
Here stems are met by band name, and bands are dropped in pretraining; beside it stand pretraining with all bands,
a stem that begins anew, and a random start. Made-up patches; runs stay in $BANDSTREAM_PROOF (default: a folder in the
system's temporary one), where a proof that was killed goes on.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from models.encoder import build_encoder
from models.export import EncoderBand, load_encoder, save_encoder
from shards.bands import SENTINEL2
from tests.proofs.linear_probe import bandstream

BANDS = [name for name in SENTINEL2 if name != "B10"]
ORDERS = {"all": BANDS, "rgb": ["B04", "B03", "B02"], "reversed": BANDS[::-1]}
PRETRAINING = """
encoder = "cnn"
batch_size = 128
epochs = 12
optimiser = "adamw"
lr = 1e-3
warmup_epochs = 1
validate_epochs = 0
[objective]
temperature = 0.2
projection_hidden = 256
[view]
size = 48
crop_scale = [0.1, 0.5]
gain = 0.1
noise = 0.1
"""
TUNING = """
task = "classify"
encoder = "cnn"
batch_size = 32
epochs = 6
min_steps = 240
lr = 1e-3
validate_steps = 40
validate_samples = 500
patience = 1000
[view]
size = 64
crop_scale = [0.5, 1.0]
"""
DROPPED = "band_dropout = 0.5\nband_dropout_max = 9\n"
SPEC = """
title = "Twelve bands, then others"
shards = {shards}
seeds = [0, 1, 2]
label_fractions = [0.05, 0.5]
[encoders.scratch]
encoder = "cnn"
"""
ENCODER = """
[encoders.{name}]
run = {run}
"""
PROTOCOL = """
[protocols.{name}]
finetune = "tuning.toml"
knobs = {{ bands = {bands} }}
encoders = ["scratch", "dropped", "always", "new-stem-{name}"]
"""


def made_up(folder: Path, name: str, patches: int, seed: int) -> Path:
    """A shard set of so many made-up patches."""
    if not (folder / name / "dataset.json").exists():
        bandstream("synth", folder / f"{name}-archive", "--patches", patches, "--seed", seed)
        bandstream("ingest", "bigearthnet", folder / f"{name}-archive", folder / name)
    return folder / name


def with_new_stem(run: Path, bands: list[str], out: Path) -> Path:
    """The encoder of a run for these bands, its first convolution random again, as a run of its own."""
    if not (out / "encoder.json").exists():
        encoder, info = load_encoder(run, bands)
        torch.manual_seed(0)
        fresh = build_encoder("cnn", len(bands), info.view_size)
        first = next(name for name, weight in fresh.net.named_parameters() if weight.ndim == 4)
        weights = encoder.net.state_dict() | {first: fresh.net.state_dict()[first]}
        encoder.net.load_state_dict(weights)
        known = {band.name: band for band in info.bands}
        save_encoder(
            out, encoder, bands=[EncoderBand(**known[name].model_dump()) for name in bands], view_size=info.view_size,
            reflectance=info.reflectance, data=info.data, recipe=info.recipe, scores={},
        )  # fmt: skip
    return out


def pretrained(folder: Path, name: str, view: str) -> Path:
    """A run on the unlabelled set, begun or gone on with."""
    recipe, out = folder / f"{name}.toml", folder / name
    recipe.write_text(PRETRAINING + view)
    if not (out / "summary.json").exists():
        bandstream("train", made_up(folder, "unlabelled", 12000, 1), "--out", out, "--recipe", recipe, "--resume")
    return out


def main() -> dict[str, Any]:
    """On none of three band sets, at neither label fraction, does a random start win."""
    folder = Path(os.environ.get("BANDSTREAM_PROOF", Path(tempfile.gettempdir()) / "bandstream-other-bands"))
    folder.mkdir(parents=True, exist_ok=True)
    runs = {"dropped": pretrained(folder, "dropped", DROPPED), "always": pretrained(folder, "always", "")}
    for name, bands in ORDERS.items():
        runs[f"new-stem-{name}"] = with_new_stem(runs["dropped"], bands, folder / f"new-stem-{name}")
    (folder / "tuning.toml").write_text(TUNING)
    spec = SPEC.format(shards=json.dumps(str(made_up(folder, "labelled", 6000, 0))))
    spec += "".join(ENCODER.format(name=name, run=json.dumps(str(run))) for name, run in runs.items())
    spec += "".join(PROTOCOL.format(name=name, bands=json.dumps(bands)) for name, bands in ORDERS.items())
    (folder / "spec.toml").write_text(spec)
    bandstream("compare", folder / "spec.toml", "--out", folder / "out")
    rows = json.loads((folder / "out" / "comparison.json").read_text())["rows"]
    found = {
        f"{row['protocol']}, {row['label_fraction']:g}, {row['encoder'].split('-' + row['protocol'])[0]}": {
            **row["scores"][row["score"]], "to_scratch": row.get("to_baseline"),
        }
        for row in rows
    }  # fmt: skip
    leads = {
        kind: [score["to_scratch"]["mean"] for name, score in found.items() if name.endswith(kind)]
        for kind in ("dropped", "always", "new-stem")
    }
    print(json.dumps({name: round(score["mean"], 3) for name, score in found.items()}, indent=1), file=sys.stderr)
    assert min(leads["dropped"] + leads["always"]) >= 0, f"pretraining hurt: {leads}"
    told = {"dropped": "bands dropped in pretraining", "always": "all bands always", "new-stem": "a new stem"}
    return {
        "outcome": "against a random start: "
        + "; ".join(f"{told[kind]}, {min(each):+.3f} to {max(each):+.3f}" for kind, each in leads.items()),
        "score": "macro average precision on test; differences are paired, with 95 % intervals over samples and seeds",
        "pretraining": PRETRAINING, "dropped": DROPPED, "tuning": TUNING, "scores": found,
    }  # fmt: skip
