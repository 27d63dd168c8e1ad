"""`bandstream evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from evaluation.settings import Settings

PROTOCOLS = ("linear", "knn", "cluster", "retrieval", "map", "ood")


@click.command()
@click.argument("dst")
@click.option("--encoder", required=True, metavar="RUN|random:NAME|statistics",
              help="A pretraining run; an encoder with random weights; or image statistics a band. For ood also a "
              "fine-tuned classifier.")  # fmt: skip
@click.option("--protocol", default="linear", show_default=True, type=click.Choice(PROTOCOLS))
@click.option("--features", "level", default="last", show_default=True, type=click.Choice(["last", "stages"]),
              help="An encoder's last map, pooled; or those of all its stages, side by side.")  # fmt: skip
@click.option("--labels", metavar="NAME", help="Which of several label sets  [default: the first]")
@click.option("--label-fraction", default=1.0, show_default=True, help="Share of the train split's labels used.")
@click.option("--bands", metavar="BAND,…", help="Which of DST's bands, in which order  [default: all]")
@click.option("--fallback", default="none", show_default=True, type=click.Choice(["none", "wavelength", "zero"]),
              help="What stands in for bands that the encoder never saw.")  # fmt: skip
@click.option("--view-size", type=click.IntRange(8), help="Pixels  [default: the encoder's view; else the patch's own]")
@click.option("--normalise", default="set", show_default=True, type=click.Choice(["set", "encoder"]),
              help="Whose statistics views are standardised with.")  # fmt: skip
@click.option("--clusters", type=click.IntRange(2), help="For cluster  [default: as many as classes]")
@click.option("--method", default="tsne", show_default=True, type=click.Choice(["tsne", "umap"]), help="For map.")
@click.option("--against", metavar="DST2", help="For ood: the set whose samples are from outside.")
@click.option(
    "--hold-out", multiple=True, metavar="CLASS", help="For ood: a class that the probe never sees; may repeat."
)
@click.option("--ensemble", multiple=True, metavar="RUN", help="For ood: a further run of the same kind; repeatable.")
@click.option("--passes", type=click.IntRange(2), default=20, show_default=True, help="For ood: stochastic passes.")
@click.option("--dropout", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True,
              help="For ood: of features in those passes, where a classifier has no dropout of its own.")  # fmt: skip
@click.option("--neighbours", type=click.IntRange(1), default=10, show_default=True,
              help="For ood: which neighbour's distance is the score.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Of the label fraction, of random weights, and of what a protocol draws.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [default: all]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for results.json and pictures.")
def evaluate(dst: str, protocol: str, device: str, threads: int | None, out: Path, bands: str | None,
             **options: Any) -> None:  # fmt: skip
    """Evaluate frozen features on the labels of DST, beside two floors: image statistics, and random weights.

    linear, knn: a probe, fitted on train, chosen on val, scored once on test. cluster: k-means on train, met by test.
    retrieval: test asks, train answers. map: t-SNE or UMAP of test. ood: how well samples from outside are told from
    those of DST's test split. The same command again returns what is finished.
    """
    if protocol == "ood" and bool(options["against"]) == bool(options["hold_out"]):
        raise click.UsageError(
            "ood needs what is outside: a set with --against, or classes with --hold-out, one of both"
        )
    if protocol != "ood" and (options["against"] or options["hold_out"] or options["ensemble"]):
        raise click.UsageError("--against, --hold-out and --ensemble go with --protocol ood")

    from evaluation.settings import Settings
    from shards.shardset import ShardSet
    from training.distributed import alone

    asked = Settings(
        ShardSet.open(dst), protocol=protocol, device=alone("an evaluation", device).device, threads=threads,
        bands=tuple(bands.replace(" ", "").split(",")) if bands else None, **options,
    )  # fmt: skip
    results = run_evaluation(asked, out)
    click.echo(_told(results, out))


def run_evaluation(asked: "Settings", out: Path) -> dict[str, Any]:
    """Evaluate into `out`; returns what its results.json holds. What is finished there is not done again, and what was
    stopped begins anew. Raises BandstreamError where the folder holds anything else, naming what differs."""
    import torch

    from training.seeds import finished

    if done := finished(out, asked.identity):
        return done
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.protocol == "ood":
        from evaluation.ood.protocol import run_ood as run
    else:
        from evaluation.protocols import run_protocol as run
    return run(asked, out)


def _told(results: dict[str, Any], out: Path) -> str:
    """One line of what was found, beside the floors."""
    score = results["score"]
    line = f"{results['encoder']}, {results['protocol']}"
    if results["protocol"] == "ood":
        line += ": AUROC " + ", ".join(f"{name} {found['auroc']:.3f}" for name, found in results["ood"].items())
    else:
        line += f", {results['labelled_samples']} labels: test {score} {results['test'][score]:.3f}"
        if "macro_f1" in results["test"]:
            line += f", macro F1 {results['test']['macro_f1']:.3f}"
        for told, floor in results["floors"].items():
            line += f"; {told} {floor['test'][score]:.3f}"
    line += f"; stem: {results['adapted']}" if results.get("adapted") else ""
    return f"{line} → {out}"
