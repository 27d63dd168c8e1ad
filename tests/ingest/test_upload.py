"""A set brought to a real S3 server: the bytes of the local one, whatever fails on the way, and never half of it."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.building.build import Options, Outcome, Told
from ingest.sending import upload
from ingest.sources.bigearthnet import BigEarthNet
from shards.errors import BandstreamError
from shards.remote import store
from tests.ingest.archives import contents, make_v2
from tests.storage import BUCKET, OWNER, READER, REPOSITORY, Proxy, Server, begin_upload, command, proxied, served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_v2(tmp_path_factory.mktemp("archive"), 16)


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every byte of the set that a local run leaves."""
    folder = tmp_path_factory.mktemp("expected") / "set"
    convert(archive, str(folder))
    return contents(folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """The server's credentials; little patience, and short pauses."""
    use(monkeypatch, server)
    monkeypatch.setattr(store, "PATIENCE_S", 1.0)
    monkeypatch.setattr(store, "FIRST_PAUSES_S", (0.2, 0.4))
    monkeypatch.setattr(store, "PAUSES_S", (0.2, 0.4, 0.8, 1.6, 3.2))


def use(monkeypatch: pytest.MonkeyPatch, server: Server, identity: tuple[str, str] = OWNER) -> None:
    for name, value in server.environment(identity).items():
        monkeypatch.setenv(name, value)


def convert(archive: Path, place: str, told: Told | None = None, **options: Any) -> Outcome:
    return upload.ingest(BigEarthNet(archive), place, Options(**{"shard_samples": 4, **options}), told)


def prefix(request: pytest.FixtureRequest) -> str:
    """A place in the bucket of each test's own."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    return prefix(request)


def url(place: str) -> str:
    return f"s3://{BUCKET}/{place}"


def test_the_bytes_of_the_local_set(
    archive: Path, expected: dict[str, bytes], server: Server, place: str, tmp_path: Path
) -> None:
    told: list[str] = []
    stages: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        stages[stage] = done, total

    outcome = convert(archive, url(place) + "/", Told(told.append, told.append, progress), scratch=tmp_path)
    assert server.contents(place) == expected
    assert outcome.sent == len(expected) and outcome.processed == 16
    assert list(tmp_path.iterdir()) == []
    size = sum(len(content) for name, content in expected.items() if name != "dataset.json")
    assert stages["upload"] == stages["verify"] == (size, size)
    assert len(told) == 1 and str(tmp_path) in told[0] and "GB free" in told[0]
    told.clear()
    again = convert(archive, url(place), Told(told.append, told.append), scratch=tmp_path)
    assert again.sent == again.processed == 0 and again.manifest == outcome.manifest
    assert told == [] and list(tmp_path.iterdir()) == []
    with pytest.raises(BandstreamError, match=rf"^{url(place)} holds a shard set with other options \(seed 0, now 1\)"):
        convert(archive, url(place), seed=1, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command(archive: Path, expected: dict[str, bytes], server: Server, place: str, tmp_path: Path) -> None:
    run = subprocess.run(
        command(archive, url(place), "--shard-samples", 4, "--workers", 2, "--scratch", tmp_path),
        cwd=REPOSITORY,
        env={**os.environ, **server.environment()},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert server.contents(place) == expected
    assert f"{url(place)}: 16 samples" in run.stdout and "objects sent, all read back and compared" in run.stdout
    for name in ("verify", "audit"):
        run = subprocess.run(
            [sys.executable, "-m", "cli", name, url(place)], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert run.returncode == 2 and f"{url(place)} is a URL" in run.stderr


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_url_of_a_folder(archive: Path, expected: dict[str, bytes], tmp_path: Path, scheme: str) -> None:
    convert(archive, f"{scheme}://{tmp_path}/set")
    assert contents(tmp_path / "set") == expected


def test_a_file_system_that_is_not_asynchronous(archive: Path, expected: dict[str, bytes], place: str) -> None:
    import fsspec

    convert(archive, f"memory://{place}")
    files = fsspec.filesystem("memory")
    assert {name.rpartition("/")[2]: files.cat_file(name) for name in files.find(f"/{place}")} == expected


def test_objects_in_parts(server: Server, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART", 5 << 20)  # the least that S3 allows
    archive = make_v2(tmp_path / "archive", 96)
    convert(archive, str(tmp_path / "set"), shard_samples=96)
    convert(archive, url(place), shard_samples=96, scratch=tmp_path / "scratch")
    found = server.contents(place)
    assert found == contents(tmp_path / "set")
    assert max(map(len, found.values())) > 2 * store.PART
    heads = server.client().head_object(Bucket=BUCKET, Key=f"{place}/train-000000.tar")
    assert "-" in heads["ETag"]  # S3's mark of an object that came in parts


def test_killed_while_it_is_sent(
    archive: Path, expected: dict[str, bytes], server: Server, proxy: Proxy, place: str, tmp_path: Path
) -> None:
    draw, size = random.Random(0), sum(map(len, expected.values()))
    proxy.rate = size / 2
    for _ in range(3):
        goal = proxy.sent + draw.uniform(0.05, 0.5) * size
        process = begin_upload(archive, url(place), proxy, tmp_path, "--shard-samples", 4, "--workers", 1)
        while proxy.sent < goal and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        names = server.names(place)
        assert ("dataset.json" not in names and ".partial/plan.json" in names) or set(expected) <= set(names)
    there = {name for name, content in server.contents(place).items() if expected.get(name) == content}
    outcome = convert(archive, url(place), scratch=tmp_path)
    assert server.contents(place) == expected
    assert there and outcome.sent == len(expected) - len(there)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["busy", "reset", "stall", "refuse"])
def test_a_server_that_fails_for_a_while(
    archive: Path,
    expected: dict[str, bytes],
    server: Server,
    proxy: Proxy,
    place: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, proxy)
    proxy.trouble(kind, after=1_000_000, seconds=1.5)
    begin = time.monotonic()
    convert(archive, url(place), scratch=tmp_path)
    assert server.contents(place) == expected
    assert proxy.met > 0
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("kind", ["flip up", "flip down"])
def test_bits_that_change_on_the_way(
    archive: Path,
    expected: dict[str, bytes],
    server: Server,
    proxy: Proxy,
    place: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, proxy)
    proxy.trouble(kind, after=500_000)
    convert(archive, url(place), scratch=tmp_path)
    assert proxy.met == 1
    assert server.contents(place) == expected


@pytest.mark.parametrize("kind", ["busy", "stall"])
def test_a_server_that_fails_for_good(
    archive: Path,
    expected: dict[str, bytes],
    server: Server,
    proxy: Proxy,
    place: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "PAUSES_S", (0.1,))
    use(monkeypatch, proxy)
    proxy.trouble(kind, after=1_000_000)
    begin = time.monotonic()
    with pytest.raises(BandstreamError, match=f"^{url(place)} failed again and again .*run the same command again"):
        convert(archive, url(place), scratch=tmp_path)
    assert time.monotonic() - begin < 20
    names = server.names(place)
    assert "dataset.json" not in names and ".partial/plan.json" in names
    use(monkeypatch, server)
    outcome = convert(archive, url(place), scratch=tmp_path)
    assert outcome.processed == 0  # not one shard was made again
    assert server.contents(place) == expected
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_was_changed(
    archive: Path, expected: dict[str, bytes], server: Server, place: str, tmp_path: Path
) -> None:
    """In a complete set, and in one that is not."""
    convert(archive, url(place), scratch=tmp_path)
    name = "train-000001.tar"
    changed = bytearray(expected[name])
    changed[5000] ^= 1
    server.put(place, name, bytes(changed))
    server.put(place, "train-000077.tar", b"of another set")
    warned: list[str] = []
    assert convert(archive, url(place), Told(warned.append), scratch=tmp_path).sent == 1
    assert len(warned) == 1 and f"{url(place)}: damaged or missing: {name}: the set is built again" in warned[0]
    assert server.contents(place) == expected
    for lost in ("rejected.jsonl", "train-000000.idx"):
        server.client().delete_object(Bucket=BUCKET, Key=f"{place}/{lost}")
        assert convert(archive, url(place), scratch=tmp_path).sent == 1
        assert server.contents(place) == expected
    server.client().delete_object(Bucket=BUCKET, Key=f"{place}/dataset.json")
    server.put(place, name, bytes(changed))
    assert convert(archive, url(place), scratch=tmp_path).sent == 2
    assert server.contents(place) == expected


def test_a_changed_archive_does_not_mend_a_set(
    archive: Path, expected: dict[str, bytes], server: Server, place: str, tmp_path: Path
) -> None:
    import shutil

    convert(archive, url(place), scratch=tmp_path / "scratch")
    shutil.copytree(archive, tmp_path / "copy")
    path = next((tmp_path / "copy").rglob("*_B02.tif"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    server.client().delete_object(Bucket=BUCKET, Key=f"{place}/val-000000.tar")
    before = server.contents(place)
    with pytest.raises(BandstreamError, match="the archive no longer gives what it held"):
        convert(tmp_path / "copy", url(place), scratch=tmp_path / "scratch")
    after = server.contents(place)
    after.pop(".partial/plan.json")
    assert after == before


def test_a_staged_shard_that_was_damaged(
    archive: Path,
    expected: dict[str, bytes],
    server: Server,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = upload.Upload.put

    def damaged(self: upload.Upload, manifest: Any) -> int:
        path = self.staging / "train-000000.tar"
        content = bytearray(path.read_bytes())
        content[9999] ^= 4
        path.write_bytes(content)
        return put(self, manifest)

    monkeypatch.setattr(upload.Upload, "put", damaged)
    with pytest.raises(BandstreamError, match=r"train-000000\.tar was damaged on this machine"):
        convert(archive, url(place), scratch=tmp_path)
    assert "dataset.json" not in server.names(place)
    monkeypatch.setattr(upload.Upload, "put", put)
    convert(archive, url(place), scratch=tmp_path)
    assert server.contents(place) == expected


def test_what_lies_there_already(
    archive: Path, expected: dict[str, bytes], server: Server, place: str, tmp_path: Path
) -> None:
    server.put(place, "train-000077.tar", b"of another set")
    with pytest.raises(BandstreamError, match=f"^{url(place)} is not empty and holds no shard set: name a new place"):
        convert(archive, url(place), scratch=tmp_path)
    server.put(place, "rejected.jsonl", b"of a set that lost its manifest")
    server.put(place, "train-000000.tar", expected["train-000001.tar"])
    convert(archive, url(place), scratch=tmp_path)
    assert server.contents(place) == expected
    with pytest.raises(BandstreamError, match="is an object"):
        convert(archive, f"{url(place)}/train-000000.tar", scratch=tmp_path)
    assert server.contents(place) == expected and list(tmp_path.iterdir()) == []


def test_other_options_while_one_is_unfinished(
    archive: Path,
    expected: dict[str, bytes],
    server: Server,
    proxy: Proxy,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "PAUSES_S", (0.1,))
    with monkeypatch.context() as context:
        use(context, proxy)
        proxy.trouble("reset", after=1_000_000)
        with pytest.raises(BandstreamError):
            convert(archive, url(place), scratch=tmp_path / "a")
    before = server.contents(place)
    for scratch in ("a", "b"):
        with pytest.raises(BandstreamError, match=r"holds an unfinished ingest with other options \(seed 0, now 3\)"):
            convert(archive, url(place), scratch=tmp_path / scratch, seed=3)
    assert server.contents(place) == before
    assert list((tmp_path / "b").iterdir()) == []
    convert(archive, url(place), scratch=tmp_path / "b")  # on another machine, nothing of the first one's staging
    assert server.contents(place) == expected


def at_once(archive: Path, place: str, tmp_path: Path, seeds: tuple[int, int]) -> list[str]:
    """What comes of two ingests that begin at once, each on what might be a machine of its own."""
    ended: list[str] = []
    ready = threading.Barrier(2)

    def one(number: int, seed: int) -> None:
        ready.wait()
        try:
            convert(archive, url(place), scratch=tmp_path / str(number), seed=seed)
            ended.append(f"seed {seed}")
        except BandstreamError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=one, args=each) for each in enumerate(seeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_two_plans_at_once(archive: Path, server: Server, place: str, tmp_path: Path) -> None:
    ended = at_once(archive, place, tmp_path, (1, 2))
    won = [text for text in ended if text.startswith("seed")]
    assert len(won) == 1, ended
    assert any("other options" in text or "another ingest" in text for text in ended)
    seed = int(won[0].removeprefix("seed "))
    convert(archive, str(tmp_path / "local"), seed=seed)
    assert server.contents(place) == contents(tmp_path / "local")


def test_one_plan_twice_at_once(
    archive: Path, expected: dict[str, bytes], server: Server, place: str, tmp_path: Path
) -> None:
    assert at_once(archive, place, tmp_path, (0, 0)) == ["seed 0", "seed 0"]
    assert server.contents(place) == expected


def test_clear_errors(
    archive: Path, server: Server, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(place: str) -> str:
        with pytest.raises(BandstreamError) as raised:
            convert(archive, place, scratch=tmp_path)
        assert "\n" not in str(raised.value) and list(tmp_path.iterdir()) == []
        return str(raised.value)

    assert error("s3://missing/set").startswith("s3://missing/set: there is no bucket missing: make it")
    with pytest.raises(BandstreamError, match="all workers see: name one with --scratch"):
        convert(archive, url(place), scheduler="tcp://127.0.0.1:1")
    assert "names no place" in error("s3://") and "names no place" in error("s3:///set")
    assert "Protocol not known: nowhere" in error("nowhere://a/b")
    assert "can be read and not written" in error("https://example.org/set")
    use(monkeypatch, server, READER)
    assert error(url(place)).startswith(f"{url(place)}: access denied (Access Denied.): check the credentials")
    use(monkeypatch, server, (OWNER[0], "wrong"))
    assert "access denied" in error(url(place))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "no credentials" in error(url(place)) and "AWS_ACCESS_KEY_ID" in error(url(place))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    assert "pip install 'bandstream[s3]'" in error(url(place))


def test_a_server_that_is_down(
    archive: Path, server: Server, proxy: Proxy, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, proxy)
    proxy.trouble("refuse")
    time.sleep(0.2)
    begin = time.monotonic()
    with pytest.raises(BandstreamError, match=f"^{url(place)} cannot be reached .*AWS_ENDPOINT_URL"):
        convert(archive, url(place), scratch=tmp_path)
    assert time.monotonic() - begin < 15 and list(tmp_path.iterdir()) == []
