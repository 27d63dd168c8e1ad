"""The shards of a remote set, in the cache before the batches that need them, and let go when none does any more.

A plan says which batch needs which samples. So it is known beforehand when each shard is first and last needed, in
which order to fetch them, and how much the cache must hold at once: orders that would have shards fetched again and
again are refused before anything is fetched.
"""

import os
import random
import threading
import time
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

import numpy as np

from shards.errors import BandstreamError
from shards.remote.cache import GB, Held, Part, Wait
from shards.remote.files import LOOK_S, ROOM_S
from shards.remote.store import Stopped
from shards.shardset import ShardSet

PARALLEL = 8
"""Shards that are fetched at a time."""
RETRY_S = 30.0
"""After so long a shard is asked for again that could not be had, and is not needed yet."""
OVERDUE_S = 4.0
"""What was needed for so long when it failed is not asked for again; for less, it is."""
GIVE_WAY_S = (1.0, 4.0)
"""So long room is waited for before all is let go, and so long it is then left to others: somewhere between."""


@dataclass(frozen=True)
class Needs:
    """When a plan needs the shards of a split: numbers of the first and the last batch that do, int64 (shards,), -1
    where none does; `bytes` of each shard, int64 (shards,)."""

    first: np.ndarray
    last: np.ndarray
    bytes: np.ndarray

    @classmethod
    def of(cls, shard_set: ShardSet, split: str, plan: Iterable[np.ndarray]) -> "Needs":
        """`plan`: sample numbers (n,) of each batch."""
        size = np.array([shard.bytes for shard in shard_set.manifest.splits[split].shards], np.int64)
        first, last = np.full((2, len(size)), -1)
        for number, indices in enumerate(plan):
            shards, _ = shard_set.locate(split, indices)
            last[shards] = number
            first[shards[first[shards] < 0]] = number
        return cls(first, last, size)

    @property
    def shards(self) -> np.ndarray:
        """The shards that are needed, int64 (k,), in the order in which they are."""
        order = np.argsort(self.first, kind="stable")
        return order[self.first[order] >= 0]

    @property
    def at_once(self) -> int:
        """The most bytes of shards that one batch needs, or that were needed before and will be again."""
        needed = self.first >= 0
        change = np.zeros(self.last.max(initial=-1) + 2, np.int64)
        np.add.at(change, self.first[needed], self.bytes[needed])
        np.add.at(change, self.last[needed] + 1, -self.bytes[needed])
        return int(change.cumsum().max())


def check_room(shard_set: ShardSet, split: str, needs: Needs) -> None:
    """Raises BandstreamError where a plan needs more at once than the cache of a remote set may hold."""
    assert shard_set.remote is not None
    cache = shard_set.remote.cache
    if needs.at_once <= cache.limit:
        return
    window = cache.limit // (2 * int(needs.bytes.max()))
    how = f"; or shuffle within windows of whole shards, window={window} at most" if window else ""
    raise BandstreamError(
        f"{shard_set.place}: this order needs {needs.at_once / GB:.3g} of the {needs.bytes.sum() / GB:.3g} GB of "
        f"{split} at once, again and again, and {cache.told()}{how}"
    )


class Ahead:
    """Fetches the shards of a plan, which it goes through twice, in the order of need, as a context; iterated over,
    gives its batches, each once all its shards are open.

    `files`: shard → descriptor, of those that are open; a batch's may be closed once the next one is asked for. No more
    is held than the plan needs at once (or a few shards, where that is more), and nothing ahead of need takes the room
    that another process waits for. Where all wait for one another, all is let go, and taken again. Raises
    BandstreamError where the plan needs more at once than the cache may hold. What cannot be fetched is tried again
    until it is needed, and raises then.
    """

    def __init__(self, shard_set: ShardSet, split: str, plan: Iterable[np.ndarray], stop: threading.Event) -> None:
        assert shard_set.remote is not None
        needs = Needs.of(shard_set, split, plan)
        check_room(shard_set, split, needs)
        self.shard_set, self.split, self.plan = shard_set, split, plan
        self.files: dict[int, int] = {}
        self._remote = shard_set.remote
        self._left: list[int] = needs.shards.tolist()
        self._place = {shard: place for place, shard in enumerate(self._left)}
        self._begin, self._end = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
        for shard in self._left:
            self._begin[int(needs.first[shard])].append(shard)
            self._end[int(needs.last[shard])].append(shard)
        self._bytes = needs.bytes.tolist()
        self._most, self._taken = max(needs.at_once, PARALLEL * max(self._bytes)), 0
        self._held: dict[int, Held] = {}
        self._live: set[int] = set()
        """Shards that are needed now, and of these those that are waited for."""
        self._awaited: set[int] = set()
        self._later: dict[int, float] = {}
        """When shards are asked for again that could not be had, if they are not needed before."""
        self._since = self._short = self._resume = 0.0
        """Since when a batch, and room for it, is waited for, and until when that is left to others."""
        self._error: BaseException | None = None
        self._stop = stop
        self._turn, self._changed = threading.Lock(), threading.Condition()
        self._threads = [
            threading.Thread(target=self._fetch, name="fetch", daemon=True)
            for _ in range(min(PARALLEL, len(self._left)))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._close(list(self._held))

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, indices in enumerate(self.plan):
            self._live.update(self._begin[number])
            self._await()
            yield indices
            self._live.difference_update(self._end[number])
            self._close(self._end[number])

    def _await(self) -> None:
        """Wait until all shards that are needed now are open."""
        with self._changed:
            self._since, patience = time.monotonic(), random.uniform(*GIVE_WAY_S)
            while missing := self._live - self._held.keys():
                if missing != self._awaited:
                    self._awaited = missing
                    self._changed.notify_all()
                if self._error is not None:
                    raise self._error
                if self._stop.is_set():
                    raise Stopped(f"{self.shard_set.place}: stopped")
                if self._short and time.monotonic() - self._short > patience:
                    self._let_go(list(self._held))  # others may wait for it, who have what is waited for here
                    self._short, self._resume = 0.0, time.monotonic() + random.uniform(*GIVE_WAY_S)
                self._changed.wait(1)
            self._awaited = set()

    def _close(self, shards: list[int]) -> None:
        with self._changed:
            for shard in shards:
                del self.files[shard]
                self._held.pop(shard).close()
                self._taken -= self._bytes[shard]
            self._changed.notify_all()

    def _let_go(self, shards: list[int]) -> None:
        """Close shards that are still needed."""
        with self._changed:
            self._close(shards)
            for shard in shards:
                insort(self._left, shard, key=self._place.__getitem__)

    def _fetch(self) -> None:
        """What a thread does: open one shard after the other."""
        try:
            while True:
                shard, claim = self._next()
                needed = shard in self._awaited
                try:
                    held = self.shard_set.hold(self.split, shard, claim, self._stop)
                    os.posix_fadvise(held.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                    with self._changed:
                        self._held[shard], self.files[shard] = held, held.descriptor
                        self._changed.notify_all()
                except BandstreamError as error:
                    overdue = shard in self._awaited and time.monotonic() - self._since > OVERDUE_S
                    if needed or overdue or isinstance(error, Stopped):
                        raise
                    with self._changed:
                        self._taken -= self._bytes[shard]
                        self._later[shard] = time.monotonic() + RETRY_S
                        insort(self._left, shard, key=self._place.__getitem__)
        except Stopped:
            pass
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> tuple[int, Held | Part | None]:
        """The next shard that can be had, or that this process is to fetch; for one thread after the other."""
        with self._turn, ExitStack() as waiting:
            while not self._stop.is_set():
                short = -1
                if time.monotonic() >= self._resume:
                    shard, claim, short = self._look()
                    if shard >= 0:
                        return shard, claim
                if short >= 0:
                    if not self._short:
                        self._short = time.monotonic()
                        waiting.enter_context(self._remote.cache.waiting())
                    elif time.monotonic() - self._since > ROOM_S:
                        raise self._remote.no_room(self.shard_set.file(self.split, short))
                    with self._changed:
                        self._let_go([shard for shard in self._held if shard not in self._live])
                with self._changed:
                    self._changed.wait(LOOK_S if self._left else 1)
        raise Stopped(f"{self.shard_set.place}: stopped")

    def _look(self) -> tuple[int, Held | Part | None, int]:
        """Look through the next shards, and claim one: (it, the claim, -1); (-1, None, -1) where there is nothing to do
        now, with the shard last that is needed and has no room. None takes the room of one before it."""
        expected = self._taken
        for shard in self._left[: 2 * PARALLEL]:
            needed = shard in self._awaited
            if not needed and self._later.get(shard, 0.0) > time.monotonic():
                continue
            expected += self._bytes[shard]
            if not needed and expected > self._most:
                break
            claim: Held | Part | Wait | None = None
            with suppress(BandstreamError):  # it is claimed again, and its error counts, when it is fetched
                claim = self._remote.cache.claim(self.shard_set.file(self.split, shard), ahead=not needed)
            if claim is Wait.NO_ROOM:
                return -1, None, shard if needed else -1
            if not isinstance(claim, Wait):
                with self._changed:
                    self._left.remove(shard)
                    self._taken += self._bytes[shard]
                    self._short = 0.0 if needed else self._short
                return shard, claim, -1
        return -1, None, -1
