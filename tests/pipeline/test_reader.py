"""Reading a set from a real S3 server and a web server: the folder's samples, or an error; each shard fetched once."""

import contextlib
import hashlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli import bandstream
from pipeline import ahead
from pipeline.ahead import Needs
from pipeline.loader import Loader
from pipeline.reader import Reader
from pipeline.views import ViewRecipe
from shards.errors import BandstreamError
from shards.remote import files, store
from shards.shardset import ShardSet
from tests.pipeline import reading
from tests.pipeline.making import make_set
from tests.shards.cached import bytes_in
from tests.storage import BUCKET, OWNER, REPOSITORY, Proxy, Server, environment, proxied, served
from tests.web import web

URL = f"s3://{BUCKET}/set"
RECIPE = ViewRecipe(size=24, blur=0.5, gain=0.2, offset=0.1, noise=0.1, grey=0.2, band_dropout=0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def shard_set(place: Path) -> Path:
    """Ten shards of ten samples to train on."""
    return make_set(place / "set", {"train": 100, "val": 10, "test": 20}, shard_samples=10)


@pytest.fixture(scope="module")
def server(place: Path, shard_set: Path) -> Iterator[Server]:
    with served(place / "s3") as server:
        server.put_all("set", shard_set)
        yield server


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxied(server) as proxy:
        use(monkeypatch, proxy)
        yield proxy


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 1.0)
    monkeypatch.setattr(store, "FIRST_PAUSES_S", (0.2, 0.4))
    monkeypatch.setattr(store, "PAUSES_S", (0.2, 0.4, 0.8, 1.6))
    monkeypatch.setattr(files, "AGAIN_S", (0.1, 0.2))


def use(monkeypatch: pytest.MonkeyPatch, server: Server, identity: tuple[str, str] = OWNER) -> None:
    for name, value in server.environment(identity).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def truth(shard_set: Path) -> dict[int, str]:
    return reading.truth(str(shard_set))


def shard_bytes(shard_set: Path) -> int:
    return max(shard.bytes for shard in ShardSet.open(shard_set).manifest.splits["train"].shards)


@contextlib.contextmanager
def at_most(folder: Path, limit: int) -> Iterator[None]:
    """The cache never holds more, as long as the block lasts."""
    end, found = threading.Event(), [0]

    def sample() -> None:
        while not end.is_set():
            if folder.is_dir():
                found[0] = max(found[0], bytes_in(folder))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        end.set()
        sampler.join()
    assert 0 < found[0] <= limit


def test_when_a_plan_needs_its_shards(shard_set: Path) -> None:
    opened, draw = ShardSet.open(shard_set), np.random.default_rng(0)
    size = [shard.bytes for shard in opened.manifest.splits["train"].shards]
    for _ in range(20):
        total = opened.size("train")
        plan = [draw.permutation(total)[: draw.integers(1, 6)] for _ in range(draw.integers(1, 12))]
        needs = Needs.of(opened, "train", plan)
        shards = [set(opened.locate("train", indices)[0].tolist()) for indices in plan]
        for shard in range(len(size)):
            numbers = [number for number, each in enumerate(shards) if shard in each]
            assert [needs.first[shard], needs.last[shard]] == ([numbers[0], numbers[-1]] if numbers else [-1, -1])
        held = [
            sum(size[s] for s in range(len(size)) if needs.first[s] >= 0 and needs.first[s] <= n <= needs.last[s])
            for n in range(len(plan))
        ]
        assert needs.at_once == max(held)
        order = needs.shards.tolist()
        assert sorted(order) == sorted(set().union(*shards))
        assert [needs.first[s] for s in order] == sorted(needs.first[s] for s in order)


def digests(loader: Loader) -> list[tuple[int, str]]:
    return [
        (index, hashlib.sha256(b"".join(view[n].numpy().tobytes() for view in batch.views)).hexdigest())
        for batch in loader
        for n, index in enumerate(batch.indices.tolist())
    ]


def test_two_epochs_are_those_of_the_folder(shard_set: Path, proxy: Proxy, tmp_path: Path) -> None:
    here = Loader(shard_set, "train", 7, [RECIPE] * 2, seed=3)
    there = Loader(URL, "train", 7, [RECIPE] * 2, seed=3, cache=tmp_path / "cache")
    assert there.shard_set.manifest == here.shard_set.manifest
    first = digests(there)
    assert first == digests(here)
    asked = proxy.sent
    assert digests(there) == digests(here) != first
    assert proxy.sent == asked  # the second epoch came from the cache
    there.close()
    assert there.shard_set.remote is not None and there.shard_set.remote.cache.in_use() == 0


def test_windows_pass_through_a_small_cache_and_each_shard_once(
    shard_set: Path, truth: dict[int, str], tmp_path: Path
) -> None:
    limit = 4 * shard_bytes(shard_set)
    with web(shard_set, ranges=False) as site, at_most(tmp_path / "cache", limit):
        opened = ShardSet.open(site.url, tmp_path / "cache", limit / 1e9)
        assert dict(reading.samples(opened, window=2, seed=1)) == truth
        shards = [shard.file for shard in opened.manifest.splits["train"].shards]
        assert [site.asked[name] for name in shards] == [1] * len(shards)
        in_order = [np.arange(start, min(start + 5, len(truth))) for start in range(0, len(truth), 5)]
        reader = Reader(opened, "train", 512, threads=1)
        assert sum(len(indices) for indices, _, _ in reader.batches(in_order)) == len(truth)
        out = np.empty((3, 512), np.uint8)
        reader.read(np.array([50, 1, 33]), out)
        expected = [ShardSet.open(shard_set).read("train", number).key for number in (50, 1, 33)]
        assert [opened.layout.key(row) for row in out] == expected
        reader.close()


def test_an_order_that_does_not_fit_is_refused_before_anything_is_fetched(
    shard_set: Path, proxy: Proxy, tmp_path: Path
) -> None:
    limit = 5 * shard_bytes(shard_set) / 1e9
    opened = ShardSet.open(URL, tmp_path / "cache", limit)
    asked = proxy.sent
    message = rf"^{URL}: this order needs .* of the .* GB of train at once, again and again, and the cache .* may hold "
    with pytest.raises(BandstreamError, match=message + r".*cache_gb, BANDSTREAM_CACHE_GB.*window=2 at most"):
        Loader(opened, "train", 8, [RECIPE])
    with pytest.raises(BandstreamError, match=message):
        dict(reading.samples(opened, window=0, seed=0))
    assert proxy.sent == asked
    windows = [Loader(place, "train", 8, [RECIPE], seed=5, window=2) for place in (opened, shard_set)]
    assert digests(windows[0]) == digests(windows[1])
    loader = Loader(URL, "train", 8, [RECIPE], training=False, cache=tmp_path / "cache", cache_gb=limit)
    assert len(digests(loader)) == opened.size("train")


def until_error(
    epoch: Iterator[tuple[int, str]], each: Callable[[], None] = lambda: None
) -> tuple[dict[int, str], str]:
    """What was served before an error, and the error."""
    served = {}
    try:
        for number, told in epoch:
            served[number] = told
            each()
    except BandstreamError as error:
        return served, str(error)
    raise AssertionError("there was no error")


@pytest.mark.parametrize("kind", ["busy", "reset", "stall", "refuse", "flip down"])
def test_a_server_that_fails_for_a_while(truth: dict[int, str], proxy: Proxy, kind: str, tmp_path: Path) -> None:
    opened = ShardSet.open(URL, tmp_path / "cache")
    proxy.trouble(kind, after=1000, seconds=1.5)
    begin = time.monotonic()
    assert dict(reading.samples(opened, window=2, seed=2)) == truth
    assert proxy.met > 0 and time.monotonic() - begin < 20


def test_a_server_that_fails_for_good(
    truth: dict[int, str], proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "PARALLEL", 1)
    monkeypatch.setattr(ahead, "RETRY_S", 0.1)
    monkeypatch.setattr(store, "PAUSES_S", (0.1,))
    opened = ShardSet.open(URL, tmp_path / "cache")
    served, error = until_error(reading.samples(opened, window=1, seed=4, pause=0.2), lambda: proxy.trouble("stall"))
    assert error.startswith(f"{URL} failed again and again ") and "what was fetched is kept" in error
    assert 0 < len(served) < len(truth) and served.items() <= truth.items()
    assert opened.remote is not None and opened.remote.cache.in_use() == 0
    proxy.trouble("")
    assert dict(reading.samples(ShardSet.open(URL, tmp_path / "cache"), window=1, seed=4)) == truth


def test_a_server_that_is_killed_and_started_again(
    place: Path, server: Server, truth: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, server)
    monkeypatch.setattr(store, "PAUSES_S", (0.5,) * 40)
    opened = ShardSet.open(URL, tmp_path / "cache")
    epoch = reading.samples(opened, window=2, seed=6, pause=0.05)
    served = dict(itertools.islice(epoch, 20))
    server.kill()
    rest = threading.Thread(target=lambda: served.update(epoch))
    rest.start()
    time.sleep(0.5)
    server.start_again(place / "s3")
    rest.join()
    assert served == truth


def test_an_object_that_is_damaged(server: Server, truth: dict[int, str], proxy: Proxy, tmp_path: Path) -> None:
    name = "train-000003.tar"
    whole = server.client().get_object(Bucket=BUCKET, Key=f"set/{name}")["Body"].read()
    try:
        for content, what in (
            (whole[:99_999] + bytes([whole[99_999] ^ 8]) + whole[100_000:], "does not have the sha256"),
            (whole[:100_000], "has 100000 bytes, by its manifest"),
            (b"", "has 0 bytes, by its manifest"),
            (None, "is missing"),
        ):
            if content is None:
                server.client().delete_object(Bucket=BUCKET, Key=f"set/{name}")
            else:
                server.put("set", name, content)
            opened = ShardSet.open(URL, tmp_path / "cache")
            served, error = until_error(reading.samples(opened, window=1, seed=0))
            assert error.startswith(f"{URL}/{name} {what}") and served.items() <= truth.items()
    finally:
        server.put("set", name, whole)
    assert dict(reading.samples(ShardSet.open(URL, tmp_path / "cache"), window=0, seed=0)) == truth


def test_what_is_mended_before_it_is_needed(
    shard_set: Path, truth: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "RETRY_S", 0.1)
    with web(shard_set, ranges=True) as site:
        opened = ShardSet.open(site.url, tmp_path / "cache")
        last = int(opened.locate("train", reading.plan(opened, 1, 5)[-1])[0][-1])
        site.faults[opened.file("train", last).name] = ["404"] * 5
        assert dict(reading.samples(opened, window=1, seed=5, pause=0.1)) == truth


def read_by(place: str, cache: Path, gb: float, *options: object, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipeline.reading", place, str(cache), str(gb), *map(str, options)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=more or None
    )


def told_by(process: subprocess.Popen[str]) -> dict[int, str]:
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return {int(number): told for number, told in map(str.split, out.splitlines())}


def test_two_processes_fetch_a_shard_once(shard_set: Path, truth: dict[int, str], tmp_path: Path) -> None:
    shards = [shard.file for shard in ShardSet.open(shard_set).manifest.splits["train"].shards]
    with web(shard_set, ranges=True) as site:
        processes = [read_by(site.url, tmp_path / "cache", 1, 0, seed) for seed in range(2)]
        assert [told_by(process) for process in processes] == [truth, truth]
        assert [site.asked[name] for name in shards] == [1] * len(shards)


def test_ranks_fetch_a_shard_once_and_need_no_more_room_than_one(
    shard_set: Path, truth: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readers that go step by step together, as training does."""
    monkeypatch.setattr(reading, "BATCH", 2)  # so that what they read ahead stays within a window
    limit = 4 * shard_bytes(shard_set)
    with web(shard_set, ranges=True) as site, at_most(tmp_path / "cache", limit):
        ranks = [ShardSet.open(site.url, tmp_path / "cache", limit / 1e9) for _ in range(2)]
        epochs = [reading.samples(rank, window=2, seed=3) for rank in ranks]
        both = list(zip(*epochs, strict=True))
        assert dict(one for one, _ in both) == dict(other for _, other in both) == truth
        shards = [shard.file for shard in ranks[0].manifest.splits["train"].shards]
        assert [site.asked[name] for name in shards] == [1] * len(shards)


def test_processes_that_do_not_fit_together_take_turns(
    shard_set: Path, truth: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 4 * shard_bytes(shard_set)
    with web(shard_set, ranges=True) as site, at_most(tmp_path / "cache", limit):
        processes = [read_by(site.url, tmp_path / "cache", limit / 1e9, 2, seed, 1, 0.01) for seed in range(2)]
        assert [told_by(process) for process in processes] == [truth, truth]


def test_killed_in_the_middle_of_a_fetch(
    shard_set: Path, server: Server, truth: dict[int, str], tmp_path: Path
) -> None:
    limit = 5 * shard_bytes(shard_set)
    with proxied(server) as proxy, at_most(tmp_path / "cache", limit):
        proxy.rate_down = 2e6
        first = read_by(URL, tmp_path / "cache", limit / 1e9, 2, **environment(proxy))
        second = read_by(URL, tmp_path / "cache", limit / 1e9, 2, **environment(server))
        while not list((tmp_path / "cache").glob("*.part")):
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.005)
        first.kill()
        first.communicate()
        assert told_by(second) == truth
    assert not list((tmp_path / "cache").glob("*.part"))


def test_an_iteration_that_is_left_ends_its_fetches(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    proxy.rate_down = 3e6
    before = set(threading.enumerate())
    loader = Loader(URL, "train", 8, [RECIPE], training=False, cache=tmp_path / "cache")
    for _ in loader:
        break
    begin = time.monotonic()
    loader.close()
    assert time.monotonic() - begin < 5
    started = set(threading.enumerate()) - before
    assert not [thread for thread in started if thread.name in ("fetch", "reader")]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_the_commands_take_a_url(server: Server, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANDSTREAM_CACHE", str(tmp_path / "cache"))
    small = ["--encoder", "tu-resnet10t", "--view-size", "32", "--device", "cpu", "--threads", "1", "--epochs", "1"]
    run, tuned = tmp_path / "run", ["--init", str(tmp_path / "run"), "--task", "classify", "--out", str(tmp_path / "t")]
    for command in (
        ["train", URL, "--out", str(run), "--batch-size", "16", *small],
        ["finetune", URL, *tuned, "--batch-size", "16", *small[2:]],
        ["evaluate", URL, "--encoder", "statistics", "--out", str(tmp_path / "probe"), "--device", "cpu"],
        ["preview", URL, "--out", str(tmp_path / "sheet.png"), "--count", "3"],
        ["info", URL, "--json", "--map", str(tmp_path / "map.png")],
    ):
        result = CliRunner().invoke(bandstream, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == 130 and json.loads(result.stdout)["offsets_removed"] is None
    assert (run / "encoder.safetensors").exists() and (tmp_path / "sheet.png").exists()
    use(monkeypatch, server, (OWNER[0], "wrong"))
    with pytest.raises(BandstreamError, match=f"^{URL}: access denied .*that they may read there"):
        CliRunner().invoke(bandstream, ["info", URL], catch_exceptions=False)
