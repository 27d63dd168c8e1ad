"""Reading a set from an S3 server while the server, the network, the objects, the cache and the readers fail: right
samples or one clear line with the URL, never wrong data; and the cache never above its limit.

    python -m tests.proofs remote_faults

The server is a real SeaweedFS, killed and started again at random moments, or behind a proxy that fails at its sockets.
The readers are processes (`tests.pipeline.reading`), alone or two on one cache, some of them killed in the middle of a
fetch. Every sample that any of them served is compared with the file that was uploaded.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.shardset import ShardSet
from tests.mounts import Mounts, NoMounts, namespace
from tests.pipeline import reading
from tests.pipeline.making import make_set
from tests.proofs._remote_rates import rates
from tests.shards.cached import bytes_in
from tests.storage import BUCKET, REPOSITORY, Server, environment, proxied, served

SAMPLES, SHARD_SAMPLES, WINDOW = 240, 10, 3
ROOM = 2 * WINDOW + 1
"""Shards that the cache of most cases may hold, of 24."""
PAUSE_S = 0.08
"""Of a reader after each of its 30 batches."""
PATIENCE_S = 5.0
KILLS = 20


@dataclass
class World:
    """What the cases share. `truth`: sample → hash of its bytes; `most`: the fullest cache, as a share of its limit."""

    folder: Path
    server: Server
    truth: dict[int, str]
    shard_bytes: int
    shards: list[str]
    most: float = 0.0
    caches: int = 0
    checked: int = 0
    lock: Any = field(default_factory=threading.Lock)

    @contextmanager
    def cache(self, shards: float = ROOM) -> Iterator["Readers"]:
        """A new cache with room for so many shards, whose size is looked at all the time."""
        with self.lock:
            self.caches += 1
            place = self.folder / f"cache{self.caches}"
        limit, end = int(shards * self.shard_bytes), threading.Event()

        def sample() -> None:
            while not end.wait(0.001):
                if place.is_dir():
                    self.most = max(self.most, bytes_in(place) / limit)

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            yield Readers(self, place, limit)
        finally:
            end.set()
            sampler.join()
            shutil.rmtree(place, ignore_errors=True)

    def url(self, name: str = "set") -> str:
        return f"s3://{BUCKET}/{name}"

    def object(self, name: str) -> bytes:
        return (self.folder / "set" / name).read_bytes()


@dataclass
class Readers:
    """Processes that read through one cache."""

    world: World
    place: Path
    limit: int

    def begin(self, server: Server, window: int = WINDOW, seed: int = 0, name: str = "set") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.pipeline.reading", self.world.url(name), str(self.place)]
        command += map(str, [self.limit / 1e9, window, seed, 1, PAUSE_S])
        env = environment(server, PATIENCE_S)
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self, process: subprocess.Popen[str]) -> str:
        """What a reader that ends by itself says on stderr. All that it served must be right, each sample once; if it
        fails, in one line."""
        out, error = process.communicate(timeout=600)
        lines = [line.split() for line in out.splitlines()]
        served = {int(number): told for number, told in lines}
        assert len(served) == len(lines) and served.items() <= self.world.truth.items(), "wrong samples"
        with self.world.lock:
            self.world.checked += len(served)
        if process.returncode == 0:
            assert served == self.world.truth, "samples are missing"
            return ""
        told = [line for line in error.splitlines() if line.startswith("error: ")]
        assert process.returncode == 1 and len(told) == 1 and "Traceback" not in error, error
        return told[0].removeprefix("error: ")

    def read(self, server: Server, **options: Any) -> str:
        return self.end(self.begin(server, **options))

    def finish(self, server: Server, **options: Any) -> None:
        """A whole epoch, without an error."""
        error = self.read(server, **options)
        assert not error, error


def undisturbed(world: World, window: int, shards: int, times: float) -> dict[str, Any]:
    """Two processes on one cache, which fetch the set so many times at most."""
    with world.cache(shards) as readers, proxied(world.server) as proxy:
        processes = [readers.begin(proxy, window, seed) for seed in range(2)]
        assert [readers.end(process) for process in processes] == ["", ""]
        came = proxy.came / (world.shard_bytes * len(world.shards))
    assert came < times, came
    what = f"{'windows' if window else 'all'} shuffled, room for {shards} of {len(world.shards)} shards"
    return {"fault": f"none, two processes, {what}", "error": "", "fetched_by_size_of_the_set": round(came, 2)}


def has_shard_open(process: subprocess.Popen[str]) -> bool:
    """Whether a reader has come so far, or has ended."""
    if process.poll() is not None:
        return True
    with suppress(OSError):  # files that it closes meanwhile
        return any(os.readlink(link).endswith(".tar") for link in Path(f"/proc/{process.pid}/fd").iterdir())
    return False


def server_killed(world: World, draw: random.Random, back: bool, away_s: float = 8.0) -> dict[str, Any]:
    """The server is killed at a random moment, and starts again some seconds later, or after the readers failed."""
    with world.cache() as readers:
        processes = [readers.begin(world.server, seed=draw.randrange(1000)) for _ in range(2)]
        after, away = draw.uniform(0, 2.5), draw.uniform(0.0, away_s)
        while not all(map(has_shard_open, processes)):
            time.sleep(0.01)
        time.sleep(after)
        world.server.kill()
        if back:
            time.sleep(away)
            world.server.start_again(world.folder / "s3")
        errors = [readers.end(process) for process in processes]
        if not back:
            world.server.start_again(world.folder / "s3")
        assert not any(errors) if back else all(error.startswith(world.url()) for error in errors), errors
        readers.finish(world.server)
    when = f"{away:.1f} s later" if back else "when the readers had failed"
    return {
        "fault": f"S3 server killed {after:.1f} s after both had a shard open, back {when}",
        "error": errors[0].replace(str(world.folder), ""),
    }


def damaged_object(world: World, draw: random.Random, kind: str) -> dict[str, Any]:
    """An object of the set is not what the manifest says."""
    name, prefix = draw.choice(world.shards), f"{kind}-{draw.randrange(1000)}"
    whole = world.object(name)
    at = draw.randrange(len(whole))
    harmed = {
        "a bit is flipped": whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :],
        "cut": whole[:at],
        "empty": b"",
        "another shard": world.object(world.shards[world.shards.index(name) - 1]),
        "longer": whole + bytes(draw.randrange(1, 10_000)),
        "missing": None,
    }[kind]
    prefix = prefix.replace(" ", "-")
    world.server.put_all(prefix, world.folder / "set")
    if harmed is None:
        world.server.client().delete_object(Bucket=BUCKET, Key=f"{prefix}/{name}")
    else:
        world.server.put(prefix, name, harmed)
    with world.cache() as readers:
        error = readers.read(world.server, seed=draw.randrange(1000), name=prefix)
        assert (error == "") == (kind == "longer") and error.startswith(f"{world.url(prefix)}/{name} ") == bool(error)
        world.server.put(prefix, name, whole)
        readers.finish(world.server, name=prefix)
    return {"fault": f"object: {kind}", "error": error}


def network(world: World, draw: random.Random, kind: str, seconds: float) -> dict[str, Any]:
    """Connections fail, for a while or for good; bits change on the way; all is slow."""
    with world.cache() as readers, proxied(world.server) as proxy:
        if kind == "slow":
            proxy.rate_down = 400_000
        else:
            proxy.trouble(kind, after=draw.randrange(1_500, 12_000), seconds=seconds)
        begin = time.monotonic()
        error = readers.read(proxy, seed=draw.randrange(1000))
        took = time.monotonic() - begin
        assert proxy.met > 0 or kind == "slow"
        for_good = seconds > 600 and kind in ("refuse", "reset", "busy", "stall")
        assert error.startswith(f"{world.url()} failed again and again") if for_good else not error, error
        readers.finish(world.server)
    how = "" if kind in ("slow", "flip down") else " for good" if for_good else f" for {seconds:.0f} s"
    return {"fault": f"network: {kind}{how}", "error": error, "seconds": round(took, 1)}


def reader_killed(world: World, draw: random.Random, times: int, alone: bool) -> dict[str, Any]:
    """A reader is killed again and again, at random moments, each time with a fetch under way."""
    fetching = 0
    with world.cache() as readers, proxied(world.server) as proxy:
        proxy.rate_down = 2_000_000
        for number in range(times):
            seed = draw.randrange(1000)
            victim = readers.begin(proxy, seed=seed)
            other = None if alone else readers.begin(world.server, seed=seed)
            moment = time.monotonic() + draw.uniform(0.5, 3.0)
            while time.monotonic() < moment + 3 and not (
                time.monotonic() > moment and list(readers.place.glob("*.part"))
            ):
                time.sleep(0.002)
            fetching += bool(list(readers.place.glob("*.part")))
            victim.kill()
            victim.communicate()
            if other is not None:
                error = readers.end(other)
                assert not error, f"kill {number}: {error}"
        readers.finish(world.server)
        assert not list(readers.place.glob("*.part"))
    who = "the only reader" if alone else "one of two readers"
    return {"fault": f"{who} killed {times} times", "error": "", "with_a_fetch_under_way": fetching}


def damaged_cache(world: World, draw: random.Random) -> dict[str, Any]:
    """Every file of the cache is damaged between two runs."""
    with world.cache(len(world.shards)) as readers:
        readers.finish(world.server, window=0)
        for path in readers.place.glob("*.tar"):
            content = bytearray(path.read_bytes())
            if draw.random() < 0.8:
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            else:
                del content[draw.randrange(len(content)) :]
            path.write_bytes(content)
        readers.finish(world.server, window=0)
    return {"fault": "every file of the cache damaged on the disk", "error": ""}


def full_disk(world: World) -> dict[str, Any]:
    """The cache's disk is smaller than its limit."""
    try:
        with namespace() as mounts:
            return _full_disk(world, mounts, world.folder / "disk")
    except NoMounts as error:
        return {"fault": "the cache's disk is full", "error": "", "left_out": str(error)}


def _full_disk(world: World, mounts: Mounts, disk: Path) -> dict[str, Any]:
    mounts.tmpfs(disk, 5 * world.shard_bytes // 1024)
    readers = Readers(world, mounts.see(disk) / "cache", 10**9)
    readers.finish(world.server, window=2)
    error = readers.read(world.server, window=0)
    assert error.startswith(f"no room for {world.url()}/"), error
    mounts.remount(disk, "ro")
    refused = readers.read(world.server)
    assert "cannot be used (Read-only file system)" in refused
    return {"fault": "the cache's disk is full, then read-only", "error": error.replace(str(disk), "DISK")}


def too_small(world: World) -> dict[str, Any]:
    with world.cache() as readers:
        error = readers.read(world.server, window=0)
    assert error.startswith(f"{world.url()}: this order needs ") and f"window={ROOM // 2} at most" in error
    return {"fault": "a full shuffle through a cache smaller than the set", "error": error}


@contextmanager
def make_world(folder: Path, samples: int = SAMPLES) -> Iterator[World]:
    """A set, and a server that holds it."""
    made = make_set(folder / "set", {"train": samples}, shard_samples=SHARD_SAMPLES)
    with served(folder / "s3") as server:
        server.put_all("set", made)
        specs = ShardSet.open(made).manifest.splits["train"].shards
        truth = reading.truth(str(made))
        yield World(folder, server, truth, max(spec.bytes for spec in specs), [spec.file for spec in specs])


def main() -> dict[str, Any]:
    """All cases; those that mostly wait at once."""
    measured = rates(os.environ.get("TMPDIR"))
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name, make_world(Path(name)) as world:
        whole = len(world.shards)
        results = [undisturbed(world, 0, whole, 1.01), undisturbed(world, WINDOW, 4 * WINDOW + 1, 2.01)]
        results += [undisturbed(world, WINDOW, ROOM, 4.0), too_small(world)]
        kinds = ("a bit is flipped", "cut", "empty", "another shard", "longer", "missing")
        results += [damaged_object(world, draw, kind) for kind in kinds for _ in range(2)]
        cases: list[Callable[[random.Random], dict[str, Any]]] = []
        for kind in ("refuse", "reset", "busy", "stall"):
            for seconds in (6.0, 15.0, 1e9):
                cases.append(lambda own, kind=kind, seconds=seconds: network(world, own, kind, seconds))
        cases += [lambda own: network(world, own, "flip down", 1e9)] * 4 + [lambda own: network(world, own, "slow", 0)]
        cases.append(lambda own: full_disk(world))
        with ThreadPoolExecutor(6) as threads:
            own = [random.Random(number) for number in range(len(cases))]
            results += threads.map(lambda case, own: case(own), cases, own)
        results += [reader_killed(world, draw, KILLS, alone) for alone in (True, False)]
        results += [damaged_cache(world, draw)]
        results += [server_killed(world, draw, back=True) for _ in range(KILLS)]
        results += [server_killed(world, draw, back=False) for _ in range(2)]
        assert world.most <= 1, world.most
        record = {
            "outcome": f"{len(results)} cases, {world.checked:,} samples served: each was right, each error names the "
            f"URL; the fullest cache held {world.most:.3f} of its limit",
            "n": len(results),
            "samples": SAMPLES,
            "shards": len(world.shards),
            "shard_bytes": world.shard_bytes,
            "cache_shards": ROOM,
            "faults": results,
        }
    return record | {"rates": measured}
