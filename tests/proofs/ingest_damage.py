"""A thousand random damages of input files: no ingest crashes, no wrong sample comes in that an independent reader
would not read as well, and memory stays bounded.

    python -m tests.proofs ingest_damage

Each damage hits one file of a small archive: cut, flipped, overwritten with noise or zeros, emptied, made huge, swapped
with another, or a TIFF's number made absurd; or the tar around it: cut, flipped, a link or a name that leads out. The
set made of it is then held to the archive as rasterio reads it.
"""

import io
import random
import resource
import shutil
import struct
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from ingest.build import Options, ingest
from ingest.sources.bigearthnet import ARRAYS, BigEarthNet
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from shards.verify import verify
from tests.ingest import archives

DAMAGES, SEED, PATCHES = 1000, 0, 5
MOST_MB = 400
"""How much the process may grow over all damages."""
Damage = Callable[[bytes, random.Random], bytes]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_header(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(min(len(data), 600))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def noise(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(min(64, len(data) - at)) + data[at + 64 :]


def zeros(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]


def empty(data: bytes, draw: random.Random) -> bytes:
    return b""


def grown(data: bytes, draw: random.Random) -> bytes:
    return data + bytes(draw.choice([1, 4096, 30_000_000]))


def absurd(data: bytes, draw: random.Random) -> bytes:
    """A TIFF tag's count or value made enormous."""
    changed = bytearray(data)
    if data[:4] == b"II*\0":
        (directory,) = struct.unpack_from("<I", data, 4)
        if directory + 2 < len(data):
            (entries,) = struct.unpack_from("<H", data, directory)
            at = directory + 2 + 12 * draw.randrange(max(entries, 1)) + draw.choice([4, 8])
            if at + 4 <= len(data):
                struct.pack_into("<I", changed, at, draw.choice([0, 1 << 31, 0xFFFFFFFF, 1 << 24, 70000]))
    return bytes(changed)


IN_FILES: tuple[Damage, ...] = (cut, flip, flip_header, noise, zeros, empty, grown, absurd)


def independent(root: Path, key: str) -> dict[str, np.ndarray] | None:
    """A patch as rasterio reads it; None where it cannot."""
    try:
        arrays = {}
        for member, array in ARRAYS.items():
            planes = []
            for band in array.bands:
                with rasterio.open(next(root.rglob(f"{key}_{band}.tif"))) as source:
                    planes.append(source.read(1))
            arrays[member] = np.stack(planes)
        return arrays
    except (rasterio.RasterioIOError, StopIteration, ValueError, MemoryError):
        return None


def held_to_rasterio(target: Path, root: Path, untouched: set[str]) -> tuple[int, int]:
    """Samples taken, and how many of them are damaged ones; asserts that all are as rasterio reads them."""
    assert verify(target) == []
    opened = ShardSet.open(target)
    taken, damaged = set(), 0
    for split in opened.manifest.splits:
        for index in range(opened.size(split)):
            sample = opened.read(split, index)
            taken.add(sample.key)
            expected = independent(root, sample.key)
            assert expected is not None, f"{sample.key} was taken, though rasterio cannot read it"
            for member, array in expected.items():
                same = np.array_equal(sample.arrays[member], array)
                assert same, f"{sample.key}.{member} is not as rasterio reads it"
            damaged += sample.key not in untouched
    assert untouched <= taken, f"lost with another's damage: {sorted(untouched - taken)}"
    return len(taken), damaged


def damage_a_file(root: Path, draw: random.Random) -> tuple[str, set[str]]:
    """Damage one file of the archive; what was done, and the patches that it does not concern."""
    keys = {archives.patch_name(number) for number in range(PATCHES)}
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = draw.choice(files)
    if draw.random() < 0.1:
        other = draw.choice([file for file in files if file != path and file.suffix == ".tif"])
        path, name = (path if path.suffix == ".tif" else other), "swap"
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
        touched = {path, other}
    else:
        change = draw.choice(IN_FILES)
        path.write_bytes(change(path.read_bytes(), draw))
        name, touched = change.__name__, {path}
    concerned = {key for key in keys for file in touched if key in file.name}
    if any(file.suffix == ".parquet" for file in touched):
        concerned = keys
    return f"{name} {path.suffix}", keys - concerned


def repacked(root: Path, path: Path, draw: random.Random) -> str:
    """The archive as a tar with something wrong in it; what it is."""
    kind = draw.choice(["link", "hard link", "..", "absolute", "flip", "cut", "device", "twice"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
        tar.add(root, "BigEarthNet")
        names = {"..": "../../outside.tif", "absolute": "/tmp/outside.tif"}
        odd = tarfile.TarInfo(names.get(kind, "BigEarthNet/odd.tif"))
        odd.linkname = "/etc/passwd"
        types = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
        odd.type = types.get(kind, tarfile.REGTYPE)
        tar.addfile(odd)
        if kind == "twice":
            tar.add(root, "BigEarthNet")
    data = buffer.getvalue()
    if kind in ("flip", "cut"):
        data = {"flip": flip, "cut": cut}[kind](data, draw)
    path.write_bytes(data)
    return f"tar: {kind}"


def main(damages: int = DAMAGES, seed: int = SEED) -> dict[str, Any]:
    """Damage, ingest, hold to rasterio, again and again."""
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        whole, root, target = (Path(scratch) / name for name in ("whole", "archive", "set"))
        archives.make_v2(whole, PATCHES)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(damages):
            for folder in (root, target):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, root)
            source, untouched = root, {archives.patch_name(number) for number in range(PATCHES)}
            if draw.random() < 0.2:
                source = Path(scratch) / "archive.tar"
                kind = repacked(root, source, draw)
                if kind in ("tar: flip", "tar: cut"):
                    untouched = set()
            else:
                kind, untouched = damage_a_file(root, draw)
            kinds[kind] += 1
            try:
                manifest = ingest(BigEarthNet(source), target, Options(shard_samples=4)).manifest
            except BandstreamError:
                assert not (target / "dataset.json").exists()
                outcomes["refused as a whole"] += 1
                continue
            if kind == "tar: flip":  # in pixels nothing can know it; what matters is that no other number changed
                outcomes["taken: a flip that no format can tell"] += 1
                assert verify(target) == []
                continue
            _, damaged = held_to_rasterio(target, root, untouched)
            if manifest.rejected:
                outcomes["rejected: " + ", ".join(manifest.rejected)] += 1
            elif damaged:
                outcomes["taken, as rasterio reads it"] += 1
            else:
                outcomes["harmless"] += 1
        grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < MOST_MB, f"memory grew by {grown_mb:.0f} MB"
    return {
        "outcome": f"{damages} damages: no crash, no sample that rasterio reads otherwise, memory +{grown_mb:.0f} MB",
        "n": damages,
        "seed": seed,
        "kinds": dict(kinds.most_common()),
        "outcomes": dict(outcomes.most_common()),
        "memory_grown_mb": round(grown_mb),
    }
