"""What an archive must offer to be ingested: a list of its samples, and a way to read one.

A new dataset is one file in `ingest/sources/`: a class that satisfies `Source`, and the command that makes one
(`ingest.commands`). It says what a sample is made of (`Schema`), lists what there is (`listing`, in the main process)
and fills one sample (`read`, in the workers); splits, shards, checksums, statistics, restarts and the manifest are
`ingest.building.build`'s.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shards.bands import Band
from shards.errors import BandstreamError
from shards.manifest import LabelSpec, MaskSpec, Reflectance


class Rejected(Exception):
    """An input that is not taken: where it lies (relative to the archive), why (a code), and in words."""

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(path, reason, detail)
        self.path = path
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self.detail}"


class Unfinished(BandstreamError):
    """A listing that cannot go on; what it left in its scratch folder is kept for the next run."""


@dataclass(frozen=True)
class Array:
    """An array member: the bands of its planes, in order; (height, width); uint8, uint16, int16 or float32; the number
    of its date, where a sample holds several dates of a place."""

    bands: tuple[str, ...]
    size: tuple[int, int]
    dtype: str = "uint16"
    time: int = 0


@dataclass(frozen=True)
class Schema:
    """What every sample of a set is made of.

    `bands`: in the channel order of views; `arrays`: by member; `json_bytes`: the size that a sample's json is padded
    to; `columns`: what the catalogue gets beside its own columns, name → str, int or float, each also a key of the
    json; `nodata`: the stored number that means no data, None where there is none.
    """

    bands: tuple[Band, ...]
    arrays: dict[str, Array]
    reflectance: Reflectance
    labels: dict[str, LabelSpec]
    masks: dict[str, MaskSpec]
    json_bytes: int
    columns: dict[str, type]
    nodata: float | None

    @property
    def finest(self) -> tuple[int, int]:
        """(height, width) of the finest array: the grid of the masks."""
        sizes = [array.size for array in self.arrays.values()]
        return max(height for height, _ in sizes), max(width for _, width in sizes)


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample as listed.

    `key` names it in the set, `path` (relative to the archive) names it to a person and to `Source.read`; `split` is ""
    where the archive names none; `labels`: class indices by label name, where the listing knows them; `extra`: text
    that `Source.read` wants to have, and `where`, without newline: the same, but about where the sample lies, which
    does not bear on the set's bytes. Where splits are drawn, entries of one `group` ("" stands for the key) stay
    together, and each `stratum` is drawn from alike.
    """

    key: str
    path: str
    split: str = ""
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    where: str = ""
    group: str = ""
    stratum: str = ""

    def dump(self) -> bytes:
        """What decides the sample's bytes, as JSON."""
        return json.dumps([self.key, self.path, self.split, self.labels, self.extra]).encode()

    @classmethod
    def load(cls, line: bytes, where: bytes) -> "Entry":
        key, path, split, labels, extra = json.loads(line)
        return cls(key, path, split, {name: tuple(indices) for name, indices in labels.items()}, extra, where.decode())


@dataclass(frozen=True, slots=True)
class Facts:
    """What reading a sample told: class indices by label name, the content of its json, its place (longitude
    and latitude in degrees, WGS 84; None where unknown), its date (ISO 8601, "" where unknown), and its other catalogue
    columns."""

    labels: dict[str, tuple[int, ...]]
    json: dict[str, Any]
    place: tuple[float, float] | None
    date: str
    columns: dict[str, Any]


def _ignore(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Listening:
    """Where a listing may put files that it needs until the set is done, whom it tells what, and who works for it.

    `warn`: of what looks wrong; `say`: of what it is about to do that takes long or much room; `progress`: (bytes done,
    all bytes) of that. `map`: as Python's, but by the engine's workers, several items at a time: the function is one of
    a module, may run twice, and finds the archive and `scratch` under the same paths.
    """

    scratch: Path
    warn: Callable[[str], None] = _ignore
    say: Callable[[str], None] = _ignore
    progress: Callable[[int, int], None] = _ignore
    map: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]] = map


class Source(Protocol):
    """An archive of one kind. Instances travel to worker processes, so they must pickle, and their attributes are
    what `listing` leaves in them."""

    name: str
    """The name of the shard set, unless the user gives one."""
    inputs: tuple[Path, ...]
    """The files and folders that it reads."""

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        """All that the archive holds, in an order that depends on the archive alone, in memory that does not grow with
        it. Raises BandstreamError where there is nothing to ingest."""

    @property
    def schema(self) -> Schema:
        """What its samples are made of; known once `listing` has run to its end."""

    def describe(self) -> dict[str, Any]:
        """The manifest's `source`: what this is, without machine paths; known once `listing` has run to its end."""

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        """Fill the array and mask members of one sample and tell the rest. Raises Rejected.

        `views`: member → the array to fill, (bands, H, W) or, of masks, (H, W) uint8; content on entry is undefined.
        """
