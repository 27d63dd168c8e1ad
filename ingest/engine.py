"""Where shards are made: in this process, or in several, with a bounded number of them under way."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ingest.plan import Plan, Shard
from ingest.shard import Task, make_recorded
from shards.errors import BandstreamError

PR_SET_PDEATHSIG = 1
AHEAD = 2
"""Shards handed out a worker, so that none waits for the main process."""


def run(task: Task, plan: Plan, workers: int, progress: Callable[[int], None]) -> None:
    """Make all shards of a plan. `progress` is told the inputs dealt with so far."""
    if workers <= 1 or len(plan) <= 1:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done)

        for shard in plan:
            make_recorded(task, shard, count)
    else:
        _run_processes(task, plan, min(workers, len(plan)), progress)


def _run_processes(task: Task, plan: Plan, workers: int, progress: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pending: dict[Future[None], int] = {}
    queue = iter(enumerate(plan))
    done = 0
    pool = ProcessPoolExecutor(workers, context, _start, (task, counter, os.getpid()))
    try:
        while done < len(plan):
            while len(pending) < AHEAD * workers and (job := next(queue, None)):
                pending[pool.submit(_work, job[1])] = job[0]
            finished, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            # in the order of the plan, so that the rejection that `strict` stops at does not depend on who was faster
            for future in sorted(finished, key=pending.__getitem__):
                del pending[future]
                future.result()
                done += 1
            progress(counter.value)
    except BrokenProcessPool:
        raise BandstreamError(
            "a worker process was killed (out of memory?): run the same command again, it goes on from the last shard"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_state: dict[str, Any] = {}


def _start(task: Task, counter: Any, parent: int) -> None:
    """In a new worker: die with the parent, however it dies, so that no orphan writes into a set that is begun anew."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _state.update(task=task, counter=counter)


def _work(shard: Shard) -> None:
    def count(more: int) -> None:
        with _state["counter"].get_lock():
            _state["counter"].value += more

    make_recorded(_state["task"], shard, count)
