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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest.archives import clc
from ingest.archives.metadata import FLAGS, LABEL, UNKNOWN, Known, covered, listed, metadata_in, read_json, read_rows
from ingest.archives.tiles import MAP, MAPS, Patches, key_of, map_folders, maps_base, only_maps
from ingest.commands import source_command
from ingest.reading.files import Files, Folder, open_files
from ingest.reading.folders import joined
from ingest.reading.geotiff import RasterError, Reader, read_rasterio
from ingest.reading.native import LEVELS, native_arrays
from ingest.reading.place import placed
from ingest.reading.product import baseline_of, date_of, offset_of, remove_offset, tile_of
from ingest.reading.tiff import Header
from ingest.source import Entry, Facts, Listening, Rejected, Schema
from shards.bands import SENTINEL2
from shards.errors import BandstreamError
from shards.layout import KEY
from shards.manifest import LabelSpec, MaskSpec, Reflectance

SIDE = 120
ARRAYS = native_arrays(LEVELS["L2A"], SIDE)
JSON_BYTES = 1024
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
        self._reader, self._map_reader = Reader(), Reader()
        self._has_labels = False
        self._has_masks = False
        self._masks_note = "none"

    @property
    def schema(self) -> Schema:
        classes = list(clc.CLASSES)
        labels = {LABEL: LabelSpec(member="labels.npy", kind="multilabel", classes=classes)}
        masks = {LABEL: MaskSpec(member="mask.npy", classes=classes, ignore_index=clc.IGNORE)}
        return Schema(
            bands=tuple(SENTINEL2[band] for band in LEVELS["L2A"]),
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
        self._files = [files for files in opened if not only_maps(files)]
        sides = [files for files in opened if files not in self._files]
        found = [Patches.of(files) for files in self._files]
        self._tops = [patches.top for patches in found]
        versions = {patches.version for patches in found if any(map(patches.holds, patches.paths()))}

        def paths() -> Iterator[tuple[int, str]]:
            """All patches; listed again each time, for their names take far more memory than a second look."""
            return ((number, path) for number, patches in enumerate(found) for path in patches.paths())

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
        metadata = [(path, path) for path in self.metadata] or (metadata_in(opened) if self.version == "2" else [])
        read_rows(metadata, self.without, known)
        has_rows = bool(metadata)
        if self.without and not has_rows:
            raise BandstreamError("--without needs the flags of metadata.parquet: name it with --metadata")
        self._has_masks = self._masks(known, lambda: (key_of(path) for _, path in paths()), sides, listening)
        self._has_labels = self.version == "1" or has_rows
        excluded = listed(self.exclude)
        for files in opened:
            yield from files.refused()
        for number, path in paths():
            try:
                yield self._entry(path, number, known.get(key_of(path), UNKNOWN), has_rows, excluded)
            except Rejected as rejection:
                yield rejection

    def _entry(self, path: str, number: int, known: Known, has_rows: bool, excluded: set[str]) -> Entry:
        """A patch as listed. Raises Rejected."""
        row, mapped = known
        key = key_of(path)
        if not KEY.fullmatch(key):
            raise Rejected(path, "bad-name", "a patch's name has 1 to 80 letters, digits and _ + = -")
        if key in excluded:
            raise Rejected(path, "excluded", "it stands in a list of --exclude")
        split, labels, extra = covered(path, row, has_rows)
        if flagged := [flag for flag in self.without if row and row[3 + list(FLAGS).index(flag)]]:
            raise Rejected(path, "excluded", f"the metadata flags it {', '.join(flagged)}")
        if self._has_masks and not mapped:
            raise Rejected(path, "no-map", "the reference maps do not cover it")
        where = f"{number}:{mapped if self._has_masks else ':'}"
        return Entry(key, path, split, labels, extra, where)

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
        bases = [(files, maps_base(files)) for files in sides]
        for files, top in zip(self._files, self._tops, strict=True):
            for base in dict.fromkeys((joined(top.rpartition("/")[0], MAPS), joined(top, MAPS))):
                if not sides and MAPS in files.inside(base.rpartition("/")[0]):
                    bases.append((files, base))
        if not bases:
            return False
        same: dict[Any, Any] = {}
        for files, base in bases:
            if files not in self._files:
                self._files.append(files)
            number = self._files.index(files)
            for folder in map_folders(files, base):
                tile, _, patch = folder.rpartition("/")
                one = known.get(patch, UNKNOWN)[0], f"{number}:{joined(base, tile)}"
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
        files, path = self._files[int(number)], joined(self._tops[int(number)], entry.path)
        labels, date, product = entry.labels, "", entry.key
        content = _content(files, path, entry)
        if self.version == "1":
            labels, date, product = read_json(entry, files, path)
        headers: list[Header] = []
        for member, array in ARRAYS.items():
            for band, plane in zip(array.bands, views[member], strict=True):
                self._raster(self._reader, files, entry, path, f"{entry.key}_{band}.tif", content, plane, headers)
        if self._has_masks:
            maps, folder, name = self._files[int(mapped)], joined(tile, entry.key), f"{entry.key}{MAP}"
            codes = np.empty(views["mask.npy"].shape, np.uint16)
            content = _content(maps, folder, entry, [name])
            self._raster(self._map_reader, maps, entry, folder, name, content, codes, headers)
            views["mask.npy"][...] = self._codes.take(codes)
        removed = offset_of(baseline_of(product)) if self.version == "2" else 0
        for member in ARRAYS:
            remove_offset(views[member], removed)
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
            place = header.epsg, header.bounds(plane.shape)
            if place != (headers[0].epsg, headers[0].bounds((SIDE, SIDE))):
                raise Rejected(told, "misplaced", "it lies elsewhere than the patch's other rasters")
        headers.append(header)


def _wanted(path: str) -> bool:
    """What is spooled of a compressed archive."""
    return path.endswith((".tif", ".json", ".parquet")) and "BigEarthNet-S1/" not in path


def _content(files: Files, folder: str, entry: Entry, names: Sequence[str] = ()) -> Mapping[str, memoryview | None]:
    """The files of a folder inside a tar, or those named, at one go; none of a true folder, which is read by file.
    Raises Rejected."""
    if isinstance(files, Folder):
        return {}
    try:
        return files.read_folder(folder, names or files.names(folder), LARGEST)
    except OSError as error:
        raise Rejected(entry.path, "unreadable", str(error)) from None


def _facts(
    entry: Entry, labels: dict[str, tuple[int, ...]], date: str, product: str, removed: int, header: Header
) -> Facts:
    place, located = placed(entry.path, header.epsg, header.transform, header.bounds((SIDE, SIDE)))
    columns = {
        "country": entry.extra.get("country", ""),
        "tile": tile_of(product),
        "processing_baseline": baseline_of(product),
    }
    content = {
        "id": entry.key,
        "date": date,
        **located,
        "processing_baseline": columns["processing_baseline"],
        "offset_removed": removed,
        "nodata": "" if header.nodata is None else f"{header.nodata:g}",
        "tile": columns["tile"],
        "country": columns["country"],
    }
    return Facts(labels, content, place, date, columns)
