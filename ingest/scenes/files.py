"""The files of a product, in a folder or in a .zip of one: the same names and bytes from both."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from ingest.source import Rejected

TEXT_BYTES = 1 << 26
"""Most bytes of a metadata file that are believed; the largest real ones (MTD_TL.xml) take 0.6 MB."""
DEEP = 6
"""Folders inside one another that are looked into."""
PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Sum:
    """The checksum of a file of `size` bytes, in hexadecimal, as `source` gives it."""

    size: int
    algorithm: str
    digest: str
    source: str


@dataclass
class ProductFiles:
    """Files below `root`, a folder, or a .zip whose names begin with `top`."""

    root: Path
    top: str = ""

    @property
    def name(self) -> str:
        """What the product is called by its folder."""
        name = self.top.rstrip("/").rpartition("/")[2] or self.root.resolve().name
        return name.removesuffix(".zip").removesuffix(".SAFE").removesuffix(".zarr")

    @property
    def zipped(self) -> bool:
        return self.root.is_file()

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Relative path → size of every file. Raises Rejected."""
        if self.zipped:
            with opened(self.root) as archive:
                sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
            return {name[len(self.top) :]: sizes[name] for name in sorted(sizes) if name.startswith(self.top)}
        found: dict[str, int] = {}
        for folder, inside, names in os.walk(self.root, followlinks=True):
            relative = os.path.relpath(folder, self.root)
            relative = "" if relative == "." else relative + "/"
            inside[:] = (
                sorted(name for name in inside if not name.startswith(".")) if relative.count("/") < DEEP else []
            )
            for name in sorted(name for name in names if not name.startswith(".")):
                try:
                    found[relative + name] = os.stat(f"{folder}/{name}").st_size
                except OSError:  # a broken link
                    continue
        return found

    def read(self, path: str) -> bytes:
        """A metadata file. Raises Rejected."""
        try:
            with self.open(path) as file:
                data = file.read(TEXT_BYTES + 1)
        except (
            OSError,
            KeyError,
            zipfile.BadZipFile,
            RuntimeError,
            NotImplementedError,
            EOFError,
            ValueError,
        ) as error:
            raise Rejected(f"{self.name}/{path}", "unreadable", _reason(error)) from None
        except Exception as error:  # zlib.error, lzma.LZMAError: whatever the decompressor raises on damaged bytes
            raise Rejected(f"{self.name}/{path}", "unreadable", _reason(error)) from None
        if len(data) > TEXT_BYTES:
            raise Rejected(f"{self.name}/{path}", "unreadable", f"more than {TEXT_BYTES >> 20} MB of metadata")
        return data

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        if self.zipped:
            with zipfile.ZipFile(self.root) as archive, archive.open(self.top + path) as member:
                yield member
        else:
            with open(self.root / path, "rb") as file:
                yield file

    def gdal(self, path: str) -> str:
        """What GDAL calls a file."""
        if self.zipped:
            return f"/vsizip/{{{self.root.resolve()}}}/{self.top}{path}"
        return str(self.root.resolve() / path)

    def check(self, paths: list[str], sums: Mapping[str, "Sum"]) -> None:
        """Compare files with their checksums, in a .zip with its CRC too. Raises Rejected.

        A file of another size than its checksum is of was made anew, and is taken as it is.
        """
        for path in paths:
            known = sums.get(path)
            if known is not None and known.size == self.sizes[path]:
                if self._digest(path, known.algorithm) != known.digest:
                    text = f"its checksum is not that of {known.source}: download it again"
                    raise Rejected(f"{self.name}/{path}", "damaged", text)
            elif self.zipped:
                self._digest(path, "md5")

    def _digest(self, path: str, algorithm: str) -> str:
        """Checksum of a file, read to its end. Raises Rejected."""
        state = hashlib.new(algorithm)
        try:
            with self.open(path) as file:
                while piece := file.read(PIECE):
                    state.update(piece)
        except Exception as error:
            raise Rejected(f"{self.name}/{path}", "unreadable", _reason(error)) from None
        return state.hexdigest()

    def identity(self, paths: list[str]) -> str:
        """Changes when one of these files does, as far as size and time of change tell."""
        if self.zipped:
            status = self.root.stat()
            told = [f"{self.root.resolve()} {self.top} {status.st_size} {status.st_mtime_ns}"]
        else:
            told = [str(self.root.resolve())]
            for path in paths:
                status = os.stat(self.root / path)
                told.append(f"{path} {status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A .zip. Raises Rejected where it is damaged."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise Rejected(path.name, "unreadable", f"it is no .zip that can be read ({_reason(error)})") from None
    with archive:
        yield archive


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__)[:300]
