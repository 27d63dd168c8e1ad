"""The cache of remote files: shared, bounded, and none the worse for processes that are killed and disks that fail."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import BandstreamError
from shards.remote.cache import GB, LIMIT, Cache, File, Held, Part, Wait
from tests.mounts import Mounts, NoMounts, namespace
from tests.shards.cached import FILES, bytes_in, content, file
from tests.storage import REPOSITORY


def cache(folder: Path, limit: int) -> Cache:
    made = Cache(folder, limit / GB)
    assert made.limit == limit
    return made


def fetch(cache: Cache, number: int) -> Held:
    part = cache.claim(file(number))
    assert isinstance(part, Part)
    part.write(content(number)[:7])
    part.write(content(number)[7:])
    assert part.wrong() == ""
    return part.finish()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock", "waiting"}


def test_what_was_fetched_is_found(tmp_path: Path) -> None:
    one, other = cache(tmp_path, 10**6), cache(tmp_path, 10**6)
    with fetch(one, 0) as held:
        assert held.path.read_bytes() == os.pread(held.descriptor, 10**6, 0) == content(0)
        found = other.claim(file(0))
        assert isinstance(found, Held) and found.checked  # by the one, since the other began
        found.close()
    later = cache(tmp_path, 10**6)
    with later.claim(file(0)) as again:
        assert isinstance(again, Held) and not again.checked
        assert one.claim(file(0)) is Wait.ELSEWHERE  # while it is held against its checksum
        assert again.sha256() == file(0).sha256
        later.confirm(again)
        with one.claim(file(0)) as shared:
            assert isinstance(shared, Held) and shared.checked
    assert names(tmp_path) == {f"{file(0).sha256}.tar"}


def test_what_came_otherwise_is_not_kept(tmp_path: Path) -> None:
    made = cache(tmp_path, 10**6)
    part = made.claim(file(0))
    assert isinstance(part, Part)
    part.write(content(0)[:-1])
    assert part.wrong() == f"has {file(0).bytes - 1} bytes, by its manifest {file(0).bytes}"
    part.restart()
    part.write(content(0)[:-1] + b"?")
    assert "does not have the sha256" in part.wrong()
    part.restart()
    part.write(content(0) + b"and more")
    assert part.wrong() == "" and bytes_in(tmp_path) == file(0).bytes
    part.abandon()
    assert names(tmp_path) == set()


def test_the_least_recently_used_makes_way_and_what_is_used_stays(tmp_path: Path) -> None:
    sizes = [file(number).bytes for number in range(4)]
    made = cache(tmp_path, sum(sizes[:3]))
    for number in range(3):
        fetch(made, number).close()
    with made.claim(file(0)):  # used again: now 1 is the oldest
        pass
    used = made.claim(file(1))
    fetch(made, 3).close()
    left = {file(number).local_name for number in (0, 1, 3)}
    assert names(tmp_path) <= left and file(1).local_name in names(tmp_path)
    assert file(2).local_name not in names(tmp_path)
    assert bytes_in(tmp_path) <= made.limit
    used.close()


def test_no_room_until_others_close(tmp_path: Path) -> None:
    made = cache(tmp_path, file(0).bytes + file(1).bytes)
    first, second = fetch(made, 0), fetch(made, 1)
    assert cache(tmp_path, made.limit).claim(file(2)) is Wait.NO_ROOM
    assert made.in_use() == made.limit
    assert names(tmp_path) == {file(0).local_name, file(1).local_name}
    first.close()
    second.close()
    got = made.claim(file(2))
    assert isinstance(got, Part) and bytes_in(tmp_path) <= made.limit
    got.abandon()
    with pytest.raises(BandstreamError, match=r"^x\.tar has 1 GB, the cache .* may hold .* GB: allow more \(cache_gb"):
        made.claim(File("x.tar", 10**9, "0" * 64))


def test_what_is_not_the_caches_stays(tmp_path: Path) -> None:
    mine = dict.fromkeys(("notes.txt", "x.part", f"{'a' * 63}.tar", f"{'A' * 64}.tar"), b"mine" * 30000)
    for name, data in mine.items():
        (tmp_path / name).write_bytes(data)
    made = cache(tmp_path, 150_000)
    for number in range(8):
        fetch(made, number).close()
    assert {name: (tmp_path / name).read_bytes() for name in mine} == mine
    assert made.used() == bytes_in(tmp_path) - 4 * 120_000 > 60_000


def test_a_lower_limit_is_kept_to(tmp_path: Path) -> None:
    for number in range(6):
        fetch(cache(tmp_path, 10**6), number).close()
    low = cache(tmp_path, 100_000)
    fetch(low, 7).close()
    assert bytes_in(tmp_path) <= 100_000


def test_a_process_that_was_killed_leaves_nothing(tmp_path: Path) -> None:
    script = "import sys, time; from tests.shards.cached import *; p = Cache(sys.argv[1], 1).claim(file(0)); "
    script += "p.write(content(0)[:9999]); print('begun', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    made = cache(tmp_path, 10**9)
    assert made.claim(file(0)) is Wait.ELSEWHERE
    assert names(tmp_path) == {f"{file(0).local_name}.part"} and bytes_in(tmp_path) == file(0).bytes
    process.kill()
    process.wait()
    fetch(made, 0).close()
    (tmp_path / f"{file(1).local_name}.part").write_bytes(b"left by another")
    cache(tmp_path, 10**9)
    assert names(tmp_path) == {file(0).local_name}


def test_a_copy_that_was_cut_is_fetched_again(tmp_path: Path) -> None:
    made = cache(tmp_path, 10**6)
    fetch(made, 0).close()
    os.truncate(tmp_path / file(0).local_name, 5000)
    fetch(made, 0).close()
    assert (tmp_path / file(0).local_name).read_bytes() == content(0)


def test_processes_that_are_killed_at_random(tmp_path: Path) -> None:
    """The limit holds all the time, every file is whole, and nothing is left locked."""
    limit, draw, most, end = 200_000, random.Random(0), [0], threading.Event()
    tmp_path.joinpath("cache").mkdir()

    def sample() -> None:
        while not end.is_set():
            most[0] = max(most[0], bytes_in(tmp_path / "cache"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    began = time.monotonic()
    processes: list[subprocess.Popen[str]] = []
    try:
        number = 0
        while time.monotonic() - began < 3:
            while len(processes) < 3:
                number += 1
                command = [sys.executable, "-m", "tests.shards.cached", str(tmp_path / "cache"), str(limit / GB)]
                processes.append(
                    subprocess.Popen([*command, str(number), "60"], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
                )
            time.sleep(draw.uniform(0.1, 0.4))
            chosen = processes.pop(draw.randrange(len(processes)))
            assert chosen.poll() is None, chosen.communicate()[1]
            chosen.kill()
            chosen.communicate()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        end.set()
        sampler.join()
    assert 0.5 * limit < most[0] <= limit
    made = cache(tmp_path / "cache", limit)
    assert made.in_use() == 0 and not list(made.folder.glob("*.part"))
    whole = {file(number).local_name: content(number) for number in range(FILES)}
    assert all(path.read_bytes() == whole[path.name] for path in made.folder.iterdir() if path.name != "lock")


@pytest.fixture(scope="module")
def mounts() -> Iterator[Mounts]:
    try:
        with namespace() as mounts:
            yield mounts
    except NoMounts as error:
        pytest.skip(f"file systems cannot be mounted here: {error}")


def test_a_disk_that_is_fuller_than_the_limit_foresees(mounts: Mounts, tmp_path: Path) -> None:
    mounts.tmpfs(tmp_path / "disk", 160)
    made = cache(mounts.see(tmp_path / "disk") / "cache", 10**9)
    for number in range(FILES):
        fetch(made, number).close()  # older ones make way
    assert sum(file(number).bytes for number in range(6)) > 160 * 1024
    got = [made.claim(file(number)) for number in range(6)]
    assert Wait.NO_ROOM in got
    for each in got:
        if isinstance(each, Held):
            each.close()
        elif isinstance(each, Part):
            each.abandon()
    mounts.remount(tmp_path / "disk", "ro")
    with pytest.raises(BandstreamError, match=r"cache .* cannot be used \(Read-only file system\).*BANDSTREAM_CACHE"):
        made.claim(file(5))


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANDSTREAM_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv(LIMIT, "2.5")
    assert Cache().limit == 2_500_000_000 and Cache().folder == tmp_path / "named"
    assert Cache(tmp_path / "other", 1).limit == 10**9
    monkeypatch.delenv("BANDSTREAM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv(LIMIT)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert Cache().folder == tmp_path / "xdg" / "bandstream" and 0.4 * free < Cache().limit < 0.6 * free
    for wrong in ("much", "-1", "0", "nan", "inf"):
        monkeypatch.setenv(LIMIT, wrong)
        with pytest.raises(BandstreamError, match=f"a cache of {wrong} GB: name a number above 0"):
            Cache()
