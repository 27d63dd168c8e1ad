"""The report's section of a comparison: who leads, from how few labels, on which classes, at what cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report.comparison.classes import confusions, per_class
from evaluation.report.comparison.contest import choice, contest
from evaluation.report.comparison.curves import curves
from evaluation.report.comparison.examples import examples
from evaluation.report.comparison.extras import extra_tables, run_pictures
from evaluation.report.comparison.rows import (
    Row,
    baseline_told,
    identity,
    in_lead,
    is_baseline,
    labels_told,
    main_score,
    ranked,
    told,
    verdict,
)
from evaluation.report.comparison.studies import studies
from evaluation.report.comparison.table import lead_table, leads_of
from evaluation.report.sections import pretraining_section
from evaluation.report.words import NAMES, duration, sentence, signed
from evaluation.runs import is_pretrained, read_json
from shards.errors import BandstreamError
from training.monitor import METRICS

UNLABELLED = ("cluster", "map")
"""Protocols that use no labels but to be judged by."""


def comparison_section(out: Path, comparison: dict[str, Any], datasets: dict[str, Path]) -> dict[str, Any]:
    """What the template shows of a comparison's folder."""
    protocols = []
    for protocol in comparison["protocols"]:
        rows = [row for row in comparison["rows"] if row["protocol"] == protocol["name"]]
        if rows:
            protocols.append(_protocol(out, comparison, protocol, rows, datasets))
    encoders = dict.fromkeys(row["encoder"] for row in comparison["rows"] if not row.get("floor"))
    seeds = sorted({seed for row in comparison["rows"] for seed in row.get("seeds", [])})
    names = ", ".join(encoders)
    return {
        "title": comparison.get("title") or out.name,
        "text": f"{len(encoders)} encoders ({names}) by {len(protocols)} "
        f"protocol{'s' if len(protocols) != 1 else ''}, {_counted(seeds, 'seed')}. "
        "Below each score, and in brackets beside each difference, stands its 95 % bootstrap interval over the test "
        f"samples{', and over seeds where there are several' if len(seeds) > 1 else ', for there is one seed'}. "
        "Differences are paired: both sides scored on the same test samples with the same seeds. A difference is "
        "called better or worse only where its interval leaves out 0; of many differences that are none, about one in "
        "twenty is called so by chance. The highest mean of each group is bold, a floor's too."
        + _trained_once(out, comparison),
        "protocols": protocols,
        "cost": _cost(comparison, protocols), "pretraining": _pretraining(out),
        "failed": comparison.get("failed") or [],
        "verdicts": [protocol["verdict"] for protocol in protocols if protocol["verdict"]],
    }  # fmt: skip


def _protocol(
    out: Path, comparison: dict[str, Any], protocol: dict[str, Any], rows: list[Row], datasets: dict[str, Path]
) -> dict[str, Any]:
    shown = in_lead(rows)
    fractions = sorted({row["label_fraction"] for row in rows})
    score = NAMES.get(rows[0]["score"], rows[0]["score"].replace("_", " "))
    order = ranked(shown)
    groups = [
        {"title": "without labels" if protocol.get("evaluate") in UNLABELLED
         else labels_told([row for row in shown if row["label_fraction"] == fraction]),
         "rows": [row for name in order for row in shown
                  if row["label_fraction"] == fraction and identity(row) == name]}
        for fraction in fractions
    ]  # fmt: skip
    table = lead_table(groups, comparison, rows, {
        "baseline": f"difference to {baseline_told(comparison)}", "floor": "difference to the best floor",
    })  # fmt: skip
    few = [row for row in shown if row["label_fraction"] == fractions[0]]
    best, beside = contest(out, few, comparison)
    chosen = choice(out, few, comparison)
    return {
        "name": protocol["name"], "about": _about(protocol), "score": score, "table": table,
        "curves": curves(shown, order, comparison, fractions, score),
        "classes": [
            found for fraction in dict.fromkeys((fractions[0], fractions[-1]))
            if (found := per_class([row for name in order for row in shown
                                    if row["label_fraction"] == fraction and identity(row) == name],
                                   *contest(out, [r for r in shown if r["label_fraction"] == fraction],
                                            comparison)))
        ],
        "confusions": confusions(out, [row for row in (beside, best) if row]),
        "examples": examples(out, best, beside, datasets) if best and beside else None,
        "studies": studies(out, comparison, rows),
        "extras": extra_tables([row for name in order for row in shown if identity(row) == name]),
        "pictures": run_pictures(out, best or beside),
        "choice": chosen if best and beside else "",
        "verdict": _verdict(protocol, best, beside, comparison, rows, score, chosen),
    }  # fmt: skip


def _pretraining(out: Path) -> list[dict[str, Any]]:
    """The runs that a comparison pretrained itself, as far as they came; of many, the views of the first."""
    found: list[dict[str, Any]] = []
    for metrics in sorted(out.glob(f"encoders/*/seed-*/{METRICS}")):
        folder = metrics.parent
        try:
            section = pretraining_section(folder)
        except (BandstreamError, KeyError, TypeError):  # a run that was cut off, or that another version wrote
            continue
        name = f"{folder.parent.name}, {folder.name.replace('-', ' ')}"
        found.append(section | {"name": name} | ({"views": None} if found else {}))
    return found


def _trained_once(out: Path, comparison: dict[str, Any]) -> str:
    """Which encoders all seeds of a row started from: their intervals know nothing of another pretraining."""
    once: dict[str, None] = {}
    for row in comparison["rows"]:
        sources = [_source(out, folder) for folder in row.get("folders", [])]
        if not row.get("floor") and len(sources) > 1 and len(set(sources)) == 1 and sources[0]:
            once[told(row)] = None
    if not once:
        return ""
    return (
        f" All seeds of {', '.join(once)} start from one pretraining run: intervals are over what came after it, and "
        "say nothing of how another pretraining would have turned out."
    )


def _source(out: Path, folder: str) -> str:
    """The weights that a run started from; "" for its own random ones, and where it does not say."""
    path = out / folder / "results.json"
    if not path.resolve().is_relative_to(out.resolve()) or not path.is_file():
        return ""
    try:
        content = read_json(path)
        held = content.get("init") or (content.get("source") if is_pretrained(content) else None)
    except (BandstreamError, AttributeError, KeyError):
        return ""
    return "" if held in (None, "scratch") else str(held)


def _cost(comparison: dict[str, Any], protocols: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of each encoder, seconds of one seed: of its pretraining, and of each protocol over its label fractions."""
    rows = [row for row in comparison["rows"] if not row.get("floor") and row.get("seconds")]
    if not rows:
        return None
    names = [protocol["name"] for protocol in protocols]
    lines: list[dict[str, Any]] = []
    for name in dict.fromkeys(identity(row) for row in rows):
        own = [row for row in rows if identity(row) == name]
        before = max(float(row["seconds"].get("pretraining") or 0) for row in own)
        each = [sum(float(r["seconds"].get("all") or r["seconds"].get("training") or 0) for r in own
                    if r["protocol"] == protocol) for protocol in names]  # fmt: skip
        lines.append({"name": told(own[0]), "before": before, "each": each, "sum": before + sum(each)})
    most = max(line["sum"] for line in lines) or 1.0
    return {
        "columns": names,
        "rows": [{"name": line["name"], "before": duration(line["before"]) if line["before"] else "none",
                  "each": [duration(seconds) if seconds else "–" for seconds in line["each"]],
                  "sum": duration(line["sum"]), "share": line["sum"] / most} for line in lines],
        "all": duration(float(comparison.get("seconds") or 0)),
    }  # fmt: skip


def _verdict(
    protocol: dict[str, Any], best: Row | None, beside: Row | None, comparison: dict[str, Any], rows: Sequence[Row],
    score: str, chosen: str,
) -> dict[str, Any] | None:  # fmt: skip
    if best is None or beside is None or protocol.get("evaluate") == "map":  # whose picture says it, not a number
        return None
    leads = leads_of(best, rows)
    found, _ = leads.get("baseline" if is_baseline(beside, comparison) else "floor") or (None, "")
    text = f"{sentence(score)} on the test split"
    if found:
        bounds = f" ({signed(found['low'])} to {signed(found['high'])})" if verdict(found) else ""
        holds = "holds" if verdict(found) == "not told apart" else "leaves out"
        outcome = f"{verdict(found)}, the interval {holds} 0" if verdict(found) else "no interval"
        text += f"; difference {signed(found['mean'])}{bounds}: {outcome}"
    return {
        "title": f"{protocol['name']}, {labels_told([best])}",
        "figures": [(told(row), main_score(row)["mean"]) for row in (beside, best)],
        "text": f"{text}. {chosen}".strip(),
    }  # fmt: skip


def _about(protocol: dict[str, Any]) -> str:
    ways = {
        "linear": "A linear probe on frozen features.", "knn": "Nearest neighbours by frozen features.",
        "cluster": "k-means on frozen features, without labels.", "map": "Features laid out on a plane.",
        "retrieval": "Test patches ask for their nearest train patches, by frozen features.",
        "ood": "Are samples from outside told from the set's own?",
    }  # fmt: skip
    kinds = {"single": "classification", "multilabel": "multi-label classification", "segment": "segmentation"}
    if not protocol.get("evaluate"):
        return f"Fine-tuning for {kinds.get(protocol.get('kind') or '', protocol.get('task') or 'a task')}."
    of = f" Of the classifiers of {protocol['of']}." if protocol.get("of") else ""
    return ways.get(protocol["evaluate"], str(protocol["evaluate"])) + of


def _counted(seeds: Sequence[int], name: str) -> str:
    return f"one {name}" if len(seeds) == 1 else f"{len(seeds)} {name}s"
