"""`dataset.json`: what a shard set holds. Written last and atomically, it is the commit of an ingest."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shards import atomic
from shards.bands import SENTINEL2, esa_order
from shards.errors import BandstreamError

FORMAT_VERSION = 1
FILE = "dataset.json"
CREATED_BY = f"bandstream {version('bandstream')}"
SPLITS = ("train", "val", "test")

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ZEROS = b"0" * 64
"""What stands for the manifest's checksum of itself while that is computed."""
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Part(BaseModel):
    """A part of the manifest: immutable, and refusing fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BandSpec(Part):
    name: str
    wavelength_nm: int
    gsd_m: int | float


class ArraySpec(Part):
    """An array member: `shape` is (bands, height, width), `offset` where its first pixel lies in its sample."""

    bands: list[str]
    shape: tuple[int, int, int]
    dtype: Literal["uint8", "uint16", "int16", "float32"]
    offset: int
    time: int = 0

    @model_validator(mode="after")
    def _one_plane_a_band(self) -> "ArraySpec":
        if len(self.bands) != self.shape[0] or min(self.shape) < 1:
            raise ValueError(f"shape {self.shape} does not hold the bands {self.bands}")
        return self


class Reflectance(Part):
    """Stored number → reflectance: `stored * scale + offset`; `level` is the product's (L1C, L2A, ...)."""

    scale: float
    offset: float
    level: str


class LabelSpec(Part):
    """`multilabel`: uint8 multi-hot (K,). `single`: the class index as ASCII digits."""

    member: str
    kind: Literal["multilabel", "single"]
    classes: list[str]


class MaskSpec(Part):
    member: str
    classes: list[str]
    ignore_index: int = 255


class BandStatistics(Part):
    """Of the train split, over every stored pixel, in stored numbers; `nodata` and `saturated` are shares of them."""

    mean: float
    std: float
    min: float
    max: float
    p02: float
    p98: float
    count: Count
    nodata: float = 0.0
    saturated: float = 0.0


class ShardSpec(Part):
    file: FileName
    samples: Annotated[int, Field(ge=1)]
    bytes: Count
    sha256: Sha256
    idx_sha256: Sha256


class FileSpec(Part):
    """A file of the set that is no shard."""

    bytes: Count
    sha256: Sha256


class SplitSpec(Part):
    samples: Annotated[int, Field(ge=1)]
    shards: list[ShardSpec]


class Manifest(Part):
    """The manifest of a shard set, as `ingest/FORMAT.md` describes it.

    Sets of early writers lack `columns`, `files` and `manifest_sha256`.
    """

    format_version: Literal[1]
    name: str
    source: dict[str, Any]
    seed: int
    created_by: str
    bands: list[BandSpec]
    sample_bytes: Annotated[int, Field(gt=0, multiple_of=512)]
    arrays: dict[str, ArraySpec]
    reflectance: Reflectance
    labels: dict[str, LabelSpec]
    masks: dict[str, MaskSpec]
    statistics: dict[str, BandStatistics]
    splits: dict[str, SplitSpec]
    rejected: dict[str, Count]
    columns: dict[str, Literal["str", "int", "float"]] | None = None
    files: dict[FileName, FileSpec] | None = None
    manifest_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        names = self.band_names
        if set(names) <= set(SENTINEL2) and names != esa_order(names):
            raise ValueError(f"bands are not in ESA order: {names}")
        for time in {array.time for array in self.arrays.values()}:
            held = [band for array in self.arrays.values() if array.time == time for band in array.bands]
            if sorted(held) != sorted(names):
                raise ValueError(f"the arrays of date {time} hold {held}, not each of {names} once")
        if not self.arrays:
            raise ValueError("a shard set without arrays")
        if "train" in self.splits and set(self.statistics) != set(names):
            raise ValueError(f"statistics stand there for {sorted(self.statistics)}, not for {names}")
        for split, spec in self.splits.items():
            if split not in SPLITS:
                raise ValueError(f"a split {split!r}: there are {', '.join(SPLITS)}")
            if sum(shard.samples for shard in spec.shards) != spec.samples:
                raise ValueError(f"the shards of {split} do not add up to its {spec.samples} samples")
        files = [shard.file for spec in self.splits.values() for shard in spec.shards]
        if len(set(files)) != len(files):
            raise ValueError("a shard is listed twice")
        return self

    @property
    def band_names(self) -> list[str]:
        """Names of the bands, in the channel order of views and encoders."""
        return [band.name for band in self.bands]

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON: two sets with equal fingerprints hold equal bytes."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        """All but its own checksum, without the fields that an early writer did not know."""
        content = self.model_dump(mode="json", exclude={"manifest_sha256"})
        return {name: value for name, value in content.items() if value is not None}

    def encoded(self) -> bytes:
        """The bytes of `dataset.json`."""
        content = {**self._content(), "manifest_sha256": ZEROS.decode()}
        blank = (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
        head, tail = blank.rsplit(ZEROS, 1)
        return head + hashlib.sha256(blank).hexdigest().encode() + tail

    def write(self, folder: Path) -> None:
        """Write `dataset.json` atomically: from then on the folder is a shard set."""
        atomic.write_bytes(folder / FILE, self.encoded())

    @classmethod
    def read(cls, folder: Path | str) -> "Manifest":
        """Read and validate `dataset.json`. Raises BandstreamError naming the file and what is wrong in it."""
        path = Path(folder) / FILE
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise missing(folder) from None
        return cls.parse(raw, path)

    @classmethod
    def parse(cls, raw: bytes, path: Path | str) -> "Manifest":
        """Validate the bytes of a `dataset.json`; `path` is what errors call it."""
        try:
            content = json.loads(raw)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BandstreamError(f"{path} is not JSON ({error}): restore it or ingest again") from None
        if isinstance(content, dict) and content.get("format_version") != FORMAT_VERSION:
            found = content.get("format_version", "none")
            raise BandstreamError(
                f"{path}: format_version {found}, this bandstream reads {FORMAT_VERSION}: use the version that wrote it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise BandstreamError(f"{path}: {where}: {first['msg']}: restore it or ingest again") from None


def missing(place: Path | str) -> BandstreamError:
    """What a place without a manifest is."""
    return BandstreamError(
        f"{place} is no shard set: it has no {FILE}. If an ingest into it was interrupted, run it again"
    )


def changed(raw: bytes) -> str:
    """What is wrong with the bytes of a valid `dataset.json`; "" where they are those that were written."""
    stated = json.loads(raw).get("manifest_sha256")
    if stated is None:
        return ""
    if raw.count(stated.encode()) != 1 or hashlib.sha256(raw.replace(stated.encode(), ZEROS)).hexdigest() != stated:
        return "changed since it was written, its manifest_sha256 does not fit it"
    return ""
