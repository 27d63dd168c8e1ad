"""Folders and tars as the same set of files, held to `tarfile`; what a tar is refused for, and damaged tars."""

import copy
import gzip
import io
import os
import random
import resource
import signal
import tarfile
import zipfile
from pathlib import Path

import pytest
import rasterio
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.reading import tar
from ingest.reading.files import Files, Folder, open_files
from ingest.reading.index import Tar
from ingest.source import Listening
from shards.errors import BandstreamError

CONTENT = {
    "top.txt": b"above",
    "a-b/first": b"1" * 700,
    "a/b/second": b"",
    "a/b/third": b"3" * 512,
    "a/z": b"zz",
    "a" * 90 + "/" + "n" * 90: b"a name of 181 characters",
    "ä/ö": "ü".encode(),
}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")


def packed(content: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def compressed(data: bytes, suffix: str) -> bytes:
    if suffix.endswith("gz"):
        return gzip.compress(data, 1)
    return zstandard.compress(data) if suffix.endswith("zst") else data


def write(folder: Path, data: bytes, suffix: str = ".tar") -> Path:
    path = folder / f"archive{suffix}"
    path.write_bytes(compressed(data, suffix))
    return path


def everything(opened: Files) -> dict[str, bytes]:
    """All files, by every way there is to read them."""
    found = {}
    for folder, names in opened.folders():
        assert opened.names(folder) == names
        pieces = opened.read_folder(folder, names, 1 << 24)
        for name in names:
            path = f"{folder}/{name}" if folder else name
            found[path] = opened.read(path)
            assert bytes(pieces[name] or b"") == found[path]
    return found


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tar_is_its_folder(tmp_path: Path, suffix: str, form: str) -> None:
    for name, data in CONTENT.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    tar = open_files(write(tmp_path, packed(CONTENT, FORMATS[form]), suffix), Listening(tmp_path / "scratch"))
    folder = open_files(tmp_path / "folder", Listening(tmp_path))
    assert isinstance(tar, Tar)
    assert isinstance(folder, Folder)
    assert everything(tar) == everything(folder) == CONTENT
    assert list(tar.folders()) == list(folder.folders())
    assert everything(copy.deepcopy(tar)) == CONTENT
    for place in ("", "a", "a/b"):
        assert tar.inside(place) == folder.inside(place)
    assert list(tar.refused()) == []
    for opened in (tar, folder):
        assert opened.read_folder("a", ["z", "none"], 1) == {"z": None}
        with pytest.raises(FileNotFoundError):
            opened.read("a/none")


def test_gdal_reads_a_file_where_it_lies(tmp_path: Path, real_data: Path) -> None:
    path = next((real_data / "eurosat_ms").rglob("*.tif"))
    opened = open_files(write(tmp_path, packed({"x/y.tif": path.read_bytes()})), Listening(tmp_path / "scratch"))
    with rasterio.open(opened.gdal("x/y.tif")) as inside, rasterio.open(path) as alone:
        assert (inside.read() == alone.read()).all()


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".zip"])
def test_gdal_reads_nothing_of_an_empty_file(tmp_path: Path, real_data: Path, suffix: str) -> None:
    raster = next((real_data / "eurosat_ms").rglob("*.tif")).read_bytes()
    content = {"a/0.tif": b"", "a/1.tif": raster}
    if suffix == ".zip":
        path = tmp_path / "archive.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        path = write(tmp_path, packed(content), suffix)
    opened = open_files(path, Listening(tmp_path / "scratch"))
    assert opened.read("a/0.tif") == b""
    with rasterio.open(opened.gdal("a/1.tif")) as source:
        assert source.count == 13
    with pytest.raises(rasterio.errors.RasterioIOError):
        rasterio.open(opened.gdal("a/0.tif"))


names = st.lists(st.text("abcä. -", min_size=1, max_size=60), min_size=1, max_size=6).map("/".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, st.binary(max_size=1500), max_size=8), st.sampled_from(list(FORMATS.values())))
def test_tars_are_read_as_tarfile_reads_them(tmp_path: Path, content: dict[str, bytes], form: int) -> None:
    try:
        data = packed(content, form)
    except ValueError:  # a name that ustar cannot hold
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = {}
        for member in tar:
            parts = member.name.split("/")
            if ".." not in parts:
                expected["/".join([*(p for p in parts[:-1] if p != "."), parts[-1]])] = tar.extractfile(member).read()
    path = write(tmp_path, data)
    opened = open_files(path, Listening(tmp_path / "scratch" / os.urandom(8).hex()))
    assert everything(opened) == expected


def test_what_is_spooled_is_what_is_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, packed(CONTENT), ".tar.zst")
    said: list[str] = []
    opened = open_files(path, Listening(tmp_path / "scratch", say=said.append), lambda name: name.startswith("a/"))
    assert everything(opened) == {name: data for name, data in CONTENT.items() if name.startswith("a/")}
    assert isinstance(opened, Tar)
    assert opened.data.stat().st_size == 514
    assert len(said) == 1
    assert "spooling archive.tar.zst" in said[0]
    open_files(path, Listening(tmp_path / "scratch", say=said.append))
    assert len(said) == 1, "spooled again, though it lay there"


def test_the_last_of_a_name_counts_and_members_may_lie_apart(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [("a/x", b"old"), ("b/y", b"y" * 5_000_000), ("a/z", b"z"), ("./a//x", b"new")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    opened = open_files(write(tmp_path, buffer.getvalue()), Listening(tmp_path / "scratch"))
    found = opened.read_folder("a", ["x", "z"], 10)
    assert {name: bytes(data or b"") for name, data in found.items()} == {"x": b"new", "z": b"z"}


def test_what_leads_out_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, to in [
            ("../up", tarfile.REGTYPE, ""),
            ("a/../../up", tarfile.REGTYPE, ""),
            ("/etc/passwd", tarfile.REGTYPE, ""),
            ("link", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard", tarfile.LNKTYPE, "good"),
            ("fifo", tarfile.FIFOTYPE, ""),
            ("n/" * 3000 + "deep", tarfile.REGTYPE, ""),
            ("good", tarfile.REGTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, to
            tar.addfile(info)
    for suffix in SUFFIXES:
        opened = open_files(write(tmp_path, buffer.getvalue(), suffix), Listening(tmp_path / "scratch"))
        assert everything(opened) == {"good": b""}
        refused = {rejected.path[:10]: rejected.detail for rejected in opened.refused()}
        assert len(refused) == 7
        assert "symbolic link" in refused["link"]
        assert "leads out" in refused["../up"]
        assert "absolute" in refused["/etc/passw"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_off_anywhere_is_an_error(tmp_path: Path, suffix: str) -> None:
    data = compressed(packed({f"a/{n}": random.Random(n).randbytes(3000) for n in range(20)}), suffix)
    draw = random.Random(0)
    for cut in [0, 1, 100, *(draw.randrange(len(data) - 20_000) for _ in range(12))]:
        path = tmp_path / f"archive{suffix}"
        path.write_bytes(data[:cut])
        with pytest.raises(BandstreamError, match=f"archive{suffix}"):
            open_files(path, Listening(tmp_path / "scratch"))
        assert not list((tmp_path / "scratch").iterdir()), "leftovers of a spool that failed"


def test_a_flipped_header_is_an_error(tmp_path: Path) -> None:
    data = bytearray(packed({f"a/{n}": bytes(600) for n in range(4)}))
    draw = random.Random(0)
    for _ in range(200):
        at = 1536 * draw.randrange(4) + draw.randrange(512)
        bit = 1 << draw.randrange(8)
        data[at] ^= bit
        path = write(tmp_path, bytes(data))
        try:
            found = everything(open_files(path, Listening(tmp_path / "scratch" / os.urandom(8).hex())))
        except BandstreamError:
            found = {}
        # bytes that no tar reader looks at, such as a checksum's terminator, may change and harm nothing
        assert found in ({}, {f"a/{n}": bytes(600) for n in range(4)})
        data[at] ^= bit


def test_absurd_sizes_are_an_error_and_take_no_memory(tmp_path: Path) -> None:
    for kind, size in [(b"0", 1 << 40), (b"L", 1 << 32), (b"x", 1 << 32), (b"0", 1 << 70)]:
        info = tarfile.TarInfo("a")
        info.type, info.size = kind, size
        data = info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
        for suffix in (".tar", ".tar.zst"):
            with pytest.raises(BandstreamError, match="archive"):
                open_files(write(tmp_path, data, suffix), Listening(tmp_path / "scratch"))


def test_a_bomb_is_spooled_in_pieces(tmp_path: Path) -> None:
    bomb = compressed(packed({"a": b""})[:512] + bytes(300_000_000), ".zst")
    path = tmp_path / "archive.tar.zst"
    path.write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    open_files(path, Listening(tmp_path / "scratch"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_windows_that_take_too_much_memory_are_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, write_content_size=0)
    data = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "archive.tar.zst"
    path.write_bytes(data.compress(bytes(1 << 20)) + data.flush())
    with pytest.raises(BandstreamError, match="128 MB"):
        open_files(path, Listening(tmp_path / "scratch"))


def test_no_room_on_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, packed({"a": bytes(3_000_000)}), ".tar.gz")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(BandstreamError, match="cannot be read to"):
            open_files(path, Listening(tmp_path / "scratch"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert everything(open_files(path, Listening(tmp_path / "scratch"))) == {"a": bytes(3_000_000)}


def test_neither_folder_nor_tar(tmp_path: Path) -> None:
    (tmp_path / "a.7z").write_bytes(b"7z")
    for name, told in [("a.7z", "neither a folder nor"), ("none", "does not exist")]:
        with pytest.raises(BandstreamError, match=told):
            open_files(tmp_path / name, Listening(tmp_path / "scratch"))
    assert tar.NAME.search("x.TAR.ZST")
