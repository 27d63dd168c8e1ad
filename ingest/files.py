"""The files of an archive by their relative paths, whether it lies in a folder, or in a tar or zip as downloaded.

A `.tar` is read where it lies: its headers once, then each file by its place. A compressed tar, or a zip, is spooled:
the files that are wanted are written one behind another to scratch, and read there in the same way. Where each file
lies stands in an SQLite table, so that memory does not grow with the archive. Links, devices and names that lead out of
the archive are refused; a file that a tar holds twice is its last one, as for `tar x`.
"""

import hashlib
import os
import re
import shutil
import sqlite3
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ingest.source import Listening, Rejected
from shards.errors import BandstreamError

BLOCK = 512
TAR = re.compile(r"\.(tar|tar\.gz|tgz|tar\.zst|tzst)$", re.IGNORECASE)
PIECE = 1 << 20
"""Bytes of a compressed tar that are read at once."""
LONGEST_NAME = 4096
"""The longest name that is taken."""
LONGEST = 1 << 20
"""The longest name, or set of pax records, that is believed."""
WINDOW = 1 << 27
"""The most memory that a zstd frame may ask for: what `zstd --long=27` makes."""
APART = 1 << 20
"""Files of a folder that lie within twice their bytes and this are read in one piece."""
TABLES = """
create table folders (number integer primary key, parent integer, path blob not null unique);
create index inside on folders (parent);
create table files (folder integer, name blob, at integer not null, size integer not null,
                    primary key (folder, name)) without rowid;
create table refused (path blob not null, detail text not null);
"""


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


@dataclass
class Tar:
    """Files inside `data` (a tar, or what was spooled of one) at the places that the table `index` gives."""

    data: Path
    index: Path

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "index": self.index}

    @cached_property
    def _table(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.index}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    @cached_property
    def _descriptor(self) -> int:
        return os.open(self.data, os.O_RDONLY | os.O_CLOEXEC)

    def folders(self) -> Iterator[tuple[str, list[str]]]:
        # with \1 for / the order of strings is the order in which os.walk goes
        ordered = self._table.execute("select number, path from folders order by replace(path, '/', char(1))")
        for number, path in ordered:
            names = self._table.execute("select name from files where folder = ? order by name", (number,))
            if found := [os.fsdecode(name) for (name,) in names]:
                yield os.fsdecode(path), found

    def inside(self, folder: str) -> list[str]:
        rows = self._table.execute(
            "select path from folders where parent = (select number from folders where path = ?) order by path",
            (os.fsencode(folder),),
        )
        return [os.fsdecode(path).rpartition("/")[2] for (path,) in rows]

    def names(self, folder: str) -> list[str]:
        rows = self._table.execute(
            "select name from files where folder = (select number from folders where path = ?) order by name",
            (os.fsencode(folder),),
        )
        return [os.fsdecode(name) for (name,) in rows]

    def read(self, path: str) -> bytes:
        return self._pread(*self._place(path))

    def read_folder(self, folder: str, names: Sequence[str], most: int) -> dict[str, memoryview | None]:
        found = self._places(folder, names)
        places = {name: place for name, place in found.items() if place[1] <= most}
        result: dict[str, memoryview | None] = dict.fromkeys(found)
        if not places:
            return result
        begin = min(at for at, _ in places.values())
        end = max(at + size for at, size in places.values())
        if end - begin > 2 * sum(size for _, size in places.values()) + APART:
            return result | {name: memoryview(self._pread(*place)) for name, place in places.items()}
        piece = memoryview(self._pread(begin, end - begin))
        return result | {name: piece[at - begin : at - begin + size] for name, (at, size) in places.items()}

    def gdal(self, path: str) -> str:
        at, size = self._place(path)
        return f"/vsisubfile/{at}_{size},{self.data}"

    def _place(self, path: str) -> tuple[int, int]:
        folder, _, name = path.rpartition("/")
        found = self._places(folder, [name])
        if not found:
            raise FileNotFoundError(f"{path} is not in {self.data.name}")
        return found[name]

    def _places(self, folder: str, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        rows = self._table.execute(
            "select name, at, size from files where folder = (select number from folders where path = ?)"
            + (" and name = ?" if len(names) == 1 else ""),
            (os.fsencode(folder), *(os.fsencode(name) for name in names if len(names) == 1)),
        )
        wanted = set(names)
        return {text: (at, size) for name, at, size in rows if (text := os.fsdecode(name)) in wanted}

    def _pread(self, at: int, size: int) -> bytes:
        pieces: list[bytes] = []
        while size:
            piece = os.pread(self._descriptor, size, at)
            if not piece:
                raise OSError(f"{self.data} was cut off while it was in use")
            pieces.append(piece)
            at, size = at + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def refused(self) -> Iterator[Rejected]:
        for path, detail in self._table.execute("select path, detail from refused order by path, detail"):
            yield Rejected(os.fsdecode(path).encode("ascii", "backslashreplace").decode(), "unsafe", detail)


def open_files(path: Path, listening: Listening, wanted: Callable[[str], bool] = lambda path: True) -> Files:
    """The files of a folder, a tar or a zip; of these only those whose path is `wanted`.

    Raises BandstreamError where it is neither, is damaged or cut off, or does not fit on scratch.
    """
    if not path.exists():
        raise BandstreamError(f"{path} does not exist: name the folder or tar of the archive")
    if path.is_dir():
        return Folder(path)
    found, zipped = TAR.search(path.name), path.suffix.lower() == ".zip"
    if not (found or zipped):
        raise BandstreamError(
            f"{path} is neither a folder nor a .tar, .tar.gz, .tar.zst or .zip: unpack it, name its folder"
        )
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    own = listening.scratch / f"tar-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    compressed = not found or found[1].lower() != "tar"
    files = Tar(own / "files" if compressed else path.resolve(), own / "index.sqlite")
    if not files.index.exists():
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        try:
            if zipped:
                _spool_zip(path, files.data, own / "index.tmp", listening, wanted)
            elif compressed:
                _spool(path, files.data, own / "index.tmp", listening, wanted)
            else:
                with path.open("rb") as opened:
                    _index(_Seekable(opened), path, own / "index.tmp", None, wanted, listening, opened.tell)
        except BaseException as error:
            shutil.rmtree(own, ignore_errors=True)
            if isinstance(error, OSError | sqlite3.Error):
                raise BandstreamError(f"{path} cannot be read to {own}: {_reason(error)}") from None
            raise
        (own / "index.tmp").replace(files.index)
    return files


def in_order(path: Path, listening: Listening) -> tuple[Path, Iterator["_Header"]]:
    """The files of a tar in the order in which they stand in it, those that it holds twice twice, and where they lie:
    in the tar itself, or in what a compressed one was unpacked to on scratch. What is refused has a `detail`.

    Raises BandstreamError where it is damaged or cut off, or does not fit on scratch.
    """
    found = TAR.search(path.name)
    if not found:
        raise BandstreamError(f"{path} is no .tar, .tar.gz or .tar.zst")
    plain = path.resolve()
    if found[1].lower() != "tar":
        status = path.stat()
        identity = f"{plain} {status.st_size} {status.st_mtime_ns}"
        plain = listening.scratch / f"tar-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.tar"
        if not plain.exists():
            _unpack(path, plain)
    return plain, _checked_headers(plain, path)


def _unpack(path: Path, plain: Path) -> None:
    """Write what a compressed tar holds, as one tar, atomically."""
    temporary = plain.with_suffix(".tmp")
    try:
        with path.open("rb") as raw, temporary.open("wb") as out:
            for piece in _gunzipped(raw, path) if path.name.lower().endswith("gz") else _unzstd(raw, path):
                out.write(piece)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BandstreamError(f"{path} cannot be unpacked to {plain}: {_reason(error)}") from None
        raise
    temporary.replace(plain)


def _checked_headers(plain: Path, path: Path) -> Iterator["_Header"]:
    with plain.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        for header in _headers(_Seekable(opened), path):
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
        stream = _gunzipped(raw, path) if path.name.lower().endswith("gz") else _unzstd(raw, path)
        _index(_Stream(stream), path, index, out, wanted, listening, raw.tell)
        for _ in stream:  # to its end, so that checksums are compared
            pass


def _gunzipped(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """The content of a gzip file of one or more members, checksums compared."""
    state, begun = zlib.decompressobj(31), False
    try:
        while piece := raw.read(PIECE):
            while piece:
                begun = True
                yield state.decompress(piece, 8 * PIECE)
                piece = state.unconsumed_tail
                if state.eof:
                    piece, begun = state.unused_data.lstrip(b"\0"), False
                    state = zlib.decompressobj(31)
    except zlib.error as error:
        raise BandstreamError(f"{path} is damaged ({error}): download it again") from None
    if begun:
        raise BandstreamError(f"{path} ends too early: download it again")


def _unzstd(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """The content of a zstd file of one or more frames, checksums compared where it has them."""
    import zstandard

    state = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    try:
        with state.stream_reader(raw, read_size=PIECE, read_across_frames=True, closefd=False) as stream:
            while piece := stream.read(8 * PIECE):
                yield piece
    except zstandard.ZstdError as error:
        text = " ".join(str(error).split())
        raise BandstreamError(
            f"{path} is damaged, or was made with windows of more than {WINDOW >> 20} MB ({text}): download it again"
        ) from None


def _spool_zip(path: Path, data: Path, index: Path, listening: Listening, wanted: Callable[[str], bool]) -> None:
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive, data.open("wb") as out:
            size = sum(info.file_size for info in archive.infolist() if wanted(_plain(info.filename)))
            free = shutil.disk_usage(data.parent).free
            listening.say(
                f"spooling {path.name} to {data.parent}: it takes {size / 1e9:,.2f} GB there until the set is done, "
                f"{free / 1e9:,.1f} GB are free"
            )
            if size > free:
                raise BandstreamError(f"{data.parent} has no room for it: name another folder with --scratch")
            stream = _Zipped(archive)
            _index(stream, path, index, out, wanted, listening, raw.tell, stream.headers())
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError) as error:
        text = " ".join(str(error).split())
        raise BandstreamError(f"{path} is damaged, or no zip ({text}): download it again") from None


class _Seekable:
    """A file whose position is known without asking."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        return data

    def go(self, to: int) -> None:
        if to != self.position:
            self._file.seek(to)
            self.position = to


class _Stream:
    """The same for a stream of pieces, which only goes forward."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self.position = 0

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer at the end."""
        if size <= len(self._piece):
            result, self._piece = self._piece[:size], self._piece[size:]
            self.position += size
            return bytes(result)
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes in pieces; fewer at the end."""
        while size:
            if not self._piece:
                piece = next(self._pieces, None)
                if piece is None:
                    return
                self._piece = memoryview(piece)
            result, self._piece = self._piece[:size], self._piece[size:]
            size -= len(result)
            self.position += len(result)
            if result:
                yield result

    def go(self, to: int) -> None:
        for _ in self.pieces(to - self.position):
            pass


class _Zipped(_Stream):
    """The files of a zip (PKWARE APPNOTE 6.3), checksums compared: each is the stream while its header is in hand."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__(iter(()))
        self._archive = archive

    def headers(self) -> Iterator["_Header"]:
        for info in self._archive.infolist():
            name = _plain(info.filename)
            detail = _unsafe(name).replace("the tar", "the zip")
            if name.endswith("/"):
                if not detail:
                    yield _Header(name.rstrip("/") + "/", 0, 0)
                continue
            if not detail and stat.S_ISLNK(info.external_attr >> 16):
                detail = "a symbolic link inside the zip"
            if info.flag_bits & 1:
                raise BandstreamError(f"{info.filename} in the zip is encrypted: unpack it, name its folder")
            with self._archive.open(info) as member:
                self._pieces, self._piece = iter(partial(member.read, PIECE), b""), memoryview(b"")
                yield _Header(name, info.file_size, 0, detail)


def _index(
    file: _Seekable | _Stream,
    path: Path,
    index: Path,
    out: BinaryIO | None,
    wanted: Callable[[str], bool],
    listening: Listening,
    tell: Callable[[], int],
    headers: Iterator["_Header"] | None = None,
) -> None:
    """Read a tar's headers (or those given) into the table `index`, and with `out` its files there. `tell`: how far it
    has come."""
    size = path.stat().st_size
    with closing(sqlite3.connect(index)) as table:
        table.executescript("pragma journal_mode = off; pragma synchronous = off; pragma locking_mode = exclusive;")
        table.executescript(TABLES)
        table.execute("insert into folders values (0, null, x'')")
        current, number = "", 0
        rows: list[tuple[int, bytes, int, int]] = []
        for count, header in enumerate(headers or _headers(file, path)):
            if count % 4096 == 0:
                listening.progress(tell(), size)
            if header.detail:
                table.execute("insert into refused values (?, ?)", (os.fsencode(header.name), header.detail))
                continue
            if header.name.endswith("/"):
                _folder(table, header.name[:-1])
                continue
            if not wanted(header.name):
                continue
            at = header.at
            if out is not None and isinstance(file, _Stream):
                at = out.tell()
                if sum(out.write(piece) for piece in file.pieces(header.size)) < header.size:
                    raise BandstreamError(f"{path} ends in the middle of {header.name}: download it again")
            elif at + header.size > size:
                raise BandstreamError(f"{path} ends in the middle of {header.name}: download it again")
            folder, _, name = header.name.rpartition("/")
            if folder != current:
                current, number = folder, _folder(table, folder)
            rows.append((number, os.fsencode(name), at, header.size))
            if len(rows) >= 1024:
                table.executemany("insert or replace into files values (?, ?, ?, ?)", rows)
                rows.clear()
        table.executemany("insert or replace into files values (?, ?, ?, ?)", rows)
        table.commit()


def _folder(table: sqlite3.Connection, path: str) -> int:
    """The number of a folder, put into the table with those that it lies in."""
    number, missing = None, []
    while number is None:
        found = table.execute("select number from folders where path = ?", (os.fsencode(path),)).fetchone()
        if found or not path:
            number = int(found[0]) if found else 0
            break
        missing.append(path)
        path = path.rpartition("/")[0]
    for path in reversed(missing):
        command = "insert into folders (parent, path) values (?, ?)"
        number = table.execute(command, (number, os.fsencode(path))).lastrowid
    return number or 0


@dataclass(slots=True)
class _Header:
    """A regular file of a tar, or (`detail` says why not) something that is refused. `at`: where its content begins."""

    name: str
    size: int
    at: int
    detail: str = ""


def _headers(file: _Seekable | _Stream, path: Path) -> Iterator[_Header]:
    """The files of a tar (POSIX.1-1988, pax and GNU), whose content may be read before the next is asked for."""
    long_name, long_size = "", -1
    known = b"", ("", 0, b"")  # the last header of a long name: they are much the same
    while True:
        at = file.position
        raw = file.read(BLOCK)
        if len(raw) < BLOCK:
            raise BandstreamError(f"{path} ends without a tar's end: it is cut off, download it again")
        if raw[0] == 0 and raw == bytes(BLOCK):
            return
        try:
            name, size, kind = known[1] if raw == known[0] else _parse(raw)
        except ValueError as error:
            raise BandstreamError(f"{path} is damaged, or no tar: at byte {at:,} {error}") from None
        if kind in b"xgLK":
            if size > LONGEST:
                raise BandstreamError(f"{path} is damaged: at byte {at:,} a name of {size:,} bytes")
            content = file.read(size + -size % BLOCK)[:size]
            if len(content) < size:
                raise BandstreamError(f"{path} ends without a tar's end: it is cut off, download it again")
            if kind == b"L":
                known = raw, (name, size, kind)
                long_name = os.fsdecode(content.split(b"\0", 1)[0])
            elif kind == b"x":
                try:
                    pax = _pax(content)
                    long_size = int(pax.get(b"size", b"-1"))
                except ValueError:
                    raise BandstreamError(f"{path} is damaged: at byte {at:,} pax records that are none") from None
                long_name = os.fsdecode(pax.get(b"path", os.fsencode(long_name)))
            continue
        name, size = _plain(long_name or name), size if long_size < 0 else long_size
        long_name, long_size = "", -1
        begin = file.position
        detail = _unsafe(name)
        if kind == b"5" or (name.endswith("/") and kind in b"0\x007"):
            size = 0 if kind == b"5" else size
            if not detail:
                yield _Header(name.rstrip("/") + "/", 0, begin)
        elif kind in b"0\x007":
            yield _Header(name, size, begin, detail)
        else:
            what = {b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"}.get(kind, "no regular file")
            size = size if kind == b"S" else 0
            yield _Header(name, size, begin, f"{what} inside the tar")
        file.go(begin + size + -size % BLOCK)


def _parse(raw: bytes) -> tuple[str, int, bytes]:
    """Name, size and type of a tar header. Raises ValueError where it is none."""
    try:
        checksum = int(raw[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        raise ValueError("there is no tar header") from None
    if checksum != sum(raw) - sum(raw[148:156]) + 256:
        raise ValueError("the checksum of a tar header is wrong")
    if raw[124] & 0x80:  # GNU's binary numbers
        size = int.from_bytes(raw[124:136], "big") & ((1 << 95) - 1)
    else:
        try:
            size = int(raw[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            raise ValueError("a tar header without a size") from None
    if not 0 <= size < 1 << 60:
        raise ValueError(f"a file of {size:,} bytes")
    name = raw[:100].split(b"\0", 1)[0]
    if raw[257:263] == b"ustar\0" and raw[345]:
        name = raw[345:500].split(b"\0", 1)[0] + b"/" + name
    return os.fsdecode(name), size, raw[156:157]


def _pax(content: bytes) -> dict[bytes, bytes]:
    """Records `LENGTH KEY=VALUE\\n` of an extended header. Raises ValueError."""
    records = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = int(digits)
        if not len(digits) + 1 < length <= len(content):
            raise ValueError("a record's length")
        key, _, value = content[len(digits) + 1 : length - 1].partition(b"=")
        records[key] = value
        content = content[length:]
    return records


def _plain(name: str) -> str:
    """A name without `./` and doubled slashes."""
    if "./" not in name and "//" not in name:
        return name
    absolute = "/" if name.startswith("/") else ""
    parts = [part for part in name.split("/")[:-1] if part not in ("", ".")]
    return absolute + "/".join([*parts, name.rpartition("/")[2]])


def _unsafe(name: str) -> str:
    """Why a name is refused, "" where it is not."""
    if name.startswith("/"):
        return "an absolute name inside the tar"
    if ".." in name and ".." in name.split("/"):
        return "a name inside the tar that leads out of it"
    if len(name) > LONGEST_NAME:
        return f"a name of {len(name):,} characters inside the tar"
    if not name:
        return "a file without a name inside the tar"
    return ""
