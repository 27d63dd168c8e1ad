"""The sections of the report: what the template shows of each shard set and each group of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.pictures import contact_sheet, png, short_name
from evaluation.report.charts import line_chart
from evaluation.report.words import NAMES, duration, percent, picture, safe
from evaluation.runs import STARTS, Run, is_pretrained, label, origin, read_json
from shards.bands import false_colour
from shards.shardset import ShardSet
from training.monitor import METRICS, read_metrics

METHOD_NAMES = {
    "simclr": "SimCLR", "moco-v2": "MoCo v2", "moco-v3": "MoCo v3", "byol": "BYOL", "simsiam": "SimSiam",
    "vicreg": "VICReg",
}  # fmt: skip
COLUMNS = {
    "multilabel": ("macro_map", "micro_map", "macro_f1", "micro_f1"),
    "single": ("accuracy", "macro_f1"),
    "segment": ("macro_iou", "macro_f1", "accuracy"),
}


def dataset_section(folder: Path) -> dict[str, Any]:
    shard_set = ShardSet.open(folder)
    manifest = shard_set.manifest
    grids = ", ".join(
        f"{len(array.bands)} bands at {array.shape[1]} × {array.shape[2]}" for array in manifest.arrays.values()
    )
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    samples = sum(split.samples for split in manifest.splits.values())
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected.items() if count)
    text = (
        f"{manifest.name} ({manifest.source.get('kind', 'source unknown')}): {samples:,} patches of "
        f"{len(manifest.bands)} bands ({', '.join(manifest.band_names)}) in {size / 1e6:,.0f} MB of shards, each band "
        f"as the source has it ({grids} pixels). "
        + (f"Rejected at ingest: {rejected}." if rejected else "Nothing was rejected at ingest.")
    )
    first: list[str] = []
    classes, shares = 0, {split: list[float]() for split in manifest.splits}
    if manifest.labels:
        name, spec = next(iter(manifest.labels.items()))
        classes = len(spec.classes)
        hot = {split: shard_set.labels(split, name) for split in manifest.splits}
        if spec.kind == "single":
            hot = {split: np.eye(classes)[values] for split, values in hot.items()}
        most = np.argsort(-sum(values.mean(0) for values in hot.values()))[:5].tolist()
        first = [short_name(spec.classes[k]) for k in most]
        shares = {split: values.mean(0)[most].tolist() for split, values in hot.items()}
    return {
        "name": manifest.name, "text": text, "classes": classes, "first_classes": first,
        "splits": [{"name": split, "samples": spec.samples, "shares": shares[split]}
                   for split, spec in manifest.splits.items()],
        "sheet": picture(png(contact_sheet(shard_set, next(iter(manifest.splits)), 12, 0))),
        "sheet_also": (", near-infrared false colour (vegetation is red)" if false_colour(manifest.band_names) else "")
        + (", and the class map" if manifest.masks else ""),
    }  # fmt: skip


def pretraining_section(folder: Path) -> dict[str, Any]:
    recipe, lines = read_json(folder / "recipe.json"), read_metrics(folder / METRICS)
    summary = read_json(folder / "summary.json") if (folder / "summary.json").exists() else None
    method, view = recipe.get("method", "simclr"), recipe["view"]
    knobs = recipe.get("objective", {"temperature": recipe.get("temperature")})
    told = f", temperature {knobs['temperature']:g}" if knobs.get("temperature") else ""
    text = (
        f"{METHOD_NAMES.get(method, method)}, {recipe['encoder']}: {recipe['epochs']} epochs of batches of "
        f"{recipe['batch_size']}, views of {view['size'] or 'native'} pixels{told}, seed {recipe['seed']}. "
    )
    if summary:
        text += (
            f"{summary['steps']:,} steps in {duration(summary['seconds'])} on {summary['device']}: "
            f"{summary['samples_per_s']:,.0f} samples/s, {summary['waiting']:.0%} of the time waiting for data. "
            f"{summary['samples_left_out_per_epoch']} samples are left out of each epoch's tail."
        )
    else:
        text += f"The run is not finished: {lines[-1]['step'] + 1 if lines else 0:,} steps so far."
    charts = []
    untrained = np.log(2 * recipe["batch_size"] - 1)
    about = "The loss of training."
    if method == "simclr":
        about = f"NT-Xent loss. Untrained embeddings give about log(2N − 1) = {untrained:.2f}."
    for key, axis, told in (
        ("loss", "loss", about),
        ("val_loss", "loss", "The same loss on val: the same samples and draws at every validation."),
        ("knn", "score", "Nearest neighbours by the encoder's features of whole patches (accuracy or macro average "
         "precision)."),
        ("top1", "share", "How often a view's partner is nearer to it than any other view of the batch (top 1)."),
        ("feature_std", "spread", "Spread of the embeddings over the sphere: 1 is even, 0 is collapsed to a point."),
        ("effective_rank", "dimensions", "Effective rank of the encoder's features."),
    ):  # fmt: skip
        points = [(line["step"] + 1, line[key]) for line in lines if key in line]
        if points:
            steps, values = zip(*points, strict=True)
            charts.append({"svg": safe(line_chart({key: (steps, values)}, "step", axis)), "text": told})
    views = folder / "views.png"
    return {
        "name": folder.name, "text": text, "charts": charts,
        "views": picture(views.read_bytes()) if views.exists() else None,
    }  # fmt: skip


def probes_section(runs: list[Run]) -> dict[str, Any]:
    """One table of probes that share protocol, data and label fraction; floors first."""
    runs = sorted(runs, key=lambda run: (is_pretrained(run[1]), run[1]["test"][run[1]["score"]]))
    first = runs[0][1]
    kind = first["kind"]
    protocol = {"linear": "a linear probe", "knn": "nearest neighbours"}.get(first["protocol"], first["protocol"])
    rows = _rows(runs, COLUMNS[kind])
    for row, (_, content) in zip(rows, runs, strict=True):
        row["features"] = f"{content['features']:,}"
    floors = [c["test"][first["score"]] for _, c in runs if not is_pretrained(c)]
    pretrained = [c["test"][first["score"]] for _, c in runs if is_pretrained(c)]
    verdict = None
    if floors and pretrained:
        low, high = max(floors), max(pretrained)
        verdict = {
            "title": f"Frozen features, {protocol}, {percent(first['label_fraction'])} of the labels",
            "figures": [
                ("best floor", low),
                ("pretrained" if len(pretrained) == 1 else f"highest on test of {len(pretrained)} pretrained", high),
            ],
            "text": f"{NAMES[first['score']]} on the test split; {_ahead(high - low, 'the best floor')}.",
        }
    return {
        "title": f"Frozen features: {protocol} with {percent(first['label_fraction'])} of the labels",
        "text": "What the features hold before anything is fine-tuned. The floors: statistics of each band over the "
        "patch (no texture, no shape), and an encoder with random weights. Scores on the test split.",
        "columns": [NAMES[name] for name in COLUMNS[kind]], "rows": rows, "verdict": verdict,
    }  # fmt: skip


def finetuning_section(runs: list[Run], datasets: dict[str, Path]) -> dict[str, Any]:
    """One section of runs that share task, data and label fraction; scratch first."""
    runs = sorted(runs, key=lambda run: (is_pretrained(run[1]), run[1]["freeze"] == "none", run[0].name))
    first = runs[0][1]
    kind, score = first["kind"], first["score"]
    task = {"multilabel": "multi-label classification", "single": "classification", "segment": "segmentation"}[kind]
    rows = _rows(runs, COLUMNS[kind])
    for row, (_, content) in zip(rows, runs, strict=True):
        row |= {"val": content["val"], "time": duration(content["seconds"]["all"]),
                "epochs": f"{content['best_epoch'] + 1} / {content['epochs_run']}"}  # fmt: skip
    tuned = [content for _, content in runs if content["freeze"] != "encoder"]
    starts = {start: [content["test"] for content in tuned if origin(content) == start] for start in STARTS}
    scratch, pretrained = starts["scratch"], starts["pretrained"] or starts["supervised"]
    compared = bool(scratch and pretrained)
    measure = next(iter(first["test"]["per_class"]))
    per_class = []
    for name in first["test"]["per_class"][measure]:
        values = [content["test"]["per_class"][measure].get(name, 0.0) for _, content in runs]
        per_class.append({
            "name": name, "short": short_name(name), "support": first["test"]["support"][name],
            "cells": [{"value": v, "pretrained": is_pretrained(c)} for v, (_, c) in zip(values, runs, strict=True)],
            "difference": np.mean([t["per_class"][measure][name] for t in pretrained])
            - np.mean([t["per_class"][measure][name] for t in scratch]) if compared else 0.0,
        })  # fmt: skip
    verdict = None
    if compared:
        means = {start: float(np.mean([test[score] for test in tests])) for start, tests in starts.items() if tests}
        ahead = [
            (f"{STARTS[start]} " if len(means) > 2 else "") + _ahead(mean - means["scratch"], "the start from scratch")
            for start, mean in means.items()
            if start != "scratch"
        ]
        counts = [len(starts[start]) for start in means]
        verdict = {
            "title": f"{task.capitalize()}, {first['labelled_samples']:,} labelled patches "
            f"({percent(first['label_fraction'])})",
            "figures": [(STARTS[start], mean) for start, mean in means.items()],
            "text": f"{NAMES[score]} on the test split; {', '.join(ahead)}. "
            + ("One run each." if set(counts) == {1} else f"Means of {' and '.join(map(str, counts))} runs."),
        }
    decoder = f", decoder {first.get('decoder', 'unet')}" if kind == "segment" else ""
    absent = [name for name in first["classes"] if name not in first["test"]["support"]]
    return {
        "title": f"Fine-tuning: {task} with {percent(first['label_fraction'])} of the labels",
        "text": f"{first['labelled_samples']:,} labelled patches of the train split, the same for every row with the "
        f"same seed; {first['encoder']}{decoder}; scores on the "
        f"{first['test_samples']:,} patches of the test split, by the epoch with the best {NAMES[score]} on val.",
        "columns": [NAMES[name] for name in COLUMNS[kind]], "rows": rows, "verdict": verdict,
        "measure": NAMES[measure], "unit": "test pixels" if kind == "segment" else "in test",
        "difference": compared, "per_class": per_class, "absent": "; ".join(absent),
        "charts": _curves(runs, score, [row["name"] for row in rows]),
        "pictures": _predictions(runs, datasets, [row["name"] for row in rows]),
        "confusions": [{"source": picture((folder / "confusion.png").read_bytes()), "text": row["name"]}
                       for (folder, _), row in zip(runs, rows, strict=True) if (folder / "confusion.png").exists()],
    }  # fmt: skip


def _curves(runs: list[Run], score: str, names: list[str]) -> list[dict[str, Any]]:
    charts = []
    logged = [read_metrics(folder / METRICS) for folder, _ in runs]
    for key, told in (("loss", "Training loss."), (f"val_{score}", f"{NAMES[score]} on the val split.")):
        lines = {
            name: ([x["step"] + 1 for x in log if key in x], [x[key] for x in log if key in x])
            for name, log in zip(names, logged, strict=True)
        }
        if svg := line_chart(lines, "step", key):
            charts.append({"svg": safe(svg), "text": told, "names": names})
    return charts


def _predictions(runs: list[Run], datasets: dict[str, Path], names: list[str]) -> list[dict[str, Any]]:
    """One sheet of the same patches for all runs, where the shard set is at hand; else each run's own picture."""
    from evaluation.result_figures import PREDICTIONS, compare_predictions

    data = datasets.get(runs[0][1]["data"]["manifest"])
    if data is not None and all((folder / PREDICTIONS).exists() for folder, _ in runs):
        sheet = compare_predictions(ShardSet.open(data), runs[0][1], [folder for folder, _ in runs], names)
        told = "Predictions on patches of the test split, which no run was trained or chosen on."
        return [{"source": picture(png(sheet)), "text": told}]
    return [
        {"source": picture((folder / "predictions.png").read_bytes()), "text": f"Predictions of the run {name}."}
        for (folder, _), name in zip(runs, names, strict=True)
        if (folder / "predictions.png").exists()
    ]


def _rows(runs: list[Run], columns: Sequence[str]) -> list[dict[str, Any]]:
    best = {name: max(content["test"][name] for _, content in runs) for name in columns}
    labels = [label(content) for _, content in runs]
    rows = []
    for name, (folder, content) in zip(labels, runs, strict=True):
        rows.append({
            "name": name if labels.count(name) == 1 else f"{name} ({folder.name})",
            "labels": f"{content['labelled_samples']:,}", "pretrained": is_pretrained(content),
            "cells": [{"value": content["test"][name], "best": len(runs) > 1 and content["test"][name] == best[name]}
                      for name in columns],
        })  # fmt: skip
    return rows


def _ahead(difference: float, of_what: str) -> str:
    if abs(difference) < 0.0005:
        return f"level with {of_what}"
    return f"{abs(difference):.3f} {'ahead of' if difference > 0 else 'behind'} {of_what}"
