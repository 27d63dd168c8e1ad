"""A thousand single bits, flipped one after another anywhere in a shard set: verify names the file of each.

    python -m tests.proofs verify_flips

Half of the places are uniform over all bytes of the set, so that most lie in shards; the other half are uniform over
its files and, in the file, over its bytes: shards, indexes, catalogue, list of rejected inputs and manifest. Then
every single bit of the manifest is flipped, which nothing but itself vouches for; every file is missing once, files are
extra, shards are swapped and indexes are stale.
"""

import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from ingest.building.build import Options, ingest
from ingest.sources.bigearthnet import BigEarthNet
from shards.errors import BandstreamError
from shards.manifest import FILE, Manifest, changed
from shards.verify import verify
from tests.ingest import archives

FLIPS, SEED, PATCHES = 1000, 0, 12


def make_set(folder: Path) -> Path:
    """A set of both labels and masks in all three splits, and of rejected inputs."""
    root = archives.make_v2(folder / "archive", PATCHES)
    for number in (5, 6):
        patch = root / "BigEarthNet-S2" / archives.V2_TILE / archives.patch_name(number)
        path = patch / f"{patch.name}_B02.tif"
        path.write_bytes(path.read_bytes()[:9000])
    ingest(BigEarthNet(root), folder / "set", Options(shard_samples=3))
    return folder / "set"


def problems_of(folder: Path) -> list[str]:
    try:
        return verify(folder)
    except BandstreamError as error:
        return [str(error)]


def main(flips: int = FLIPS, seed: int = SEED) -> dict[str, Any]:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as made:
        folder = make_set(Path(made))
        files = sorted(path for path in folder.iterdir())
        sizes = [path.stat().st_size for path in files]
        assert min(sizes) > 0, "a file is empty: no bit of it can be flipped"
        assert problems_of(folder) == []
        hit: Counter[str] = Counter()
        for number in range(flips):
            path = draw.choices(files, sizes if number % 2 else None)[0]
            at, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
            flip(path, at, bit)
            found = problems_of(folder)
            flip(path, at, bit)
            assert any(path.name in problem for problem in found), f"bit {bit} of byte {at} of {path.name}: {found}"
            hit[path.suffix if path.suffix in (".tar", ".idx") else path.name] += 1
        assert problems_of(folder) == [], "a flipped bit was not put back"
        others = whole_files(folder, files)
        bits = every_bit(folder) if flips == FLIPS else 0
    return {
        "outcome": f"{flips} bits flipped, {flips} found; {sum(others.values())} files missing, extra, swapped, stale",
        "n": flips,
        "found": sum(hit.values()),
        "flips_by_file": dict(sorted(hit.items())),
        "others_found": others,
        "every_bit_of_the_manifest": bits,
        "files": len(files),
        "bytes": sum(sizes),
    }


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (value,) = file.read(1)
        file.seek(at)
        file.write(bytes([value ^ 1 << bit]))


def whole_files(folder: Path, files: list[Path]) -> dict[str, int]:
    """Missing, extra, swapped and stale: how many of each verify named, which is all."""
    counts: Counter[str] = Counter()
    aside = folder.parent / "aside"
    for path in files:
        path.rename(aside)
        assert any(path.name in problem for problem in problems_of(folder)), f"{path.name} missing"
        aside.rename(path)
        counts["missing"] += 1
    tars = [path for path in files if path.suffix == ".tar"]
    for name in ("train-000099.tar", "test-000099.idx", "other.tar"):
        shutil.copy(tars[0], folder / name)
        assert problems_of(folder) == [f"{name}: not in the manifest"]
        (folder / name).unlink()
        counts["extra"] += 1
    for first in tars:
        for second in tars:
            if first < second:
                swap(first, second, aside)
                found = " ".join(problems_of(folder))
                assert first.name in found and second.name in found, f"{first.name} and {second.name} swapped"
                swap(first, second, aside)
                counts["swapped"] += 1
            if first != second:
                index = first.with_suffix(".idx")
                kept = index.read_bytes()
                shutil.copy(second.with_suffix(".idx"), index)
                assert any(index.name in problem for problem in problems_of(folder)), f"{index.name} stale"
                index.write_bytes(kept)
                counts["stale"] += 1
    assert problems_of(folder) == []
    return dict(counts)


def every_bit(folder: Path) -> int:
    """Flip each bit of the manifest, without a look at the shards; how many were found, which is all."""
    path = folder / FILE
    sound = path.read_bytes()
    for number in range(8 * len(sound)):
        raw = bytearray(sound)
        raw[number // 8] ^= 1 << number % 8
        path.write_bytes(raw)
        try:
            Manifest.read(folder)
            assert changed(path.read_bytes()), f"bit {number % 8} of byte {number // 8} of the manifest"
        except BandstreamError:
            pass
    path.write_bytes(sound)
    return 8 * len(sound)


def swap(first: Path, second: Path, aside: Path) -> None:
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
