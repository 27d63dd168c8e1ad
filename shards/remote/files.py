"""The files of a shard set under a URL, fetched into the cache before they are used."""

import threading
import time
import warnings

from shards.errors import BandstreamError
from shards.manifest import FILE, Manifest, changed, missing
from shards.remote.cache import Cache, File, Held, Part, Wait
from shards.remote.store import Stopped, Store

AGAIN_S = (1.0, 4.0)
"""Pauses before an object is fetched again that came otherwise than the manifest says."""
LOOK_S = 0.1
"""Between two looks for a file that another process is fetching, or for room."""
ROOM_S = 300.0
"""So long the room for a file that is needed now is waited for."""


class RemoteFiles:
    """Local copies of the files under a URL, each held against its checksum before it is given out."""

    def __init__(self, url: str, cache: Cache) -> None:
        self.store, self.cache = Store(url), cache
        self.url = self.store.url

    def manifest(self) -> Manifest:
        """Read and check `dataset.json`. Raises BandstreamError."""
        where = f"{self.url}/{FILE}"
        for pause in (*AGAIN_S, None):
            try:
                raw = self.store.read(FILE)
                what = changed(raw)
                if not what:
                    return Manifest.parse(raw, where)
            except FileNotFoundError:
                raise missing(self.url) from None
            except (ValueError, AttributeError) as error:
                what = f"not a JSON object ({error})"
            if pause is not None:
                time.sleep(pause)
        raise BandstreamError(f"{where}: {what} (read {len(AGAIN_S) + 1} times): restore it or ingest again")

    def hold(self, file: File, claim: Held | Part | Wait | None = None, stop: threading.Event | None = None) -> Held:
        """A file, fetched if need be; `claim`: what `Cache.claim` gave for it, if it was asked already.

        Raises BandstreamError where it cannot be had: `Stopped` once `stop` is set.
        """
        stop = stop or threading.Event()
        while True:
            claim = claim or self.cache.claim(file)
            if claim is Wait.NO_ROOM:
                claim = self._wait_for_room(file, stop)
            if isinstance(claim, Part):
                return self._fetch(file, claim, self.store.until(stop))
            if isinstance(claim, Held):
                if claim.checked or self._is_sound(claim, file):
                    return claim
            elif stop.wait(LOOK_S):
                raise Stopped(f"{self.url}/{file.name}: stopped")
            claim = None

    def _wait_for_room(self, file: File, stop: threading.Event) -> Held | Part | Wait:
        end = time.monotonic() + ROOM_S
        with self.cache.waiting():
            while time.monotonic() < end:
                if stop.wait(LOOK_S):
                    raise Stopped(f"{self.url}/{file.name}: stopped")
                claim = self.cache.claim(file)
                if claim is not Wait.NO_ROOM:
                    return claim
        raise self.no_room(file)

    def no_room(self, file: File) -> BandstreamError:
        """That others keep what they use."""
        gb = 1e-9
        return BandstreamError(
            f"no room for {self.url}/{file.name} ({file.bytes * gb:.3g} GB) in {ROOM_S:.0f} s: of the cache's files "
            f"{self.cache.in_use() * gb:.3g} GB are in use, by this process and others; {self.cache.told()}; "
            "or let fewer processes share it"
        )

    def _is_sound(self, held: Held, file: File) -> bool:
        """Whether a file that was not checked since the set was opened fits its checksum; otherwise it is removed."""
        try:
            sound = held.sha256() == file.sha256
        except OSError:  # the disk cannot read it
            sound = False
        if sound:
            self.cache.confirm(held)
        else:
            self.cache.discard(held)
            warnings.warn(
                f"{held.path}, a copy of {self.url}/{file.name}, was damaged on this machine and is fetched again: "
                "should this happen more often, check the disk",
                RuntimeWarning,
                stacklevel=2,
            )
        return sound

    def _fetch(self, file: File, part: Part, store: Store) -> Held:
        """Fill a part, more than once where what comes is not what it should be."""
        where = f"{self.url}/{file.name}"
        try:
            for pause in (*AGAIN_S, None):
                try:
                    store.fetch(file.name, file.bytes, part)
                    wrong = part.wrong()
                except FileNotFoundError:
                    wrong = "is missing"
                if not wrong:
                    return part.finish()
                if pause is not None:
                    store.stop.wait(pause)
            raise BandstreamError(
                f"{where} {wrong} (asked {len(AGAIN_S) + 1} times): it was damaged or replaced there; "
                "the ingest that made the set, run again, mends it"
            )
        except BaseException:
            part.abandon()
            raise
