"""A shard set built in a folder and brought to a URL: each object read back and compared, the manifest last.

Killed at any moment and run again, it goes on: shards built stay in the folder, objects that lie there whole are not
sent again. `.partial/plan.json` under the URL says whose the place is until the manifest stands there.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.building import build
from ingest.building.build import Options, Outcome, Told, compare
from ingest.building.shard import CLAIM, RECORDS
from ingest.building.workplace import OURS, REJECTED, refuse
from ingest.sending.store import Destination
from ingest.source import Source
from shards.errors import BandstreamError
from shards.manifest import FILE, Manifest, changed
from shards.remote.store import LOCAL, is_url
from shards.verify import sha256

PARALLEL = 4
"""Objects that are sent or read back at a time."""
TRIES = 3
"""So many times an object is sent that comes back otherwise."""
CLAIMED = f"{RECORDS}/{CLAIM}"
SHARD = re.compile(r"(train|val|test)-\d{6}\.(tar|idx)")


@dataclass(frozen=True)
class _Object:
    """What should lie at the URL. `size`: None where the manifest does not say it."""

    name: str
    size: int | None
    sha256: str


def ingest(source: Source, destination: str, options: Options, told: Told | None = None) -> Outcome:
    """Turn an archive into the shard set `destination`, a folder or a URL of fsspec. Raises BandstreamError."""
    if not is_url(destination):
        return build.ingest(source, Path(destination), options, told)
    if destination.partition("://")[0] in LOCAL:
        import fsspec

        return build.ingest(source, Path(fsspec.core.url_to_fs(destination)[1]), options, told)
    if options.scheduler and options.scratch is None:
        raise BandstreamError(
            f"the set of {destination} is built in a folder that all workers see: name one with --scratch"
        )
    store = Destination(destination)
    staging = _staging(store.url, options.scratch)
    upload = Upload(store, staging, told or Told())
    options = Options(**{**vars(options), "scratch": None})  # inside the staging folder, which lies there already
    try:
        return build.ingest(source, staging, options, told, upload)
    finally:
        with contextlib.suppress(OSError):
            staging.rmdir()


def _staging(url: str, scratch: Path | None) -> Path:
    """The folder that the set of a URL is built in, the same in every run."""
    above = scratch or Path(os.environ.get("TMPDIR") or "/var/tmp")
    folder = above / f"bandstream-{hashlib.sha256(f'{os.getuid()} {url}'.encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if scratch is None and folder.stat().st_uid != os.getuid():
            raise BandstreamError(f"{folder} is another user's: name another folder with --scratch")
    except OSError as error:
        raise BandstreamError(
            f"the set cannot be built in {folder} ({error.strerror}): name another folder with --scratch"
        ) from None
    return folder


class Upload:
    """The place under a URL, as `ingest.building.build.Elsewhere`; `staging` is the folder that the set is built in."""

    def __init__(self, store: Destination, staging: Path, told: Told) -> None:
        self.store, self.staging, self.told = store, staging, told
        self._plan = ""
        self._mending: Manifest | None = None
        self._sound: dict[str, tuple[Any, ...]] = {}

    def find(self, plan: str, described: dict[str, Any]) -> Manifest | None:
        """The manifest of the set of this plan, where it stands there complete and all of it is sound.

        Raises BandstreamError where something else does.
        """
        self._plan = plan
        names = self.store.names()
        if FILE in names:
            return self._standing(described)
        if RECORDS in names:
            self._check_claim(described)
        elif names and not (REJECTED in names and all(map(OURS.fullmatch, names))):
            raise BandstreamError(f"{self.store.url} is not empty and holds no shard set: name a new place")
        return None

    def claim(self, plan: str, described: dict[str, Any]) -> None:
        """Have the place. Raises BandstreamError where an ingest of another plan has it."""
        self._plan = plan
        self.store.write(CLAIMED, json.dumps({"plan": plan, "options": described}).encode(), new=True)
        self._check_claim(described, there=True)
        free = shutil.disk_usage(self.staging).free
        self.told.say(
            f"the set is built in {self.staging} ({free / 1e9:,.1f} GB free), takes its size there until it lies at "
            f"{self.store.url}, and is then removed; --scratch names another folder"
        )

    def put(self, manifest: Manifest) -> int:
        """Bring the set there, and last its manifest; the number of objects that had to be sent.

        Raises BandstreamError; what was sent by then is found there by the next run.
        """
        if self._mending is not None and self._mending.fingerprint() != manifest.fingerprint():
            raise BandstreamError(
                f"{self.store.url} was damaged, and the archive no longer gives what it held: "
                "remove it and ingest again"
            )
        checksums = {each.name: each.sha256 for each in _objects(manifest)}
        objects = [_Object(name, (self.staging / name).stat().st_size, sha256) for name, sha256 in checksums.items()]
        total = sum(each.size or 0 for each in objects)
        sending, reading = _Meter(self.told, "upload", total), _Meter(self.told, "verify", total)
        sent = sum(self._each(lambda each: self._deliver(each, sending, reading), objects))
        self._remove_stale({each.name for each in objects})
        now = self.store.names()
        for each in objects:
            sound = self._sound[each.name]
            if now.get(each.name) != sound and self.store.stamp(each.name) != sound:  # a listing may tell less
                raise BandstreamError(
                    f"{self.store.url}/{each.name} was written to by another while the set was uploaded: "
                    "see that nobody does and run the same command again"
                )
        self._check_claim()
        content = (self.staging / FILE).read_bytes()
        if FILE not in now or self.store.read(FILE) != content:
            self.store.write(FILE, content)
            sent += 1
            if self.store.read(FILE) != content:
                raise self._not_kept(FILE)
        self.store.remove(CLAIMED)
        return sent

    def _standing(self, described: dict[str, Any]) -> Manifest | None:
        """What `find` gives where there is a manifest."""
        raw = self.store.read(FILE)
        try:
            manifest = Manifest.parse(raw, f"{self.store.url}/{FILE}")
            what = changed(raw)
        except BandstreamError as error:
            what = str(error)
        if what:
            if self._plan.encode() not in raw:
                raise BandstreamError(
                    f"{self.store.url}/{FILE} is damaged ({what}), and nothing in it says that this archive and these "
                    "options made the set: restore it, or name a new place"
                )
            self.told.warn(f"{self.store.url}/{FILE} is damaged: the set is built again to mend it")
            return None
        compare(self.store.url, manifest, self._plan, described)
        objects = _objects(manifest)
        meter = _Meter(self.told, "verify", sum(each.size or 0 for each in objects))
        sound = self._each(lambda each: self._is_sound(each, meter), objects)
        damaged = [each.name for each, good in zip(objects, sound, strict=True) if not good]
        if not damaged:
            self._remove_stale({each.name for each in objects})
            self.store.remove(CLAIMED)
            return manifest
        self._mending = manifest
        self.told.warn(
            f"{self.store.url}: damaged or missing: {', '.join(damaged[:3])}"
            f"{f' and {len(damaged) - 3} more' if len(damaged) > 3 else ''}: the set is built again to mend it"
        )
        return None

    def _deliver(self, each: _Object, sending: "_Meter", reading: "_Meter") -> bool:
        """Have an object there, whole; whether it had to be sent."""
        self._check_claim()
        path = self.staging / each.name
        if each.name in self._sound or self._is_sound(each, reading):
            sending.tell(each.name, each.size or 0)
            reading.tell(each.name, each.size or 0)
            return False
        for _ in range(TRIES):
            self.store.send(path, each.name, lambda done: sending.tell(each.name, done))
            if self._is_sound(each, reading):
                sending.tell(each.name, each.size or 0)
                return True
            if path.stat().st_size != each.size or sha256(path) != each.sha256:
                raise BandstreamError(
                    f"{path} was damaged on this machine after it was made: run the same command again, "
                    "it is made anew; should it happen again, check the disk"
                )
        raise self._not_kept(each.name)

    def _not_kept(self, name: str) -> BandstreamError:
        return BandstreamError(
            f"{self.store.url}/{name} came back otherwise than it was sent: check the store, "
            "or who else writes there, and run the same command again"
        )

    def _is_sound(self, each: _Object, meter: "_Meter") -> bool:
        """Whether an object comes back as it should be; its stamp is kept, so that a later change is seen."""
        stamp = self.store.stamp(each.name)
        if stamp is None or each.size not in (None, stamp[0]):
            return False
        if self.store.digest(each.name, stamp[0], lambda done: meter.tell(each.name, done)) != each.sha256:
            return False
        self._sound[each.name] = stamp
        return True

    def _check_claim(self, described: dict[str, Any] | None = None, there: bool = False) -> None:
        """Raises BandstreamError where the place is not this plan's."""
        try:
            content = json.loads(self.store.read(CLAIMED))
            plan, options = str(content["plan"]), dict(content["options"])
        except FileNotFoundError:
            if described is not None and not there:
                return
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                if json.loads(self.store.read(FILE))["source"]["plan"] == self._plan:
                    return  # another run of the same plan came to its end just now
            raise BandstreamError(
                f"{self.store.url} was removed, or begun anew, while the set was made: run it again"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise BandstreamError(f"{self.store.url}/{CLAIMED} is damaged: remove it and run it again") from None
        if plan != self._plan:
            if described is not None:
                refuse(self.store.url, "an unfinished ingest", options, described)
            raise BandstreamError(f"another ingest has begun at {self.store.url}: name another place")

    def _remove_stale(self, expected: set[str]) -> None:
        """Remove shards of an earlier set, and what kills left of objects."""
        for name in self.store.names():
            if SHARD.fullmatch(name) and name not in expected:
                self.store.remove(name)
        self.store.remove_parts(expected)

    def _each(self, work: Callable[[_Object], bool], objects: Iterable[_Object]) -> list[bool]:
        """What `work` gives for each object, several at a time; the first error ends all."""
        with ThreadPoolExecutor(PARALLEL) as threads:
            futures = [threads.submit(work, each) for each in objects]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.store.stop.set()
                for future in futures:
                    future.cancel()
                raise
        return [future.result() for future in futures]


def _objects(manifest: Manifest) -> list[_Object]:
    objects = []
    for split in manifest.splits.values():
        for shard in split.shards:
            objects.append(_Object(shard.file, shard.bytes, shard.sha256))
            objects.append(_Object(str(Path(shard.file).with_suffix(".idx")), None, shard.idx_sha256))
    return objects + [_Object(name, spec.bytes, spec.sha256) for name, spec in (manifest.files or {}).items()]


class _Meter:
    """Bytes of all objects of a stage."""

    def __init__(self, told: Told, stage: str, total: int) -> None:
        self._told, self._stage, self._total = told, stage, total
        self._lock, self._of, self._done = threading.Lock(), dict[str, int](), 0

    def tell(self, name: str, done: int) -> None:
        with self._lock:
            self._done += done - self._of.get(name, 0)
            self._of[name] = done
            self._told.progress(self._stage, self._done, self._total)
