"""What the proof of damage does to the bytes of files, and to the tars and zips that hold them."""

import io
import json
import random
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

Damage = Callable[[bytes, random.Random], bytes]
ABSURD = (0, 1 << 31, 0xFFFFFFFF, 1 << 24, 70000)
OUTSIDE = "outside-of-the-archive"
"""A file that no ingest may ever write."""


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))] if data else data


def flip(data: bytes, draw: random.Random, within: int = 1 << 40) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[draw.randrange(min(len(data), within))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_header(data: bytes, draw: random.Random) -> bytes:
    return flip(data, draw, 600)


def noise(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) or 1)
    return data[:at] + draw.randbytes(min(64, len(data) - at)) + data[at + 64 :]


def zeros(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) or 1)
    return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]


def empty(data: bytes, draw: random.Random) -> bytes:
    return b""


def grown(data: bytes, draw: random.Random) -> bytes:
    return data + bytes(draw.choice([1, 4096, 30_000_000]))


def absurd(data: bytes, draw: random.Random) -> bytes:
    """A number that decides how much memory a reader takes, made enormous, 0 or negative."""
    kinds: tuple[tuple[bytes, Damage], ...] = (
        (b"II*\0", _tiff),
        (b"\x89PNG", _png),
        (b"\xff\xd8\xff", _jpeg),
        (b"\0\0\0\x0cjP", _jp2),
        (b"\x93NUMPY", _npy),
        (b"PAR1", _parquet),
        (b"PK\3\4", _zip),
        (b"{", _json),
        (b"<", _number),
    )
    change = next((change for magic, change in kinds if data.startswith(magic)), flip_header)
    try:
        return change(data, draw)
    except Exception:  # it is not what its first bytes say
        return flip(data, draw)


IN_FILES: tuple[Damage, ...] = (cut, flip, flip_header, noise, zeros, empty, grown, absurd, absurd)


def _put(data: bytes, at: int, value: int, form: str) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value & ((1 << 8 * struct.calcsize(form)) - 1))
    return bytes(changed)


def _tiff(data: bytes, draw: random.Random) -> bytes:
    """A tag's count or value."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    at = directory + 2 + 12 * draw.randrange(max(entries, 1)) + draw.choice([4, 8])
    return _put(data, at, draw.choice(ABSURD), "<I")


def _png(data: bytes, draw: random.Random) -> bytes:
    """Width, height, bit depth or kind of colour, mostly with a checksum that agrees."""
    at, form = draw.choice([(16, ">I"), (20, ">I"), (24, ">B"), (25, ">B")])
    data = _put(data, at, draw.choice((*ABSURD, 16, 4, 8000)), form)
    return _put(data, 29, zlib.crc32(data[12:29]), ">I") if draw.random() < 0.7 else data


def _jpeg(data: bytes, draw: random.Random) -> bytes:
    """Rows, columns, precision or components of the frame."""
    frame = next(at for at in (data.find(bytes([0xFF, kind])) for kind in (0xC0, 0xC1, 0xC2)) if at > 0)
    at, form = draw.choice([(5, ">H"), (7, ">H"), (4, ">B"), (9, ">B")])
    return _put(data, frame + at, draw.choice((0, 8, 40, 9000, 65535)), form)


def _jp2(data: bytes, draw: random.Random) -> bytes:
    """The length of a box, or sizes, offsets, tiles or components in SIZ."""
    if draw.random() < 0.3:
        at = 0
        for _ in range(draw.randrange(5)):
            at += struct.unpack_from(">I", data, at)[0]
        return _put(data, at, draw.choice((*ABSURD, 1)), ">I")
    siz = data.index(b"\xff\x51")
    at, form = draw.choice([(6 + 4 * n, ">I") for n in range(8)] + [(38, ">H"), (40, ">B"), (41, ">B")])
    return _put(data, siz + at, draw.choice((*ABSURD, 1, 100)), form)


def _npy(data: bytes, draw: random.Random) -> bytes:
    """The shape or type in the header, whose length stays."""
    (length,) = struct.unpack_from("<H", data, 8)
    head = data[10 : 10 + length].rstrip()
    shape = draw.choice([b"(99999999999,)", b"(-4, 12, 12)", b"(4, 12, 13)", b"(2,)", b"(" + b"9, " * 8 + b")"])
    if draw.random() < 0.7:
        head = re.sub(rb"\([^)]*\)", shape, head)
    else:
        head = re.sub(rb"'[<>|][a-z]\d+'", draw.choice([b"'|O'", b"'<U9'", b"'<f8'", b"'>u2'", b"'<V9'"]), head)
    return data[:10] + head[: length - 1].ljust(length - 1) + b"\n" + data[10 + length :]


def _parquet(data: bytes, draw: random.Random) -> bytes:
    """The footer's length, or a byte of the footer, where schema, row counts and places of pages stand."""
    if draw.random() < 0.2:
        return _put(data, len(data) - 8, draw.choice(ABSURD), "<I")
    (length,) = struct.unpack_from("<I", data, len(data) - 8)
    at = len(data) - 8 - 1 - draw.randrange(max(1, min(length, len(data) - 16)))
    return _put(data, at, draw.randrange(256), "<B")


def _zip(data: bytes, draw: random.Random) -> bytes:
    """Numbers of the central directory; or the metadata of a Zarr inside, with checksums that agree."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    texts = [name for name in members if name.rpartition("/")[2] in (".zarray", "zarr.json", ".zattrs", ".zmetadata")]
    if texts and draw.random() < 0.6:
        name = draw.choice(texts)
        members[name] = _json(members[name], draw)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return out.getvalue()
    if draw.random() < 0.3:  # the end record: entries, size and place of the directory
        at, form = draw.choice([(10, "<H"), (12, "<I"), (16, "<I")])
        return _put(data, data.rindex(b"PK\x05\x06") + at, draw.choice(ABSURD), form)
    entries = [found.start() for found in re.finditer(rb"PK\x01\x02", data)]
    at, form = draw.choice([(8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (42, "<I")])
    return _put(data, draw.choice(entries) + at, draw.choice((*ABSURD, 1, 8, 99)), form)


def _json(data: bytes, draw: random.Random) -> bytes:
    """A number (a shape, chunks, coordinates, ...) or a dtype."""
    content = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in pairs:
            if isinstance(inner, int | float) or key in ("dtype", "data_type", "order", "id"):
                places.append((value, key))
            walk(inner)

    walk(content)
    if not places:
        return flip(data, draw)
    holder, key = draw.choice(places)
    numbers = (0, -1, 1, 1 << 20, 1 << 31, 1 << 40, 1 << 62, 10**30, 1e300, None, "x")
    holder[key] = draw.choice(("<f8", "|O", "<U99999999", 7) if isinstance(holder[key], str) else numbers)
    return json.dumps(content).encode()


def _number(data: bytes, draw: random.Random) -> bytes:
    """A number of an XML."""
    found = draw.choice(list(re.finditer(rb"\d+", data)))
    return data[: found.start()] + draw.choice([b"0", b"-1", b"99999999999", b"1e999", b""]) + data[found.end() :]


TAR_KINDS = ("link", "hard link", "..", "absolute", "device", "fifo", "twice", "long name", "pax size", "size", "type")


def tarred(folder: Path, kind: str, draw: random.Random, only: str = "") -> bytes:
    """A folder as a tar, with something wrong in it; `kind` "": nothing. `only`: what is repeated."""
    buffer = io.BytesIO()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with tarfile.open(fileobj=buffer, mode="w", format=draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
        before = draw.choice((0, len(files))) if kind else -1  # not inside a sample of WebDataset, which it would end
        for number, path in enumerate(files):
            if number == before:
                _odd(tar, kind, files[0].relative_to(folder).as_posix(), draw)
            tar.add(path, path.relative_to(folder).as_posix())
        if kind == "twice":
            for path in files[: draw.randrange(1, 20)]:
                tar.add(path, path.relative_to(folder).as_posix())
        elif before == len(files):
            _odd(tar, kind, files[0].relative_to(folder).as_posix(), draw)
    data = bytearray(buffer.getvalue())
    if kind in ("size", "type"):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            at = draw.choice(tar.getmembers()).offset_data - 512
        if kind == "type":
            data[at + 156] = draw.choice(b"\x01257gxKLS")
        else:
            value = draw.choice(
                [b"77777777777", b"00000000000", b"-0000000001", b"\x80" + b"\xff" * 10, b"zzzzzzzzzzz"]
            )
            data[at + 124 : at + 135] = value
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def _odd(tar: tarfile.TarFile, kind: str, like: str, draw: random.Random) -> None:
    """A member that is no file of the archive."""
    folder, _, name = like.rpartition("/")
    path = f"{folder}/odd{Path(name).suffix}" if folder else f"odd{Path(name).suffix}"
    names = {"..": f"../../{OUTSIDE}", "absolute": f"/tmp/{OUTSIDE}", "long name": f"{folder}/{'a' * 5000}.tif"}
    odd = tarfile.TarInfo(names.get(kind, path))
    odd.linkname = draw.choice(["/etc/passwd", like, "../../../etc/passwd"])
    types = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}
    odd.type = types.get(kind, tarfile.REGTYPE)
    if kind == "pax size":
        odd.pax_headers = {"size": draw.choice(["99999999999999999999", "-5", "x", "1e9"])}
    if kind not in ("twice", "size", "type"):
        tar.addfile(odd)


ZIP_KINDS = ("link", "..", "absolute", "twice", "bomb", "encrypted", "directory", "directory")


def zipped(folder: Path, kind: str, draw: random.Random) -> bytes:
    """A folder as a zip, with something wrong in it; `kind` "": nothing."""
    buffer = io.BytesIO()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    like = files[0].relative_to(folder).as_posix()
    odd = zipfile.ZipInfo(f"{like.rpartition('/')[0]}/odd{files[0].suffix}")
    content = b"/etc/passwd"
    if kind == "link":
        odd.external_attr = (stat.S_IFLNK | 0o777) << 16
    if kind in ("..", "absolute"):
        odd.filename = {"..": f"../../{OUTSIDE}", "absolute": f"/tmp/{OUTSIDE}"}[kind]
    if kind == "bomb":
        content, odd.compress_type = bytes(100_000_000), zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder).as_posix())
        if kind == "twice":
            archive._didModify = True
            archive.NameToInfo.clear()  # so that zipfile does not warn
            archive.write(files[0], like)
        elif kind in ("link", "..", "absolute", "bomb"):
            archive.writestr(odd, content)
    data = buffer.getvalue()
    if kind == "encrypted":
        entry = draw.choice([found.start() for found in re.finditer(rb"PK\x01\x02", data)])
        return _put(data, entry + 8, 1, "<H")
    return _zip(data, draw) if kind == "directory" else data


def compressed(data: bytes, suffix: str) -> bytes:
    """A tar as `.tar`, `.tar.gz` or `.tar.zst`, with checksums as their commands write them."""
    if suffix == ".tar.gz":
        state = zlib.compressobj(1, wbits=31)
        return state.compress(data) + state.flush()
    if suffix == ".tar.zst":
        return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)
    return data


def unpack(data: bytes, suffix: str, folder: Path) -> None:
    """What `tarfile` and `zipfile` get out of an archive, as far as they get; nothing but files inside `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if suffix == ".zip":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for info in archive.infolist():
                    try:
                        _write(folder, info.filename, archive.read(info))
                    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError, OSError):
                        continue
            return
        if suffix == ".tar.gz":
            data = zlib.decompressobj(31).decompress(data)
        elif suffix == ".tar.zst":
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 30)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.isreg() and (file := tar.extractfile(member)) is not None:
                    _write(folder, member.name, file.read(len(data)))
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, zstandard.ZstdError, ValueError, OSError, struct.error):
        return


def _write(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    if folder.resolve() in path.resolve().parents and not name.endswith("/") and len(name) < 1000:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
