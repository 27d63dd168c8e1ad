"""Which products lie below a path: SAFE, folders of GeoTIFFs, EOPF Zarr, unpacked or in a .zip."""

import os
from collections.abc import Iterator
from pathlib import Path

from ingest.scenes import cog, eopf, safe
from ingest.scenes.files import ProductFiles, opened
from ingest.scenes.model import Scene
from ingest.source import Rejected
from shards.errors import BandstreamError

DEEP = 8
"""Folders inside one another that are looked into; archives on AWS lie seven deep (22/H/BD/2021/1/S2B_.../)."""


def products(path: Path, deep: int = DEEP) -> Iterator[Path]:
    """Products at or below `path`, in the order of their names. Raises BandstreamError where it cannot be listed."""
    if path.is_file():
        if path.suffix.lower() == ".zip":
            yield path
        return
    try:
        with os.scandir(path) as entries:
            inside = sorted(
                (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
            hidden = {name for name in (".zgroup", ".zmetadata", ".zattrs") if (path / name).exists()}
    except OSError as error:
        raise BandstreamError(f"{path} cannot be listed ({error.strerror}): mend its permissions") from None
    names = {entry.name for entry in inside} | hidden
    if any(kind.is_product(names) for kind in (safe, eopf, cog)):
        yield path
    elif deep:
        for entry in inside:
            if entry.is_dir() or entry.name.lower().endswith(".zip"):
                yield from products(Path(entry.path), deep - 1)


def inspect(job: tuple[Path, int | None]) -> list[Scene | Rejected]:
    """What the product at a path is: (path, what to take where it does not say itself) → scenes, or why not.

    A .zip may hold several. Checksums are compared here.
    """
    path, asked = job
    try:
        if path.is_dir():
            return [_inspect(ProductFiles(path), asked)]
        with opened(path) as archive:
            names = archive.namelist()
    except Rejected as rejection:
        return [rejection]
    tops = sorted(_tops(names))
    if not tops:
        return [Rejected(path.name, "no-product", "it holds no Sentinel-2 product")]
    return [_inspect(ProductFiles(path, top), asked) for top in tops]


def _tops(names: list[str]) -> set[str]:
    """Folders of a .zip that are products, with a slash behind."""
    folders: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(f"{folder}/" if folder else "", set()).add(file)
    tops: set[str] = set()
    for folder in sorted(folders):
        if any(folder.startswith(top) for top in tops):
            continue
        if any(kind.is_product(folders[folder]) for kind in (safe, eopf, cog)):
            tops.add(folder)
    return tops


def _inspect(files: ProductFiles, asked: int | None) -> Scene | Rejected:
    try:
        names = {path for path in files.sizes if "/" not in path}
        if cog.is_product(names):
            return cog.open_product(files, asked)
        if safe.is_product(names):
            return safe.open_product(files, asked)
        return eopf.open_product(files, asked)
    except Rejected as rejection:
        return rejection
    except OSError as error:
        return Rejected(files.name, "unreadable", error.strerror or str(error))
