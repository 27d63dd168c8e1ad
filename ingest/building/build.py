"""Archives to shard sets: list, plan, make the shards, and, last, write the manifest.

Killed at any moment and run again, it ends with the same bytes: shards and their records appear atomically, a rerun
reuses those that lie there as recorded, and the folder is a shard set only once `dataset.json` stands in it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ingest.building import physics
from ingest.building.commit import commit
from ingest.building.engine import Engine, Here, Processes, make_all
from ingest.building.plan import Plan
from ingest.building.shard import CLAIM, RECORDS, Input, Task, Vanished, read_record
from ingest.building.workplace import (
    OtherSet,
    check_places,
    claim,
    empty,
    failed,
    locked,
    refuse,
    sweep,
    workplace,
)
from ingest.checking.mend import Archive, mend, record_of
from ingest.source import Listening, Rejected, Source
from shards import atomic
from shards.errors import BandstreamError
from shards.manifest import CREATED_BY, FILE, Manifest, changed
from shards.verify import examine, sha256

ENTRIES = "entries.jsonl"


@dataclass(frozen=True)
class Options:
    """What an ingest may be told.

    `split_file`: key → split; `recorded`: what the manifest keeps of the command's options, beside these. `workers`,
    `strict`, `scratch` (a folder for what is spooled; None: beside the shards) and `scheduler` (the Dask cluster that
    does the work; "": this machine) do not bear on the bytes.
    """

    name: str = ""
    seed: int = 0
    shard_samples: int = 1024
    split_file: dict[str, str] | None = None
    recorded: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    strict: bool = False
    scratch: Path | None = None
    scheduler: str = ""


@dataclass(frozen=True)
class Outcome:
    """What an ingest did in this run: the manifest, how many inputs were dealt with (0: all was there), and how many
    objects were sent elsewhere (0: all were there)."""

    manifest: Manifest
    processed: int
    sent: int = 0


def _ignore(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Told:
    """Whom an ingest tells: `warn` of what looks wrong, `say` of what takes long or much room, `progress` (what, done,
    all) as work goes on."""

    warn: Callable[[str], None] = _ignore
    say: Callable[[str], None] = _ignore
    progress: Callable[[str, int, int], None] = _ignore


class Elsewhere(Protocol):
    """Where a set goes once it stands in its folder. All raise BandstreamError."""

    def find(self, plan: str, described: dict[str, Any]) -> Manifest | None:
        """The manifest of the set of this plan, where it stands there already, complete and sound; refuses where
        something else does. Changes nothing of another plan."""

    def claim(self, plan: str, described: dict[str, Any]) -> None:
        """Have that place for the set of this plan, before hours are spent on it."""

    def put(self, manifest: Manifest) -> int:
        """Bring the set there from its folder, the manifest last; the number of objects that were sent."""


def ingest(
    source: Source, target: Path, options: Options, told: Told | None = None, elsewhere: Elsewhere | None = None
) -> Outcome:
    """Turn an archive into the shard set `target`; with `elsewhere`, into a set there, and `target` is emptied.

    Raises BandstreamError, and with `strict` on the first rejection.
    """
    told = told or Told()
    for archive in source.inputs:
        check_places(archive, target)
    try:
        with locked(target):
            with _engine(options, told) as engine:
                outcome, there = _ingest(source, target, options, told, elsewhere, engine)
            if elsewhere is not None:
                if not there:
                    outcome = replace(outcome, sent=elsewhere.put(outcome.manifest))
                empty(target)
            return outcome
    except OSError as error:
        raise failed(target, error) from error


def _engine(options: Options, told: Told) -> Engine:
    if options.scheduler:
        from ingest.building.cluster import Cluster

        return Cluster(options.scheduler, told.say)
    return Processes(options.workers) if options.workers > 1 else Here()


def _ingest(
    source: Source, target: Path, options: Options, told: Told, elsewhere: Elsewhere | None, engine: Engine
) -> tuple[Outcome, bool]:
    """The set in its folder; or, and then True, nothing but its manifest, for it stands elsewhere already."""
    with workplace(target, options.scratch, told.warn) as scratch:
        inputs = tuple(Input.of(path) for path in source.inputs if path.exists())
        listening = Listening(
            scratch, told.warn, told.say, lambda done, total: told.progress("list", done, total), engine.map
        )
        plan = Plan(
            source.listing(listening),
            target / RECORDS / ENTRIES,
            options.seed,
            options.shard_samples,
            options.split_file,
        )
        if options.strict and plan.rejected:
            raise BandstreamError(f"{plan.rejected[0]} (--strict stops at the first rejected input)")
        described = _describe(source, options, plan.drawn)
        fingerprint = plan.fingerprint(described)
        if elsewhere is not None and (manifest := elsewhere.find(fingerprint, described)):
            return Outcome(manifest, 0), True
        finished = _finished(target, fingerprint, described, plan, source, engine, told)
        begun = (target / RECORDS / CLAIM).exists()
        if finished is None:
            claim(target, fingerprint, described)
        try:
            if elsewhere is not None:
                elsewhere.claim(fingerprint, described)
        except BaseException:
            if not begun:
                (target / RECORDS / CLAIM).unlink(missing_ok=True)
            raise
        if finished is not None:
            return finished, False
        for warning in physics.check(source, plan):
            told.warn(warning)
        task = Task(source, target, fingerprint, options.strict, inputs)
        try:
            make_all(engine, task, plan, lambda done: told.progress("ingest", done, plan.total))
            task.check_inputs()
        except Rejected as rejection:
            raise BandstreamError(f"{rejection} (--strict stops at the first rejected input)") from None
        except Vanished:
            _forget_rejections(target, plan, fingerprint)
            raise
        finally:
            sweep(target)
        manifest = commit(target, source, described, fingerprint, plan)
    return Outcome(manifest, plan.total), False


def _describe(source: Source, options: Options, drawn: bool) -> dict[str, Any]:
    """Everything but the listing that decides the bytes."""
    split = "drawn by the seed: a tenth val, a tenth test, the rest train" if drawn else "the archive's"
    return {
        "created_by": CREATED_BY,
        "source": source.describe(),
        "name": options.name or source.name,
        "seed": options.seed,
        "shard_samples": options.shard_samples,
        "split": "split file" if options.split_file is not None else split,
        "options": options.recorded,
    }


def _forget_rejections(target: Path, plan: Plan, fingerprint: str) -> None:
    """Have all shards made again in which something was rejected: it may have been sound, and gone with its archive."""
    for name in plan.names:
        record = read_record(target, name, fingerprint)
        if record is not None and record.rejected:
            (target / RECORDS / f"{name}.json").unlink(missing_ok=True)


def _finished(
    target: Path,
    fingerprint: str,
    described: dict[str, Any],
    plan: Plan,
    source: Source,
    engine: Engine,
    told: Told,
) -> Outcome | None:
    """Where the set stands complete: check it, make anew what is damaged. None where it is still to be ingested."""
    if not (target / FILE).exists():
        return None
    raw = (target / FILE).read_bytes()
    try:
        manifest = Manifest.read(target)
        damaged = changed(raw)
    except BandstreamError as error:
        damaged = str(error)
    task = Task(source, target, fingerprint, strict=False)
    if damaged:
        if fingerprint.encode() not in raw:
            raise OtherSet(
                f"{target / FILE} is damaged, and nothing in it says that this archive and these options made the set: "
                "restore it, or name a new folder"
            )
        claim(target, fingerprint, described)
        _take_over(task, plan, raw)
        (target / FILE).unlink()
        return None
    compare(target, manifest, fingerprint, described)
    problems = examine(target, lambda done, total: told.progress("verify", done, total))
    mended = mend(target, manifest, problems, Archive(task, plan, engine))
    if mended.told():
        told.say(mended.told())
    sweep(target)
    return Outcome(manifest, mended.inputs)


def compare(place: Path | str, manifest: Manifest, fingerprint: str, described: dict[str, Any]) -> None:
    """Raises BandstreamError, naming what differs, where the set that stands there is another plan's."""
    if manifest.source.get("plan") != fingerprint:
        old = {key: manifest.source.get(key) for key in ("split", "shard_samples", "options")}
        old |= {"created_by": manifest.created_by, "name": manifest.name, "seed": manifest.seed}
        old["source"] = {key: manifest.source.get(key) for key in described["source"]}
        refuse(place, "a shard set", old, described)


def _take_over(task: Task, plan: Plan, manifest: bytes) -> None:
    """Leave records of the shards whose checksums stand in a damaged manifest: these are sound beyond doubt."""
    size = task.layout().sample_bytes
    for shard in plan:
        path = task.target / shard.file
        sums = [sha256(each) for each in (path, path.with_suffix(".idx")) if each.is_file()]
        if len(sums) == 2 and all(each.encode() in manifest for each in sums):
            record = record_of(task, shard, path.stat().st_size // size)
            atomic.write_text(task.target / RECORDS / f"{shard.name}.json", json.dumps(vars(record), allow_nan=False))
