"""Zips as the same set of files as their folder, held to `zipfile`; what a zip is refused for, and damaged ones."""

import io
import os
import random
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.reading import spool
from ingest.reading.files import open_files
from ingest.source import Listening
from shards.errors import BandstreamError
from tests.ingest.test_files import CONTENT, everything, names


def zipped(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_its_folder(tmp_path: Path, method: int) -> None:
    for name, data in CONTENT.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    opened = open_files(zipped(tmp_path / "a.ZIP", CONTENT, method), Listening(tmp_path / "scratch"))
    folder = open_files(tmp_path / "folder", Listening(tmp_path))
    assert everything(opened) == everything(folder) == CONTENT
    assert list(opened.folders()) == list(folder.folders())
    assert [opened.inside(place) for place in ("", "a")] == [folder.inside(place) for place in ("", "a")]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, st.binary(max_size=3000), max_size=6))
def test_zips_are_read_as_zipfile_reads_them(tmp_path: Path, content: dict[str, bytes]) -> None:
    path = zipped(tmp_path / "a.zip", content)
    with zipfile.ZipFile(path) as archive:
        found = [(info.filename.split("/"), archive.read(info)) for info in archive.infolist()]
    expected = {"/".join([*(p for p in parts[:-1] if p != "."), parts[-1]]): data for parts, data in found}
    opened = open_files(path, Listening(tmp_path / "scratch" / os.urandom(8).hex()))
    assert everything(opened) == {name: data for name, data in expected.items() if ".." not in name.split("/")}


def test_what_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        for name in ("../out", "/absolute", "good", "folder/"):
            archive.writestr(name, b"")
    opened = open_files(tmp_path / "a.zip", Listening(tmp_path / "scratch"))
    assert everything(opened) == {"good": b""}
    refused = {rejection.path: rejection.detail for rejection in opened.refused()}
    assert refused.keys() == {"link", "../out", "/absolute"}
    assert all("zip" in detail for detail in refused.values())


def test_what_is_wanted_and_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "a.zip", {"a.tif": bytes(5_000_000), "b.txt": b"b"})
    said: list[str] = []
    opened = open_files(path, Listening(tmp_path / "scratch", say=said.append), lambda name: name.endswith(".txt"))
    assert everything(opened) == {"b.txt": b"b"}
    assert len(said) == 1
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: type("", (), {"free": 1000})())
    with pytest.raises(BandstreamError, match="no room"):
        open_files(path, Listening(tmp_path / "other"))
    assert not list((tmp_path / "other").iterdir())


def test_damage_is_an_error_that_says_so(tmp_path: Path) -> None:
    rng = random.Random(0)
    data = zipped(tmp_path / "a.zip", {f"f{n}": os.urandom(400) for n in range(4)}).read_bytes()
    right = {name: zipfile.ZipFile(io.BytesIO(data)).read(name) for name in ("f0", "f1", "f2", "f3")}
    told = []
    for number in range(150):
        damaged = bytearray(data)
        if number % 3:
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(data)) :]
        path = tmp_path / f"{number}.zip"
        path.write_bytes(damaged)
        try:
            found = everything(open_files(path, Listening(tmp_path / f"s{number}")))
        except BandstreamError as error:
            told.append((path.name, str(error)))
        else:  # what does not bear on the content, or a name
            assert set(found.values()) <= set(right.values())
    assert len(told) > 100
    assert all(name in text or "encrypted" in text for name, text in told)
