"""The headers of a tar (POSIX.1-1988, pax and GNU), of a file or of a stream that only goes forward.

What leads out of the archive, and what is no regular file, is named with the reason why it is refused.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.errors import BandstreamError

NAME = re.compile(r"\.(tar|tar\.gz|tgz|tar\.zst|tzst)$", re.IGNORECASE)
"""How the name of a tar ends, plain or compressed."""
BLOCK = 512
LONGEST_NAME = 4096
"""The longest name that is taken."""
LONGEST = 1 << 20
"""The longest name, or set of pax records, that is believed."""


@dataclass(slots=True)
class Header:
    """A regular file of a tar, or (`detail` says why not) something that is refused. `at`: where its content begins."""

    name: str
    size: int
    at: int
    detail: str = ""


class Seekable:
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


class Stream:
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


def headers_of(file: Seekable | Stream, path: Path) -> Iterator[Header]:
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
        name, size = plain(long_name or name), size if long_size < 0 else long_size
        long_name, long_size = "", -1
        begin = file.position
        detail = unsafe(name)
        if kind == b"5" or (name.endswith("/") and kind in b"0\x007"):
            size = 0 if kind == b"5" else size
            if not detail:
                yield Header(name.rstrip("/") + "/", 0, begin)
        elif kind in b"0\x007":
            yield Header(name, size, begin, detail)
        else:
            what = {b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"}.get(kind, "no regular file")
            size = size if kind == b"S" else 0
            yield Header(name, size, begin, f"{what} inside the tar")
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


def plain(name: str) -> str:
    """A name without `./` and doubled slashes."""
    if "./" not in name and "//" not in name:
        return name
    absolute = "/" if name.startswith("/") else ""
    parts = [part for part in name.split("/")[:-1] if part not in ("", ".")]
    return absolute + "/".join([*parts, name.rpartition("/")[2]])


def unsafe(name: str) -> str:
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
