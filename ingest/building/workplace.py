"""The folder that a set is made in: who may write there, what stands there on the way, and how it is left.

Locks die with their process, on this host and, where the file system has them, on every other. Workers that outlive
their ingest find by `plan.json` whether the folder is still theirs (`ingest.building.shard.Task.check_claim`).
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingest.building.shard import CLAIM, FOR_GOOD, RECORDS
from ingest.source import Unfinished
from shards import atomic, catalogue
from shards.errors import BandstreamError
from shards.manifest import FILE

REJECTED = "rejected.jsonl"
OURS = re.compile(rf"(train|val|test)-\d{{6}}\.(tar|idx)|{REJECTED}|{catalogue.FILE}|\..*{atomic.TEMPORARY}")
"""Files of a set whose manifest was lost."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
"""How file systems say that they know no locks."""


def check_places(archive: Path, target: Path) -> None:
    inner, outer = target.resolve(), archive.resolve()
    if inner == outer or outer in inner.parents:
        raise BandstreamError(f"{target} lies inside the archive {archive}: name a folder elsewhere")
    if inner in outer.parents and target.is_dir() and any(target.iterdir()):
        raise BandstreamError(f"the archive {archive} lies inside {target}: name another folder for the shard set")
    if target.exists() and not target.is_dir():
        raise BandstreamError(f"{target} is a file: name a folder for the shard set")


class OtherSet(BandstreamError):
    """The folder holds what another archive, or other options, made."""


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Make the folder and keep other ingests out of it; the lock dies with the process."""
    new = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in target.iterdir()}
        if names and not names & {FILE, RECORDS} and not (REJECTED in names and all(map(OURS.fullmatch, names))):
            raise BandstreamError(f"{target} is not empty and holds no shard set: name a new folder")
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BandstreamError(
                f"another ingest is writing to {target}: wait for it, or name another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    except OSError as error:
        raise BandstreamError(f"{target} cannot be written ({error.strerror}): name another folder") from None
    try:
        yield
    finally:
        os.close(descriptor)
        if new and not any(target.iterdir()):
            target.rmdir()


@contextmanager
def workplace(target: Path, elsewhere: Path | None, warn: Callable[[str], None]) -> Iterator[Path]:
    """The folder for what has to be spooled; it goes when the set is done, and stays for the next run otherwise."""
    records = target / RECORDS
    folder = records / "scratch"
    if elsewhere is not None:
        folder = elsewhere / f"bandstream-{hashlib.sha256(os.fsencode(target.resolve())).hexdigest()[:16]}"
    begun = records.exists()
    try:
        lock = _lock(records, warn)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BandstreamError(f"{folder} cannot be made ({error.strerror}): name another folder") from None
    kept = False
    try:
        yield folder
    except (KeyboardInterrupt, OSError, Unfinished):
        kept = True
        raise
    finally:
        os.close(lock)  # before it is removed: network file systems keep a folder as long as a file in it is open
        if (target / FILE).exists() or not ((records / CLAIM).exists() or begun or kept):
            (records / CLAIM).unlink(missing_ok=True)  # first, so that workers left over stop
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(records, ignore_errors=True)


def _lock(records: Path, warn: Callable[[str], None]) -> int:
    """Make the folder of records and keep ingests on other hosts out of it, which a lock on the set's folder does not
    do on a network file system. Returns the descriptor that holds the lock."""
    path = records / "lock"
    while True:
        records.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # removed by one that came to its end just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                warn(f"{records.parent} is on a file system without locks: see to it that no other host ingests there")
                return descriptor
            holder = os.read(descriptor, 300).decode(errors="replace")
            os.close(descriptor)
            raise BandstreamError(
                f"another ingest{holder and f' ({holder})'} is writing to {records.parent}: "
                "wait for it, or name another folder"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"on {platform.node()}, process {os.getpid()}".encode())
            return descriptor
        os.close(descriptor)


def claim(target: Path, plan: str, described: dict[str, Any]) -> None:
    """Begin, or go on with what an earlier run of the same plan began; sweep up what a kill left behind."""
    records = target / RECORDS
    begun = records / CLAIM
    try:
        if begun.exists():
            content = json.loads(begun.read_bytes())
            if content["plan"] != plan:
                refuse(target, "an unfinished ingest", content["options"], described)
        sweep(target)
        if not begun.exists():
            atomic.write_json(begun, {"plan": plan, "options": described})
    except OSError as error:
        raise BandstreamError(f"{target} cannot be written ({error.strerror}): name another folder") from None


def sweep(target: Path) -> None:
    """Remove temporary files. Where a worker left over still writes one, its rename fails and it gives up."""
    for folder in (target, target / RECORDS):
        for stale in folder.glob(f".*{atomic.TEMPORARY}"):
            stale.unlink(missing_ok=True)


def empty(target: Path) -> None:
    """Remove the set from a folder that it was only built in."""
    for path in target.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def refuse(target: Path | str, what: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [f"{key} {old.get(key)!r}, now {value!r}" for key, value in new.items() if old.get(key) != value]
    why = "; ".join(changed) or "the archive lists other samples or labels than it did"
    raise OtherSet(f"{target} holds {what} with other options ({why}): name a new folder, or remove that one")


def failed(target: Path, error: OSError) -> BandstreamError:
    """What is to be done about an error of a file system."""
    reason = error.strerror or str(error)
    where = error.filename or target
    if error.errno in FOR_GOOD - {errno.EROFS, errno.EACCES, errno.EPERM}:
        return BandstreamError(
            f"no room is left for {target} ({reason}): make room and run the same command again, it goes on from there"
        )
    return BandstreamError(f"{where}: {reason}: mend that and run the same command again, it goes on from there")
