"""`bandstream bench ingest`: our ingest beside what users would otherwise run, whole processes, on one core each."""

import hashlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("bandstream", "numpy", "rasterio", "webdataset", "litdata", "lmdb", "safetensors", "zarr", "zstandard")
IMPORTS = {
    "bandstream": "cli, ingest.commands, ingest.building.build, ingest.sources.bigearthnet, pyarrow.parquet",
    "webdataset": "bench.plain_ingest, rasterio, webdataset",
    "litdata": "bench.plain_ingest, rasterio, litdata",
    "lmdb": "bench.plain_ingest, rasterio, lmdb, safetensors.numpy",
    "zarr": "bench.plain_ingest, rasterio, zarr",
}
"""What a process pays once, whatever its size: measured apart, since the others may be given fewer patches."""
PEERS = tuple(IMPORTS)[1:]
TARGET = 15.0
"""How many times a plain conversion's patches per second and core our ingest is to reach."""


@click.command()
@click.option("--patches", type=click.IntRange(20), default=6000, show_default=True, help="Made-up patches.")
@click.option("--archive", type=click.Path(path_type=Path, exists=True), help="A version 2 archive to take instead.")
@click.option(
    "--peer-patches", type=click.IntRange(20), help="Patches the others are given, evenly chosen  [default: all]"
)
@click.option("--peer", "peers", type=click.Choice(PEERS), multiple=True, help="What to run beside  [default: all]")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs of each, interleaved.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where to write the result.")
@click.option(
    "--scratch", type=click.Path(path_type=Path), help="Folder for archive and sets  [default: a temporary one]"
)
def ingest(
    patches: int,
    archive: Path | None,
    peer_patches: int | None,
    peers: tuple[str, ...],
    repeats: int,
    output: Path | None,
    scratch: Path | None,
) -> None:
    """Patches a second of our ingest, from a folder and from a .tar.zst, beside conversions of the same patches.

    Peers read with rasterio and write with webdataset.ShardWriter, litdata.optimize, LMDB and safetensors, or Zarr.
    """
    from bench.measure import interleave, machine, process, summary, warm
    from shards import atomic

    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    core = sorted(os.sched_getaffinity(0))[-1]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        if archive is None:
            archive = Path(folder) / "archive"
            command = [sys.executable, "-m", "cli", "synth", str(archive), "--patches", str(patches), "--seed", "0"]
            subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        source_bytes = warm(archive)
        count = sum(1 for tile in os.scandir(archive / "BigEarthNet-S2") for _ in os.scandir(tile.path))
        part = chosen(archive, Path(folder) / "part", count, peer_patches or count)
        peer_count = min(peer_patches or count, count)
        target = Path(folder) / "set"
        packed = Path(folder) / "packed" / "archive.tar.zst"
        packed.parent.mkdir()
        # not in this process: the memory that it took once would count as every later child's
        packing = multiprocessing.get_context("spawn").Process(target=pack, args=(archive, packed))
        packing.start()
        packing.join()
        if packing.exitcode:
            raise click.ClickException(f"{archive} could not be packed")

        def whole(name: str, read: Path, command: list[str], patches: int) -> Callable[[], dict[str, float]]:
            def run() -> dict[str, float]:
                shutil.rmtree(target, ignore_errors=True)
                warm(read)
                os.sync()  # what was written before is not written out at this run's expense
                result = process([sys.executable, *command], REPOSITORY, core)
                return {
                    **result,
                    "patches_per_s": patches / (result["wall_s"] - starts[name]["wall_s"]),
                    "patches_per_cpu_s": patches / (result["cpu_s"] - starts[name]["cpu_s"]),
                }

            return run

        ours = ["-m", "cli", "ingest", "bigearthnet"]
        beside = peers or PEERS
        runs = {
            "bandstream": whole(
                "bandstream", archive, [*ours, str(archive.resolve()), str(target), "--workers", "1"], count
            ),
            "bandstream, from .tar.zst": whole(
                "bandstream", packed.parent, [*ours, str(packed), str(target), "--workers", "1"], count
            ),
            **{
                peer: whole(peer, part, ["-m", "bench.plain_ingest", peer, str(part), str(target)], peer_count)
                for peer in beside
            },
        }
        starts = {name: _start(IMPORTS[name], core) for name in ("bandstream", *beside)}
        results = interleave(runs, repeats, lambda line: click.echo(line, err=True))
        profile = _profile(archive, target, count)

    def ratios(peer: str, ours: str, key: str) -> dict[str, float | int]:
        pairs = zip(results[peer], results[ours], strict=True)
        return summary([own[key] / theirs[key] for theirs, own in pairs])

    record: dict[str, Any] = {
        "what": "whole processes, one core each, page cache warm, disk idle at the start, uncompressed GeoTIFFs; "
        "rates without the seconds that imports take; "
        "ours with checksums, statistics, index and catalogue; the others with none of these",
        "patches": count,
        "peer_patches": peer_count,
        "start": starts,
        "source_bytes_a_patch": source_bytes / count,
        "repeats": repeats,
        "target": TARGET,
        "ratio": {peer: ratios(peer, "bandstream", "patches_per_s") for peer in beside},
        "cpu_ratio": {peer: ratios(peer, "bandstream", "patches_per_cpu_s") for peer in beside},
        "ratio_from_tar_zst": {peer: ratios(peer, "bandstream, from .tar.zst", "patches_per_s") for peer in beside},
        "runs": {
            name: {key: summary([run[key] for run in own]) for key in own[0]} | {"each": own}
            for name, own in results.items()
        },
        "profile": profile,
        "machine": machine(PACKAGES),
    }
    if output:
        atomic.write_json(output, record)
    for name, own in record["runs"].items():
        told = f"{name:<28}{own['patches_per_s']['median']:>8,.0f} patches/s {own['peak_mb']['median']:>8,.0f} MB"
        if name in record["ratio"]:
            ratio = record["ratio"][name]
            told += f"   ours is {ratio['median']:.1f} times as fast ({ratio['min']:.1f} to {ratio['max']:.1f})"
        click.echo(told)
    click.echo(f"n = {repeats}; target {TARGET:g} times")
    for stage, microseconds in profile["microseconds_a_patch"].items():
        click.echo(f"  {stage:<42}{microseconds:>8.0f} µs a patch")


def _start(imports: str, core: int) -> dict[str, float]:
    """Median seconds that a process takes to import what it needs; the first time compiles bytecode."""
    from bench.measure import process

    runs = [process([sys.executable, "-c", f"import {imports}"], REPOSITORY, core) for _ in range(6)][1:]
    return {key: statistics.median(run[key] for run in runs) for key in ("wall_s", "cpu_s")}


def chosen(archive: Path, part: Path, count: int, wanted: int) -> Path:
    """Links to so many patches of an archive, evenly chosen, laid out as it is; the archive itself where all are."""
    if wanted >= count:
        return archive.resolve()
    number = 0
    for tile in sorted((archive / "BigEarthNet-S2").iterdir()):
        for patch in sorted(tile.iterdir()):
            if number * wanted // count != (number + 1) * wanted // count:
                for kind in ("BigEarthNet-S2", "Reference_Maps"):
                    link = part / kind / tile.name / patch.name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to((archive / kind / tile.name / patch.name).resolve())
            number += 1
    (part / "metadata.parquet").symlink_to((archive / "metadata.parquet").resolve())
    return part.resolve()


def pack(archive: Path, path: Path) -> None:
    """The archive as a download: one tar, compressed with zstd; what is linked is a file in it."""
    import zstandard

    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor(threads=-1).stream_writer(file) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.GNU_FORMAT, dereference=True) as tar,
    ):
        for inside in sorted(archive.iterdir()):
            tar.add(inside, inside.name)


def _profile(archive: Path, target: Path, count: int) -> dict[str, Any]:
    """Where our time goes: each step alone, in this process, on the same patches."""
    import numpy as np

    from bench.measure import process
    from ingest.building.plan import Shard
    from ingest.building.shard import SLOTS, Task, _Writer, tally_of
    from ingest.source import Entry, Listening
    from ingest.sources.bigearthnet import ARRAYS, BigEarthNet
    from shards import atomic

    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        for _ in range(2):  # the better of two: what is measured is the work, not the machine's other work
            begin = time.perf_counter()
            result = work()
            seconds[name] = min(seconds.get(name, 1e9), time.perf_counter() - begin)
        return result

    timed(
        "start the interpreter, import",
        lambda: process([sys.executable, "-c", f"import {IMPORTS['bandstream']}"], REPOSITORY),
    )
    source = BigEarthNet(archive)
    items = timed("list, read metadata", lambda: list(source.listing(Listening(target.parent))))
    entries = [item for item in items if isinstance(item, Entry)]
    shard = Shard("train-000000", "train", tuple(entries))
    task = Task(source, target, "", False)
    writer = _Writer(task, shard, task.layout(), patient=False)
    views = writer.views[0]
    paths = [
        f"{archive}/BigEarthNet-S2/{entry.path}/{entry.key}_{band}.tif"
        for entry in entries
        for array in ARRAYS.values()
        for band in array.bands
    ]
    maps = [
        f"{archive}/Reference_Maps/{entry.path}/{entry.key}_reference_map.tif"
        for entry in entries
        if source.schema.masks
    ]

    def read_all() -> None:
        for path in (*paths, *maps):
            descriptor = os.open(path, os.O_RDONLY)
            os.read(descriptor, 1 << 16)
            os.close(descriptor)

    def take_all() -> None:
        from ingest.reading.geotiff import Reader

        reader = Reader()
        planes = [plane for member in ARRAYS for plane in views[member]]
        for index, path in enumerate(paths):
            reader.read(path, planes[index % len(planes)])
        codes = np.empty((120, 120), np.uint16)
        for path in maps:
            reader.read(path, codes)

    timed("open, read, close", read_all)
    timed("… parse, copy or decompress", take_all)
    timed("… dates, place, labels, mask", lambda: [source.read(entry, views) for entry in entries])

    def fill_all() -> None:
        for start in range(0, count, SLOTS):
            writer.fill(tuple(entries[start : start + SLOTS]))

    timed("… json, headers, statistics", fill_all)
    blocks = writer.slots
    tally = tally_of(source.schema)

    def count_all() -> None:
        for _ in range(0, count, SLOTS):
            for member in ARRAYS:
                pixels = writer.layout.view(blocks, member)
                for index in range(pixels.shape[1]):
                    tally.add(index, pixels[:, index])

    timed("of which statistics (all as train)", count_all)
    rounds = -(-count // SLOTS)
    digest = hashlib.sha256()

    def hash_all() -> None:
        for _ in range(rounds):
            digest.update(blocks.data)

    timed("sha256", hash_all)

    def write_all() -> None:
        with atomic.replacing(target.parent / "written") as file:
            for _ in range(rounds):
                file.write(blocks.data)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # as the ingest does

    timed("write, fsync", write_all)
    ordered = [
        "open, read, close",
        "… parse, copy or decompress",
        "… dates, place, labels, mask",
        "… json, headers, statistics",
    ]
    own = {name: seconds[name] - (seconds[ordered[i - 1]] if i else 0) for i, name in enumerate(ordered)}
    steps = {name.removeprefix("… "): own.get(name, value) / count * 1e6 for name, value in seconds.items()}
    floor = steps["open, read, close"] + steps["sha256"] + steps["write, fsync"]
    return {
        "microseconds_a_patch": steps,
        "floor_microseconds": floor,
        "floor": "open, read, close + sha256 + write, fsync",
    }
