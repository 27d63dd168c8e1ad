"""Where each file of a tar lies: a table on scratch, so that memory does not grow with the archive."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from ingest.reading.tar import Header, Seekable, Stream, headers_of
from ingest.source import Listening, Rejected
from shards.errors import BandstreamError

APART = 1 << 20
"""Files of a folder that lie within twice their bytes and this are read in one piece."""
TABLES = """
create table folders (number integer primary key, parent integer, path blob not null unique);
create index inside on folders (parent);
create table files (folder integer, name blob, at integer not null, size integer not null,
                    primary key (folder, name)) without rowid;
create table refused (path blob not null, detail text not null);
"""


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
        return f"/vsisubfile/{at}_{max(size, 1)},{self.data}"  # of size 0, GDAL would read the files that follow

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


def write_index(
    file: Seekable | Stream,
    path: Path,
    index: Path,
    out: BinaryIO | None,
    wanted: Callable[[str], bool],
    listening: Listening,
    tell: Callable[[], int],
    headers: Iterator[Header] | None = None,
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
        for count, header in enumerate(headers or headers_of(file, path)):
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
            if out is not None and isinstance(file, Stream):
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
