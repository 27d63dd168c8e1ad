"""Archives as downloaded, made ready to be read: a plain tar is indexed where it lies, a compressed tar or a zip is
spooled: the files that are wanted are written one behind another to scratch, and indexed there."""

import hashlib
import os
import shutil
import sqlite3
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ingest.reading import tar
from ingest.reading.index import Tar, write_index
from ingest.reading.tar import Header, Seekable, Stream, headers_of, plain, unsafe
from ingest.reading.unpack import PIECE, unpacked
from ingest.source import Listening
from shards.errors import BandstreamError


def indexed(path: Path, listening: Listening, wanted: Callable[[str], bool]) -> Tar:
    """The wanted files of a tar or zip, gone through only where no earlier run has left their index on scratch.

    Raises BandstreamError where it is damaged or cut off, or does not fit on scratch.
    """
    own = listening.scratch / f"tar-{mark_of(path)}"
    spool = {".tar": None, ".zip": _spool_zip}.get(path.suffix.lower(), _spool)
    files = Tar(own / "files" if spool else path.resolve(), own / "index.sqlite")
    if files.index.exists():
        return files
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    index = own / "index.tmp"
    try:
        if spool:
            spool(path, files.data, index, listening, wanted)
        else:
            with path.open("rb") as opened:
                write_index(Seekable(opened), path, index, None, wanted, listening, opened.tell)
    except BaseException as error:
        shutil.rmtree(own, ignore_errors=True)
        if isinstance(error, OSError | sqlite3.Error):
            raise BandstreamError(f"{path} cannot be read to {own}: {_reason(error)}") from None
        raise
    index.replace(files.index)
    return files


def in_order(path: Path, listening: Listening) -> tuple[Path, Iterator[Header]]:
    """The files of a tar in the order in which they stand in it, those that it holds twice twice, and where they lie:
    in the tar itself, or in what a compressed one was unpacked to on scratch. What is refused has a `detail`.

    Raises BandstreamError where it is damaged or cut off, or does not fit on scratch.
    """
    if not tar.NAME.search(path.name):
        raise BandstreamError(f"{path} is no .tar, .tar.gz or .tar.zst")
    whole = path.resolve()
    if path.suffix.lower() != ".tar":
        whole = listening.scratch / f"tar-{mark_of(path)}.tar"
        if not whole.exists():
            _unpack(path, whole)
    return whole, _checked_headers(whole, path)


def mark_of(path: Path, *others: object) -> str:
    """A mark of a file as it lies there now, and of whatever else decides what is made of it on scratch."""
    status = path.stat()
    identity = " ".join(map(str, (path.resolve(), status.st_size, status.st_mtime_ns, *others)))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _unpack(path: Path, whole: Path) -> None:
    """Write what a compressed tar holds, as one tar, atomically."""
    temporary = whole.with_suffix(".tmp")
    try:
        with path.open("rb") as raw, temporary.open("wb") as out:
            for piece in unpacked(raw, path):
                out.write(piece)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BandstreamError(f"{path} cannot be unpacked to {whole}: {_reason(error)}") from None
        raise
    temporary.replace(whole)


def _checked_headers(whole: Path, path: Path) -> Iterator[Header]:
    with whole.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        for header in headers_of(Seekable(opened), path):
            if header.at + header.size > size:
                raise BandstreamError(f"{path} ends in the middle of {header.name}: download it again")
            if not header.name.endswith("/"):
                yield header


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    full = "space" in text or "full" in text
    return f"{text}: make room there, or name another folder with --scratch" if full else text


def _spool(path: Path, data: Path, index: Path, listening: Listening, wanted: Callable[[str], bool]) -> None:
    size, free = path.stat().st_size, shutil.disk_usage(data.parent).free
    listening.say(
        f"spooling {path.name} ({size / 1e9:,.2f} GB) to {data.parent}, {free / 1e9:,.1f} GB free: it takes "
        f"there what its files take uncompressed, until the set is done"
    )
    with path.open("rb") as raw, data.open("wb") as out:
        stream = unpacked(raw, path)
        write_index(Stream(stream), path, index, out, wanted, listening, raw.tell)
        for _ in stream:  # to its end, so that checksums are compared
            pass


def _spool_zip(path: Path, data: Path, index: Path, listening: Listening, wanted: Callable[[str], bool]) -> None:
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive, data.open("wb") as out:
            size = sum(info.file_size for info in archive.infolist() if wanted(plain(info.filename)))
            free = shutil.disk_usage(data.parent).free
            listening.say(
                f"spooling {path.name} to {data.parent}: it takes {size / 1e9:,.2f} GB there until the set is done, "
                f"{free / 1e9:,.1f} GB are free"
            )
            if size > free:
                raise BandstreamError(f"{data.parent} has no room for it: name another folder with --scratch")
            stream = _Zipped(archive)
            write_index(stream, path, index, out, wanted, listening, raw.tell, stream.headers())
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError) as error:
        text = " ".join(str(error).split())
        raise BandstreamError(f"{path} is damaged, or no zip ({text}): download it again") from None


class _Zipped(Stream):
    """The files of a zip (PKWARE APPNOTE 6.3), checksums compared: each is the stream while its header is in hand."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__(iter(()))
        self._archive = archive

    def headers(self) -> Iterator[Header]:
        for info in self._archive.infolist():
            name = plain(info.filename)
            detail = unsafe(name).replace("the tar", "the zip")
            if name.endswith("/"):
                if not detail:
                    yield Header(name.rstrip("/") + "/", 0, 0)
                continue
            if not detail and stat.S_ISLNK(info.external_attr >> 16):
                detail = "a symbolic link inside the zip"
            if info.flag_bits & 1:
                raise BandstreamError(f"{info.filename} in the zip is encrypted: unpack it, name its folder")
            with self._archive.open(info) as member:
                self._pieces, self._piece = iter(partial(member.read, PIECE), b""), memoryview(b"")
                yield Header(name, info.file_size, 0, detail)
