"""Ingest on full disks, read-only targets, archives that go away and S3 servers that fail: each time exit code 1, one
clear line and no manifest; and run again once that is mended, the bytes of an undisturbed run.

    python -m tests.proofs ingest_faults

The faults are real: small file systems mounted in a namespace of their own (as root), limits of the kernel, files that
are renamed, cut and unmounted while they are read, and a SeaweedFS server behind a proxy that fails at its sockets.
"""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ingest.archives import make_v2
from tests.mounts import Mounts, namespace
from tests.storage import BUCKET, Server, environment, proxied, served

REPOSITORY = Path(__file__).parents[2]
PATCHES, SHARD_SAMPLES = 48, 4
ROOM = 1 << 17
"""kB of a file system with room."""
SIZES = 8
"""So many sizes of the full disk, from next to nothing to nearly enough: each is full at another moment."""
PATIENCE_S = 5.0


@dataclass
class World:
    """What the cases share. `expected`: name → SHA-256 of every file of the set of an undisturbed run."""

    folder: Path
    mounts: Mounts
    archive: Path
    tar: Path
    zipped: Path
    expected: dict[str, str]
    kb: int

    def place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir()
        return place

    def command(self, archive: Path, target: Path | str, *options: Any, workers: int = 1) -> list[str]:
        arguments = ["ingest", "bigearthnet", archive, target, "--shard-samples", SHARD_SAMPLES, "--workers", workers]
        return self.mounts.inside([sys.executable, "-m", "cli", *map(str, [*arguments, *options])])

    def error(self, run: subprocess.CompletedProcess[str], says: str) -> str:
        """The one line in which a run failed, without the folder of this proof."""
        lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
        assert run.returncode == 1, f"exit code {run.returncode}: {run.stdout}{run.stderr}"
        assert len(lines) == 1 and "Traceback" not in run.stderr, run.stderr
        assert says in lines[0], f"{says!r} is not in {lines[0]!r}"
        return lines[0].removeprefix("error: ").replace(f"{self.folder}/", "")

    def digests(self, target: Path) -> dict[str, str]:
        seen = self.mounts.see(target)
        return {
            str(path.relative_to(seen)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(seen.rglob("*"))
            if path.is_file()
        }

    def committed(self, target: Path) -> bool:
        return (self.mounts.see(target) / "dataset.json").exists()


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, **options)


def finish(world: World, command: list[str], target: Path, **options: Any) -> None:
    """Run again, to the end: nothing but the set may be left, and every byte of it."""
    again = run(command, **options)
    assert again.returncode == 0, again.stderr
    assert world.digests(target) == world.expected, "the set differs from an undisturbed run's"


def full_target(world: World, kb: int) -> dict[str, Any]:
    disk = world.place(f"full-target-{kb}")
    world.mounts.tmpfs(disk, kb)
    command = world.command(world.archive, disk / "set", workers=2)
    error = world.error(run(command), "No space left on device")
    assert not world.committed(disk / "set")
    world.mounts.remount(disk, f"size={ROOM}k")
    finish(world, command, disk / "set")
    return {"fault": f"the target's disk is full at {kb:,} kB", "error": error}


def full_scratch(world: World, kb: int) -> dict[str, Any]:
    place, disk = world.place(f"scratch-set-{kb}"), world.place(f"full-scratch-{kb}")
    world.mounts.tmpfs(disk, kb)
    command = world.command(world.zipped, place / "set", "--scratch", disk)
    error = world.error(run(command), "--scratch")
    assert not world.committed(place / "set")
    world.mounts.remount(disk, f"size={ROOM}k")
    finish(world, command, place / "set")
    assert not any(world.mounts.see(disk).iterdir())
    return {"fault": f"the scratch disk is full at {kb:,} kB", "error": error}


def full_staging(world: World, server: Server, kb: int) -> dict[str, Any]:
    disk, name = world.place(f"full-staging-{kb}"), f"full-{kb}"
    world.mounts.tmpfs(disk, kb)
    command = world.command(world.archive, f"s3://{BUCKET}/{name}", "--scratch", disk, workers=2)
    error = world.error(run(command, env=environment(server)), "No space left on device")
    assert "dataset.json" not in server.names(name)
    world.mounts.remount(disk, f"size={ROOM}k")
    again = run(command, env=environment(server))
    assert again.returncode == 0, again.stderr
    assert server.digests(name) == world.expected and not any(world.mounts.see(disk).iterdir())
    return {"fault": f"the staging disk is full at {kb:,} kB", "error": error}


def file_size_limit(world: World) -> dict[str, Any]:
    place = world.place("limit")
    command = world.command(world.archive, place / "set")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    error = world.error(run(command, preexec_fn=limit), "File too large")
    assert not world.committed(place / "set")
    finish(world, command, place / "set")
    return {"fault": "files may not be larger than 500 kB (RLIMIT_FSIZE)", "error": error}


def read_only(world: World, begun: bool) -> dict[str, Any]:
    """A target that is read-only from the beginning, or when an unfinished ingest is to go on."""
    disk = world.place(f"read-only-{begun}")
    world.mounts.tmpfs(disk, world.kb // 2 if begun else ROOM)
    command = world.command(world.archive, disk / "set")
    if begun:
        world.error(run(command), "No space left on device")
        world.mounts.remount(disk, f"size={ROOM}k")
    world.mounts.remount(disk, "ro")
    error = world.error(run(command), "Read-only file system")
    assert not world.committed(disk / "set")
    world.mounts.remount(disk, "rw")
    finish(world, command, disk / "set")
    return {"fault": f"the target is read-only{', half of it made' if begun else ''}", "error": error}


def halted(
    world: World, command: list[str], target: Path, harm: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """Run, and do harm while all its processes are stopped with a few shards made and more to make."""
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    records = world.mounts.see(target) / ".partial"
    while process.poll() is None and len(list(records.glob("train-*.json"))) < 2:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGSTOP)
    assert not world.committed(target), "it was too quick"
    harm()
    os.killpg(process.pid, signal.SIGCONT)
    stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def archive_renamed(world: World, workers: int) -> dict[str, Any]:
    place = world.place(f"renamed-{workers}")
    command = world.command(world.archive, place / "set", workers=workers)
    away = world.archive.with_name("away")
    error = world.error(halted(world, command, place / "set", lambda: world.archive.rename(away) and None), "went away")
    assert not world.committed(place / "set")
    away.rename(world.archive)
    finish(world, command, place / "set")
    return {"fault": f"the archive's folder is renamed, {workers} workers", "error": error}


def archive_unmounted(world: World) -> dict[str, Any]:
    place, mount = world.place("unmounted"), world.folder / "mount"
    world.mounts.bind(world.archive, mount)
    command = world.command(mount, place / "set", workers=2)
    run_ = halted(world, command, place / "set", lambda: world.mounts.unmount(mount))
    error = world.error(run_, "went away")
    assert not world.committed(place / "set")
    world.mounts.bind(world.archive, mount)
    finish(world, command, place / "set")
    world.mounts.unmount(mount)
    return {"fault": "the archive's file system is unmounted", "error": error}


def tar_cut(world: World) -> dict[str, Any]:
    place, tar = world.place("cut"), world.folder / "cut.tar"
    shutil.copy2(world.tar, tar)
    command = world.command(tar, place / "set", workers=2)
    error = world.error(halted(world, command, place / "set", lambda: os.truncate(tar, 200_000)), "was changed")
    assert not world.committed(place / "set")
    shutil.copy2(world.tar, tar)
    finish(world, command, place / "set")
    return {"fault": "the archive's tar is cut to 200 kB", "error": error}


def storage(world: World, server: Server, kind: str, seconds: float) -> dict[str, Any]:
    """A server that fails in the middle of the upload, for good or for a while."""
    name = f"{kind}-{seconds:.0f}"
    place = world.place(f"staging-{name}")
    command = world.command(world.archive, f"s3://{BUCKET}/{name}", "--scratch", place)
    for_good = seconds > 600
    with proxied(server) as proxy:
        proxy.trouble(kind, after=3_000_000, seconds=seconds)
        begin = time.monotonic()
        first = run(command, env=environment(proxy, PATIENCE_S))
        took = time.monotonic() - begin
        assert proxy.met > 0
    error = ""
    if for_good:
        error = world.error(first, "failed again and again")
        names = server.names(name)
        assert "dataset.json" not in names and len(names) > 1
        first = run(command, env=environment(server))
    assert first.returncode == 0, first.stderr
    assert server.digests(name) == world.expected and not any(place.iterdir())
    how = "for good" if for_good else f"for {seconds:.0f} s"
    return {"fault": f"S3: {kind} {how}", "error": error, "seconds": round(took, 1)}


def make_world(folder: Path, mounts: Mounts, patches: int = PATCHES) -> World:
    """The archive as a folder, a tar and a tar.gz, and its set."""
    archive = make_v2(folder / "archive", patches)
    for name, mode in (("archive.tar", "w"), ("archive.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(archive, arcname=archive.name)
    world = World(folder, mounts, archive, folder / "archive.tar", folder / "archive.tar.gz", {}, 0)
    calm = folder / "calm"
    done = run(world.command(archive, calm))
    assert done.returncode == 0, done.stderr
    world.expected = world.digests(calm)
    world.kb = sum(path.stat().st_size for path in calm.iterdir()) // 1024
    return world


def main() -> dict[str, Any]:
    """All faults, one after another; those of the S3 server, which mostly wait, at once."""
    with tempfile.TemporaryDirectory() as name, namespace() as mounts, served(Path(name) / "s3") as server:
        world = make_world(Path(name), mounts)
        sizes = [max(16, world.kb * number // SIZES) for number in range(SIZES)]
        results = [full_target(world, kb) for kb in sizes]
        results += [full_scratch(world, kb) for kb in sizes[::3]]
        results += [full_staging(world, server, kb) for kb in sizes[1::3]]
        results += [file_size_limit(world), read_only(world, False), read_only(world, True)]
        results += [archive_renamed(world, 1), archive_renamed(world, 2), archive_unmounted(world), tar_cut(world)]
        kinds = ("refuse", "reset", "busy", "stall")
        cases = [(kind, seconds) for seconds in (20.0, 1e9) for kind in kinds]
        with ThreadPoolExecutor(len(kinds)) as threads:
            results += threads.map(lambda case: storage(world, server, *case), cases)
    return {
        "outcome": f"{len(results)} faults: exit code 1, one line and no manifest (none of those that pass); "
        "run again, every set byte-identical",
        "n": len(results),
        "patches": PATCHES,
        "files": len(world.expected),
        "set_kb": world.kb,
        "faults": results,
    }
