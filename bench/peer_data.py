"""The same patches in every peer's format: a made-up or given archive, our shard set of it, and what the peers read.

DATA/archive is the folder of GeoTIFFs, DATA/bandstream the shard set, all patches in its train split; DATA/litdata and
so on are written by `bench.plain_ingest`. Each appears under its name when it is whole, and is used again.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.ingest import chosen
from bench.loaders import OURS
from shards.errors import BandstreamError
from shards.manifest import Manifest

REPOSITORY = Path(__file__).parents[1]


def prepare(data: Path, formats: Iterable[str], patches: int, archive: Path | None = None) -> dict[str, float]:
    """Make what is missing of `formats` (and always archive and shard set); bytes a patch on disk of each.

    `archive`: a version 2 archive of BigEarthNet, of which `patches` are taken, evenly chosen; None: made up, seed 0.
    Raises BandstreamError where DATA holds another number of patches, or a conversion fails.
    """
    data.mkdir(parents=True, exist_ok=True)
    folder = data / "archive"
    if not folder.exists():
        if archive is None:
            _made(folder, ["-m", "cli", "synth", "{}", "--patches", str(patches), "--seed", "0"])
        else:
            _linked(archive, folder, patches)
    if not (data / OURS).exists():
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as splits:
            splits.writelines(f"{name},train\n" for name in names(folder))
            splits.flush()
            told = ["ingest", "bigearthnet", str(folder.resolve()), "{}", "--split-file", splits.name]
            _made(data / OURS, ["-m", "cli", *told])
    held = Manifest.read(data / OURS).splits["train"].samples
    if held != min(patches, len(names(folder))):
        raise BandstreamError(f"{data} holds {held} patches, not {patches}: name another folder, or so many patches")
    missing = [name for name in formats if not (data / name).exists()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for made in [
            pool.submit(_made, data / name, ["-m", "bench.plain_ingest", name, str(folder), "{}"]) for name in missing
        ]:
            made.result()
    sizes = {name: _size(data / name) / held for name in ("archive", OURS, *formats)}
    sizes["archive"] = _size(folder / "BigEarthNet-S2") / held
    return sizes


def names(archive: Path) -> list[str]:
    """The patches of a version 2 archive."""
    return sorted(path.name for path in (archive / "BigEarthNet-S2").glob("*/*"))


def _linked(archive: Path, folder: Path, patches: int) -> None:
    part = folder.with_name(".archive")
    found = chosen(archive, part, len(names(archive)), patches)
    if found == part.resolve():
        part.rename(folder)
    else:
        folder.symlink_to(found)


def _made(target: Path, command: list[str]) -> None:
    """Run a command of ours that makes what `{}` stands for, and give it its name when it is whole."""
    part = target.with_name(f".{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    whole = [word.replace("{}", str(part.resolve())) for word in command]
    result = subprocess.run([sys.executable, *whole], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode:
        words = (result.stderr or result.stdout).strip().splitlines()
        raise BandstreamError(f"{target} could not be made: {words[-1] if words else result.returncode}")
    part.rename(target)


def _size(folder: Path) -> int:
    return sum(
        os.stat(Path(path, name)).st_size for path, _, files in os.walk(folder, followlinks=True) for name in files
    )
