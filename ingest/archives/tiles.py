"""Where patches and reference maps of BigEarthNet lie in an archive, however much of it was unpacked around them.

Version 1 is PATCH/, version 2 TILE/PATCH/ below `BigEarthNet-S2`, with `Reference_Maps/TILE/PATCH/` beside it or in an
archive of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ingest.reading.files import Files
from ingest.reading.folders import joined
from shards.errors import BandstreamError

METADATA = "metadata.parquet"
MAPS = "Reference_Maps"
TOPS = ("BigEarthNet-S2", "BigEarthNet-v1.0")
MAP = "_reference_map.tif"


def key_of(path: str) -> str:
    return path.rpartition("/")[2]


def top_of(files: Files) -> str:
    """The folder that holds the tiles, or version 1's patches."""
    at = ""
    while True:
        inside = files.inside(at)
        for name in TOPS:
            if name in inside:
                return joined(at, name)
        # a folder around all: it holds one folder alone, inside which are folders of folders
        only = joined(at, inside[0]) if len(inside) == 1 else ""
        deeper = [joined(only, name) for name in files.inside(only)[:16]] if only else []
        if not any(files.inside(name) or key_of(name) in TOPS for name in deeper):
            return at
        at = only


def maps_base(files: Files) -> str:
    """The folder that holds the reference maps' tiles, or the maps of an archive that holds nothing else."""
    at = ""
    for _ in range(3):
        inside = files.inside(at)
        if MAPS in inside:
            return joined(at, MAPS)
        if len(inside) != 1:
            break
        at = joined(at, inside[0])
    return ""


def map_folders(files: Files, base: str) -> Iterator[str]:
    """Folders of patches below `base`, PATCH or TILE/PATCH."""
    for tile in files.inside(base):
        inside = files.inside(joined(base, tile))
        yield from (f"{tile}/{patch}" for patch in inside)
        if not inside:
            yield tile


def only_maps(files: Files) -> bool:
    """Whether an archive holds reference maps and no patches."""
    base = maps_base(files)
    if top_of(files) in (base, joined(base.rpartition("/")[0])) or not base:
        first = islice(map_folders(files, base), 16)
        return any(f"{key_of(folder)}{MAP}" in files.names(joined(base, folder)) for folder in first)
    return False


@dataclass(frozen=True)
class Patches:
    """The patches of an archive, below its folder `top`: in `folders` of tiles (`nested`), or these folders."""

    files: Files
    top: str
    folders: list[str]
    nested: bool
    version: str

    @classmethod
    def of(cls, files: Files) -> "Patches":
        top = top_of(files)
        folders = [name for name in files.inside(top) if name not in (MAPS, "BigEarthNet-S1")]
        nested, marked = False, False
        for name in folders[:16]:
            nested |= bool(files.inside(joined(top, name)))
            marked |= any(file.endswith("_labels_metadata.json") for file in files.names(joined(top, name)))
        return cls(files, top, folders, nested, "1" if marked and not nested else "2")

    def paths(self) -> Iterator[str]:
        """TILE/PATCH or PATCH, sorted."""
        for name in self.folders:
            own = joined(self.top, name)
            try:
                inside = self.files.inside(own) if self.nested else []
            except OSError as error:
                raise BandstreamError(f"{name} of the archive cannot be listed ({error.strerror})") from None
            yield from (f"{name}/{patch}" for patch in inside)
            if not self.nested or (not inside and any(file.endswith(".tif") for file in self.files.names(own))):
                yield name

    def holds(self, path: str) -> bool:
        """Whether a folder has at least one band of the patch that it is named after."""
        try:
            names = self.files.names(joined(self.top, path))
        except OSError:
            return False
        return any(name.startswith(f"{key_of(path)}_B") for name in names)
