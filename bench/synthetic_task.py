"""Is the made-up archive a task for an encoder? Image statistics against a trained CNN, on the same patches.

    python -m bench.synthetic_task --json results/synthetic-task.json

Each seed makes its own archive, ingests it and scores multi-label classification (macro mean average precision over the
classes of the test split): a linear probe on per-band statistics, which sees no texture and no shape, and a ResNet-18
trained from scratch on all labels for a few CPU minutes. The probe's penalty and the CNN's epoch are chosen on the
validation split.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from shards.shardset import ShardSet

QUANTILES = (2, 10, 25, 50, 75, 90, 98)
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LABELS = "land_cover"


def macro_map(truth: np.ndarray, scores: np.ndarray) -> tuple[float, list[float | None]]:
    """Mean over classes of the average precision; truth and scores (n, K). Classes without a positive are left out."""
    from sklearn.metrics import average_precision_score

    each = [
        float(average_precision_score(truth[:, k], scores[:, k])) if truth[:, k].any() else None
        for k in range(truth.shape[1])
    ]
    return float(np.mean([value for value in each if value is not None])), each


def image_statistics(shard_set: ShardSet, split: str) -> np.ndarray:
    """Mean, standard deviation and quantiles of each band at its own resolution: float32 (n, bands · 9)."""
    features = []
    for index in range(shard_set.size(split)):
        row: list[float] = []
        for array in shard_set.read(split, index).arrays.values():
            pixels = array.reshape(len(array), -1).astype(np.float32)  # (bands, H · W)
            quantiles = np.percentile(pixels, QUANTILES, axis=1)
            row += [*pixels.mean(1), *pixels.std(1), *quantiles.ravel()]
        features.append(row)
    return np.array(features, np.float32)


def probe(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> tuple[float, list[float | None]]:
    """Logistic regression a class on standardised features, its penalty chosen on the validation split."""
    from sklearn.linear_model import LogisticRegression

    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    scaled = {split: (values - mean) / std for split, values in features.items()}

    def scores(penalty: float, split: str) -> np.ndarray:
        columns = []
        for k in range(labels["train"].shape[1]):
            truth = labels["train"][:, k]
            if truth.min() == truth.max():
                columns.append(np.zeros(len(scaled[split])))
                continue
            model = LogisticRegression(C=penalty, max_iter=300).fit(scaled["train"], truth)
            columns.append(model.decision_function(scaled[split]))
        return np.stack(columns, 1)

    best = max(PENALTIES, key=lambda penalty: macro_map(labels["val"], scores(penalty, "val"))[0])
    return macro_map(labels["test"], scores(best, "test"))


def cnn(shard_set: ShardSet, labels: dict[str, np.ndarray], seed: int, epochs: int) -> tuple[float, list[Any], float]:
    """A ResNet-18 trained on all labels of the train split; its best epoch on the validation split; seconds it took."""
    import torch
    from torch import nn

    from models.encoder import build_encoder
    from pipeline.loader import Loader
    from pipeline.views import ViewRecipe

    torch.manual_seed(seed)
    encoder = build_encoder("resnet18", len(shard_set.manifest.band_names))
    model = nn.Sequential(encoder, nn.Linear(encoder.num_features, labels["train"].shape[1]))
    model = model.to(memory_format=torch.channels_last)
    half = torch.autocast("cpu", torch.bfloat16)
    view = ViewRecipe(size=64, crop_scale=(0.4, 1.0), gain=0.1)
    whole = ViewRecipe.plain(80)  # crops of 0.4 to 1 of a patch at 64 pixels have, in the middle, this scale
    training = Loader(shard_set, "train", 64, [view], seed=seed, labels=LABELS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=epochs * len(training), pct_start=0.2)

    def scores(split: str) -> np.ndarray:
        model.eval()
        with torch.inference_mode(), half:
            loader = Loader(shard_set, split, 64, [whole], training=False)
            result = torch.cat([model(batch.views[0]).float() for batch in loader]).numpy()
            loader.close()
        return result

    start, best, chosen = time.perf_counter(), -1.0, np.zeros(0)
    for epoch in range(epochs):
        training.set_epoch(epoch)
        model.train()
        for batch in training:
            assert batch.labels is not None
            with half:
                logits = model(batch.views[0].to(memory_format=torch.channels_last))
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), batch.labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        if epoch % 5 == 4 or epoch == epochs - 1:
            value = macro_map(labels["val"], scores("val"))[0]
            click.echo(f"  epoch {epoch + 1}: loss {loss.item():.3f}, val mAP {value:.3f}", err=True)
            if value > best:
                best, chosen = value, scores("test")
    training.close()
    return *macro_map(labels["test"], chosen), time.perf_counter() - start


def one(seed: int, patches: int, epochs: int) -> dict[str, Any]:
    """Make, ingest and score the archive of one seed."""
    from ingest.building.build import Options, ingest
    from ingest.sources.bigearthnet import BigEarthNet
    from ingest.synthetic.archive import make_archive

    with tempfile.TemporaryDirectory() as scratch:
        archive, folder = Path(scratch, "archive"), Path(scratch, "shards")
        make_archive(archive, patches, seed)
        ingest(BigEarthNet(archive), folder, Options())
        shard_set = ShardSet.open(folder)
        labels = {split: shard_set.labels(split, LABELS) for split in ("train", "val", "test")}
        features = {split: image_statistics(shard_set, split) for split in labels}
        statistics_map, statistics_each = probe(features, labels)
        click.echo(f"seed {seed}: statistics {statistics_map:.3f}", err=True)
        cnn_map, cnn_each, seconds = cnn(shard_set, labels, seed, epochs) if epochs else (0.0, [None] * 19, 0.0)
        click.echo(f"seed {seed}: CNN {cnn_map:.3f} after {seconds:.0f} s", err=True)
    classes = shard_set.manifest.labels[LABELS].classes
    return {
        "seed": seed,
        "patches": {split: len(values) for split, values in labels.items()},
        "statistics_map": statistics_map,
        "cnn_map": cnn_map,
        "cnn_seconds": seconds,
        "classes": {
            name: {"share": float(labels["train"][:, k].mean()), "statistics": statistics_each[k], "cnn": cnn_each[k]}
            for k, name in enumerate(classes)
        },
    }


@click.command()
@click.option("--patches", type=click.IntRange(100), default=2000, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Archives, seeds 0, 1, ….")
@click.option("--epochs", type=click.IntRange(0), default=25, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(patches: int, seeds: int, epochs: int, json_path: Path | None) -> None:
    """Score a probe on image statistics and a CNN on made-up archives."""
    from bench.measure import machine
    from shards.atomic import write_json

    runs = [one(seed, patches, epochs) for seed in range(seeds)]
    summary = {
        name: {
            "median": statistics.median(run[name] for run in runs),
            "lowest": min(run[name] for run in runs),
            "highest": max(run[name] for run in runs),
        }
        for name in ("statistics_map", "cnn_map")
    }
    for name, value in summary.items():
        click.echo(f"{name}: {value['median']:.3f} ({value['lowest']:.3f} to {value['highest']:.3f}), n = {seeds}")
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        packages = ("torch", "numpy", "scikit-learn", "bandstream")
        what = {"patches": patches, "epochs": epochs, "encoder": "resnet18", "measure": "macro mAP on the test split"}
        write_json(json_path, {"what": what, "summary": summary, "runs": runs, "machine": machine(packages)})


if __name__ == "__main__":
    main()
