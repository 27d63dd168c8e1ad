"""Comparison folders as `bandstream compare` writes them, of made-up encoders whose skill grows with the labels."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from evaluation import metrics
from evaluation.intervals import difference, interval
from evaluation.predictions import Predictions, save_predictions
from evaluation.samples import sample_keys
from shards.shardset import ShardSet

SKILL = {"scratch": 0.9, "simclr": 1.7, "moco": 1.5, "vicreg": 1.45, "supervised": 1.6, "image statistics": 0.8,
         "random cnn": 0.7}  # fmt: skip
"""How far the true class stands out with all labels, in deviations of the noise."""
SCORE = {"single": "accuracy", "multilabel": "macro_map", "segment": "macro_iou"}
RESAMPLES = 100


class Maker:
    """Writes runs of one target to a comparison's folder, and rows of what they scored."""

    def __init__(self, out: Path, kind: str, classes: Sequence[str], samples: int = 120, shards: Path | None = None):
        self.out, self.kind, self.classes = out, kind, list(classes)
        self.rng = np.random.default_rng(0)
        self.manifest = "0" * 64
        self.keys = np.array([f"sample-{k}" for k in range(samples)])
        self.target = "land_cover"
        count = len(classes)
        if shards is None:
            hot = self.rng.random((samples, count)) < 0.3
            self.truth = hot.astype(np.uint8) if kind == "multilabel" else np.arange(samples) % count
        else:
            opened = ShardSet.open(shards)
            self.manifest, self.keys = opened.manifest.fingerprint(), sample_keys(opened, "test")
            self.target = next(iter(opened.manifest.labels), self.target)
            self.truth = opened.labels("test", self.target)
            if kind != "multilabel" and self.truth.ndim == 2:
                self.truth = self.truth.argmax(1)
        self.hard = self.rng.normal(size=(len(self.keys), count))
        self.rows: list[dict[str, Any]] = []
        self.runs: dict[tuple[Any, ...], list[Predictions]] = {}
        self.shards = shards

    def predictions(self, skill: float, seed: int) -> Predictions:
        rng = np.random.default_rng([seed, int(1000 * skill)])
        noise = 0.7 * self.hard + 0.7 * rng.normal(size=self.hard.shape)
        if self.kind == "multilabel":
            scores = expit(2 * skill * (self.truth - 0.5) * 2 + 1.5 * noise - 0.5)
        else:
            scores = softmax(1.5 * (skill * np.eye(len(self.classes))[self.truth] + noise), 1)
        truth = self.truth
        if self.kind == "segment":  # a map of 400 pixels: mostly the sample's class
            shares = softmax(2 * np.eye(len(self.classes))[self.truth] + 0.3 * self.hard, 1)
            pixels = np.array([rng.multinomial(400, share) for share in shares])
            wrong = softmax(noise, 1)
            right = expit(2 * skill - 1.5 + noise[:, :1])
            scores = np.array([
                [rng.multinomial(n, r * np.eye(len(wrong[0]))[k] + (1 - r) * w) for k, n in enumerate(line)]
                for line, w, r in zip(pixels, wrong, right[:, 0], strict=True)
            ])  # fmt: skip
            truth = np.empty((len(self.keys), 0), np.uint8)
        return Predictions(self.keys, truth, scores, self.kind, self.classes)

    def add(
        self, protocol: str, encoder: str, fraction: float, seeds: Sequence[int], *, variant: str = "",
        settings: dict[str, Any] | None = None, better: float = 0.0, floor: bool = False, evaluate: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        skill = (SKILL.get(encoder, 1.2) + better) * (0.55 + 0.45 * (1 + np.log10(fraction) / 2.5))
        runs, tests, folders = [self.predictions(skill, seed) for seed in seeds], [], []
        points = [variant] if variant else [f"{value}" for value in (settings or {}).values()]
        key = re.sub(r"\W+", "-", "--".join([encoder, *points])).strip("-")
        for seed, run in zip(seeds, runs, strict=True):
            folder = Path("runs", protocol, key, f"fraction-{fraction:g}", f"seed-{seed}")
            (self.out / folder).mkdir(parents=True, exist_ok=True)
            save_predictions(self.out / folder, run.keys, run.truth, run.scores, run.kind, run.classes)
            test = self._test(run)
            content = {"classes": self.classes, "data": {"name": "made", "manifest": self.manifest}, "test": test,
                       "target": self.target, "kind": self.kind, "score": SCORE[self.kind], "seed": seed}  # fmt: skip
            (self.out / folder / "results.json").write_text(json.dumps(content))
            tests.append(test)
            folders.append(folder.as_posix())
        measure = {"multilabel": "average_precision", "segment": "iou", "single": "f1"}[self.kind]
        row: dict[str, Any] = {
            "protocol": protocol, "encoder": encoder, "variant": variant, "settings": settings or {}, "floor": floor,
            "label_fraction": fraction, "labelled_samples": round(5400 * fraction), "seeds": list(seeds),
            "folders": folders, "score": SCORE[self.kind], "scores": {},
            "per_class": {measure: {name: float(np.mean([test["per_class"][measure][name] for test in tests]))
                                    for name in tests[0]["per_class"][measure]}},
            "extra": {},
            "seconds": {"pretraining": 1200.0 if encoder == "simclr" else 0.0, "training": 31.0, "all": 45.0},
        }  # fmt: skip
        for score in dict.fromkeys((SCORE[self.kind], "macro_f1")):
            found = interval(runs, score, resamples=RESAMPLES)
            values = [test[score] for test in tests]
            row["scores"][score] = {"mean": found.estimate, "low": found.low, "high": found.high, "values": values,
                                    "std": float(np.std(values))}  # fmt: skip
        if self.kind != "multilabel":
            row["confusion"] = np.sum([test["confusion"] for test in tests], 0).tolist()
        self.runs[protocol, encoder, variant, json.dumps(settings), fraction] = runs
        baseline = self.runs.get((protocol, "scratch", "", "null", fraction))
        if baseline and encoder != "scratch" and not floor:
            row["to_baseline"] = {"baseline": "scratch"} | self._difference(runs, baseline)
        self.rows.append(row)
        return row

    def hold_against_floors(self, protocol: str, floors: Sequence[str]) -> None:
        for row in self.rows:
            if row["protocol"] == protocol and not row["floor"]:
                settings = json.dumps(row["settings"] or None)
                runs = self.runs[protocol, row["encoder"], row["variant"], settings, row["label_fraction"]]
                row["to_floors"] = {
                    floor: self._difference(runs, self.runs[protocol, floor, "", "null", row["label_fraction"]])
                    for floor in floors
                }

    def write(self, title: str, protocols: Sequence[dict[str, Any]], **changes: Any) -> Path:
        content = {"format_version": 1, "title": title, "score": {p["name"]: SCORE[self.kind] for p in protocols},
                   "baseline": "scratch", "protocols": list(protocols), "rows": self.rows, "failed": [],
                   "seconds": 3600.0} | changes  # fmt: skip
        (self.out / "comparison.json").write_text(json.dumps(content))
        (self.out / "spec.json").write_text(json.dumps({"shards": str(self.shards or "nowhere"), "title": title}))
        return self.out

    def _difference(self, runs: list[Predictions], others: list[Predictions]) -> dict[str, float]:
        found = difference(runs, others, SCORE[self.kind], resamples=RESAMPLES)
        return {"mean": found.estimate, "low": found.low, "high": found.high}

    def _test(self, run: Predictions) -> dict[str, Any]:
        if run.kind == "segment":
            return metrics.segmentation(run.scores.sum(0), self.classes)
        scored = metrics.multilabel if run.kind == "multilabel" else metrics.single_label
        return scored(run.truth, run.scores, self.classes)


def protocol(name: str, kind: str, evaluate: str | None = None, of: str | None = None) -> dict[str, Any]:
    task = "segment" if kind == "segment" else "classify"
    return {"name": name, "task": task, "kind": kind, "of": of, "evaluate": evaluate}


def few_labels(
    out: Path, kind: str, classes: Sequence[str], shards: Path | None = None, *,
    encoders: Sequence[str] = ("scratch", "simclr", "supervised"), fractions: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: Sequence[int] = (0, 1), samples: int = 120, **changes: Any,
) -> Path:  # fmt: skip
    """Scratch beside pretrained encoders over label fractions, fine-tuned and (but for segmentation) probed."""
    made = Maker(out, kind, classes, samples, shards)
    protocols = [protocol("finetune", kind)]
    for fraction in fractions:
        for encoder in encoders:
            made.add("finetune", encoder, fraction, seeds)
    if kind != "segment":
        protocols.append(protocol("linear", kind, "linear"))
        floors = ("image statistics", "random cnn")
        for fraction in fractions:
            for encoder in encoders[1:]:
                made.add("linear", encoder, fraction, seeds, better=-0.3)
            for floor in floors:
                made.add("linear", floor, fraction, seeds, floor=True)
        made.hold_against_floors("linear", floors)
    return made.write(f"Few labels, {kind}", protocols, **changes)


def axis_study(out: Path, classes: Sequence[str], **changes: Any) -> Path:
    """Temperatures and batch sizes, and two variants, at two label fractions."""
    made = Maker(out, "single", classes, 120)
    for fraction in (0.05, 1.0):
        made.add("finetune", "scratch", fraction, [0, 1])
        made.add("finetune", "simclr", fraction, [0, 1])
        for temperature in (0.01, 0.07, 0.5):
            made.add("finetune", "simclr", fraction, [0, 1], settings={"objective.temperature": temperature},
                     better=-0.25 * abs(np.log10(temperature / 0.1)))  # fmt: skip
        for name, knob, worse in (("no jitter", "view.jitter", -0.5), ("no blur", "view.blur", 0.02)):
            made.add("finetune", "simclr", fraction, [0, 1], variant=name, settings={knob: 0.0}, better=worse)
    return made.write("What temperature does", [protocol("finetune", "single")], **changes)
