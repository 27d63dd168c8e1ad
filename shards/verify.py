"""Every byte of a shard set held against its manifest."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shards import catalogue
from shards.errors import BandstreamError
from shards.layout import TRAILER, SampleLayout
from shards.manifest import Manifest, ShardSpec
from shards.shardset import json_bytes


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path | str, progress: Callable[[int], None] = lambda size: None) -> list[str]:
    """Compare shards, indexes and catalogue with the manifest.

    Finds changed bytes, missing, extra and swapped shards, stale indexes, keys that occur twice, and a catalogue that
    lists other samples. `progress` is called with the bytes of each shard that is done. Returns one line a problem,
    none for a sound set; raises BandstreamError where there is no readable manifest.
    """
    root = Path(folder)
    manifest = Manifest.read(root)
    listed = [(split, shard) for split, spec in manifest.splits.items() for shard in spec.shards]
    problems: list[str] = []
    owner: dict[str, tuple[str, str, int]] = {}
    with ThreadPoolExecutor() as threads:
        for (split, shard), (found, keys) in zip(
            listed, threads.map(lambda item: _verify_shard(root, manifest, item[1]), listed), strict=True
        ):
            problems += found
            for position, key in enumerate(keys):
                if key in owner:
                    problems.append(f"{shard.file}: sample {key} also stands in {owner[key][1]}")
                owner[key] = (split, shard.file, position)
            progress(shard.bytes)
    files = {shard.file for _, shard in listed}
    known = files | {Path(file).with_suffix(".idx").name for file in files}
    for path in sorted([*root.glob("*.tar"), *root.glob("*.idx")]):
        if path.name not in known:
            problems.append(f"{path.name}: not in the manifest")
    if not problems:
        problems += _verify_catalogue(root, owner)
    if not (root / "rejected.jsonl").exists():
        problems.append("rejected.jsonl: missing")
    return problems


def _verify_shard(root: Path, manifest: Manifest, shard: ShardSpec) -> tuple[list[str], list[str]]:
    """Problems of one shard, and its keys where its headers could be read."""
    tar = root / shard.file
    idx = tar.with_suffix(".idx")
    missing = [f"{path.name}: missing" for path in (tar, idx) if not path.is_file()]
    if missing:
        return missing, []
    expected = shard.samples * manifest.sample_bytes + len(TRAILER)
    size = tar.stat().st_size
    if size != expected or size != shard.bytes:
        return [f"{tar.name}: {size} bytes, by the manifest {expected}"], []
    problems = []
    if sha256(tar) != shard.sha256:
        problems.append(f"{tar.name}: its sha256 is not the manifest's")
    if sha256(idx) != shard.idx_sha256:
        problems.append(f"{idx.name}: its sha256 is not the manifest's")
    samples = np.memmap(tar, np.uint8, "r", shape=(shard.samples, manifest.sample_bytes))
    keys: list[str] = []
    try:
        with tar.open("rb") as file:
            layout = SampleLayout.of(manifest, json_bytes(file.fileno(), manifest))
        keys = [layout.check(sample) for sample in samples]
    except (ValueError, BandstreamError) as error:
        return [*problems, f"{tar.name}: {error}"], keys
    if layout.index(keys) != idx.read_text(errors="replace"):
        problems.append(f"{idx.name}: stale, its rows do not fit {tar.name}")
    return problems, keys


def _verify_catalogue(root: Path, owner: dict[str, tuple[str, str, int]]) -> list[str]:
    """Problems of `samples.parquet`, given where the shards hold each key."""
    try:
        table = catalogue.read(root).select(["key", "split", "shard", "position"]).to_pydict()
    except (BandstreamError, KeyError) as error:
        return [f"{catalogue.FILE}: {error}"]
    rows = list(zip(table["split"], table["shard"], table["position"], strict=True))
    if len(rows) != len(owner) or dict(zip(table["key"], rows, strict=True)) != owner:
        return [f"{catalogue.FILE}: does not list the samples where the shards hold them"]
    return []
