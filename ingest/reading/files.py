"""The files of an archive by their relative paths, whether it lies in a folder, or in a tar or zip as downloaded.

A `.tar` is read where it lies: its headers once, then each file by its place. A compressed tar, or a zip, is spooled:
the files that are wanted are written one behind another to scratch, and read there in the same way. Where each file
lies stands in an SQLite table, so that memory does not grow with the archive. Links, devices and names that lead out of
the archive are refused; a file that a tar holds twice is its last one, as for `tar x`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ingest.reading import tar
from ingest.reading.spool import indexed
from ingest.source import Listening, Rejected
from shards.errors import BandstreamError


class Files(Protocol):
    """What can be asked of an archive's files. Instances pickle. Paths are relative, with `/`; "" is the top."""

    def folders(self) -> Iterator[tuple[str, list[str]]]:
        """Every folder that holds files, with their sorted names; a folder stands before those inside it."""

    def inside(self, folder: str) -> list[str]:
        """Sorted names of the folders in a folder."""

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files in a folder. Raises OSError where it cannot be listed."""

    def read(self, path: str) -> bytes:
        """A whole file. Raises FileNotFoundError, or OSError."""

    def read_folder(self, folder: str, names: Sequence[str], most: int) -> dict[str, memoryview | None]:
        """These files of one folder, without those that are not there; None for one of more than `most` bytes. Raises
        OSError."""

    def gdal(self, path: str) -> str:
        """What GDAL calls a file."""

    def refused(self) -> Iterator[Rejected]:
        """What the archive holds that is no file of its own."""


@dataclass
class Folder:
    """Files below a folder of the file system. Names that begin with a dot are passed over, links are followed."""

    root: Path

    def folders(self) -> Iterator[tuple[str, list[str]]]:
        def failed(error: OSError) -> None:
            raise BandstreamError(f"{error.filename} cannot be listed ({error.strerror}): mend its permissions")

        top = str(self.root)
        for path, inside, names in os.walk(top, onerror=failed, followlinks=True):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            found = sorted(name for name in names if not name.startswith("."))
            if found:
                yield "" if path == top else os.path.relpath(path, top), found

    def inside(self, folder: str) -> list[str]:
        with os.scandir(self.gdal(folder)) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())

    def names(self, folder: str) -> list[str]:
        with os.scandir(self.gdal(folder)) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())

    def read(self, path: str) -> bytes:
        with open(self.gdal(path), "rb") as file:
            return file.read()

    def read_folder(self, folder: str, names: Sequence[str], most: int) -> dict[str, memoryview | None]:
        found: dict[str, memoryview | None] = {}
        for name in names:
            try:
                with open(f"{self.gdal(folder)}/{name}", "rb") as file:
                    data = file.read(most + 1)
            except FileNotFoundError:
                continue
            found[name] = memoryview(data) if len(data) <= most else None
        return found

    def gdal(self, path: str) -> str:
        return f"{self.root}/{path}" if path else str(self.root)

    def refused(self) -> Iterator[Rejected]:
        return iter(())


def open_files(path: Path, listening: Listening, wanted: Callable[[str], bool] = lambda path: True) -> Files:
    """The files of a folder, a tar or a zip; of these only those whose path is `wanted`.

    Raises BandstreamError where it is neither, is damaged or cut off, or does not fit on scratch.
    """
    if not path.exists():
        raise BandstreamError(f"{path} does not exist: name the folder or tar of the archive")
    if path.is_dir():
        return Folder(path)
    if not tar.NAME.search(path.name) and path.suffix.lower() != ".zip":
        raise BandstreamError(
            f"{path} is neither a folder nor a .tar, .tar.gz, .tar.zst or .zip: unpack it, name its folder"
        )
    return indexed(path, listening, wanted)
