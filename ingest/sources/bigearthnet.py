"""BigEarthNet Sentinel-2: version 1 (Sumbul et al., IGARSS 2019), version 2 (reBEN, Clasen et al., arXiv 2407.03653).

Version 1 is a folder of patches, each with `*_labels_metadata.json` (43 CLC names, mapped here to the 19 classes).
Version 2 is `BigEarthNet-S2/TILE/PATCH/`, with `metadata.parquet` (labels, split, country) and
`Reference_Maps/TILE/PATCH/` beside it. What a set has is decided for the whole of it: version 2 without
`metadata.parquet` has no labels, without `Reference_Maps` no masks; with them, a patch that they do not cover is
rejected. One exception: reference maps of which not a single one belongs to a patch of the archive are another
archive's, and are left alone with a warning.

Rejected, as the authors leave them out of the 19-class nomenclature: patches whose labels are all in no class. Split
`validation` is called `val`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ingest import clc
from ingest.geotiff import RasterError, Reader
from ingest.product import baseline_of, date_of, iso_date, offset_of, tile_of
from ingest.source import Entry, Facts, Listing, Rejected, Schema
from ingest.tiff import Header
from ingest.utm import lon_lat
from shards.errors import BandstreamError
from shards.manifest import LabelSpec, MaskSpec, Reflectance

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
ARRAYS: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    "10m.npy": (("B02", "B03", "B04", "B08"), (120, 120)),
    "20m.npy": (("B05", "B06", "B07", "B8A", "B11", "B12"), (60, 60)),
    "60m.npy": (("B01", "B09"), (20, 20)),
}
LABEL = "land_cover"
METADATA, MAPS = "metadata.parquet", "Reference_Maps"
SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
JSON_BYTES = 1024


class BigEarthNet:
    """The archive in a folder. `metadata` and `maps` name what lies elsewhere than beside the patches."""

    def __init__(self, root: Path, metadata: Iterable[Path] = (), maps: Path | None = None) -> None:
        self.root = root
        self.metadata = list(metadata)
        self.maps = maps
        self.version = "2"
        self.name = "bigearthnet"
        self._codes = clc.code_table()
        self._has_labels = False
        self._has_masks = False
        self._masks_note = "none"
        self._prefix = f"{root}/"
        self._maps_prefix = f"{maps or root / MAPS}/"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_reader", "_map_reader")}

    @cached_property
    def _reader(self) -> Reader:
        return Reader()

    @cached_property
    def _map_reader(self) -> Reader:
        return Reader()

    @property
    def schema(self) -> Schema:
        classes = list(clc.CLASSES)
        labels = {LABEL: LabelSpec(member="labels.npy", kind="multilabel", classes=classes)}
        masks = {LABEL: MaskSpec(member="mask.npy", classes=classes, ignore_index=clc.IGNORE)}
        return Schema(
            bands=BANDS,
            arrays=ARRAYS,
            reflectance=Reflectance(scale=1e-4, offset=0.0, level="L2A"),
            labels=labels if self._has_labels else {},
            masks=masks if self._has_masks else {},
            json_bytes=JSON_BYTES,
            columns=("country", "tile", "processing_baseline"),
            nodata=0,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "bigearthnet",
            "version": self.version,
            "labels": {
                False: "none",
                True: "19 classes" if self.version == "2" else "43 CLC names mapped to 19 classes",
            }[self._has_labels],
            "masks": "reference maps, CLC codes mapped to 19 classes" if self._has_masks else self._masks_note,
        }

    def listing(self) -> Listing:
        if not self.root.exists():
            raise BandstreamError(f"{self.root} does not exist: name the folder of the archive")
        if not self.root.is_dir():
            raise BandstreamError(f"{self.root} is a file: unpack it and name the folder")
        rejected: list[Rejected] = []
        patches = list(self._patches(rejected))
        if not any(self._holds_patch(path, key) for path, key in patches):
            raise BandstreamError(
                f"{self.root} holds no patches: expected BigEarthNet-S2/TILE/PATCH/ (version 2) or PATCH/ (version 1)"
            )
        rows = self._rows()
        masks, warnings = self._masks({key for _, key in patches})
        self._has_labels = self.version == "1" or rows is not None
        self._has_masks = masks is not None
        entries: list[Entry] = []
        seen: dict[str, str] = {}
        for path, key in patches:
            try:
                if key in seen:
                    raise Rejected(path, "duplicate", f"the same patch lies in {seen[key]}")
                seen[key] = path
                if not re.fullmatch(r"[A-Za-z0-9_+=-]{1,80}", key):
                    raise Rejected(path, "bad-name", "a patch's name has 1 to 80 letters, digits and _ + = -")
                split, labels, extra = _covered(path, rows[key] if rows is not None and key in rows else None, rows)
                if masks is not None:
                    if key not in masks:
                        raise Rejected(path, "no-map", "the reference maps do not cover it")
                    extra["map"] = masks[key]
                entries.append(Entry(key, path, split, labels, extra))
            except Rejected as rejection:
                rejected.append(rejection)
        return Listing(entries, rejected, warnings)

    def _patches(self, rejected: list[Rejected]) -> Iterable[tuple[str, str]]:
        """(path relative to the archive, name) of every patch folder, sorted; sets the version."""
        inner = [name for name in ("BigEarthNet-S2", "BigEarthNet-v1.0") if (self.root / name).is_dir()]
        top = inner[0] if inner else ""
        folders = [name for name in _folders(self.root / top) if name not in (MAPS, "BigEarthNet-S1")]
        nested, marked = False, False
        for name in folders[:16]:
            content = list(os.scandir(self.root / top / name))
            nested |= any(entry.is_dir() for entry in content)
            marked |= any(entry.name.endswith("_labels_metadata.json") for entry in content)
        self.version = "1" if marked and not nested else "2"
        for name in folders:
            path = os.path.join(top, name)
            if not nested:
                yield path, name
                continue
            try:
                inside = _folders(self.root / path)
            except OSError as error:
                rejected.append(Rejected(path, "unreadable", error.strerror or str(error)))
                continue
            for patch in inside:
                yield os.path.join(path, patch), patch
            if not inside and any(entry.endswith(".tif") for entry in os.listdir(self.root / path)):
                yield path, name

    def _holds_patch(self, path: str, key: str) -> bool:
        """Whether a folder has at least one file of the patch that it is named after."""
        try:
            return any(name.startswith(f"{key}_") for name in os.listdir(self.root / path))
        except OSError:
            return False

    def _rows(self) -> dict[str, Any] | None:
        """Patch → (split, labels, country) from the metadata; None where there is none. A contradiction is an error."""
        files = self.metadata
        if not files and self.version == "2" and (self.root / METADATA).is_file():
            files = [self.root / METADATA]
        if not files:
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: dict[str, Any] = {}
        for file in files:
            try:
                table = pq.read_table(file)
            except (OSError, pa.ArrowException) as error:
                raise BandstreamError(
                    f"{file} cannot be read as Parquet ({error}): name another with --metadata"
                ) from None
            missing = [name for name in ("patch_id", "labels", "split") if name not in table.column_names]
            if missing:
                raise BandstreamError(f"{file} has no column {', '.join(missing)}: it is not BigEarthNet v2's metadata")
            optional = [name for name in ("country",) if name in table.column_names]
            columns = [table[name].to_pylist() for name in ("patch_id", "split", "labels", *optional)]
            for patch, *values in zip(*columns, strict=True):
                if rows.setdefault(patch, values) != values:
                    raise BandstreamError(
                        f"{file} contradicts itself or another file about {patch}: give one metadata file"
                    )
        return rows

    def _masks(self, keys: set[str]) -> tuple[dict[str, str] | None, list[str]]:
        """Patch → its reference map, relative to the folder of maps, and warnings."""
        base = self.maps or self.root / MAPS
        if not base.is_dir():
            if self.maps:
                raise BandstreamError(f"{self.maps} is no folder: name the folder of the reference maps")
            return None, []
        found: dict[str, str] = {}
        for tile in _folders(base):
            inside = _folders(base / tile)
            for patch in inside or [tile]:
                found[patch] = os.path.join(tile, patch if inside else "", f"{patch}_reference_map.tif")
        if keys.isdisjoint(found):
            what = f"{base} covers not one of the {len(keys)} patches"
            if self.maps:
                raise BandstreamError(f"{what}: name this archive's reference maps")
            self._masks_note = "none: the reference maps beside the patches cover not one of them"
            return None, [f"{what}: taken to be another archive's, the set gets no masks"]
        return found, []

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        labels, date, product = entry.labels, "", entry.key
        if self.version == "1":
            labels, date, product = self._v1_metadata(entry)
        headers: list[Header] = []
        stem = f"{entry.path}/{entry.key}"
        for member, (bands, _) in ARRAYS.items():
            for band, plane in zip(bands, views[member], strict=True):
                self._raster(self._reader, self._prefix, entry, f"{stem}_{band}.tif", plane, headers)
        if self._has_masks:
            codes = np.empty(views["mask.npy"].shape, np.uint16)
            self._raster(self._map_reader, self._maps_prefix, entry, entry.extra["map"], codes, headers)
            views["mask.npy"][...] = self._codes.take(codes)
        removed = offset_of(baseline_of(product)) if self.version == "2" else 0
        if removed:
            for member in ARRAYS:
                np.maximum(views[member], removed, out=views[member])
                np.subtract(views[member], removed, out=views[member])
        return _facts(entry, labels, date or date_of(entry.key), product, removed, headers[0])

    def _raster(
        self, reader: Reader, prefix: str, entry: Entry, path: str, plane: np.ndarray, headers: list[Header]
    ) -> None:
        """Read one file into `plane`; it must lie where those before it lie. Appends its header."""
        try:
            header = reader.read(prefix + path, plane)
        except FileNotFoundError:
            missing = "missing-band" if reader is self._reader else "no-map"
            raise Rejected(entry.path, missing, f"{os.path.basename(path)} is not there") from None
        except RasterError as error:
            raise Rejected(path, error.reason, error.detail) from None
        same = bool(headers) and header is headers[-1]  # of one shape and in one place, as the reader promises
        if headers and not same and header.transform and headers[0].transform:
            place = header.epsg, _bounds(header, plane.shape)
            if place != (headers[0].epsg, _bounds(headers[0], (120, 120))):
                raise Rejected(path, "misplaced", "it lies elsewhere than the patch's other rasters")
        headers.append(header)

    def _v1_metadata(self, entry: Entry) -> tuple[dict[str, tuple[int, ...]], str, str]:
        """Labels, date and source product of a version 1 patch, from its JSON."""
        path = f"{entry.path}/{entry.key}_labels_metadata.json"
        try:
            content = json.loads((self.root / path).read_bytes())
            names = content["labels"]
            indices = _indices(path, names, clc.NAME_TO_CLASS)
            date = str(content.get("acquisition_date", "")).replace(" ", "T")
            return {LABEL: indices}, iso_date(date), str(content.get("tile_source", ""))
        except FileNotFoundError:
            raise Rejected(entry.path, "no-metadata", f"{os.path.basename(path)} is not there") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Rejected(path, "unreadable", f"no labels can be read from it ({type(error).__name__})") from None


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _covered(path: str, row: Any, rows: Any) -> tuple[str, dict[str, tuple[int, ...]], dict[str, str]]:
    """Split, labels and country of a patch by its metadata row. Raises Rejected."""
    if rows is None:
        return "", {}, {}
    if row is None:
        raise Rejected(path, "no-metadata", "the metadata does not cover it")
    split, names, *country = row
    if split not in SPLITS:
        raise Rejected(path, "unknown-split", f"split {split!r}: known are {', '.join(SPLITS)}")
    known: Mapping[str, int | None] = {name: index for index, name in enumerate(clc.CLASSES)}
    labels = {LABEL: _indices(path, names or (), known)}
    return SPLITS[split], labels, {"country": country[0] or ""} if country else {}


def _indices(path: str, names: Iterable[str], known: Mapping[str, int | None]) -> tuple[int, ...]:
    """Label names → sorted class indices. Raises Rejected on a name that is unknown, or where none is left."""
    names = list(names)
    for name in names:
        if name not in known:
            raise Rejected(path, "unknown-label", f"{name!r} is no class of BigEarthNet")
    indices = tuple(sorted({index for name in names if (index := known[name]) is not None}))
    if not indices:
        raise Rejected(
            path, "no-class", f"none of its labels is among the 19 classes: {', '.join(names) or 'no labels'}"
        )
    return indices


def _bounds(header: Header, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) in the raster's own coordinates; zeros where it has none."""
    if header.transform is None:
        return 0.0, 0.0, 0.0, 0.0
    a, _, c, _, e, f = header.transform
    return c, f + e * shape[0], c + a * shape[1], f


def _facts(
    entry: Entry, labels: dict[str, tuple[int, ...]], date: str, product: str, removed: int, header: Header
) -> Facts:
    left, bottom, right, top = _bounds(header, (120, 120))
    place: tuple[float, float] | None = None
    if header.transform and header.epsg:
        try:
            place = lon_lat(header.epsg, (left + right) / 2, (bottom + top) / 2)
        except (ValueError, OverflowError) as error:
            raise Rejected(entry.path, "misplaced", str(error)) from None
    columns = {
        "country": entry.extra.get("country", ""),
        "tile": tile_of(product),
        "processing_baseline": baseline_of(product),
    }
    lon, lat = place or (0.0, 0.0)
    content = {
        "id": entry.key,
        "date": date,
        "crs": f"EPSG:{header.epsg}" if header.epsg else "",
        "transform": list(header.transform or (0.0,) * 6),
        "bounds": [left, bottom, right, top],
        "lon": lon,
        "lat": lat,
        "processing_baseline": columns["processing_baseline"],
        "offset_removed": removed,
        "nodata": "" if header.nodata is None else f"{header.nodata:g}",
        "tile": columns["tile"],
        "country": columns["country"],
    }
    return Facts(labels, content, place, date, columns)
