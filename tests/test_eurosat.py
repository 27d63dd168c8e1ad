"""The encoder that is given away does on real tiles what its record says."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.probe import knn
from models import load_encoder

RESULTS = Path(__file__).parents[1] / "results" / "eurosat-rgb"
TILES = Path(os.environ.get("BANDSTREAM_REAL_DATA", RESULTS.parents[2] / "shared" / "data")) / "eurosat_rgb.tar"


@pytest.mark.skipif(not TILES.exists(), reason="the tiles of EuroSAT are not here")
def test_neighbours_by_the_committed_encoder_are_as_right_as_recorded() -> None:
    """Features of the tiles as they lie in the archive, with no loader of ours; a tenth of the test split."""
    encoder, info = load_encoder(RESULTS / "encoder")
    split = dict(line.split(",") for line in (RESULTS / "split.csv").read_text().split())
    mean, std = ([[getattr(band, name)] for band in info.bands] for name in ("mean", "std"))
    found: dict[str, list[torch.Tensor]] = {"train": [], "val": [], "test": []}
    classes: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    seen: dict[tuple[str, str], int] = {}
    with tarfile.open(TILES) as archive:
        for member in archive:
            name = Path(member.name)
            if name.suffix == ".jpg":
                key = split[name.stem], name.parent.name
                seen[key] = seen.get(key, 0) + 1
                if seen[key] <= {"train": 60, "val": 10, "test": 20}[key[0]]:
                    file = archive.extractfile(member)
                    assert file is not None
                    pixels = torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)  # (3, 64, 64)
                    found[key[0]].append(pixels)
                    classes[key[0]].append(key[1])
    names = sorted(set(classes["train"]))
    features = {}
    for part, tiles in found.items():
        views = (torch.stack(tiles).float() - torch.tensor(mean)[..., None]) / torch.tensor(std)[..., None]
        with torch.inference_mode():
            features[part] = encoder.eval()(views).numpy(), np.array([names.index(name) for name in classes[part]])
    scores = knn(features["train"], features["val"], features["test"][0], len(names)).scores
    right = (scores.argmax(1) == features["test"][1]).mean()
    rows = json.loads((RESULTS / "comparison.json").read_text())["rows"]
    recorded = {row["label_fraction"]: row["scores"]["accuracy"]["mean"] for row in rows
                if row["protocol"] == "knn" and row["encoder"] == "simclr"}  # fmt: skip
    assert len(features["train"][0]) == 600 and abs(right - recorded[0.1]) < 0.07, (right, recorded[0.1])
