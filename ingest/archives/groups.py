"""Samples of foreign shards as `webdataset` groups them, which tars there are, and which splits their names say."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.reading import tar
from ingest.reading.folders import WORDS
from ingest.reading.keys import clean, printed
from ingest.reading.spool import in_order
from ingest.source import Entry, Listening, Rejected
from shards.errors import BandstreamError

SPLIT = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})(?![a-z])")
META = re.compile(r"__[^/]*__($|/)")
"""Names that webdataset passes over."""
LONGEST_PATH = 600


def expanded(pattern: Path) -> list[Path]:
    """What a pattern with braces stands for."""
    import braceexpand

    try:
        return [Path(name) for name in braceexpand.braceexpand(str(pattern))]
    except ValueError:  # unbalanced: a name with braces
        return [pattern]


@dataclass(frozen=True)
class Group:
    """A sample as webdataset groups it: number and name of its shard, its key, member → (place, size) in the tar."""

    number: int
    shard: str
    key: str
    places: dict[str, tuple[int, int]]

    @property
    def path(self) -> str:
        return f"{self.shard}/{self.key}"

    def entry(self, wanted: Sequence[str]) -> Entry:
        """Raises Rejected where a member is not there."""
        if missing := [member for member in wanted if member not in self.places]:
            raise Rejected(self.path, "missing-member", f"it has no {', '.join(missing)}")
        if len(json.dumps([self.shard, self.key])) > LONGEST_PATH:
            raise Rejected(self.path, "bad-name", f"its shard and key take more than {LONGEST_PATH} bytes")
        where = " ".join(f"{at},{size}" for at, size in map(self.places.__getitem__, wanted))
        extra = {"shard": self.shard, "key": self.key}
        return Entry(
            clean(self.key.replace("/", "_"), self.path), self.path, extra=extra, where=f"{self.number} {where}"
        )


def shards_of(inputs: Iterable[Path]) -> list[tuple[str, Path]]:
    """Names of all tars, relative to what holds them all, and where they are. Raises BandstreamError."""
    paths: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise BandstreamError(f"{path} does not exist: name tars, a folder of tars, or a pattern in quotes")
        inside = [path]
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if tar.NAME.search(p.name) and p.is_file())
            inside = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        if not inside:
            raise BandstreamError(f"{path} holds no .tar, .tar.gz or .tar.zst")
        paths += inside
    top = os.path.commonpath([path.absolute().parent for path in paths])
    names = {os.path.relpath(path.absolute(), top): path for path in paths}
    if len(names) < len(paths):
        raise BandstreamError("a shard is named twice")
    return sorted((printed(name), path) for name, path in names.items())


def splits_of(names: list[str], source: str | None) -> list[str]:
    """The split of each shard, "" where they are drawn. Raises BandstreamError where only some names say one.

    `source`: "names", "seed" or None, from the names where one of them says a split.
    """
    said = [(SPLIT.findall(name.lower()) or [""])[-1] for name in names]
    splits = [WORDS.get(word, "") for word in said]
    if source == "seed" or (source is None and not any(splits)):
        return [""] * len(names)
    if not all(splits):
        raise BandstreamError(
            f"the name of {names[splits.index('')]} says no split (train, val or test)"
            f"{' as others do' if any(splits) else ''}: name it otherwise, or draw splits with --split-from seed"
        )
    return splits


def groups_of(shards: list[tuple[str, Path]], tars: list[Path], listening: Listening) -> Iterator[Group | Rejected]:
    """Samples as webdataset groups them, in the order of shards and tars; and what is refused. To `tars` is added where
    each shard lies as a plain tar."""
    from webdataset.tariterators import group_by_keys

    problems: list[Rejected] = []
    doubled: list[str] = []

    def files(shard: str, headers: Iterable[Any]) -> Iterator[dict[str, Any]]:
        for header in headers:
            if header.detail:
                problems.append(Rejected(f"{shard}/{printed(header.name)}", "unsafe", header.detail))
            elif not META.match(header.name):
                yield {"fname": header.name, "data": (header.at, header.size), "__url__": shard}

    def note(error: Exception) -> bool:
        doubled.append(str(error))
        return True

    sizes = [path.stat().st_size for _, path in shards]
    packed = [size for size, (name, _) in zip(sizes, shards, strict=True) if not name.lower().endswith(".tar")]
    if packed:
        listening.say(
            f"unpacking {len(packed)} compressed shards ({sum(packed) / 1e9:,.2f} GB) to {listening.scratch}, "
            "until the set is done"
        )
    done = 0
    for number, (shard, path) in enumerate(shards):
        listening.progress(done, sum(sizes))
        done += sizes[number]
        tar, headers = in_order(path, listening)
        tars.append(tar)
        for sample in group_by_keys(files(shard, headers), handler=note):
            key, _ = sample.pop("__key__"), sample.pop("__url__")
            yield from problems
            problems.clear()
            if doubled:
                doubled.clear()
                yield Rejected(f"{shard}/{printed(key)}", "duplicate", "the tar holds a member of it twice")
            elif sample:
                yield Group(number, shard, printed(key), sample)
        yield from problems
        problems.clear()
