"""`bandstream bench loader`: our loader beside what users would otherwise run, on the same patches, read to views.

Every loader runs in a process of its own, anew for each repeat, pinned to the same cores, in turns with the others.
"""

import importlib.util
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench.loaders import OURS, PEERS, Peer

PACKAGES = (
    "bandstream", "torch", "numpy", "nvidia-dali-cuda130", "kornia", "rasterio", "webdataset", "litdata", "lmdb",
    "safetensors", "zarr", "mosaicml-streaming",
)  # fmt: skip
TARGETS = {"two views": 2.0, "read": 5.0}
"""How many times the best peer's samples per second ours is to reach."""
VIEWS = (
    "two views of all bands, float32: a random resized crop (area 0.2 to 1, aspect 3/4 to 4/3, log-uniform), flips "
    "each at one half, a factor of 0.8 to 1.2 a band, standardisation; no turns. Ours resamples each array once, from "
    "its own resolution, and filters where a view is coarser; Kornia's users upsample 20 m and 60 m bands to 10 m "
    "(bilinear), then crop and flip the batch; grid_sample resamples each array once. Neither of them filters"
)
WHAT = (
    "samples/s, every tensor summed; each run a new process on the same cores, page cache warm unless it says cold; "
    "cpus: cores in use; peak_mb: proportional set size of a process and its workers, looked at each second (where "
    "phases share a process, reading after views, our stages, a later one holds what an earlier one left)"
)
STAGES = {
    "graph": "draws and graph, the bytes from memory",
    "half": "two views, float16",
    "every_augmentation": "two views, every augmentation",
    "train": "training a ResNet-18",
    "train_replayed": "training on one batch in memory",
    "read_cold": "read, one epoch, page cache cold",
    "views_cold": "two views, one epoch, page cache cold",
}
COLD = ("read_cold", "views_cold")


def recipe_of(view_size: int) -> Any:
    """The bench's view: see VIEWS."""
    from pipeline.views import ViewRecipe

    return ViewRecipe(size=view_size, rotate90=0, gain=0.2)


def installed(peer: Peer) -> bool:
    """Whether the packages of a peer are there."""
    needed = [peer.package, *(["kornia"] if peer.views == "KorniaViews" else [])]
    return all(importlib.util.find_spec(name) for name in needed)


@click.command()
@click.argument("shards", type=click.Path(path_type=Path), required=False)
@click.option("--patches", type=click.IntRange(20), default=2000, show_default=True, help="Made-up patches.")
@click.option("--archive", type=click.Path(path_type=Path, exists=True), help="Take them from this v2 archive instead.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder for all formats, kept and used again  [default: temporary]"
)
@click.option(
    "--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, help="Whom to run beside [default: all]"
)
@click.option("--alone", is_flag=True, help="Ours alone.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs of each, in turns.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=15.0, show_default=True,
    help="Length of a run of two views; reading alone and our stages take a third, training a half.",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--view-size", type=click.IntRange(8), default=112, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Of the views.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where to write the record.")
def loader(
    shards: Path | None,
    patches: int,
    archive: Path | None,
    data: Path | None,
    peers: tuple[str, ...],
    alone: bool,
    repeats: int,
    seconds: float,
    batch_size: int,
    view_size: int,
    device: str,
    output: Path | None,
) -> None:
    """Samples a second of our loader and of its peers, read to views, every view consumed.

    Without SHARDS an archive is made up and converted to each peer's format. With SHARDS, an existing shard set, those
    run that read it as it is: ours and WebDataset.
    """
    from bench.peer_data import prepare
    from shards import atomic
    from shards.errors import BandstreamError
    from shards.manifest import Manifest

    readable = [key for key, peer in PEERS.items() if shards is None or peer.folder == OURS]
    chosen = list(peers) or [key for key in readable if installed(PEERS[key]) and not alone]
    if alone and peers:
        raise click.UsageError("--alone runs beside nobody: leave --peer away")
    for key in chosen:
        if key not in readable:
            raise BandstreamError(f"{key} cannot read a shard set: leave SHARDS away, or take {', '.join(readable)}")
        if not installed(PEERS[key]):
            raise BandstreamError(
                f"{key} is not installed: {PEERS[key].absent or 'install the extra bandstream[bench]'}"
            )
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        data = data or Path(temporary)
        stored: dict[str, float] = {}
        if shards is None:
            formats = {PEERS[key].folder for key in chosen} - {OURS, "archive"}
            stored = prepare(data, sorted(formats), patches, archive)
        else:
            Manifest.read(shards)
            data = Path(temporary)
            (data / OURS).symlink_to(shards.resolve())
        bench = _Bench(data, batch_size, view_size, seconds, device)
        settings = {key: bench.tuned(key) for key in chosen}
        bench.run(settings, repeats)
        samples = Manifest.read(data / OURS).splits["train"].samples

    record = bench.record(settings, repeats) | {"patches": samples, "stored_bytes_a_patch": stored}
    if output:
        atomic.write_json(output, record)
    _tell(record)


class _Bench:
    """What is run and what came of it: `results` by name, a value a repeat."""

    def __init__(self, data: Path, batch_size: int, view_size: int, seconds: float, device: str) -> None:
        self.data, self.batch_size, self.view_size, self.seconds = data, batch_size, view_size, seconds
        self.device = device
        self.cores = tuple(sorted(os.sched_getaffinity(0)))
        self.results: dict[str, list[dict[str, float]]] = {}

    def started(self, key: str) -> Any:
        from bench.contestant import Contestant

        return Contestant(key, self.data, self.batch_size, self.view_size, self.cores, self.device)

    def warmed(self, key: str) -> None:
        from bench.measure import warm

        warm(self.data / (PEERS[key].folder if key in PEERS else OURS))

    def tuned(self, key: str) -> dict[str, Any]:
        """A peer's quickest setting for reading and for views, and all that was tried."""
        from bench.tuning import tuned

        peer = PEERS[key]
        with self.started(key) as process:

            def rate(phase: str, setting: dict[str, Any]) -> float:
                self.warmed(key)
                found: float = process.run(phase, setting, self.seconds / 10)["samples_per_s"]
                click.echo(f"tried {peer.name}, {phase}, {setting}: {found:,.0f} samples/s", err=True)
                return found

            return tuned(rate, peer.reading_knobs, peer.views_knobs, len(self.cores))

    def run(self, settings: dict[str, dict[str, Any]], repeats: int) -> None:
        """Everyone in turn, `repeats` times round."""
        for repeat in range(repeats):
            for key in (OURS, *settings):
                name, reader = (PEERS[key].name, PEERS[key].reader) if key in PEERS else (OURS, OURS)
                own = settings.get(key, {"views": {}, "read": {}})
                with self.started(key) as process:
                    self.warmed(key)
                    self.add(repeat, f"{name}, two views", process.run("views", own["views"], self.seconds))
                    if reader:
                        self.warmed(key)
                        self.add(repeat, f"{reader}, read", process.run("read", own["read"], self.seconds / 3))
            with self.started(OURS) as process:
                for stage, told in STAGES.items():
                    length = None if stage in COLD else self.seconds / (2 if "train" in stage else 3)
                    if length:
                        self.warmed(OURS)
                    self.add(repeat, f"{OURS}, {told}", process.run(stage, {}, length))

    def add(self, repeat: int, name: str, result: dict[str, float]) -> None:
        self.results.setdefault(name, []).append(result)
        told = f"{result['samples_per_s']:,.0f} samples/s, {result['cpus']:.2f} cores, {result['peak_mb']:,.0f} MB"
        click.echo(f"{repeat + 1}: {name}: {told}", err=True)

    def record(self, settings: dict[str, dict[str, Any]], repeats: int) -> dict[str, Any]:
        from bench.measure import machine, summary

        rates = {name: [run["samples_per_s"] for run in found] for name, found in self.results.items()}

        def ratios(kind: str) -> dict[str, Any]:
            ours = f"{OURS}, {kind}"
            return {
                name: summary(_ratios(rates[ours], theirs))
                for name, theirs in rates.items()
                if name.endswith(f", {kind}") and name != ours
            }

        def share(part: str, whole: str) -> dict[str, Any]:
            return summary(_ratios(rates[f"{OURS}, {part}"], rates[f"{OURS}, {whole}"]))

        kinds = {kind: ratios(kind) for kind in TARGETS}
        return {
            "bench": "loader",
            "what": WHAT,
            "views": VIEWS,
            "repeats": repeats,
            "seconds": self.seconds,
            "batch_size": self.batch_size,
            "view_size": self.view_size,
            "cores": len(self.cores),
            "device": self.device,
            "targets": TARGETS,
            "ratio": kinds,
            "best_peer": {
                kind: min(found, key=lambda name: found[name]["median"]) for kind, found in kinds.items() if found
            },
            "training_of_its_ceiling": share(STAGES["train"], STAGES["train_replayed"]),
            "not_run": {
                peer.name: peer.absent if peer.absent and not installed(peer) else "not asked for"
                for key, peer in PEERS.items()
                if key not in settings
            },
            "settings": {PEERS[key].name: setting for key, setting in settings.items()},
            "runs": {
                name: {measure: summary([run[measure] for run in found]) for measure in found[0]} | {"each": found}
                for name, found in self.results.items()
            },
            "machine": machine(PACKAGES),
        }


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [own / other for own, other in zip(ours, theirs, strict=True)]


def _tell(record: dict[str, Any]) -> None:
    for name, own in record["runs"].items():
        rate = own["samples_per_s"]
        told = f"{name:<52}{rate['median']:>8,.0f} samples/s ({rate['min']:,.0f} to {rate['max']:,.0f})"
        told += f"{own['cpus']['median']:>6.2f} cores{own['peak_mb']['median']:>7,.0f} MB"
        for ratios in record["ratio"].values():
            if name in ratios:
                ratio = ratios[name]
                told += f"   ours is {ratio['median']:.1f} times as fast ({ratio['min']:.1f} to {ratio['max']:.1f})"
        click.echo(told)
    for kind, best in record["best_peer"].items():
        ratio = record["ratio"][kind][best]["median"]
        click.echo(
            f"{kind}: {ratio:.1f} times the best peer, {best.rpartition(', ')[0]}; target {TARGETS[kind]:g} times"
        )
    click.echo(
        f"training runs at {record['training_of_its_ceiling']['median']:.0%} of its ceiling; "
        f"n = {statistics.median_low(own['samples_per_s']['n'] for own in record['runs'].values())}"
    )
