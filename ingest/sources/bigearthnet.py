"""BigEarthNet Sentinel-2: version 1 (Sumbul et al., IGARSS 2019), version 2 (reBEN, Clasen et al., arXiv 2407.03653).

Version 1 is a folder of patches, each with `*_labels_metadata.json` (43 CLC names, mapped here to the 19 classes).
Version 2 is `BigEarthNet-S2/TILE/PATCH/`, with `metadata.parquet` (labels, split, country) and
`Reference_Maps/TILE/PATCH/` beside it, or each in an archive of its own. What a set has is decided for the whole of it:
version 2 without `metadata.parquet` has no labels, without `Reference_Maps` no masks; with them, a patch that they do
not cover is rejected. One exception: reference maps of which not a single one belongs to a patch of the archive are
another archive's, and are left alone with a warning.

Rejected, as the authors leave them out of the 19-class nomenclature: patches whose labels are all in no class. Split
`validation` is called `val`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest import clc
from ingest.commands import source_command
from ingest.files import Files, Folder, open_files
from ingest.geotiff import RasterError, Reader, read_rasterio
from ingest.product import baseline_of, date_of, iso_date, offset_of, tile_of
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from ingest.tiff import Header
from ingest.utm import lon_lat
from shards.bands import SENTINEL2
from shards.errors import BandstreamError
from shards.layout import KEY
from shards.manifest import LabelSpec, MaskSpec, Reflectance

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
ARRAYS = {
    "10m.npy": Array(("B02", "B03", "B04", "B08"), (120, 120)),
    "20m.npy": Array(("B05", "B06", "B07", "B8A", "B11", "B12"), (60, 60)),
    "60m.npy": Array(("B01", "B09"), (20, 20)),
}
LABEL = "land_cover"
METADATA, MAPS = "metadata.parquet", "Reference_Maps"
TOPS = ("BigEarthNet-S2", "BigEarthNet-v1.0")
MAP = "_reference_map.tif"
FLAGS = {"seasonal-snow": "contains_seasonal_snow", "cloud-or-shadow": "contains_cloud_or_shadow"}
"""What `--without` may name, and the column of the metadata that says it."""
SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
JSON_BYTES = 1024
Known = tuple[tuple[Any, ...] | None, str]
"""What is known of a patch beside its folder: its row of the metadata (split, labels, country, flags…), and where its
reference map lies, `number among the opened:folder of its tile`; shared by all patches of which the same is known."""
UNKNOWN: Known = None, ""
LARGEST = 1 << 22
"""A file of more bytes is read through GDAL, which need not take all of it into memory."""


@source_command
@click.option(
    "--metadata",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="metadata.parquet of version 2, where it does not lie in SRC; may be given several times.",
)
@click.option(
    "--maps",
    type=click.Path(path_type=Path, exists=True),
    help="Reference_Maps of version 2 (a folder or tar), where they do not lie in SRC.",
)
@click.option(
    "--exclude",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="A list of patches to leave out, a name a line, such as the published ones of clouds and snow.",
)
@click.option(
    "--without",
    type=click.Choice(list(FLAGS)),
    multiple=True,
    help="Leave out the patches that the metadata flags so; may be given several times.",
)
def command(
    src: tuple[Path, ...],
    metadata: tuple[Path, ...],
    maps: Path | None,
    exclude: tuple[Path, ...],
    without: tuple[str, ...],
) -> "BigEarthNet":
    """Convert BigEarthNet, version 1 or 2, into the shard set DST.

    SRC is the folder that it was unpacked to, or the archive as it was downloaded (.tar, .tar.gz, .tar.zst); of version
    2 also several: patches, reference maps, metadata.parquet. A compressed archive is spooled to --scratch first.
    Without a split in the archive or a split file, a tenth of the patches goes to val and a tenth to test, by the seed.
    A run that was interrupted goes on when it is started again.
    """
    return BigEarthNet(src, metadata, maps, exclude, without)


def looks_like(names: Sequence[str]) -> bool:
    """Whether files are named as a patch's bands are, in a folder of the patch's name."""
    parts = [name.split("/")[-2:] for name in names if name.endswith(".tif")]
    return any(len(own) == 2 and own[1] == f"{own[0]}_B8A.tif" for own in parts)


class BigEarthNet:
    """The archive in one or more folders or tars. `metadata` and `maps` name what does not lie in them; `exclude`:
    lists of patches, a name a line; `without`: names of FLAGS."""

    def __init__(
        self,
        src: Path | Sequence[Path],
        metadata: Iterable[Path] = (),
        maps: Path | None = None,
        exclude: Iterable[Path] = (),
        without: Iterable[str] = (),
    ) -> None:
        paths = [src] if isinstance(src, Path) else list(src)
        self.metadata = [*metadata, *(path for path in paths if path.suffix == ".parquet")]
        self.archives = [path for path in paths if path.suffix != ".parquet"]
        self.maps = maps
        self.exclude = list(exclude)
        self.without = tuple(without)
        self.inputs = (*self.archives, *([maps] if maps else []))
        self.version = "2"
        self.name = "bigearthnet"
        self._files: list[Files] = []
        self._tops: list[str] = []
        self._codes = clc.code_table()
        self._has_labels = False
        self._has_masks = False
        self._masks_note = "none"

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
            bands=tuple(SENTINEL2[band] for band in BANDS),
            arrays=ARRAYS,
            reflectance=Reflectance(scale=1e-4, offset=0.0, level="L2A"),
            labels=labels if self._has_labels else {},
            masks=masks if self._has_masks else {},
            json_bytes=JSON_BYTES,
            columns={"country": str, "tile": str, "processing_baseline": str},
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

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        named = " ".join(map(str, self.archives))
        if not self.archives:
            raise BandstreamError("only metadata was named: name the folder or archive of the patches too")
        opened = [open_files(path, listening, _wanted) for path in self.archives]
        self._files = [files for files in opened if not _only_maps(files)]
        self._tops = [_top(files) for files in self._files]
        sides = [files for files in opened if files not in self._files]
        found, versions = [], set()
        for number in range(len(self._files)):
            found.append(self._tiles(number))
            if any(self._holds_patch(number, path) for path in self._patches(number, *found[-1])):
                versions.add(self.version)

        def patches() -> Iterator[tuple[int, str]]:
            """All patches; listed again each time, for their names take far more memory than a second look."""
            return ((number, path) for number, tiles in enumerate(found) for path in self._patches(number, *tiles))

        if not versions:
            if any(name.endswith("_B8A.tif") for files in self._files for name in files.names("")):
                raise BandstreamError(f"{named} is a patch itself: name the folder that holds it")
            raise BandstreamError(
                f"{named} holds no patches: expected BigEarthNet-S2/TILE/PATCH/ (version 2) or PATCH/ (version 1)"
            )
        if len(versions) > 1:
            raise BandstreamError(f"{named} are of both versions of BigEarthNet: ingest them apart")
        self.version = versions.pop()
        known: dict[str, Known] = {}
        has_rows = self._rows(opened, known)
        if self.without and not has_rows:
            raise BandstreamError("--without needs the flags of metadata.parquet: name it with --metadata")
        self._has_masks = self._masks(known, lambda: (_key(path) for _, path in patches()), sides, listening)
        self._has_labels = self.version == "1" or has_rows
        excluded = _names(self.exclude)
        for files in opened:
            yield from files.refused()
        for number, path in patches():
            try:
                yield self._entry(path, number, known.get(_key(path), UNKNOWN), has_rows, excluded)
            except Rejected as rejection:
                yield rejection

    def _entry(self, path: str, number: int, known: Known, has_rows: bool, excluded: set[str]) -> Entry:
        """A patch as listed. Raises Rejected."""
        row, mapped = known
        key = _key(path)
        if not KEY.fullmatch(key):
            raise Rejected(path, "bad-name", "a patch's name has 1 to 80 letters, digits and _ + = -")
        if key in excluded:
            raise Rejected(path, "excluded", "it stands in a list of --exclude")
        split, labels, extra = _covered(path, row, has_rows)
        if flagged := [flag for flag in self.without if row and row[3 + list(FLAGS).index(flag)]]:
            raise Rejected(path, "excluded", f"the metadata flags it {', '.join(flagged)}")
        if self._has_masks and not mapped:
            raise Rejected(path, "no-map", "the reference maps do not cover it")
        where = f"{number}:{mapped if self._has_masks else ':'}"
        return Entry(key, path, split, labels, extra, where)

    def _tiles(self, number: int) -> tuple[list[str], bool]:
        """An archive's folders of tiles, True; or of patches, False. Sets the version."""
        files, top = self._files[number], self._tops[number]
        folders = [name for name in files.inside(top) if name not in (MAPS, "BigEarthNet-S1")]
        nested, marked = False, False
        for name in folders[:16]:
            nested |= bool(files.inside(_join(top, name)))
            marked |= any(file.endswith("_labels_metadata.json") for file in files.names(_join(top, name)))
        self.version = "1" if marked and not nested else "2"
        return folders, nested

    def _patches(self, number: int, folders: list[str], nested: bool) -> Iterator[str]:
        """Paths of an archive's patch folders, TILE/PATCH or PATCH, sorted."""
        files, top = self._files[number], self._tops[number]
        for name in folders:
            try:
                inside = files.inside(_join(top, name)) if nested else []
            except OSError as error:
                raise BandstreamError(f"{name} of the archive cannot be listed ({error.strerror})") from None
            yield from (f"{name}/{patch}" for patch in inside)
            if not nested or (not inside and any(file.endswith(".tif") for file in files.names(_join(top, name)))):
                yield name

    def _holds_patch(self, number: int, path: str) -> bool:
        """Whether a folder has at least one band of the patch that it is named after."""
        try:
            names = self._files[number].names(_join(self._tops[number], path))
        except OSError:
            return False
        return any(name.startswith(f"{_key(path)}_B") for name in names)

    def _rows(self, opened: Sequence[Files], known: dict[str, Known]) -> bool:
        """Put the rows of the metadata into `known`; False where there is none. A contradiction is an error."""
        files: list[tuple[Path | str, Any]] = [(path, path) for path in self.metadata]
        if not files and self.version == "2":
            import io

            for inside in opened:
                for top in dict.fromkeys((_top(inside).rpartition("/")[0], _top(inside))):
                    if METADATA in inside.names(top):
                        files.append((METADATA, io.BytesIO(inside.read(_join(top, METADATA)))))
        if not files:
            return False
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
            wanted = [FLAGS[flag] for flag in self.without if FLAGS[flag] not in found]
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
        return True

    def _masks(
        self,
        known: dict[str, Known],
        keys: Callable[[], Iterator[str]],
        sides: Sequence[Files],
        listening: Listening,
    ) -> bool:
        """Put into `known` where patches' reference maps lie; whether there are any. `keys`: the archive's patches."""
        if self.maps:
            sides = [open_files(self.maps, listening, _wanted)]
        bases = [(files, _maps_base(files)) for files in sides]
        for files, top in zip(self._files, self._tops, strict=True):
            for base in dict.fromkeys((_join(top.rpartition("/")[0], MAPS), _join(top, MAPS))):
                if not sides and MAPS in files.inside(base.rpartition("/")[0]):
                    bases.append((files, base))
        if not bases:
            return False
        same: dict[Any, Any] = {}
        for files, base in bases:
            if files not in self._files:
                self._files.append(files)
            number = self._files.index(files)
            for folder in _map_folders(files, base):
                tile, _, patch = folder.rpartition("/")
                one = known.get(patch, UNKNOWN)[0], f"{number}:{_join(base, tile)}"
                known[patch] = same.setdefault(one, one)
        if not any(known.get(key, UNKNOWN)[1] for key in keys()):
            what = f"{self.maps or MAPS} covers not one of the {len(set(keys()))} patches"
            if sides:
                raise BandstreamError(f"{what}: name this archive's reference maps")
            self._masks_note = "none: the reference maps beside the patches cover not one of them"
            listening.warn(f"{what}: taken to be another archive's, the set gets no masks")
            return False
        return True

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        number, mapped, tile = entry.where.split(":", 2)
        files, path = self._files[int(number)], _join(self._tops[int(number)], entry.path)
        labels, date, product = entry.labels, "", entry.key
        content: dict[str, memoryview | None] = {}
        if not isinstance(files, Folder):
            try:
                content = files.read_folder(path, files.names(path), LARGEST)
            except OSError as error:
                raise Rejected(entry.path, "unreadable", str(error)) from None
        if self.version == "1":
            labels, date, product = self._v1_metadata(entry, files, path)
        headers: list[Header] = []
        for member, array in ARRAYS.items():
            for band, plane in zip(array.bands, views[member], strict=True):
                self._raster(self._reader, files, entry, path, f"{entry.key}_{band}.tif", content, plane, headers)
        if self._has_masks:
            maps, folder, name = self._files[int(mapped)], _join(tile, entry.key), f"{entry.key}{MAP}"
            codes = np.empty(views["mask.npy"].shape, np.uint16)
            content = {}
            if not isinstance(maps, Folder):
                try:
                    content = maps.read_folder(folder, [name], LARGEST)
                except OSError as error:
                    raise Rejected(entry.path, "unreadable", str(error)) from None
            self._raster(self._map_reader, maps, entry, folder, name, content, codes, headers)
            views["mask.npy"][...] = self._codes.take(codes)
        removed = offset_of(baseline_of(product)) if self.version == "2" else 0
        if removed:
            for member in ARRAYS:
                np.maximum(views[member], removed, out=views[member])
                np.subtract(views[member], removed, out=views[member])
        return _facts(entry, labels, date or date_of(entry.key), product, removed, headers[0])

    def _raster(
        self,
        reader: Reader,
        files: Files,
        entry: Entry,
        folder: str,
        name: str,
        content: Mapping[str, memoryview | None],
        plane: np.ndarray,
        headers: list[Header],
    ) -> None:
        """Read one file into `plane`; it must lie where those before it lie. Appends its header.

        `content`: the files of its folder, where that is inside a tar.
        """
        told = f"{entry.path}/{name}" if reader is self._reader else f"{MAPS}/{entry.path}/{name}"
        try:
            if isinstance(files, Folder):
                header = reader.read(f"{files.root}/{folder}/{name}", plane)
            elif (data := content[name]) is None:
                header = read_rasterio(files.gdal(f"{folder}/{name}"), plane)
            else:
                header = reader.take(data, plane, lambda: files.gdal(f"{folder}/{name}"))
        except (FileNotFoundError, KeyError):
            missing = "missing-band" if reader is self._reader else "no-map"
            raise Rejected(entry.path, missing, f"{name} is not there") from None
        except RasterError as error:
            raise Rejected(told, error.reason, error.detail) from None
        same = bool(headers) and header is headers[-1]  # of one shape and in one place, as the reader promises
        if headers and not same and header.transform and headers[0].transform:
            place = header.epsg, _bounds(header, plane.shape)
            if place != (headers[0].epsg, _bounds(headers[0], (120, 120))):
                raise Rejected(told, "misplaced", "it lies elsewhere than the patch's other rasters")
        headers.append(header)

    def _v1_metadata(self, entry: Entry, files: Files, folder: str) -> tuple[dict[str, tuple[int, ...]], str, str]:
        """Labels, date and source product of a version 1 patch, from its JSON."""
        name = f"{entry.key}_labels_metadata.json"
        path = f"{entry.path}/{name}"
        try:
            content = json.loads(files.read(f"{folder}/{name}"))
            names = content["labels"]
            indices = _indices(path, names, clc.NAME_TO_CLASS)
            date = str(content.get("acquisition_date", "")).replace(" ", "T")
            return {LABEL: indices}, iso_date(date), str(content.get("tile_source", ""))
        except FileNotFoundError:
            raise Rejected(entry.path, "no-metadata", f"{name} is not there") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Rejected(path, "unreadable", f"no labels can be read from it ({type(error).__name__})") from None


def _no_parquet(file: Path | str, error: Exception) -> BandstreamError:
    return BandstreamError(f"{file} cannot be read as Parquet ({error}): name another with --metadata")


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _key(path: str) -> str:
    return path.rpartition("/")[2]


def _wanted(path: str) -> bool:
    """What is spooled of a compressed archive."""
    return path.endswith((".tif", ".json", ".parquet")) and "BigEarthNet-S1/" not in path


def _top(files: Files) -> str:
    """The folder that holds the tiles, or version 1's patches."""
    at = ""
    while True:
        inside = files.inside(at)
        for name in TOPS:
            if name in inside:
                return _join(at, name)
        # a folder around all: it holds one folder alone, inside which are folders of folders
        only = _join(at, inside[0]) if len(inside) == 1 else ""
        deeper = [_join(only, name) for name in files.inside(only)[:16]] if only else []
        if not any(files.inside(name) or _key(name) in TOPS for name in deeper):
            return at
        at = only


def _maps_base(files: Files) -> str:
    """The folder that holds the reference maps' tiles, or the maps of an archive that holds nothing else."""
    at = ""
    for _ in range(3):
        inside = files.inside(at)
        if MAPS in inside:
            return _join(at, MAPS)
        if len(inside) != 1:
            break
        at = _join(at, inside[0])
    return ""


def _map_folders(files: Files, base: str) -> Iterator[str]:
    """Folders of patches below `base`, PATCH or TILE/PATCH."""
    for tile in files.inside(base):
        inside = files.inside(_join(base, tile))
        yield from (f"{tile}/{patch}" for patch in inside)
        if not inside:
            yield tile


def _only_maps(files: Files) -> bool:
    """Whether an archive holds reference maps and no patches."""
    base = _maps_base(files)
    if _top(files) in (base, _join(base.rpartition("/")[0])) or not base:
        first = islice(_map_folders(files, base), 16)
        return any(f"{_key(folder)}{MAP}" in files.names(_join(base, folder)) for folder in first)
    return False


def _names(lists: Iterable[Path]) -> set[str]:
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


def _covered(path: str, row: Any, has_rows: bool) -> tuple[str, dict[str, tuple[int, ...]], dict[str, str]]:
    """Split, labels and country of a patch by its metadata row. Raises Rejected."""
    if not has_rows:
        return "", {}, {}
    if row is None:
        raise Rejected(path, "no-metadata", "the metadata does not cover it")
    split, names, country, *_ = row
    if split not in SPLITS:
        raise Rejected(path, "unknown-split", f"split {split!r}: known are {', '.join(SPLITS)}")
    known: Mapping[str, int | None] = {name: index for index, name in enumerate(clc.CLASSES)}
    labels = {LABEL: _indices(path, names or (), known)}
    return SPLITS[split], labels, {"country": country or ""}


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
