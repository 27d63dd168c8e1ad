"""What an archive must offer to be ingested: a list of its samples, and a way to read one.

A new dataset is one file in `ingest/sources/` with a class that satisfies `Source`. It says what a sample is made of
(`Schema`), lists what there is (`listing`, in the main process) and fills one sample (`read`, in the workers); splits,
shards, checksums, statistics, restarts and the manifest are `ingest.build`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

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


@dataclass(frozen=True)
class Schema:
    """What every sample of a set is made of.

    `arrays`: member → (bands, (height, width)), all uint16; `json_bytes`: the size that a sample's json is padded to;
    `columns`: what the catalogue gets beside its own columns;
    `nodata`: the stored number that means no data, None where there is none.
    """

    bands: tuple[str, ...]
    arrays: dict[str, tuple[tuple[str, ...], tuple[int, int]]]
    reflectance: Reflectance
    labels: dict[str, LabelSpec]
    masks: dict[str, MaskSpec]
    json_bytes: int
    columns: tuple[str, ...]
    nodata: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample as listed: its key, its folder or file relative to the archive, its split ("" where the archive names
    none), class indices by label name (where the listing knows them), and text that `Source.read` wants to have."""

    key: str
    path: str
    split: str = ""
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """All that an archive holds, in an order that depends on the archive alone; what is refused before any is read; and
    warnings for a person's eyes."""

    entries: list[Entry]
    rejected: list[Rejected]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Facts:
    """What reading a sample told: class indices by label name, the content of its json, its place (longitude
    and latitude in degrees, WGS 84; None where unknown), and its other catalogue columns."""

    labels: dict[str, tuple[int, ...]]
    json: dict[str, Any]
    place: tuple[float, float] | None
    date: str
    columns: dict[str, Any]


class Source(Protocol):
    """An archive of one kind. Instances travel to worker processes, so they must pickle."""

    name: str
    """The name of the shard set, unless the user gives one."""

    def listing(self) -> Listing:
        """List the archive. Raises BandstreamError where there is nothing to ingest."""

    @property
    def schema(self) -> Schema:
        """What its samples are made of; known once `listing` has run."""

    def describe(self) -> dict[str, Any]:
        """The manifest's `source`: what this is, without machine paths; known once `listing` has run."""

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        """Fill the array and mask members of one sample and tell the rest. Raises Rejected.

        `views`: member → the array to fill, (bands, H, W) uint16 or (H, W) uint8; content on entry is undefined.
        """
