"""Which sample goes into which shard: a pure function of the listing, the seed and the options.

Samples are ordered by a hash of (seed, key), which no library's random stream can change, and cut into shards within
their split. Archives list neighbours together; here they lie apart. The plan is made before a pixel is read: a sample
that turns out to be damaged leaves its shard smaller and moves no other.
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.source import Entry, Rejected
from shards.errors import BandstreamError
from shards.manifest import SPLITS

HELD_OUT = 10
"""Without a split in the archive or a split file, one tenth goes to val, one to test and the rest to train."""


@dataclass(frozen=True)
class Shard:
    """One task: the entries of `NAME.tar`, in order."""

    name: str
    split: str
    entries: tuple[Entry, ...]


def digest(purpose: str, seed: int, key: str) -> bytes:
    """What samples are sorted by: 16 bytes that depend on nothing else."""
    return hashlib.blake2b(f"{purpose}:{seed}:{key}".encode(), digest_size=16).digest()


def assign_splits(
    entries: Sequence[Entry], seed: int, split_file: Mapping[str, str] | None, rejected: list[Rejected]
) -> dict[str, list[Entry]]:
    """Entries by split: from the split file, else as the archive says, else drawn by the seed."""
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    drawn = []
    for entry in entries:
        split = entry.split if split_file is None else split_file.get(entry.key)
        if split is None:
            rejected.append(Rejected(entry.path, "no-split", "the split file does not name it"))
        elif split:
            splits[split].append(entry)
        else:
            drawn.append(entry)
    drawn.sort(key=lambda entry: digest("split", seed, entry.key))
    tenth = len(drawn) // HELD_OUT
    splits["val"] += drawn[:tenth]
    splits["test"] += drawn[tenth : 2 * tenth]
    splits["train"] += drawn[2 * tenth :]
    return splits


def cut(splits: Mapping[str, list[Entry]], shard_samples: int, seed: int) -> list[Shard]:
    """Shuffle each split and cut it into shards of `shard_samples`; the last of a split may be smaller."""
    shards = []
    for split, entries in splits.items():
        ordered = sorted(entries, key=lambda entry: digest("order", seed, entry.key))
        for number, start in enumerate(range(0, len(ordered), shard_samples)):
            shards.append(Shard(f"{split}-{number:06d}", split, tuple(ordered[start : start + shard_samples])))
    return shards


def fingerprint(shards: Sequence[Shard], rejected: Sequence[Rejected], description: Mapping[str, Any]) -> str:
    """SHA-256 of everything that decides a set's bytes, but for the content of the archive's files."""
    state = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for shard in shards:
        for entry in shard.entries:
            state.update(repr((shard.name, entry.key, entry.path, entry.labels, entry.extra)).encode())
    for rejection in rejected:
        state.update(repr(rejection.args).encode())
    return state.hexdigest()


def read_split_file(path: Path) -> dict[str, str]:
    """Patch → split from a CSV with two columns, patch and split; a first line `patch,split` is allowed.

    Splits are train, val (or validation) and test. Raises BandstreamError naming the line that is wrong.
    """
    names = {**{split: split for split in SPLITS}, "validation": "val"}
    splits: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row or (number == 1 and [cell.strip() for cell in row] == ["patch", "split"]):
                    continue
                if len(row) != 2 or row[1].strip() not in names:
                    raise BandstreamError(f"{path}, line {number}: expected PATCH,SPLIT with split train, val or test")
                patch, split = row[0].strip(), names[row[1].strip()]
                if splits.setdefault(patch, split) != split:
                    raise BandstreamError(f"{path}, line {number}: {patch} is in {splits[patch]} already")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BandstreamError(f"{path} cannot be read as a split file: {error}") from None
    if not splits:
        raise BandstreamError(f"{path} names no patches: expected lines PATCH,SPLIT")
    return splits
