"""The engine on a Dask cluster: `dask scheduler` and `dask worker`, on this machine, on others, or under SLURM.

Every worker must see the archive and the set's folder under the paths that they have here, and run this version.
"""

import contextlib
import json
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from ingest.building.engine import Lost
from ingest.building.plan import Shard
from ingest.building.shard import Task, make_recorded
from ingest.source import Rejected
from shards.errors import BandstreamError
from shards.manifest import CREATED_BY

PATIENCE_S = 60
"""How long a cluster may take to answer, and to bring its first worker."""
AHEAD = 2
"""Shards handed out a thread, so that none waits for this process."""


class Cluster:
    """The workers of the Dask scheduler at `address` (tcp://HOST:PORT, or the file that `--scheduler-file` named)."""

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self._address, self._say = address, say
        self._pending: dict[Any, int] = {}

    def __enter__(self) -> "Cluster":
        try:
            from distributed import Client
        except ImportError:
            raise BandstreamError("--scheduler needs Dask: install bandstream[cluster]") from None
        try:
            self._client = Client(_address(self._address), timeout=PATIENCE_S, set_as_default=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BandstreamError(
                f"no Dask scheduler answers at {self._address} ({error}): "
                "start one with `dask scheduler`, or name another"
            ) from None
        try:
            self._meet()
        except BaseException:
            self._client.close()
            raise
        return self

    def _meet(self) -> None:
        """Raises BandstreamError where no worker comes, or one runs another version."""
        try:
            self._client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError:
            raise BandstreamError(
                f"the scheduler at {self._address} has no workers: start some with `dask worker {self._address}`"
            ) from None
        for worker, version in self._client.run(_version, on_error="return").items():
            if version != CREATED_BY:
                raise BandstreamError(
                    f"the Dask worker {worker} runs {version}, this is {CREATED_BY}: install the same on every host"
                )
        self._say(f"Dask: {len(self._threads())} workers, {sum(self._threads().values())} threads")

    def __exit__(self, *_: object) -> None:
        self._client.cancel(list(self._pending), force=True)
        self._client.close()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        left, under_way = iter(items), deque[Any]()
        try:
            while True:
                while len(under_way) < self._width() and (item := next(left, left)) is not left:
                    # lost with its worker, it is another's, up to the scheduler's `allowed-failures`
                    under_way.append(self._client.submit(function, item, pure=False))
                if not under_way:
                    return
                while not under_way[0].done():
                    self._wait([under_way[0]])
                error = self._error(under_way[0])
                if isinstance(error, Lost):
                    raise BandstreamError(f"{error}, again and again: give each more memory, and run it again")
                if error is not None:
                    raise error
                yield under_way.popleft().result()
        finally:
            self._client.cancel(list(under_way), force=True)

    def begin(self, task: Task, shards: int, progress: Callable[[int], None]) -> None:
        # sent along with every shard: data that was scattered beforehand would be lost with the workers that hold it
        self._task = pickle.dumps(task)

    def room(self, left: int) -> int:
        return self._width() - len(self._pending)

    def _width(self) -> int:
        return AHEAD * max(1, sum(self._threads().values()))

    def submit(self, number: int, shard: Shard) -> None:
        # a task lost with its worker is another's, up to the scheduler's `allowed-failures`; then it is Lost
        future = self._client.submit(_work, self._task, shard, pure=False)
        self._pending[future] = number

    def finished(self) -> list[tuple[int, Exception | None]]:
        self._wait(list(self._pending))
        ended: list[tuple[int, Exception | None]] = []
        for future in [future for future in self._pending if future.done()]:
            ended.append((self._pending.pop(future), self._error(future)))
        return ended

    def _wait(self, futures: list[Any]) -> None:
        """Wait, but not for long, for one to end. Raises BandstreamError where the scheduler is gone."""
        from distributed import wait

        with self._client.as_current(), contextlib.suppress(TimeoutError, CancelledError):
            wait(futures, timeout=0.5, return_when="FIRST_COMPLETED")
        if self._client.status not in ("running", "connecting"):
            raise BandstreamError(
                f"the scheduler at {self._address} is gone: "
                "start it and run the same command again, it goes on from there"
            )

    def _error(self, future: Any) -> Exception | None:
        from distributed import KilledWorker

        if future.status in ("cancelled", "lost"):
            return Lost("its Dask worker went away")
        error: Exception | None = future.exception()
        if isinstance(error, KilledWorker | CancelledError):
            return Lost("its Dask workers went away")
        if error is None or isinstance(error, Rejected | BandstreamError | OSError):
            return error
        raise BandstreamError(f"a Dask worker failed ({type(error).__name__}: {error}): see its log") from error

    def partly(self) -> int:
        return 0

    def _threads(self) -> dict[str, int]:
        return dict(self._client.nthreads())


def _address(told: str) -> str:
    """An address as it is; of a scheduler's file, once that is there, the address that stands in it."""
    if "://" in told or not told.endswith(".json"):
        return told
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads(Path(told).read_bytes())["address"])
        time.sleep(0.1)
    raise TimeoutError(f"no such file after {PATIENCE_S} s")


def _version() -> str:
    return CREATED_BY


_own = threading.local()


def _work(pickled: bytes, shard: Shard) -> None:
    """In a worker, whose threads each have a task of their own: sources keep what they have read before."""
    if getattr(_own, "pickled", None) != pickled:
        _own.pickled, _own.task = pickled, pickle.loads(pickled)  # noqa: S301 (our own, sent by the ingest that this worker is part of)
    make_recorded(_own.task, shard)
