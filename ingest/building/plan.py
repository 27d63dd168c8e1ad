"""Which sample goes into which shard: a pure function of the listing, the seed and the options.

Samples are ordered by a hash of (seed, key), which no library's random stream can change, and cut into shards within
their split. Archives list neighbours together; here they lie apart. The plan is made before a pixel is read: a sample
that turns out to be damaged leaves its shard smaller and moves no other.

Entries lie on disk; memory holds some 26 bytes of each while the plan is made, 38 where splits are drawn, and 8
afterwards.
"""

import csv
import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest.source import Entry, Rejected
from shards import atomic
from shards.errors import BandstreamError
from shards.manifest import SPLITS

HELD_OUT = 10
"""Without a split in the archive or a split file, one tenth goes to val, one to test and the rest to train."""
DRAWN, OUT = 254, 255
"""Codes of entries whose split is still to be drawn, and of those that are rejected; others are numbers of SPLITS."""
LINE = 2048
"""Bytes read at once for an entry, which may take more."""
MEMORY, MEMORY_DRAWN = 26, 38
"""Bytes of memory an entry while the plan is made, splits given and drawn: see tests/proofs/ingest_plan.py."""
PIECES = 16
"""Hashes are sorted in so many pieces."""
AT_ONCE = 1 << 18
"""Entries that are put in their places at once."""


@dataclass(frozen=True)
class Shard:
    """One task: the entries of `NAME.tar`, in order."""

    name: str
    split: str
    entries: tuple[Entry, ...]

    @property
    def file(self) -> str:
        return f"{self.name}.tar"


def digest(purpose: str, seed: int, key: str) -> int:
    """What samples are sorted by: 64 bits that depend on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{purpose}:{seed}:{key}".encode(), digest_size=16).digest()[:8], "big")


class Plan:
    """All shards of an ingest, in order: `len`, indexing and iteration make them from the entries on disk.

    `rejected`: the inputs that are refused before any is read; `drawn`: whether splits were drawn by the seed;
    `splits`: split → number of its entries.
    """

    def __init__(
        self,
        items: Iterable[Entry | Rejected],
        path: Path,
        seed: int = 0,
        shard_samples: int = 1024,
        split_file: Mapping[str, str] | None = None,
    ) -> None:
        """Take a listing down into the file `path` and order it."""
        self.path = path
        self.rejected: list[Rejected] = []
        self._state = 0  # the sum of the entries' digests, in whatever order they were listed
        offsets, orders, draws, strata = array("Q"), array("Q"), array("Q"), array("I")
        codes = bytearray()
        numbers: dict[str, int] = {}
        with atomic.replacing(path) as file:
            at = 0
            for item in items:
                if isinstance(item, Rejected):
                    self.rejected.append(item)
                    continue
                split = item.split if split_file is None else split_file.get(item.key)
                if split is None:
                    self.rejected.append(Rejected(item.path, "no-split", "the split file does not name it"))
                    continue
                content = item.dump()
                self._state += int.from_bytes(hashlib.sha256(content).digest())
                line = b"%b\t%b\n" % (content, item.where.encode())
                file.write(line)
                offsets.append(at)
                at += len(line)
                orders.append(digest("order", seed, item.key))
                codes.append(SPLITS.index(split) if split else DRAWN)
                if not split:
                    draws.append(digest("split", seed, item.group or item.key))
                    strata.append(numbers.setdefault(item.stratum, len(numbers)))
        self.drawn = len(draws) > 0
        code = np.frombuffer(codes, np.uint8)
        order = _sorted(np.frombuffer(orders, np.uint64))
        to_draw = code == DRAWN
        self._reject_duplicates(order, np.frombuffer(orders, np.uint64), np.frombuffer(offsets, np.uint64), code)
        del orders
        kept = code[to_draw] == DRAWN
        hashes, kinds = np.frombuffer(draws, np.uint64), np.frombuffer(strata, np.uint32)
        if not kept.all():
            hashes, kinds = hashes[kept], kinds[kept]
        code[code == DRAWN] = _draw(hashes, kinds)
        del draws, strata, hashes, kinds, to_draw, kept
        ordered = code[order]
        self._codes = hashlib.sha256(ordered.data).hexdigest()
        self.splits = {split: int(np.count_nonzero(ordered == number)) for number, split in enumerate(SPLITS)}
        self._places = _places(np.frombuffer(offsets, np.uint64), order, ordered, list(self.splits.values()))
        self._shard_samples = shard_samples

    def _reject_duplicates(self, order: np.ndarray, hashes: np.ndarray, offsets: np.ndarray, code: np.ndarray) -> None:
        """Of entries with one key the first listed stays."""
        first: dict[str, Entry] = {}
        with self.path.open("rb") as file:
            for start in range(0, len(order), AT_ONCE):
                numbers = order[start : start + AT_ONCE + 1]
                ordered = hashes[numbers]
                for position in np.flatnonzero(ordered[1:] == ordered[:-1]) + 1:
                    for place in (position - 1, position):
                        number = numbers[place]
                        if code[number] == OUT:
                            continue
                        entry = _entry_at(file.fileno(), int(offsets[number]))
                        known = first.setdefault(entry.key, entry)
                        if known is not entry and place == position:
                            detail = f"the same patch lies in {known.path}"
                            self.rejected.append(Rejected(entry.path, "duplicate", detail))
                            code[number] = OUT

    @property
    def total(self) -> int:
        """Number of entries in all shards."""
        return len(self._places)

    @property
    def names(self) -> list[str]:
        """Names of all shards, in order."""
        return [f"{split}-{shard:06d}" for split in self.splits for shard in range(self._shards(split))]

    def _shards(self, split: str) -> int:
        return -(-self.splits[split] // self._shard_samples)

    def __len__(self) -> int:
        return sum(map(self._shards, self.splits))

    def __getitem__(self, index: int) -> Shard:
        shard, begin = range(len(self))[index], 0
        for split, count in self.splits.items():
            if shard < self._shards(split):
                break
            shard -= self._shards(split)
            begin += count
        start = begin + shard * self._shard_samples
        places = self._places[start : min(start + self._shard_samples, begin + count)]
        with self.path.open("rb") as file:
            entries = tuple(_entry_at(file.fileno(), int(place)) for place in places)
        return Shard(f"{split}-{shard:06d}", split, entries)

    def __iter__(self) -> Iterator[Shard]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self, description: Mapping[str, Any]) -> str:
        """SHA-256 of everything that decides a set's bytes, but for the content of the archive's files."""
        state = hashlib.sha256(f"{self._state % (1 << 256):064x}{self._codes}".encode())
        state.update(json.dumps(description, sort_keys=True).encode())
        for rejected in sorted(rejection.args for rejection in self.rejected):
            state.update(repr(rejected).encode())
        return state.hexdigest()


def _entry_at(descriptor: int, offset: int) -> Entry:
    line = b""
    while b"\n" not in line:
        piece = os.pread(descriptor, LINE, offset + len(line))
        if not piece:
            raise BandstreamError("the list of entries was cut off while it was in use: run the ingest again")
        line += piece
    return Entry.load(*line[: line.index(b"\n")].split(b"\t", 1))


def _sorted(hashes: np.ndarray) -> np.ndarray:
    """The stable order of uint64 (n,), as uint32 where n allows it.

    Sorted piece by piece: a plain argsort would hold an int64 of each, and more while it works.
    """
    order = np.empty(len(hashes), np.uint32 if len(hashes) < 1 << 32 else np.uint64)
    width, done = (1 << 64) // PIECES, 0
    for low in range(0, 1 << 64, width):
        own = np.flatnonzero((hashes >= np.uint64(low)) & (hashes <= np.uint64(low + width - 1)))
        order[done : done + len(own)] = own[np.argsort(hashes[own], kind="stable")]
        done += len(own)
    return order


def _places(offsets: np.ndarray, order: np.ndarray, ordered: np.ndarray, counts: list[int]) -> np.ndarray:
    """Where the entries of the first split lie in their order, then those of the second …: uint64 (sum of counts,).

    `ordered`: codes in the same order.
    """
    result = np.empty(sum(counts), np.uint64)
    ends = [sum(counts[:number]) for number in range(len(counts))]
    for start in range(0, len(order), AT_ONCE):
        numbers, codes = order[start : start + AT_ONCE], ordered[start : start + AT_ONCE]
        for split in range(len(counts)):
            own = offsets[numbers[codes == split]]
            result[ends[split] : ends[split] + len(own)] = own
            ends[split] += len(own)
    return result


def _draw(hashes: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Split numbers, uint8 (n,): of each stratum's entries, by their hashes, a tenth val, a tenth test, the rest train.

    Entries with one hash are one group; a tenth ends where a group does, the nearest.
    """
    train, val, test = (SPLITS.index(split) for split in ("train", "val", "test"))
    result = np.full(len(hashes), train, np.uint8)
    order = _sorted(hashes)
    cuts = np.empty(0, np.int64)
    if len(strata) and strata.max():
        order = order[np.argsort(strata[order], kind="stable")]
        cuts = np.flatnonzero(np.diff(strata[order])) + 1
    for own in np.split(order, cuts):
        ends = []
        for end in (len(own) // HELD_OUT, 2 * (len(own) // HELD_OUT)):
            begin = stop = end
            while begin > 0 and hashes[own[begin]] == hashes[own[begin - 1]]:
                begin -= 1
            while 0 < stop < len(own) and hashes[own[stop]] == hashes[own[stop - 1]]:
                stop += 1
            ends.append(begin if end - begin <= stop - end else stop)
        result[own[: ends[0]]] = val
        result[own[ends[0] : ends[1]]] = test
    return result


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
