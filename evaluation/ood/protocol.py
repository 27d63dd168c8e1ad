"""Out-of-distribution detection between two shard sets, or of classes that a probe never saw.

Inside is the test split of the set; outside, the test split of another set (`--against`), or the test samples of
classes that were held out of train and val (`--hold-out`). Higher scores mean further outside, all of them.

Both sides are standardised with the same statistics, those of the set that the classifier learned from: in use, a
strange sample comes alone, and nobody knows the mean of where it comes from; with its own set's statistics, part of
what makes it strange would be taken away. Where the two sets store reflectance with another scale or offset, the
statistics are converted, so that it is reflectance that is compared. Patches of another size in pixels are resampled
to the same view, which leaves its own traces: choose sets of one size, or read the scores with that in mind.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import metrics
from evaluation.calibration import calibrate
from evaluation.figures import reliability_figure, separation_figure
from evaluation.ood import scores as measures
from evaluation.ood.classifiers import RESULTS, Head, is_fine_tuned
from evaluation.ood.detection import detection
from evaluation.ood.plan import Member, Plan, make_plan, open_other
from evaluation.ood.sides import Sides, class_number, extract_sides, outside_split
from evaluation.predictions import save_predictions
from evaluation.probe import linear_probe
from evaluation.protocols import CALIBRATED
from evaluation.runs import read_json
from evaluation.scoring import SCORE
from evaluation.settings import Settings, refuse_one_class
from shards import atomic

NAMES = {
    "max_softmax": "maximum softmax", "energy": "energy", "entropy": "entropy",
    "mutual_information": "mutual information", "mahalanobis": "Mahalanobis", "knn": "nearest neighbours",
}  # fmt: skip
CHUNK = 4096


def run_ood(asked: Settings, out: Path) -> dict[str, Any]:
    """Judge and write results.json, ood_scores.npz and pictures to `out`; returns what results.json holds."""
    began, typed = time.perf_counter(), asked
    if is_fine_tuned(asked.encoder):
        asked = replace(asked, labels=read_json(Path(asked.encoder) / RESULTS).get("target"))
    spec = asked.label[1]
    other = open_other(asked)
    held_out = [class_number(held, spec.classes) for held in asked.hold_out]
    plan = make_plan(asked, other)
    sides, keys = extract_sides(asked, plan, other, held_out)
    extracted = time.perf_counter() - began
    classes = [held for k, held in enumerate(spec.classes) if k not in held_out]
    refuse_one_class(sides[0].train[1], classes, asked.shard_set.place)

    multi = spec.kind == "multilabel"
    groups = [list(range(plan.together)), *([k] for k in range(plan.together, len(sides)))]
    judged = [_judge(asked, [plan.members[k] for k in group], [sides[k] for k in group], len(classes), multi)
              for group in groups]  # fmt: skip
    main = judged[0]
    score = SCORE[spec.kind]
    test = {told: _test(found, classes, multi) for told, found in zip(("main", *_told(plan)), judged, strict=True)}
    results = asked.described() | {
        "encoder": " + ".join(member.told for member in plan.members[: plan.together]), "bands": plan.bands,
        "adapted": " + ".join(dict.fromkeys(member.adapted for member in plan.members if member.adapted)),
        "labelled_samples": len(sides[0].train[1]), "view_size": plan.view_size, "classes": classes,
        "features": int(sides[0].outside.shape[1]), "score": score, "chosen_on_val": main.chosen,
        "test": test["main"], "test_samples": len(sides[0].inside[1]),
        "label_fraction": plan.label_fraction, "ood": main.detections, "ood_samples": len(sides[0].outside),
        "sign": "higher scores: further out of distribution",
        "against": None if other is None else {
            "name": other.manifest.name, "manifest": other.manifest.fingerprint(), "split": outside_split(other),
            "bands_left_out": [b for b in asked.shard_set.manifest.band_names if b not in plan.bands],
        },
        "hold_out": list(asked.hold_out),
        "passes": "members of the ensemble" if plan.together > 1 else asked.passes,
        "calibration": main.calibration,
        "floors": {told: {"test": test[told], "ood": found.detections, "chosen_on_val": found.chosen}
                   for told, found in zip(_told(plan), judged[1:], strict=True)},
    }  # fmt: skip
    typed.begin(out)
    arrays: dict[str, Any] = {f"{side}_{key}": values[number] for key, values in main.scores.items()
              for number, side in enumerate(("inside", "outside"))}  # fmt: skip
    with atomic.replacing(out / "ood_scores.npz") as file:
        np.savez_compressed(file, inside_keys=keys[0], outside_keys=keys[1], **arrays)
    save_predictions(out, keys[0], sides[0].inside[1], main.probabilities, spec.kind, classes)
    titles = {key: f"{NAMES[key]}: AUROC {found['auroc']:.3f}" for key, found in main.detections.items()}
    atomic.write_bytes(out / "ood.png", separation_figure(main.scores, titles))
    diagrams = {told: main.calibration[key] for key, told in CALIBRATED.items()}
    atomic.write_bytes(out / "reliability.png", reliability_figure(diagrams))
    results["seconds"] = {"features": extracted, "all": time.perf_counter() - began}
    atomic.write_json(out / "results.json", results)
    return results


@dataclass(frozen=True)
class Judged:
    """Scores (inside, outside) and how well each tells the two apart; probabilities (n, K) and truth of those inside;
    calibration; and the strength of the probe, where there is one."""

    scores: dict[str, tuple[np.ndarray, np.ndarray]]
    detections: dict[str, Any]
    probabilities: np.ndarray
    truth: np.ndarray
    calibration: dict[str, Any]
    chosen: float | None


def _judge(asked: Settings, members: list[Member], sides: list[Sides], classes: int, multi: bool) -> Judged:
    heads, chosen = [], None
    for member, side in zip(members, sides, strict=True):
        head = member.head
        if head is None:
            probed = linear_probe(side.train, side.val, side.inside[0], classes)
            assert probed.model is not None
            head, chosen = Head.of_probe(probed.model), probed.chosen
        heads.append(head)
    mahalanobis = measures.Mahalanobis(*sides[0].train)
    neighbours = measures.Neighbours(sides[0].train[0], asked.neighbours, asked.seed)

    def scores_of(features: list[np.ndarray]) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
        for start in range(0, len(features[0]), CHUNK):
            chunk = [x[start : start + CHUNK] for x in features]
            each = np.stack([head.logits(x) for head, x in zip(heads, chunk, strict=True)])  # (members, n, K)
            logits, passes = each.mean(0), each
            if len(heads) == 1:
                passes = heads[0].passes(chunk[0], asked.passes, asked.dropout, asked.seed + start)
            parts["max_softmax"].append(measures.max_softmax(logits, multi))
            parts["energy"].append(measures.energy(logits, multi))
            parts["entropy"].append(measures.entropy(measures.mean_probabilities(each, multi), multi))
            parts["mutual_information"].append(measures.mutual_information(passes, multi))
            parts["mahalanobis"].append(mahalanobis.score(chunk[0]))
            parts["knn"].append(neighbours.score(chunk[0]))
        return {name: np.concatenate(values) for name, values in parts.items()}

    inside = scores_of([side.inside[0] for side in sides])
    outside = scores_of([side.outside for side in sides])
    logits = {
        split: np.mean([head.logits(getattr(side, split)[0]) for head, side in zip(heads, sides, strict=True)], 0)
        for split in ("val", "inside")
    }
    return Judged(
        {name: (inside[name], outside[name]) for name in NAMES},
        {name: detection(inside[name], outside[name]) for name in NAMES},
        measures.mean_probabilities(logits["inside"][None], multi),
        sides[0].inside[1],
        calibrate((sides[0].val[1], logits["val"]), (sides[0].inside[1], logits["inside"])),
        chosen,
    )


def _told(plan: Plan) -> list[str]:
    return [member.told for member in plan.members[plan.together :]]


def _test(found: Judged, classes: list[str], multi: bool) -> dict[str, Any]:
    return (metrics.multilabel if multi else metrics.single_label)(found.truth, found.probabilities, classes)
