"""Shards of WebDataset that others made (github.com/webdataset/webdataset): tars of samples whose files share a key.

Which files of a tar are a sample, and what they are called, is decided by `webdataset` itself: those that stand
together and agree up to the first dot; names in lower case. A tar is listed once, by its headers; samples are read by
their places, in whatever order. Shapes and types are those of the first sample that can be read; others are rejected.

A key that occurs more than once in the set, as shards that count from 0 have, gets a mark of its shard behind it. The
foreign JSON may hold anything, and does not travel: what is wanted of it, options name.
"""

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest import members, tar
from ingest.commands import source_command
from ingest.foreign import LONGEST, NAME, ArrayOption, Classified, Options, Pick, is_picture, parse_options
from ingest.geotiff import RasterError
from ingest.keys import clean, printed, unique
from ingest.picture import MOST_BYTES
from ingest.product import iso_date
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from ingest.spool import in_order
from shards.bands import PICTURE, SENTINEL2, esa_order
from shards.errors import BandstreamError
from shards.manifest import LabelSpec, MaskSpec, Reflectance

SPLIT = re.compile(r"(?<![a-z])(train|training|val|valid|validation|test|testing)(?![a-z])")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
META = re.compile(r"__[^/]*__($|/)")
"""Names that webdataset passes over."""
LOOKED_AT = 64
"""Samples of which one must be readable, so that shapes and types are known."""
JSON_BYTES, LONGEST_PATH, LONGEST_ID = 1280, 600, 200
MOST_TEXT = 1 << 22
"""A JSON or label of more bytes is not read."""
OPEN = 64
"""Shards that are held open."""
FORMATS = ("uint8", "uint16", "int16", "float32")


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and NAME.fullmatch(name) else ("", Path(text))


@source_command
@click.option(
    "--array",
    "arrays",
    multiple=True,
    metavar="MEMBER=BAND,BAND,...",
    help="A member that holds bands, named in the order in which it holds them (- for one to leave out); may be given "
    "several times.  [default: the sample's picture, jpg or png, as red, green, blue]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="MEMBER[:FIELD][=NAME]",
    help="A member that says the class (cls: its index; npy: 0 or 1 a class; other text: its name), or a field of a "
    "JSON (index, name, or a list of such); may be given several times. Needs --classes.",
)
@click.option("--mask", "masks", multiple=True, metavar="MEMBER[=NAME]", help="A class map, .png, .npy or .tif.")
@click.option(
    "--classes",
    multiple=True,
    metavar="[NAME=]FILE",
    callback=lambda context, option, values: tuple(_named_file(value) for value in values),
    help="The classes of labels and masks, a name a line, in the order of their indices.",
)
@click.option("--id", default="", metavar="MEMBER:FIELD", help="Field of a JSON that names the sample.")
@click.option("--place", default="", metavar="MEMBER:LON,LAT", help="Fields that hold its longitude and latitude.")
@click.option("--date", default="", metavar="MEMBER:FIELD", help="Field that holds its date, ISO 8601.")
@click.option(
    "--size", type=click.IntRange(1, 8192), help="Side of the square that pictures are scaled and cropped to."
)
@click.option(
    "--reflectance",
    default="",
    metavar="SCALE,OFFSET[,LEVEL]",
    help="reflectance = stored x SCALE + OFFSET.  [default: 0.0001,0 of 16-bit integers, 1,0 of floats]",
)
@click.option(
    "--split-from",
    type=click.Choice(["names", "seed"]),
    help="Take splits from the names of shards or their folders (train-000.tar, val/000.tar), or draw them.  "
    "[default: from the names, where one of them says a split]",
)
def command(
    src: tuple[Path, ...],
    arrays: tuple[str, ...],
    labels: tuple[str, ...],
    masks: tuple[str, ...],
    classes: tuple[tuple[str, Path], ...],
    id: str,
    place: str,
    date: str,
    size: int | None,
    reflectance: str,
    split_from: str | None,
) -> "WebDataset":
    """Convert the WebDataset shards SRC into the shard set DST.

    SRC is one or more tars (.tar, .tar.gz, .tar.zst), a folder of them, or a pattern such as 'set-{000..099}.tar'.
    MEMBER is what follows the first dot of a file's name: `s2.npy` of `patch_17.s2.npy`, `json` of `patch_17.json`;
    FIELD may lead into objects by dots. Members are read as .npy, .tif, .jpg, .png or .json, and never unpickled.

    \b
    bandstream ingest webdataset 'ssl-{000..099}.tar' DST \\
        --array s2.npy=B02,B03,B04,B08 --array s2_20m.npy=B05,B06,B07,B8A,B11,B12 \\
        --label json:class=cover --mask mask.png=cover --classes cover.txt \\
        --place json:lon,lat --date json:properties.datetime
    """
    try:
        options = parse_options(arrays, labels, masks, classes, id, place, date, reflectance)
    except BandstreamError as error:
        raise click.UsageError(str(error)) from None
    return WebDataset(src, options, size, split_from)


@dataclass(frozen=True)
class _Stored:
    """How an array lies in its member: shape, dtype and whether bands are its last axis; planes to take, in order."""

    option: ArrayOption
    shape: tuple[int, ...]
    dtype: str
    last: bool
    planes: tuple[int, ...]

    @property
    def array(self) -> Array:
        height, width = self.shape[:2] if self.last else self.shape[-2:]
        return Array(self.option.kept, (height, width), self.dtype, self.option.time)


class WebDataset:
    """Foreign shards: tars, folders of them, patterns. `size`: side of the square that pictures are brought to;
    `split_from`: "names", "seed" or None, from the names where one of them says a split."""

    def __init__(
        self,
        src: Path | Sequence[Path],
        options: Options | None = None,
        size: int | None = None,
        split_from: str | None = None,
    ) -> None:
        sources = [src] if isinstance(src, Path) else list(src)
        self.inputs = tuple(
            path for source in sources for path in (_expanded(source) if not source.exists() else [source])
        )
        self.name = "webdataset"
        self.options = options or Options()
        self.size = size
        self.split_from = split_from
        self._tars: list[Path] = []
        self._stored: tuple[_Stored, ...] = ()
        self._kinds: tuple[str, ...] = ()
        self._wanted: tuple[str, ...] = ()
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}

    @property
    def schema(self) -> Schema:
        arrays = {stored.option.target: stored.array for stored in self._stored}
        names = {band for array in arrays.values() for band in array.bands}
        labels, masks = {}, {}
        for number, (label, kind) in enumerate(zip(self.options.labels, self._kinds, strict=True)):
            plain = "cls" if kind == "single" else "labels.npy"
            member = f"{label.name}.{plain}" if number else plain
            labels[label.name] = LabelSpec(member=member, kind=kind, classes=list(label.classes))  # type: ignore[arg-type]
        for member, mask in zip(self._mask_members, self.options.masks, strict=True):
            masks[mask.name] = MaskSpec(member=member, classes=list(mask.classes), ignore_index=members.IGNORE)
        bands = [PICTURE[band] for band in PICTURE if band in names] or [SENTINEL2[band] for band in esa_order(names)]
        return Schema(
            bands=tuple(bands),
            arrays=arrays,
            reflectance=self.options.reflectance or self._reflectance(),
            labels=labels,
            masks=masks,
            json_bytes=JSON_BYTES,
            columns={"source_shard": str, "source_key": str},
            nodata=None,
        )

    @property
    def _mask_members(self) -> tuple[str, ...]:
        return tuple(f"{mask.name}.mask.npy" if n else "mask.npy" for n, mask in enumerate(self.options.masks))

    def _reflectance(self) -> Reflectance:
        dtype = next((stored.dtype for stored in self._stored), "uint16")
        picture = any(set(stored.option.kept) & set(PICTURE) for stored in self._stored)
        scale = {"uint8": 1 / 255, "float32": 1.0}.get(dtype, 1e-4)
        return Reflectance(scale=scale, offset=0.0, level="picture" if picture else "unknown")

    def describe(self) -> dict[str, Any]:
        options = self.options
        return {
            "kind": "webdataset",
            "arrays": {s.option.target: f"{s.option.member}: {' '.join(s.option.bands)}" for s in self._stored},
            "labels": {one.name: _told(one) for one in options.labels},
            "masks": {one.name: _told(one) for one in options.masks},
            "facts": [
                f"{pick.member}:{pick.field}" for pick in (options.id, *(options.place or ()), options.date) if pick
            ],
            "size": self.size or "as they are",
            "split_from": self.split_from or "names, where one says a split",
        }

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        self._tars, self._stored = [], ()
        shards = self._shards()
        splits = self._splits([name for name, _ in shards])
        if any(splits) and "train" not in splits:
            listening.warn("not one name of a shard says train: --split-from seed draws splits instead")
        groups = self._groups(shards, listening)
        first: list[_Group | Rejected] = []
        why = "they hold no samples"
        for group in groups:
            first.append(group)
            if isinstance(group, _Group):
                try:
                    self._fix(group, listening)
                    break
                except Rejected as rejection:
                    why = f"not one of the first samples can be read: {rejection}"
            if len(first) >= LOOKED_AT:
                break
        if not self._stored:
            raise BandstreamError(f"{' '.join(map(str, self.inputs))}: {why}")
        yield from unique(self._entries(chain(first, groups), splits), listening.scratch)

    def _shards(self) -> list[tuple[str, Path]]:
        """Names of all tars, relative to what holds them all, and where they are. Raises BandstreamError."""
        paths: list[Path] = []
        for path in self.inputs:
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

    def _splits(self, names: list[str]) -> list[str]:
        """The split of each shard, "" where they are drawn. Raises BandstreamError where only some names say one."""
        said = [(SPLIT.findall(name.lower()) or [""])[-1] for name in names]
        splits = [SPLITS.get(word, "test" if word else "") for word in said]
        if self.split_from == "seed" or (self.split_from is None and not any(splits)):
            return [""] * len(names)
        if not all(splits):
            raise BandstreamError(
                f"the name of {names[splits.index('')]} says no split (train, val or test)"
                f"{' as others do' if any(splits) else ''}: name it otherwise, or draw splits with --split-from seed"
            )
        return splits

    def _groups(self, shards: list[tuple[str, Path]], listening: Listening) -> Iterator["_Group | Rejected"]:
        """Samples as webdataset groups them, in the order of shards and tars; and what is refused."""
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
            self._tars.append(tar)
            for sample in group_by_keys(files(shard, headers), handler=note):
                key, _ = sample.pop("__key__"), sample.pop("__url__")
                yield from problems
                problems.clear()
                if doubled:
                    doubled.clear()
                    yield Rejected(f"{shard}/{printed(key)}", "duplicate", "the tar holds a member of it twice")
                elif sample:
                    yield _Group(number, shard, printed(key), sample)
            yield from problems
            problems.clear()

    def _fix(self, group: "_Group", listening: Listening) -> None:
        """Take shapes, types and kinds of labels from a sample. Raises Rejected where it cannot be read, and
        BandstreamError where such arrays cannot be stored."""
        options = self.options
        if not options.arrays:
            found = [member for member in group.places if member in members.PICTURES]
            if len(found) != 1:
                raise BandstreamError(
                    f"say with --array which members hold which bands: the first sample, {group.path}, "
                    f"has {', '.join(sorted(group.places))}"
                )
            options = replace(options, arrays=(ArrayOption(found[0], tuple(PICTURE)),))
        if self.size and (options.masks or not all(is_picture(array.member) for array in options.arrays)):
            raise BandstreamError("--size scales pictures, not other arrays or class maps: leave it out")
        wanted = [*(a.member for a in options.arrays), *(m.pick.member for m in options.masks)]
        self._wanted = tuple(dict.fromkeys([*wanted, *(pick.member for pick in options.picks)]))
        self.options = options
        files = self._files(group.entry(self._wanted))
        stored = tuple(self._look(option, group.path, files[option.member]) for option in options.arrays)
        if len({one.dtype for one in stored}) > 1 and options.reflectance is None:
            raise BandstreamError("the arrays are of different types: say --reflectance SCALE,OFFSET, which is for all")
        kinds = tuple(self._label(label, group.path, files)[0] for label in options.labels)
        for mask in options.masks:
            with _reading(group.path, mask.pick.member):
                members.read_classes(files[mask.pick.member], mask.pick.member, len(mask.classes))
        self._stored, self._kinds = stored, kinds
        schema = self.schema
        specs: list[LabelSpec | MaskSpec] = [*schema.labels.values(), *schema.masks.values()]
        for name in (*schema.arrays, *(spec.member for spec in specs)):
            if len(name) > LONGEST:
                raise BandstreamError(f"a member {name} would have more than {LONGEST} characters: give a shorter NAME")
        if left := sorted(group.places.keys() - set(self._wanted)):
            listening.say(f"not taken of each sample: {', '.join(left)}")

    def _look(self, option: ArrayOption, path: str, data: bytes) -> _Stored:
        """How the first sample holds an array. Raises Rejected, and BandstreamError where it cannot be stored."""
        with _reading(path, option.member):
            array = members.read_array(data, option.member, self._square)
        count, shape = len(option.bands), array.shape
        first, last = len(shape) == 3 and shape[0] == count, len(shape) == 3 and shape[2] == count
        if not (first or last or (len(shape) == 2 and count == 1)) or min(shape) < 1:
            raise BandstreamError(
                f"{path}.{option.member} has shape {shape}, --array names {count} bands: name them all, - for one "
                "that is to be left out"
            )
        if first and last:
            raise BandstreamError(f"{path}.{option.member} has shape {shape}: which axis is that of its bands?")
        if array.dtype.name not in FORMATS:
            raise BandstreamError(
                f"{path}.{option.member} holds {array.dtype.name}: a set stores {', '.join(FORMATS)}, convert it"
            )
        planes = tuple(option.bands.index(band) for band in option.kept)
        return _Stored(option, shape, array.dtype.name, last, planes)

    @property
    def _square(self) -> tuple[int, int] | None:
        return (self.size, self.size) if self.size else None

    def _entries(self, groups: Iterable["_Group | Rejected"], splits: list[str]) -> Iterator[Entry | Rejected]:
        for group in groups:
            if isinstance(group, Rejected):
                yield group
                continue
            try:
                entry = group.entry(self._wanted)
            except Rejected as rejection:
                yield rejection
            else:
                yield replace(entry, split=splits[group.number])

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        files, path = self._files(entry), entry.path
        for stored in self._stored:
            member = stored.option.member
            with _reading(path, member):
                array = members.read_array(files[member], member, self._square)
            if array.shape != stored.shape:
                raise Rejected(f"{path}.{member}", "wrong-size", f"shape {array.shape}, not {stored.shape}")
            if array.dtype.name != stored.dtype:
                raise Rejected(f"{path}.{member}", "wrong-type", f"{array.dtype.name}, not {stored.dtype}")
            planes = np.moveaxis(array, -1, 0) if stored.last else array.reshape((-1, *array.shape[-2:]))
            view = views[stored.option.target]
            view[...] = planes[list(stored.planes)]
            if view.dtype.kind == "f" and not np.isfinite(view).all():
                raise Rejected(f"{path}.{member}", "not-finite", "it holds NaN or infinity")
        for mask, target in zip(self.options.masks, self._mask_members, strict=True):
            member, view = mask.pick.member, views[target]
            with _reading(path, member):
                classes = members.read_classes(files[member], member, len(mask.classes))
            if classes.shape != view.shape:
                raise Rejected(f"{path}.{member}", "wrong-size", f"a class map of {classes.shape}, not {view.shape}")
            view[...] = classes
        labels = {}
        for label, expected in zip(self.options.labels, self._kinds, strict=True):
            kind, labels[label.name] = self._label(label, path, files)
            if kind != expected:
                raise Rejected(
                    f"{path}.{label.pick.member}", "wrong-type", f"a {kind} label where others are {expected}"
                )
        return self._facts(entry, labels, files)

    def _label(self, label: Classified, path: str, files: Mapping[str, bytes]) -> tuple[str, tuple[int, ...]]:
        """Kind and class indices of a label. Raises Rejected."""
        member, data = label.pick.member, files[label.pick.member]
        with _reading(path, member):
            if label.pick.field:
                value = members.field_of(members.read_json(data), label.pick.field)
            elif members.suffix_of(member) == "npy":
                value = members.read_array(data, member)
            else:
                value = members.read_text(data, member)
            return members.read_label(value, label.indices)

    def _facts(self, entry: Entry, labels: dict[str, tuple[int, ...]], files: Mapping[str, bytes]) -> Facts:
        """What the sample's JSON tells of it, as far as it was asked for. Raises Rejected."""
        options, path = self.options, entry.path

        def told(pick: Pick) -> Any:
            with _reading(path, pick.member):
                return members.field_of(members.read_json(files[pick.member]), pick.field)

        id_, date, place = entry.key, "", None
        if options.id:
            id_ = str(told(options.id))
            if len(json.dumps(id_)) > LONGEST_ID:
                raise Rejected(f"{path}.{options.id.member}", "bad-name", f"an id of more than {LONGEST_ID} bytes")
        if options.date and not (date := iso_date(str(value := told(options.date)))):
            raise Rejected(f"{path}.{options.date.member}", "no-date", f"{str(value)[:40]!r} is no ISO 8601 date")
        if options.place:
            found = [told(pick) for pick in options.place]
            if any(isinstance(v, bool) or not isinstance(v, int | float) for v in found) or not (
                abs(found[0]) <= 180 and abs(found[1]) <= 90
            ):
                text = ", ".join(str(value)[:20] for value in found)
                raise Rejected(f"{path}.{options.place[0].member}", "misplaced", f"no longitude and latitude: {text}")
            place = float(found[0]), float(found[1])
        columns = {"source_shard": entry.extra["shard"], "source_key": entry.extra["key"]}
        lon, lat = place or (0.0, 0.0)
        content = {"id": id_, "date": date, "crs": "EPSG:4326" if place else "", "lon": lon, "lat": lat, **columns}
        return Facts(labels, content, place, date, columns)

    def _files(self, entry: Entry) -> dict[str, bytes]:
        """The members that are wanted of a sample. Raises Rejected."""
        number, *places = entry.where.split(" ")
        found = {}
        for member, place in zip(self._wanted, places, strict=True):
            at, size = map(int, place.split(","))
            most = MOST_TEXT if members.suffix_of(member) not in members.ARRAYS else MOST_BYTES
            if size > most:
                raise Rejected(f"{entry.path}.{member}", "too-large", f"a file of more than {most >> 20} MB")
            try:
                found[member] = os.pread(self._descriptor(int(number)), size, at)
            except OSError as error:
                raise Rejected(f"{entry.path}.{member}", "unreadable", error.strerror or str(error)) from None
            if len(found[member]) < size:
                raise Rejected(f"{entry.path}.{member}", "unreadable", "the tar was cut off while it was in use")
        return found

    def _descriptor(self, number: int) -> int:
        """Of a tar, opened; few are held open."""
        file = self._opened.pop(number, None) or self._tars[number].open("rb", buffering=0)
        self._opened[number] = file
        if len(self._opened) > OPEN:
            self._opened.popitem(last=False)[1].close()
        return int(file.fileno())


def _expanded(pattern: Path) -> list[Path]:
    """What a pattern with braces stands for."""
    import braceexpand

    try:
        return [Path(name) for name in braceexpand.braceexpand(str(pattern))]
    except ValueError:  # unbalanced: a name with braces
        return [pattern]


@dataclass(frozen=True)
class _Group:
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


@contextmanager
def _reading(path: str, member: str) -> Iterator[None]:
    """Turns RasterError into Rejected."""
    try:
        yield
    except RasterError as error:
        raise Rejected(f"{path}.{member}", error.reason, error.detail) from None


def _told(classified: Classified) -> str:
    """Where a label or class map stands, and a mark of its classes, whose order decides what is stored."""
    pick = classified.pick
    mark = hashlib.sha256("\n".join(classified.classes).encode()).hexdigest()[:16]
    return f"{pick.member}{':' if pick.field else ''}{pick.field}, {len(classified.classes)} classes {mark}"
