"""Shards of WebDataset that others made (github.com/webdataset/webdataset): tars of samples whose files share a key.

Which files of a tar are a sample, and what they are called, is decided by `webdataset` itself: those that stand
together and agree up to the first dot; names in lower case. A tar is listed once, by its headers; samples are read by
their places, in whatever order. Shapes and types are those of the first sample that can be read; others are rejected.

A key that occurs more than once in the set, as shards that count from 0 have, gets a mark of its shard behind it. The
foreign JSON may hold anything, and does not travel: what is wanted of it, options name.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest.archives import members
from ingest.archives.foreign import LONGEST, NAME, ArrayOption, Classified, Options, Pick, is_picture, parse_options
from ingest.archives.groups import Group, expanded, groups_of, shards_of, splits_of
from ingest.archives.stored import Stored, Tars, look, reading
from ingest.commands import source_command
from ingest.reading.keys import unique
from ingest.reading.picture import MOST_BYTES
from ingest.reading.product import iso_date
from ingest.source import Entry, Facts, Listening, Rejected, Schema
from shards.bands import PICTURE, SENTINEL2, esa_order
from shards.errors import BandstreamError
from shards.manifest import LabelSpec, MaskSpec, Reflectance

JSON_BYTES, LONGEST_ID = 1280, 200
LOOKED_AT = 64
"""Samples of which one must be readable, so that shapes and types are known."""
MOST_TEXT = 1 << 22
"""A JSON or label of more bytes is not read."""


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
            path for source in sources for path in (expanded(source) if not source.exists() else [source])
        )
        self.name = "webdataset"
        self.options = options or Options()
        self.size = size
        self.split_from = split_from
        self._tars = Tars()
        self._stored: tuple[Stored, ...] = ()
        self._kinds: tuple[str, ...] = ()
        self._wanted: tuple[str, ...] = ()

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
        self._tars, self._stored = Tars(), ()
        shards = shards_of(self.inputs)
        splits = splits_of([name for name, _ in shards], self.split_from)
        if any(splits) and "train" not in splits:
            listening.warn("not one name of a shard says train: --split-from seed draws splits instead")
        groups = groups_of(shards, self._tars.paths, listening)
        first: list[Group | Rejected] = []
        why = "they hold no samples"
        for group in groups:
            first.append(group)
            if isinstance(group, Group):
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

    def _fix(self, group: Group, listening: Listening) -> None:
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
        stored = tuple(look(option, group.path, files[option.member], self._square) for option in options.arrays)
        if len({one.dtype for one in stored}) > 1 and options.reflectance is None:
            raise BandstreamError("the arrays are of different types: say --reflectance SCALE,OFFSET, which is for all")
        kinds = tuple(self._label(label, group.path, files)[0] for label in options.labels)
        for mask in options.masks:
            with reading(group.path, mask.pick.member):
                members.read_classes(files[mask.pick.member], mask.pick.member, len(mask.classes))
        self._stored, self._kinds = stored, kinds
        schema = self.schema
        specs: list[LabelSpec | MaskSpec] = [*schema.labels.values(), *schema.masks.values()]
        for name in (*schema.arrays, *(spec.member for spec in specs)):
            if len(name) > LONGEST:
                raise BandstreamError(f"a member {name} would have more than {LONGEST} characters: give a shorter NAME")
        if left := sorted(group.places.keys() - set(self._wanted)):
            listening.say(f"not taken of each sample: {', '.join(left)}")

    @property
    def _square(self) -> tuple[int, int] | None:
        return (self.size, self.size) if self.size else None

    def _entries(self, groups: Iterable[Group | Rejected], splits: list[str]) -> Iterator[Entry | Rejected]:
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
            stored.read(path, files[stored.option.member], views[stored.option.target], self._square)
        for mask, target in zip(self.options.masks, self._mask_members, strict=True):
            member, view = mask.pick.member, views[target]
            with reading(path, member):
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
        with reading(path, member):
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
            with reading(path, pick.member):
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
            found[member] = self._tars.read(int(number), at, size, f"{entry.path}.{member}")
        return found


def _told(classified: Classified) -> str:
    """Where a label or class map stands, and a mark of its classes, whose order decides what is stored."""
    pick = classified.pick
    mark = hashlib.sha256("\n".join(classified.classes).encode()).hexdigest()[:16]
    return f"{pick.member}{':' if pick.field else ''}{pick.field}, {len(classified.classes)} classes {mark}"
