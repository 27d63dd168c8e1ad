"""`bandstream verify --repair`: what is damaged made anew, with the archive by the command that made the set."""

import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import click

from ingest.building.build import Options, Told, ingest
from ingest.building.plan import read_split_file
from ingest.building.workplace import OtherSet, locked, workplace
from ingest.checking.mend import mend
from ingest.commands import SHARED, Sources
from ingest.source import Source
from shards.errors import BandstreamError
from shards.manifest import FILE, Manifest
from shards.verify import Problem


def repair(
    target: Path,
    words: Sequence[str],
    problems: list[Problem],
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> str:
    """Put a set right of which `problems` were found; what was done, in a line.

    `words`: paths of the archive, then options of the source's command. Raises BandstreamError where the archive is
    another one than the set was made of (nothing is changed then), or where something is left to be done.
    """
    manifest = Manifest.read(target)
    if words:
        return _with_archive(target, manifest, words, problems, say, progress)
    if any(problem.file == FILE for problem in problems):
        raise BandstreamError(
            f"{target / FILE} is damaged, and what it said only the archive can tell: "
            f"bandstream verify {target} --repair SRC"
        )
    with locked(target), workplace(target, None, say):
        mended = mend(target, manifest, problems)
    if mended.left:
        done = f"{mended.told()}; " if mended.told() else ""
        raise BandstreamError(
            f"{done}{', '.join(mended.left)} can only be made anew from the archive: "
            f"bandstream verify {target} --repair SRC"
        )
    return _closing(target, mended.told(), {*mended.made, *mended.removed}, problems)


def _with_archive(
    target: Path,
    manifest: Manifest,
    words: Sequence[str],
    problems: list[Problem],
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> str:
    source, options, of_files = source_of(manifest, target, words)
    said: list[str] = []
    warned = Told(lambda text: say(f"warning: {text}"), said.append, progress)
    try:
        outcome = ingest(source, target, options, warned)
    except OtherSet as error:
        raise BandstreamError(
            f"not what {target} was made of, nothing was changed: {error}. Options that name files are not kept, "
            f"if it was made with some they are given again after --: {' '.join(of_files)}"
        ) from None
    done = "; ".join(said) or f"made anew: {FILE}" if outcome.processed or said else ""
    return _closing(target, done, None, problems)


def _closing(target: Path, done: str, dealt_with: set[str] | None, problems: list[Problem]) -> str:
    """The last line. Raises BandstreamError where files are left that are not ours to remove."""
    foreign = sorted(
        {problem.file for problem in problems if (target / problem.file).exists() and _is_foreign(target, problem.file)}
    )
    if foreign:
        told = f"{done}; " if done else ""
        raise BandstreamError(f"{told}no ingest wrote {', '.join(foreign)}: move it out of {target}")
    return f"{target}: {done}"


def _is_foreign(target: Path, name: str) -> bool:
    manifest = Manifest.read(target)
    tar = Path(name).with_suffix(".tar").name
    known = {shard.file for split in manifest.splits.values() for shard in split.shards}
    return Path(name).suffix in (".tar", ".idx") and tar not in known


def source_of(manifest: Manifest, target: Path, words: Sequence[str]) -> tuple[Source, Options, list[str]]:
    """The archive that a set was made of and the options of the ingest, by the source's own command.

    `words`: what the command would be given, without the folder of the set; options that the manifest keeps need not
    be there. Returns the names of the options that it does not keep, because they name files, too.
    """
    kind = str(manifest.source.get("kind", ""))
    if kind not in Sources().list_commands(click.Context(click.Command("ingest"))):
        raise BandstreamError(f"{target} was made by a source {kind!r}, which this bandstream does not have")
    command: click.Command = importlib.import_module(f"ingest.sources.{kind}").command
    paths = list(takewhile(lambda word: not word.startswith("-"), words))
    options = list(words[len(paths) :])
    kept = {**manifest.source.get("options", {}), "name": manifest.name, "seed": manifest.seed}
    kept["shard_samples"] = manifest.source.get("shard_samples")
    context = command.make_context(f"ingest {kind}", [*paths, str(target), *options], default_map=kept)
    given: dict[str, Any] = dict(context.params)
    del given["dst"]
    src = given.pop("src")
    shared = {name: given.pop(name) for name in SHARED}
    of_files = [
        option.opts[0]
        for option in command.params
        if isinstance(option, click.Option) and isinstance(option.type, click.Path) and option.name != "scratch"
    ]
    made = Options(
        name=shared["name"],
        seed=shared["seed"],
        shard_samples=shared["shard_samples"],
        split_file=read_split_file(shared["split_file"]) if shared["split_file"] else None,
        recorded=manifest.source.get("options", {}),
        workers=shared["workers"] or len(os.sched_getaffinity(0)),
        scratch=shared["scratch"],
        scheduler=shared["scheduler"],
    )
    return inspect.unwrap(command.callback)(src, **given), made, of_files  # type: ignore[arg-type]
