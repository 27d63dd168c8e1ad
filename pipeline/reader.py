"""Bytes of whole samples, read ahead of need: threads `pread` fixed-stride records into a ring of batch buffers."""

import os
import queue
import resource
import threading
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shards.errors import BandstreamError
from shards.shardset import ShardSet

DEPTH = 4
"""Batches that are read ahead of the graph."""


class Reader:
    """Reads the first `prefix` bytes of samples of one split, in any order, at one `pread` a sample.

    Threads share the work of a batch; the kernel copies from the page cache straight into the batch's buffer.
    """

    def __init__(self, shard_set: ShardSet, split: str, prefix: int, threads: int, pinned: bool = False) -> None:
        self.shard_set = shard_set
        self.split = split
        self.prefix = prefix
        self.paths = shard_set.paths(split)
        self.pinned = pinned
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pread")
        self._threads = threads
        self._files = _open_all(self.paths)

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Read samples (n,) into `out`, uint8 (n, prefix). Raises BandstreamError naming a file that ended early."""
        shards, offsets = self.shard_set.locate(self.split, indices)
        parts = np.array_split(np.arange(len(indices)), min(self._threads, len(indices)))
        jobs = [self._pool.submit(self._read_rows, rows, shards, offsets, out) for rows in parts]
        for job in jobs:
            job.result()

    def _read_rows(self, rows: np.ndarray, shards: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
        for row, shard, offset in zip(rows.tolist(), shards[rows].tolist(), offsets[rows].tolist(), strict=True):
            got = os.preadv(self._files[shard], [out[row]], offset)
            if got != self.prefix:
                raise BandstreamError(
                    f"{self.paths[shard]} ended {self.prefix - got} bytes early at byte {offset + got}: "
                    "it changed while it was read; run `bandstream verify`"
                )

    def batches(self, plan: Iterable[np.ndarray]) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """For each sample numbers (n,) of the plan: (those numbers, their bytes, uint8 (n, prefix)), read ahead.

        A buffer is used anew once the next batch has been taken: whoever wants to keep bytes copies them before.
        """
        ready: queue.Queue[tuple[np.ndarray, np.ndarray] | BaseException | None] = queue.Queue()
        free: queue.Queue[np.ndarray | None] = queue.Queue()
        stop = threading.Event()

        def fill() -> None:
            made = 0
            try:
                for indices in plan:
                    if made < DEPTH:
                        buffer: np.ndarray | None = self._buffer(len(indices))
                        made += 1
                    else:
                        buffer = free.get()
                    if stop.is_set() or buffer is None:
                        return
                    if len(buffer) < len(indices):
                        buffer = self._buffer(len(indices))
                    self.read(indices, buffer[: len(indices)])
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
                indices, buffer = item
                yield indices, buffer[: len(indices)]
                free.put(buffer)
        finally:
            stop.set()
            free.put(None)
            filler.join()

    def _buffer(self, samples: int) -> np.ndarray:
        if self.pinned:
            import torch

            pinned: np.ndarray = torch.empty((samples, self.prefix), dtype=torch.uint8, pin_memory=True).numpy()
            return pinned
        return np.empty((samples, self.prefix), np.uint8)

    def close(self) -> None:
        """Close the shards."""
        self._pool.shutdown()
        while self._files:
            os.close(self._files.pop())


def _open_all(paths: Sequence[Path]) -> list[int]:
    """Open every shard once; a set with more shards than the process may open is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(paths) + 256
    if soft < needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
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
