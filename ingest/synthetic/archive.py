"""The made-up archive: patches drawn one by one from (seed, number), written by several processes.

A patch depends on the seed and its number alone, so that the archive's bytes do not depend on who wrote which, and the
first patches of a larger archive are those of a smaller one.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ingest.archives.clc import CLASSES, CLC_TO_CLASS
from ingest.progress import bars
from ingest.synthetic import appearance, landscape, patterns, sensor
from ingest.synthetic.geography import CAPACITY, Place, place
from ingest.synthetic.geotiff import template
from shards.atomic import replacing
from shards.errors import BandstreamError

CHUNK = 64
"""Patches that a process makes between two reports."""
IMAGES, MAPS, METADATA = "BigEarthNet-S2", "Reference_Maps", "metadata.parquet"
GSD = {120: 10, 60: 20, 20: 60}


def make_patch(seed: int, index: int) -> tuple[Place, dict[str, np.ndarray], np.ndarray]:
    """Patch `index`: its place, its bands uint16 (side, side) by name, its map of CLC codes uint16 (120, 120)."""
    where = place(seed, index)
    rng = np.random.default_rng([seed, index])
    region, codes = landscape.lay_out(rng, where)
    scene = appearance.scene(rng, where)
    bands = sensor.sense(rng, landscape.paint(rng, scene, region, codes))
    return where, bands, np.array(codes, np.uint16)[region]


def class_names(reference: np.ndarray) -> list[str]:
    """Names of the 19 classes that a map of CLC codes holds, in alphabetical order as in metadata.parquet."""
    codes = np.flatnonzero(np.bincount(reference.ravel(), minlength=1))
    return sorted({CLASSES[CLC_TO_CLASS[code]] for code in codes.tolist() if code in CLC_TO_CLASS})


def make_archive(dst: Path | str, patches: int, seed: int = 0, workers: int | None = None) -> None:
    """Write `patches` patches under the folder `dst`, which must be empty or not there; metadata.parquet comes last.

    `workers` processes (default: one a core) write the same bytes as one. Raises BandstreamError.
    """
    dst = Path(dst)
    if patches < 1 or patches > CAPACITY:
        raise BandstreamError(f"{patches:,} patches: an archive has 1 to {CAPACITY:,}")
    if seed < 0:
        raise BandstreamError(f"seed {seed}: it cannot be negative")
    if dst.exists() and not dst.is_dir():
        raise BandstreamError(f"{dst} is a file: name a folder that is empty or not there")
    if dst.exists() and any(dst.iterdir()):
        raise BandstreamError(f"{dst} is not empty: name another folder, or remove it")
    dst.mkdir(parents=True, exist_ok=True)
    chunks = [(str(dst), seed, first, min(first + CHUNK, patches)) for first in range(0, patches, CHUNK)]
    rows: dict[int, list[dict[str, Any]]] = {}
    with bars(sys.stderr) as progress:
        done = 0
        for first, made in _make(chunks, min(workers or os.cpu_count() or 1, len(chunks))):
            rows[first] = made
            done += len(made)
            progress("make up", done, patches)
    _write_metadata(dst / METADATA, [row for first in sorted(rows) for row in rows[first]])


Chunk = tuple[str, int, int, int]


def _make(chunks: list[Chunk], workers: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    patterns.prepare()
    for side, gsd in GSD.items():
        template(side, gsd)
    template(120, 10, deflate=True)
    if workers == 1:
        yield from map(_make_chunk, chunks)
        return
    # forked, so that patterns and templates are made once; nothing in this process has started a thread for them
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(_make_chunk, chunks)


def _make_chunk(chunk: Chunk) -> tuple[int, list[dict[str, Any]]]:
    dst, seed, first, end = chunk
    return first, [_write_patch(dst, *make_patch(seed, index)) for index in range(first, end)]


def _write_patch(dst: str, where: Place, bands: dict[str, np.ndarray], reference: np.ndarray) -> dict[str, Any]:
    patch = where.patch_id
    folder = f"{dst}/{IMAGES}/{where.product}/{patch}"
    os.makedirs(folder)
    corner, zone = where.corner, where.zone
    for band, pixels in bands.items():
        side = len(pixels)
        _write(f"{folder}/{patch}_{band}.tif", template(side, GSD[side]).raw(pixels, corner, zone))
    folder = f"{dst}/{MAPS}/{where.product}/{patch}"
    os.makedirs(folder)
    data = template(120, 10, deflate=True).deflated(reference, corner, zone)
    _write(f"{folder}/{patch}_reference_map.tif", data)
    return {
        "patch_id": patch,
        "labels": class_names(reference),
        "split": where.split,
        "country": where.tile.country,
        "s1_name": where.s1_name,
        "s2v1_name": where.v1_name,
        # the archive keeps patches with snow, cloud or shadow in another table
        "contains_seasonal_snow": False,
        "contains_cloud_or_shadow": False,
    }


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path}: the disk took only a part")
    finally:
        os.close(descriptor)


def _write_metadata(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, flag = pa.string(), pa.bool_()
    flags = ("contains_seasonal_snow", "contains_cloud_or_shadow")
    kinds = {"patch_id": text, "labels": pa.list_(text)}
    kinds |= dict.fromkeys(("split", "country", "s1_name", "s2v1_name"), text) | dict.fromkeys(flags, flag)
    schema = pa.schema(list(kinds.items()))
    with replacing(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema), file, compression="snappy")
