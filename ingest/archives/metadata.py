"""What stands beside the patches of BigEarthNet: rows of `metadata.parquet`, lists of patches, names of classes."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ingest.archives import clc
from ingest.archives.tiles import METADATA, top_of
from ingest.reading.files import Files
from ingest.reading.folders import joined
from ingest.reading.product import iso_date
from ingest.source import Entry, Rejected
from shards.errors import BandstreamError
from shards.layout import KEY

LABEL = "land_cover"
FLAGS = {"seasonal-snow": "contains_seasonal_snow", "cloud-or-shadow": "contains_cloud_or_shadow"}
"""What `--without` may name, and the column of the metadata that says it."""
SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
Known = tuple[tuple[Any, ...] | None, str]
"""What is known of a patch beside its folder: its row of the metadata (split, labels, country, flags…), and where its
reference map lies, `number among the opened:folder of its tile`; shared by all patches of which the same is known."""
UNKNOWN: Known = None, ""


def _no_parquet(file: Path | str, error: Exception) -> BandstreamError:
    text = " ".join(str(error).split())
    return BandstreamError(f"{file} cannot be read as Parquet ({text}): name another with --metadata")


def listed(lists: Iterable[Path]) -> set[str]:
    """The patches that stand in lists, a name a line. Raises BandstreamError where a list is none."""
    names: set[str] = set()
    for path in lists:
        try:
            lines = [line.strip().strip('"').strip(",") for line in path.read_text("utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise BandstreamError(f"{path} cannot be read as a list of patches: {error}") from None
        found = [line for line in lines if line]
        wrong = [line for line in found if not KEY.fullmatch(line)]
        if wrong or not found:
            raise BandstreamError(f"{path} is no list of patches, a name a line: {wrong[0][:80] if wrong else 'empty'}")
        names.update(found)
    return names


def covered(path: str, row: Any, has_rows: bool) -> tuple[str, dict[str, tuple[int, ...]], dict[str, str]]:
    """Split, labels and country of a patch by its metadata row. Raises Rejected."""
    if not has_rows:
        return "", {}, {}
    if row is None:
        raise Rejected(path, "no-metadata", "the metadata does not cover it")
    split, names, country, *_ = row
    if split not in SPLITS:
        raise Rejected(path, "unknown-split", f"split {split!r}: known are {', '.join(SPLITS)}")
    known: Mapping[str, int | None] = {name: index for index, name in enumerate(clc.CLASSES)}
    labels = {LABEL: indices_of(path, names or (), known)}
    return SPLITS[split], labels, {"country": country or ""}


def indices_of(path: str, names: Iterable[str], known: Mapping[str, int | None]) -> tuple[int, ...]:
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


def metadata_in(archives: Iterable[Files]) -> list[tuple[str, Any]]:
    """Each `metadata.parquet` that lies in archives, beside or inside the folder of tiles: its name, and its bytes."""
    found: list[tuple[str, Any]] = []
    for files in archives:
        top = top_of(files)
        for folder in dict.fromkeys((top.rpartition("/")[0], top)):
            if METADATA in files.names(folder):
                found.append((METADATA, io.BytesIO(files.read(joined(folder, METADATA)))))
    return found


def read_rows(files: Iterable[tuple[Path | str, Any]], without: Iterable[str], known: dict[str, Known]) -> None:
    """Put the rows of metadata files, (what to call it, path or bytes), into `known`; `without`: flags that are asked
    for. Raises BandstreamError where a file is none, or contradicts itself or another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    same: dict[Any, Any] = {}
    for file, content in files:
        try:
            opened_file = pq.ParquetFile(content)
            found = opened_file.schema_arrow.names
        except (OSError, pa.ArrowException) as error:
            raise _no_parquet(file, error) from None
        missing = [name for name in ("patch_id", "labels", "split") if name not in found]
        if missing:
            raise BandstreamError(f"{file} has no column {', '.join(missing)}: it is not BigEarthNet v2's metadata")
        wanted = [FLAGS[flag] for flag in without if FLAGS[flag] not in found]
        if wanted:
            raise BandstreamError(f"{file} has no column {', '.join(wanted)}, which --without needs")
        names = ("patch_id", "split", "labels", "country", *FLAGS.values())
        try:
            for batch in opened_file.iter_batches(8192, columns=[name for name in names if name in found]):
                empty = [None] * len(batch)
                columns = [batch[name].to_pylist() if name in found else empty for name in names]
                for patch, split, labels, *others in zip(*columns, strict=True):
                    row = (split, tuple(labels or ()), *others)
                    # few rows differ, and most patches share theirs with thousands
                    one = same.setdefault((row, ""), (row, ""))
                    if known.setdefault(patch, one) != one:
                        raise BandstreamError(
                            f"{file} contradicts itself or another file about {patch}: give one metadata file"
                        )
        except (OSError, pa.ArrowException) as error:
            raise _no_parquet(file, error) from None


def read_json(entry: Entry, files: Files, folder: str) -> tuple[dict[str, tuple[int, ...]], str, str]:
    """Labels, date and source product of a version 1 patch, from its JSON. Raises Rejected."""
    name = f"{entry.key}_labels_metadata.json"
    path = f"{entry.path}/{name}"
    try:
        content = json.loads(files.read(f"{folder}/{name}"))
        names = content["labels"]
        indices = indices_of(path, names, clc.NAME_TO_CLASS)
        date = str(content.get("acquisition_date", "")).replace(" ", "T")
        return {LABEL: indices}, iso_date(date), str(content.get("tile_source", ""))
    except FileNotFoundError:
        raise Rejected(entry.path, "no-metadata", f"{name} is not there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Rejected(path, "unreadable", f"no labels can be read from it ({type(error).__name__})") from None
