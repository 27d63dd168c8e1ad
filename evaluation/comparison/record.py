"""A comparison's folder: what it was made for (spec.json), and which cells are finished in it."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from evaluation.comparison.grid import Cell, Encoder, Grid, Protocol, refuse_own_classifier
from evaluation.comparison.spec import Spec
from evaluation.subject import FINE_TUNED
from models.hub import WEIGHTS, local_folder
from shards import atomic
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from training.seeds import RESULTS, SETTINGS, SUMMARY, differences, digest, read

FILE = "spec.json"
GROWING = ("encoders", "label_fractions", "seeds")
"""Lists to which a later spec may add."""


def described(spec: Spec, grid: Grid) -> dict[str, Any]:
    """The spec, resolved: what every encoder and protocol comes to, and on which data (sets by their fingerprints).

    Raises BandstreamError on a run or a set that is not there.
    """
    fingerprint = cache(lambda shards: ShardSet.open(shards).manifest.fingerprint())

    def data(shards: str, who: str) -> str:
        try:
            return str(fingerprint(shards))
        except BandstreamError as error:
            hint = "" if shards in spec.sets.values() else f"; if that is a name, say --set {shards}=SHARDS"
            raise BandstreamError(f"{who}: {error}{hint}") from None

    def encoder(one: Encoder) -> dict[str, Any]:
        content: dict[str, Any] = {"how": one.how, "source": one.source}
        if one.how == "run":
            folder = local_folder(str(one.source))
            content["sha256"] = digest(folder / WEIGHTS)
            if content["sha256"] is None:
                raise BandstreamError(
                    f"encoders.{one.name}: {one.source} holds no encoder: name a run that is finished"
                )
            if (folder / FINE_TUNED).is_file():
                refuse_own_classifier(one, grid.protocols)
        if one.recipe is not None:
            recipe = one.recipe.model_dump(mode="json")
            if one.every_seed:
                del recipe["seed"]
            content |= {"every_seed": one.every_seed, "recipe": recipe}
            content["data"] = data(one.shards, f"encoders.{one.name}")
            if begins := {knob: found for knob in ("init", "weights") if (found := _weights(knob, recipe.get(knob)))}:
                content["begins_sha256"] = begins
        return content

    def protocol(one: Protocol) -> dict[str, Any]:
        content: dict[str, Any] = {name: list(getattr(one, name)) for name in GROWING}
        if one.recipe is None:
            options = one.options.model_dump(mode="json", exclude_defaults=True)
            if one.options.against:
                options["against"] = data(one.options.against, f"protocols.{one.name}")
            return content | {"evaluate": one.evaluate, "options": options, "of": one.of and one.of.key}
        return content | {"recipe": one.recipe.model_dump(mode="json", exclude={"seed", "label_fraction"})}

    known = fingerprint(spec.shards)
    return {
        "format_version": 1, "title": spec.title, "baseline": spec.baseline, "shards": spec.shards,
        "data": known, "encoders": {one.key: encoder(one) for one in grid.encoders},
        "protocols": {one.key: protocol(one) for one in grid.protocols},
    }  # fmt: skip


def check(out: Path, wanted: dict[str, Any]) -> None:
    """Raises BandstreamError where the folder holds anything but this comparison, or a part of it; names what."""
    known = read(out / FILE)
    if known is None:
        if out.exists() and any(path.name[-4:] != atomic.TEMPORARY for path in out.iterdir()):
            raise BandstreamError(f"{out} is not empty, and no comparison: name another folder")
        return
    changed = [name for name in ("format_version", "data") if known.get(name) != wanted[name]]
    for table in ("encoders", "protocols"):
        for key, was in known.get(table, {}).items():
            there = wanted[table].get(key)
            if there is None:
                changed.append(f"{table}.{key} (gone)")
                continue
            changed += [f"{table}.{key}.{name} (fewer)" for name in GROWING if not _holds(there, was, name)]
            before, after = ({k: v for k, v in one.items() if k not in GROWING} for one in (was, there))
            changed += differences(before, after, f"{table}.{key}.")
    if changed:
        raise BandstreamError(
            f"{out} holds a comparison with another {', '.join(changed)}: more may be added to it, nothing changed; "
            "name another folder"
        )


@contextmanager
def remembered(out: Path, wanted: dict[str, Any]) -> Iterator[None]:
    """Write spec.json, as the first file of a new folder, and keep other processes out of it while the block lasts."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BandstreamError(f"another comparison is running in {out}: wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        if read(out / FILE) != json.loads(json.dumps(wanted)):
            atomic.write_json(out / FILE, wanted)
        yield
    finally:
        os.close(descriptor)


def is_finished(out: Path, cell: Cell) -> bool:
    """Whether a cell's run is there, complete, and of the encoder that is there now (and not where none is)."""
    folder = out / cell.folder
    if cell.protocol is None and cell.encoder.how == "pretrain":
        return (folder / SUMMARY).is_file() and (folder / WEIGHTS).is_file()
    if not (folder / RESULTS).is_file():
        return False
    if cell.needs is None:
        return True
    settings = read(folder / SETTINGS) or {}
    used = {settings.get("init_sha256"), *settings.get("weights_sha256", {}).values()} - {None}
    return digest(out / cell.needs / WEIGHTS) in used


def clear(out: Path, cell: Cell) -> None:
    """Remove what a stopped cell left, but for pretraining, which goes on from its checkpoints."""
    if cell.protocol is not None or cell.encoder.how != "pretrain":
        shutil.rmtree(out / cell.folder, ignore_errors=True)


def _weights(knob: str, source: str | None) -> str | None:
    """SHA-256 of what pretraining begins with: the encoder of a run, or a file; None where neither is named."""
    if knob == "init":
        return digest(local_folder(source) / WEIGHTS) if source else None
    return digest(Path(source)) if source else None


def _holds(there: dict[str, Any], was: dict[str, Any], name: str) -> bool:
    return set(was.get(name, ())) <= set(there.get(name, ()))
