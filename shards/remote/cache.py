"""Local copies of the files of remote shard sets: whole and checked, shared by all processes of a machine, bounded.

    CACHE/SHA256.tar         a whole file, named by its checksum: a set that was changed never meets old bytes
    CACHE/SHA256.tar.part    one that is being fetched, from the beginning as large as it will be
    CACHE/lock               locked for a moment by whoever takes, begins or removes a file
    CACHE/waiting            locked by all who wait for room

All locks (flock) die with their process. Whoever fetches or checks a file has it locked alone, whoever uses it together
with others who do. What nobody has locked may go: unfinished files of processes that were killed, and whole ones where
room is needed, the least recently used first. So the sizes in the folder never add up to more than the limit.

`st_atime` says when a file was last used, `st_mtime` when it was last found to fit its checksum: by whoever fetched it,
and once more whenever a set is opened anew (by one of the processes that run side by side, not by each).
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from shards.errors import BandstreamError

FOLDER, LIMIT = "BANDSTREAM_CACHE", "BANDSTREAM_CACHE_GB"
"""Environment: where the cache lies, and how large it may be."""
SHARE = 0.5
"""Of what is free on its disk, or already the cache's, where nothing says how large it may be."""
LOCK, WAITING, PART = "lock", "waiting", ".part"
OURS = re.compile(r"[0-9a-f]{64}(\.\w+)?(\.part)?")
"""Names of the cache's files: nothing else that may lie in the folder is ever counted or removed."""
GB = 1_000_000_000


class Wait(Enum):
    """Why a file cannot be had now."""

    ELSEWHERE = "another process, or thread, is fetching or checking it"
    NO_ROOM = "there is no room until others close what they use"


@dataclass(frozen=True)
class File:
    """A file of a set, as its manifest describes it."""

    name: str
    bytes: int
    sha256: str

    @property
    def local_name(self) -> str:
        return self.sha256 + Path(self.name).suffix


class Held:
    """A whole file in use: it stays until it is closed. `descriptor` is open for reading."""

    def __init__(self, path: Path, descriptor: int, checked: bool) -> None:
        self.path, self.descriptor, self.checked = path, descriptor, checked

    def sha256(self) -> str:
        """Of what lies on the disk now."""
        with open(self.descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def close(self) -> None:
        _touch(self.descriptor)
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Part:
    """A file that is being fetched; its room is taken. `done`: bytes that have come."""

    def __init__(self, cache: "Cache", file: File, path: Path, descriptor: int) -> None:
        self._cache, self._file, self._path, self._descriptor = cache, file, path, descriptor
        self.restart()

    def restart(self) -> None:
        """Begin again."""
        self.done, self._digest = 0, hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Take what comes next; what is more than the file should have is left out."""
        memory = memoryview(piece)[: self._file.bytes - self.done]
        self._digest.update(memory)
        with self._cache.explained():
            while memory:
                written = os.pwrite(self._descriptor, memory, self.done)
                memory, self.done = memory[written:], self.done + written

    def wrong(self) -> str:
        """What is wrong with what came; "" where it is what it should be."""
        if self.done < self._file.bytes:
            return f"has {self.done} bytes, by its manifest {self._file.bytes}"
        return "" if self._digest.hexdigest() == self._file.sha256 else "does not have the sha256 of its manifest"

    def finish(self) -> Held:
        """Put the file, which must not be wrong, into its place."""
        with self._cache.explained():
            os.fsync(self._descriptor)
            with self._cache.locked():
                whole = self._path.with_name(self._path.name.removesuffix(PART))
                self._path.rename(whole)
                _touch(self._descriptor, checked=True)
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        return Held(whole, self._descriptor, True)

    def abandon(self) -> None:
        """Give the room back."""
        with suppress(OSError, BandstreamError), self._cache.locked():
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class Cache:
    """A folder of local copies that holds at most `limit` bytes.

    Parameters: `folder`, by default $BANDSTREAM_CACHE, or `bandstream` in the user's cache folder; `gb`, the limit in
    10⁹ bytes, by default $BANDSTREAM_CACHE_GB, or half of what its disk has free. A local disk is wanted: locks of
    network file systems are slow, where there are any. Raises BandstreamError where the folder cannot be used.
    """

    def __init__(self, folder: Path | str | None = None, gb: float | None = None) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = Path(folder or os.environ.get(FOLDER) or Path(home, "bandstream")).absolute()
        self._opened_ns = time.time_ns()
        with self.explained():
            with self.locked():
                for path, _ in self._files():
                    if path.suffix == PART:
                        self._remove([path])
            self.limit = _limit(gb) or int(SHARE * (shutil.disk_usage(self.folder).free + self.used()))

    def used(self) -> int:
        """Bytes of all files, those included that are being fetched."""
        return sum(status.st_size for _, status in self._files())

    def in_use(self) -> int:
        """Bytes of the files that cannot go now."""
        with self.locked():
            return self.used() - sum(size for _, size in self._unused())

    def claim(self, file: File, ahead: bool = False) -> Held | Part | Wait:
        """Have a file, or the right to fetch it.

        Returns it where it is there, to be held against its checksum if it is not `checked` (then `confirm` or
        `discard` it); a Part to fill; or why neither is possible now. `ahead`: it is not needed yet, and takes no room
        while others are `waiting`. Raises BandstreamError where there can never be room.
        """
        path = self.folder / file.local_name
        if file.bytes > self.limit:
            raise BandstreamError(f"{file.name} has {file.bytes / GB:.3g} GB, {self.told()}")
        with self.explained(), self.locked():
            return self._take(path, file.bytes) or self._begin(path, file, ahead)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Be known, as long as the block lasts, as one who waits for room and can do nothing else."""
        with self.explained():
            descriptor = os.open(self.folder / WAITING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            yield
        finally:
            os.close(descriptor)

    def confirm(self, held: Held) -> None:
        """A file that was not checked fits its checksum: others may use it."""
        with self.explained(), self.locked():
            _touch(held.descriptor, checked=True)
            fcntl.flock(held.descriptor, fcntl.LOCK_SH)
        held.checked = True

    def discard(self, held: Held) -> None:
        """A file was damaged: remove it."""
        with self.explained(), self.locked():
            held.path.unlink(missing_ok=True)
        held.close()

    def told(self) -> str:
        """What a person is to know and do where there is not room enough."""
        return (
            f"the cache {self.folder} may hold {self.limit / GB:.3g} GB: allow more (cache_gb, {LIMIT}), "
            f"or name a folder on a larger disk (cache, {FOLDER})"
        )

    def _take(self, path: Path, size: int) -> Held | Wait | None:
        """The whole file, if it is there."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        alone = _lock(descriptor, fcntl.LOCK_EX)
        if not alone and not _lock(descriptor, fcntl.LOCK_SH):
            os.close(descriptor)
            return Wait.ELSEWHERE
        status = os.fstat(descriptor)
        if status.st_size != size:
            path.unlink()
            os.close(descriptor)
            return None
        checked = status.st_mtime_ns >= self._opened_ns
        _touch(descriptor)
        if alone and checked:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return Held(path, descriptor, checked)

    def _begin(self, path: Path, file: File, ahead: bool) -> Part | Wait:
        """The right to fetch a file, and room for it."""
        part = path.with_name(path.name + PART)
        if part.exists() and not self._remove([part]):
            return Wait.ELSEWHERE
        if ahead and not _is_free(self.folder / WAITING):
            return Wait.NO_ROOM
        if not self._make_room(self.used() + file.bytes - self.limit):
            return Wait.NO_ROOM
        while True:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if file.bytes:
                    os.posix_fallocate(descriptor, 0, file.bytes)
                return Part(self, file, part, descriptor)
            except BaseException as error:
                part.unlink()
                os.close(descriptor)
                if getattr(error, "errno", None) != errno.ENOSPC:
                    raise
            if not self._make_room(file.bytes):  # others have filled the disk: the limit is not what binds
                return Wait.NO_ROOM

    def _make_room(self, wanted: int) -> bool:
        """Remove as much as is wanted of what nobody uses, if there is as much."""
        if wanted <= 0:
            return True
        chosen, freed = [], 0
        for path, size in self._unused():
            chosen.append(path)
            freed += size
            if freed >= wanted:
                return self._remove(chosen)
        return False

    def _unused(self) -> Iterator[tuple[Path, int]]:
        """What nobody has locked, and its bytes: unfinished files, then whole ones, the least recently used first."""
        files = sorted(self._files(), key=lambda each: (each[0].suffix != PART, each[1].st_atime_ns))
        return ((path, status.st_size) for path, status in files if _is_free(path))

    def _remove(self, paths: list[Path]) -> bool:
        """Remove files that nobody has locked; whether all of them were such."""
        free = [path for path in paths if _is_free(path)]
        for path in free:
            path.unlink(missing_ok=True)
        return len(free) == len(paths)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another's, finished or removed since
                if OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all others from taking, beginning and removing files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of the file system, with what to do about them."""
        try:
            yield
        except OSError as error:
            raise BandstreamError(
                f"the cache {self.folder} cannot be used ({error.strerror or error}): mend that, or name another "
                f"folder, on a local disk (cache, {FOLDER})"
            ) from None


def _limit(gb: float | None) -> int:
    """Bytes; 0 where nothing was said."""
    said = gb if gb is not None else os.environ.get(LIMIT) or None
    if said is None:
        return 0
    try:
        limit = float(said) * GB
    except ValueError:
        limit = -1.0
    if not 1 <= limit < 2**63:
        raise BandstreamError(f"a cache of {said} GB: name a number above 0 (cache_gb, {LIMIT})")
    return int(limit)


def _lock(descriptor: int, kind: int) -> bool:
    """Lock a file, if that is possible now."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(path: Path) -> bool:
    """Whether nobody has a file locked. With the folder locked this stays so, for no one locks a file without that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return _lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _touch(descriptor: int, checked: bool = False) -> None:
    """Write down that a file is used now, and whether it was checked."""
    now = time.time_ns()
    with suppress(OSError):  # another user's
        os.utime(descriptor, ns=(now, now if checked else os.fstat(descriptor).st_mtime_ns))
