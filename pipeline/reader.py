"""Bytes of whole samples, read ahead of need: threads `pread` fixed-stride records into a ring of batch buffers.

The shards of a folder are open all the time, those of a URL, fetched into the cache, while they are needed.
"""

import os
import queue
import resource
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.ahead import Ahead, Needs, check_room
from shards.errors import BandstreamError
from shards.shardset import ShardSet

DEPTH = 4
"""Batches that are read ahead of the graph."""

Read = tuple[np.ndarray, np.ndarray, Callable[[], None]]
"""Sample numbers (n,), their bytes, and what gives the buffer of these back."""


class Reader:
    """Reads the first `prefix` bytes of samples of one split, in any order, at one `pread` a sample.

    Threads share the work of a batch; the kernel copies from the page cache straight into the batch's buffer.
    """

    def __init__(self, shard_set: ShardSet, split: str, prefix: int, threads: int, pinned: bool = False) -> None:
        self.shard_set = shard_set
        self.split = split
        self.prefix = prefix
        self.pinned = pinned
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pread")
        self._threads = threads
        shard_set.size(split)
        self._shards = shard_set.manifest.splits[split].shards
        _allow_open(len(self._shards))
        self._files: list[int] | dict[int, int] = {}
        if shard_set.remote is None:
            self._files = _open_all(shard_set.paths(split))

    def check(self, plan: Iterable[np.ndarray]) -> None:
        """Raises BandstreamError where the batches of a plan need more of a remote set at once than its cache holds."""
        remote = self.shard_set.remote
        if remote is not None and sum(shard.bytes for shard in self._shards) > remote.cache.limit:
            check_room(self.shard_set, self.split, Needs.of(self.shard_set, self.split, plan))

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Read samples (n,) into `out`, uint8 (n, prefix). Raises BandstreamError naming a file that ended early."""
        if self.shard_set.remote is None:
            self._gather(indices, out)
        else:
            for _, samples, _ in self.batches([indices]):
                out[:] = samples

    def _gather(self, indices: np.ndarray, out: np.ndarray) -> None:
        shards, offsets = self.shard_set.locate(self.split, indices)
        parts = np.array_split(np.arange(len(indices)), min(self._threads, len(indices)))
        jobs = [self._pool.submit(self._read_rows, rows, shards, offsets, out) for rows in parts]
        for job in jobs:
            job.result()

    def _read_rows(self, rows: np.ndarray, shards: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
        for row, shard, offset in zip(rows.tolist(), shards[rows].tolist(), offsets[rows].tolist(), strict=True):
            got = os.preadv(self._files[shard], [out[row]], offset)
            if got != self.prefix:
                path = f"{self.shard_set.place}/{self._shards[shard].file}"
                raise BandstreamError(
                    f"{path} ended {self.prefix - got} bytes early at byte {offset + got}: "
                    "it changed while it was read; run `bandstream verify`"
                )

    def batches(self, plan: Iterable[np.ndarray]) -> Generator[Read, None, None]:
        """For each sample numbers (n,) of the plan: (those numbers, their bytes, uint8 (n, prefix), a function that
        gives their buffer back), read ahead.

        Bytes stay as they are until their buffer is given back, in any order; what is kept takes new memory. Of a
        remote set the plan is looked through first (an iterator is made a list), and its shards are fetched in the
        order in which it needs them.
        """
        ready: queue.SimpleQueue[tuple[np.ndarray, np.ndarray] | BaseException | None] = queue.SimpleQueue()
        free: deque[np.ndarray] = deque()
        room = threading.Semaphore(DEPTH)
        stop = threading.Event()

        def fill() -> None:
            try:
                with self._at_hand(plan, stop) as batches:
                    for indices in batches:
                        room.acquire()
                        if stop.is_set():
                            return
                        buffer = free.popleft() if free else self.buffer(len(indices))
                        if len(buffer) < len(indices):
                            buffer = self.buffer(len(indices))
                        self._gather(indices, buffer[: len(indices)])
                        ready.put((indices, buffer))
                ready.put(None)
            except BaseException as error:
                ready.put(error)

        filler = threading.Thread(target=fill, name="reader", daemon=True)
        filler.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                room.release()
                indices, buffer = item
                yield indices, buffer[: len(indices)], partial(free.append, buffer)
        finally:
            stop.set()
            room.release()
            filler.join()

    @contextmanager
    def _at_hand(self, plan: Iterable[np.ndarray], stop: threading.Event) -> Iterator[Iterable[np.ndarray]]:
        """The batches of a plan, each given out once its shards are open."""
        if self.shard_set.remote is None:
            yield plan
            return
        with Ahead(self.shard_set, self.split, list(plan) if isinstance(plan, Iterator) else plan, stop) as ahead:
            self._files = ahead.files
            yield ahead

    def buffer(self, samples: int) -> np.ndarray:
        """Room for so many samples, uint8 (samples, prefix); in pinned memory where that was asked for."""
        if self.pinned:
            import torch

            pinned: np.ndarray = torch.empty((samples, self.prefix), dtype=torch.uint8, pin_memory=True).numpy()
            return pinned
        return np.empty((samples, self.prefix), np.uint8)

    def close(self) -> None:
        """Close the shards."""
        self._pool.shutdown()
        while isinstance(self._files, list) and self._files:
            os.close(self._files.pop())


def _allow_open(files: int) -> None:
    """Let the process open so many files, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + 256
    if soft < needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _open_all(paths: Sequence[Path]) -> list[int]:
    """Open every shard once; a set with more shards than the process may open is refused."""
    files: list[int] = []
    try:
        for path in paths:
            files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            os.posix_fadvise(files[-1], 0, 0, os.POSIX_FADV_RANDOM)
    except OSError as error:
        for file in files:
            os.close(file)
        raise BandstreamError(f"{path} cannot be opened ({error.strerror}) as one of {len(paths)} shards") from None
    return files
