"""Sections of the report on studies of `bandstream evaluate` that are no probes, and on the calibration of probes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report.comparison.charts import STYLES, Line, key
from evaluation.report.roc_chart import roc_chart
from evaluation.report.words import figure, percent, picture, safe
from evaluation.runs import Run, label

COLUMNS = {
    "cluster": {"purity": "purity", "one_cluster": "of one cluster", "nmi": "NMI", "ari": "ARI",
                "silhouette": "silhouette"},
    "retrieval": {"map": "mAP", "precision_at.1": "precision at 1", "precision_at.5": "at 5",
                  "precision_at.10": "at 10", "precision_at.50": "at 50", "jaccard_at.10": "Jaccard at 10",
                  "by_chance": "by chance"},
    "map": {"trustworthiness": "trustworthiness"},
}  # fmt: skip
TITLES = {
    "cluster": "Clusters without labels", "retrieval": "Retrieval: nearest patches", "map": "Map of the features",
    "ood": "Out-of-distribution detection",
}  # fmt: skip
ABOUT = {
    "cluster": "k-means on standardised train features; do its clusters agree with the labels of test? Purity is the "
    "share of test samples that have the commonest class of their cluster, beside that of one single cluster; NMI and "
    "ARI are 0 by chance and 1 for full agreement.",
    "retrieval": "Each test patch asks for its nearest train patches by cosine similarity. A neighbour is right where "
    "it shares a class with the asker; by chance: the precision of a random order.",
    "map": "Features of test patches laid out on a plane, of the floors and of the encoder. Trustworthiness "
    "says how far neighbours on the plane are neighbours in truth.",
}
PICTURES = {
    "neighbours.png": "Test patches (left) and their nearest train patches. Right ones have a whole frame and a tick, "
    "wrong ones a dashed frame and a cross.",
    "map.png": "The floors first, the encoder last: what image statistics or random weights tell apart, and what "
    "it does.",
    "ood.png": "How the scores of the set's own test samples (filled) and of those from outside (dashed) spread.",
    "reliability.png": "Reliability: how often what is said with some confidence is right, as fitted and with a "
    "temperature fitted on val. On the diagonal, confidence can be taken at its word.",
}
SCORES = {
    "max_softmax": "maximum softmax", "energy": "energy", "entropy": "entropy",
    "mutual_information": "mutual information", "mahalanobis": "Mahalanobis", "knn": "nearest neighbours",
}  # fmt: skip


def study_section(runs: Sequence[Run]) -> dict[str, Any]:
    """Of runs of one protocol on one shard set: a table, floors last, and each run's pictures."""
    protocol = str(runs[0][1]["protocol"])
    if protocol == "ood":
        return _ood_section(runs)
    columns = COLUMNS.get(protocol, {runs[0][1]["score"]: runs[0][1]["score"]})
    lines: dict[str, list[float | None]] = {}
    names = [label(content) for _, content in runs]
    for name, (folder, content) in zip(names, runs, strict=True):
        lines[name if names.count(name) == 1 else f"{name} ({folder.name})"] = _values(content["test"], columns)
    for _, content in runs:
        for floor, found in (content.get("floors") or {}).items():
            lines.setdefault(str(floor), _values(found["test"], columns))
    used = [number for number in range(len(columns)) if any(values[number] is not None for values in lines.values())]
    titles = list(columns.values())
    return {
        "title": f"{TITLES.get(protocol, protocol)}: {runs[0][1]['data']['name']}", "text": ABOUT.get(protocol, ""),
        "heading": "features", "columns": [titles[number] for number in used],
        "rows": [{"name": name, "cells": [figure(values[number]) for number in used], "verdict": ""}
                 for name, values in lines.items()],
        "pictures": _pictures(runs, names), "charts": [], "keys": [], "note": _note(runs),
    }  # fmt: skip


def calibration_section(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Of linear probes that recorded it: how far probabilities can be believed, before and after a temperature."""
    runs = [run for run in runs if run[1].get("calibration")]
    if not runs:
        return None
    names = [f"{label(content)}, {percent(content['label_fraction'])} of the labels" for _, content in runs]
    rows = []
    for name, (_, content) in zip(names, runs, strict=True):
        found = content["calibration"]
        cells = [figure(found[when][what]) for what in ("ece", "brier", "nll") for when in ("as_is", "scaled")]
        rows.append({"name": name, "cells": [*cells, figure(found["temperature"])], "verdict": ""})
    return {
        "title": "Calibration of linear probes",
        "text": "Expected calibration error (ECE), Brier score and log loss on the test split: lower is better. "
        "“Scaled” divides the logits by one temperature that was fitted on val; above 1 the probe was too sure.",
        "heading": "probe", "rows": rows, "charts": [], "keys": [], "note": "",
        "columns": ["ECE", "scaled", "Brier", "scaled", "log loss", "scaled", "temperature"],
        "pictures": _pictures(runs, names),
    }  # fmt: skip


def _ood_section(runs: Sequence[Run]) -> dict[str, Any]:
    rows, charts, keys = [], [], []
    names = [label(content) if content.get("level") else str(content["encoder"]) for _, content in runs]
    for name, (folder, content) in zip(names, runs, strict=True):
        for measure, found in content["ood"].items():
            low, high = found.get("auroc_95") or (float("nan"), float("nan"))
            verdict = "not told from chance" if low <= 0.5 <= high else "misled" if high < 0.5 else ""
            floors = [floor["ood"][measure]["auroc"] for floor in (content.get("floors") or {}).values()
                      if measure in (floor.get("ood") or {})]  # fmt: skip
            rows.append({
                "name": (f"{name}: " if len(runs) > 1 else "") + SCORES.get(measure, measure),
                "cells": [figure(found["auroc"]), f"{figure(low)} to {figure(high)}", figure(found["aupr_out"]),
                          figure(found["aupr_in"]), figure(found["fpr95"]), figure(max(floors)) if floors else "–"],
                "verdict": verdict,
            })  # fmt: skip
        lines = _roc_lines(folder, list(content["ood"]))
        if lines:
            charts.append({"svg": safe(roc_chart(lines)), "text": f"ROC curves of {name}: the share of outside samples "
                           "that are found, over the share of the set's own that are suspected."})  # fmt: skip
            keys = [{"svg": safe(key(line.style)), "name": line.name} for line in lines]
    first = runs[0][1]
    against = first.get("against")
    outside = against["name"] if against else ", ".join(first.get("hold_out") or [])
    return {
        "title": f"{TITLES['ood']}: {first['data']['name']} against {outside}",
        "text": f"Are {first.get('ood_samples', 0):,} samples of {outside} told from the {first['test_samples']:,} "
        f"test samples of {first['data']['name']}? AUROC is the chance that a sample from outside scores higher than "
        "one of the set (0.5: chance); AUPR is average precision with outside, or inside, as what is looked for; FPR "
        "is the share of outside samples taken for inside ones when 95 % of those are accepted (lower is better).",
        "heading": "score", "columns": ["AUROC", "95 % interval", "AUPR out", "AUPR in", "FPR at 95 %", "best floor"],
        "rows": rows, "pictures": _pictures(runs, names), "charts": charts, "keys": keys,
        "note": "Best floor: the highest AUROC of image statistics and of random weights, by that score.",
    }  # fmt: skip


def _roc_lines(folder: Path, measures: Sequence[str]) -> list[Line]:
    """(share of inside suspected, share of outside found) of each score in ood_scores.npz."""
    path = folder / "ood_scores.npz"
    if not path.is_file():
        return []
    lines = []
    with np.load(path, allow_pickle=False) as held:
        for style, measure in enumerate(measures[:STYLES], 1):
            if f"inside_{measure}" not in held or f"outside_{measure}" not in held:
                continue
            inside, outside = (np.sort(held[f"{side}_{measure}"].astype(np.float64)) for side in ("inside", "outside"))
            edges = np.unique(np.concatenate([inside, outside]))[::-1]
            suspected = 1 - np.searchsorted(inside, edges, "left") / max(len(inside), 1)
            found = 1 - np.searchsorted(outside, edges, "left") / max(len(outside), 1)
            kept = np.unique(np.linspace(0, len(edges) - 1, min(len(edges), 200)).round().astype(int))
            lines.append(Line(SCORES.get(measure, measure), [0.0, *suspected[kept].tolist()],
                              [0.0, *found[kept].tolist()], [], [], style))  # fmt: skip
    return lines


def _values(test: dict[str, Any], columns: dict[str, str]) -> list[float | None]:
    found: list[float | None] = []
    for name in columns:
        outer, _, inner = name.partition(".")
        value = test.get(outer)
        found.append(value.get(inner) if inner and isinstance(value, dict) else value)
    return found


def _pictures(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"source": picture((folder / file).read_bytes()), "text": f"{name}. {about}" if len(runs) > 1 else about}
        for (folder, _), name in zip(runs, names, strict=True)
        for file, about in PICTURES.items()
        if (folder / file).is_file()
    ]


def _note(runs: Sequence[Run]) -> str:
    first = runs[0][1]["test"]
    if "gallery" in first:
        return (
            f"{first['queries']:,} test patches asked {first['gallery']:,} train patches; "
            f"{first['unanswerable']:,} had none of their kind among them."
        )
    return f"{first['clusters']} clusters." if "clusters" in first else ""
