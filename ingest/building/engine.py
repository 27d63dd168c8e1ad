"""Where shards are made: in this process, in several of this machine, or on a Dask cluster (`ingest.building.cluster`).

One shard is one task, and an ingest is one map of them (`make_all`). An engine only starts tasks and says how they
ended. A task may run twice, and two of it at once: it leaves the same bytes, by rename. What a source has to do before
its samples can be read, such as cutting up scenes, is a map on the same engine (`Engine.map`).
"""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ingest.building.plan import Plan, Shard
from ingest.building.shard import Task, make_recorded
from ingest.source import Rejected
from shards.errors import BandstreamError

PR_SET_PDEATHSIG = 1
AHEAD = 2
"""Shards handed out a worker, so that none waits for the main process."""
LOSSES = 3
"""So many times a shard is tried again whose worker was killed."""


class Lost(Exception):
    """A worker was killed while it made a shard."""


class Engine(Protocol):
    """Makes the shards that it is given, several at a time. A context: nothing of it is left when it ends."""

    def __enter__(self) -> "Engine": ...

    def __exit__(self, kind: object, *_: object) -> None: ...

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """What a function of a module gives for each item, in their order, with few items under way at a time. Raises
        what the function raises, and BandstreamError where workers are killed again and again."""

    def begin(self, task: Task, shards: int, progress: Callable[[int], None]) -> None:
        """Get ready for so many shards of a task. An engine that works in this process tells `progress` the inputs
        dealt with so far."""

    def room(self, left: int) -> int:
        """How many more shards it would take now, of `left` that are not yet handed out."""

    def submit(self, number: int, shard: Shard) -> None:
        """Begin a shard, or put it behind those that are under way."""

    def finished(self) -> list[tuple[int, Exception | None]]:
        """Wait, but not for long, for shards to end: their numbers, and what went wrong; Lost where it is worth another
        try."""

    def partly(self) -> int:
        """How many inputs of unfinished shards have been dealt with."""


def make_all(engine: Engine, task: Task, plan: Plan, progress: Callable[[int], None]) -> None:
    """Make all shards of a plan. `progress` is told the inputs dealt with so far.

    Raises Rejected with `strict`, BandstreamError, and OSError where a file system failed again and again.
    """
    left, again = iter(enumerate(plan)), deque[tuple[int, Shard]]()
    waiting, done, told = len(plan), 0, 0
    pending: dict[int, Shard] = {}
    losses: Counter[int] = Counter()
    rejections: dict[int, Rejected] = {}
    engine.begin(task, len(plan), progress)
    while waiting or pending:
        # which rejection `strict` stops at is not to depend on who was faster: those before it are waited for
        if rejections and not any(number < min(rejections) for number in pending):
            raise rejections[min(rejections)]
        while not rejections and waiting and engine.room(waiting) > 0:
            number, shard = again.popleft() if again else next(left)
            waiting -= 1
            pending[number] = shard
            engine.submit(number, shard)
        for number, error in engine.finished():
            shard = pending.pop(number)
            if error is None:
                done += len(shard.entries)
            elif isinstance(error, Rejected):
                rejections[number] = error
            elif isinstance(error, Lost):
                losses[number] += 1
                if losses[number] > LOSSES:
                    raise lost(shard.file, str(error))
                again.append((number, shard))
                waiting += 1
            else:
                raise error
        told = max(told, done + engine.partly())
        progress(told)
    if rejections:
        raise rejections[min(rejections)]


def lost(what: str, why: str) -> BandstreamError:
    """What is said when workers were killed too often."""
    return BandstreamError(
        f"{LOSSES + 1} workers were killed one after another while they made {what} ({why}): "
        "give each more memory, or use fewer, and run the same command again"
    )


class Here:
    """This process: a shard at a time."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)

    def begin(self, task: Task, shards: int, progress: Callable[[int], None]) -> None:
        self._task, self._progress, self._done = task, progress, 0
        self._ended: list[tuple[int, Exception | None]] = []

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def room(self, left: int) -> int:
        return 1 - len(self._ended)

    def submit(self, number: int, shard: Shard) -> None:
        def count(more: int) -> None:
            self._done += more
            self._progress(self._done)

        try:
            make_recorded(self._task, shard, count)
            self._ended.append((number, None))
        except (Rejected, BandstreamError, OSError) as error:
            self._ended.append((number, error))

    def finished(self) -> list[tuple[int, Exception | None]]:
        ended, self._ended = self._ended, []
        return ended

    def partly(self) -> int:
        return 0


class Processes:
    """Processes of this machine; one that is killed is replaced."""

    def __init__(self, workers: int) -> None:
        self._number = workers
        self._workers: list[_Worker] = []

    def begin(self, task: Task, shards: int, progress: Callable[[int], None]) -> None:
        self._task = task
        self._workers = [_Worker(task) for _ in range(min(self._number, shards))]

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self._workers:
            worker.end(kill=kind is not None)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        left, under_way = iter(items), deque[tuple[Any, Future[Any]]]()
        losses = 0
        pool = self._pool()
        try:
            while True:
                while len(under_way) < AHEAD * self._number and (item := next(left, left)) is not left:
                    under_way.append((item, _submitted(pool, function, item)))
                if not under_way:
                    return
                item, future = under_way[0]
                try:
                    result = future.result()
                except BrokenProcessPool:
                    losses += 1
                    if losses > LOSSES:
                        raise lost(f"ready {item}", "out of memory?") from None
                    pool.shutdown(wait=True, cancel_futures=True)
                    pool = self._pool()
                    under_way = deque((item, _submitted(pool, function, item)) for item, _ in under_way)
                    continue
                under_way.popleft()
                losses = 0
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._number, multiprocessing.get_context("spawn"), _die_with, (os.getpid(),))

    def room(self, left: int) -> int:
        # the last shards go to those who have nothing to do
        depth = AHEAD if left > len(self._workers) else 1
        return sum(max(0, depth - len(worker.jobs)) for worker in self._workers)

    def submit(self, number: int, shard: Shard) -> None:
        min(self._workers, key=lambda worker: len(worker.jobs)).submit(number, shard)

    def finished(self) -> list[tuple[int, Exception | None]]:
        wait([job.future for worker in self._workers for job in worker.jobs], 0.2, FIRST_COMPLETED)
        ended: list[tuple[int, Exception | None]] = []
        for index, worker in enumerate(self._workers):
            while worker.jobs and worker.jobs[0].future.done():
                job = worker.jobs.popleft()
                error = job.future.exception()
                if isinstance(error, BrokenProcessPool):
                    worker.end(kill=False)
                    self._workers[index] = _Worker(self._task)
                    for behind in worker.jobs:
                        self._workers[index].submit(behind.number, behind.shard)
                    ended.append((job.number, Lost("out of memory?")))
                    break
                ended.append((job.number, error))  # type: ignore[arg-type]
        return ended

    def partly(self) -> int:
        return sum(worker.count.value for worker in self._workers)


@dataclass
class _Job:
    number: int
    shard: Shard
    future: Future[None]


class _Worker:
    """A process that makes its shards one after another: a pool of one, so that it is known what was lost with it."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.count, self._pid = context.Value("q", 0), context.Value("q", 0)
        self._pool = ProcessPoolExecutor(1, context, _start, (task, self.count, self._pid, os.getpid()))
        self.jobs: deque[_Job] = deque()

    def submit(self, number: int, shard: Shard) -> None:
        self.jobs.append(_Job(number, shard, _submitted(self._pool, _work, shard)))

    def end(self, kill: bool) -> None:
        """Let the process go; killed, what it was making is lost and leaves a temporary file."""
        for process in multiprocessing.active_children() if kill else []:
            if process.pid == self._pid.value:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, function: Callable[[Any], Any], item: Any) -> Future[Any]:
    try:
        with _undisturbed():
            return pool.submit(function, item)
    except BrokenProcessPool as error:  # killed since it was last asked
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, a worker may be started: Ctrl-C and SIGTERM wait until it has all that it needs, here and in the worker,
    which is born deaf to them (`_die_with`), for both are often sent to all processes of a job. Else one that is cut
    off from here prints a traceback, and one that dies leaves this process writing to it for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not None  # one that C code put there could not be put back
    }
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for sent in came:
            signal.raise_signal(sent)


_state: dict[str, Any] = {}


def _die_with(parent: int) -> None:
    """In a new worker: die with the parent, however it dies; an interruption is the parent's to deal with."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _start(task: Task, count: Any, pid: Any, parent: int) -> None:
    """In a new worker that makes shards."""
    _die_with(parent)
    pid.value = os.getpid()
    _state.update(task=task, count=count)


def _work(shard: Shard) -> None:
    count = _state["count"]
    count.value = 0

    def progress(more: int) -> None:
        count.value += more

    make_recorded(_state["task"], shard, progress)
    count.value = 0
