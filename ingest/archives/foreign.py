"""What an ingest of foreign samples is told: which member holds which bands, labels, class maps and facts."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ingest.archives.members import ARRAYS, IGNORE, PICTURES, RASTERS, suffix_of
from ingest.reading.classes import lines_of
from shards.bands import PICTURE, SENTINEL2
from shards.errors import BandstreamError
from shards.manifest import Reflectance

MEMBER = re.compile(r"[a-z0-9][a-z0-9_.+-]*")
NAME = re.compile(r"[a-z][a-z0-9_]*")
LONGEST = 19
"""Characters of a member's name: with a key of 80 and the dot between, they fill a tar header's 100."""
LEFT_OUT = "-"


@dataclass(frozen=True)
class Pick:
    """A member, or (`field` not "") a field of the JSON in it."""

    member: str
    field: str = ""


@dataclass(frozen=True)
class ArrayOption:
    """A member that holds bands, in this order; LEFT_OUT stands for one that is not taken."""

    member: str
    bands: tuple[str, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The bands that are taken, in the channel order of views."""
        return tuple(band for band in (*SENTINEL2, *PICTURE) if band in self.bands)

    @property
    def target(self) -> str:
        """What it is called in the set: `s2.npy` for `s2.npy` and `s2.tif`; without a name of its own, `rgb.npy` for
        red, green and blue, else `image.npy`."""
        stem = self.member.rpartition(".")[0]
        return f"{stem or ('rgb' if self.kept == tuple(PICTURE) else 'image')}.npy"

    @property
    def time(self) -> int:
        """The number of its date: 1 for `t1.s2.npy`."""
        found = re.fullmatch(r"t(\d{1,4})\..+\..+", self.member)
        return int(found[1]) if found else 0


@dataclass(frozen=True)
class Classified:
    """A label or a class map: where it stands, its name, the member it becomes, its classes."""

    pick: Pick
    name: str
    classes: tuple[str, ...]

    @cached_property
    def indices(self) -> dict[str, int]:
        """Name of a class → its index."""
        return {name: number for number, name in enumerate(self.classes)}


@dataclass(frozen=True)
class Options:
    """All of it. `place`: longitude and latitude; `reflectance` None: by the arrays' types."""

    arrays: tuple[ArrayOption, ...] = ()
    labels: tuple[Classified, ...] = ()
    masks: tuple[Classified, ...] = ()
    id: Pick | None = None
    place: tuple[Pick, Pick] | None = None
    date: Pick | None = None
    reflectance: Reflectance | None = None

    @property
    def picks(self) -> tuple[Pick, ...]:
        """Everything but arrays and masks that is read of a sample."""
        facts = (self.id, *(self.place or ()), self.date)
        return (*(label.pick for label in self.labels), *(pick for pick in facts if pick))


def is_picture(member: str) -> bool:
    return suffix_of(member) in PICTURES


def parse_options(
    arrays: Iterable[str] = (),
    labels: Iterable[str] = (),
    masks: Iterable[str] = (),
    classes: Iterable[tuple[str, Path]] = (),
    id: str = "",
    place: str = "",
    date: str = "",
    reflectance: str = "",
) -> Options:
    """From the words of the command; `classes`: (NAME or "" for all, file). Raises BandstreamError."""
    known = _classes(classes)
    used: set[str] = {""} & known.keys()
    options = Options(
        tuple(_array(text) for text in arrays),
        tuple(_classified(text, "--label", "class", known, used) for text in labels),
        tuple(_classified(text, "--mask", "mask", known, used) for text in masks),
        _field(id, "--id") if id else None,
        _place(place) if place else None,
        _field(date, "--date") if date else None,
        _reflectance(reflectance) if reflectance else None,
    )
    if known and not (options.labels or options.masks):
        raise BandstreamError("--classes is for --label and --mask, of which there is none")
    if unused := known.keys() - used:
        raise BandstreamError(f"--classes {sorted(unused)[0]}: no --label or --mask has that name")
    for kind in (options.labels, options.masks):
        if repeated := [name for name, count in Counter(one.name for one in kind).items() if count > 1]:
            raise BandstreamError(f"{repeated[0]} names two labels or two masks: give each its own, MEMBER=NAME")
    for mask in options.masks:
        if suffix_of(mask.pick.member) not in ("npy", "png", *RASTERS) or mask.pick.field:
            raise BandstreamError(f"--mask {mask.pick.member}: class maps are read from .png, .npy and .tif")
        if len(mask.classes) > IGNORE:
            raise BandstreamError(f"--mask {mask.pick.member}: at most {IGNORE} classes, {IGNORE} stands for none")
    _check_bands(options.arrays)
    return options


def _check_bands(arrays: Sequence[ArrayOption]) -> None:
    names = [band for array in arrays for band in array.kept]
    if set(names) & set(PICTURE) and set(names) & set(SENTINEL2):
        raise BandstreamError("--array: red, green and blue or Sentinel-2 bands, not both in one set")
    for time in {array.time for array in arrays}:
        own = Counter(band for array in arrays if array.time == time for band in array.kept)
        if repeated := [band for band, count in own.items() if count > 1]:
            raise BandstreamError(f"--array: {', '.join(repeated)} is held twice: put {LEFT_OUT} for it in one member")
        if own.keys() != set(names):
            raise BandstreamError(f"--array: date {time} does not hold the bands that the others do")
    if repeated := [name for name, count in Counter(array.target for array in arrays).items() if count > 1]:
        raise BandstreamError(f"--array: two members would be called {repeated[0]}")


def _array(text: str) -> ArrayOption:
    member, equals, rest = text.partition("=")
    member, bands = _member(member, "--array"), tuple(rest.split(","))
    if not equals or suffix_of(member) not in ARRAYS:
        raise BandstreamError(f"--array {text}: expected MEMBER=BAND,BAND,... with a member .npy, .tif, .jpg or .png")
    unknown = [band for band in bands if band not in (*SENTINEL2, *PICTURE, LEFT_OUT)]
    if unknown:
        raise BandstreamError(
            f"--array {text}: unknown band {unknown[0]!r}: there are {', '.join((*SENTINEL2, *PICTURE))}, "
            f"and {LEFT_OUT} for one to leave out"
        )
    array = ArrayOption(member, bands)
    if not array.kept or len(array.kept) != len(bands) - bands.count(LEFT_OUT):
        raise BandstreamError(f"--array {text}: a band is named twice, or none")
    if is_picture(member) and len(bands) != 3:
        raise BandstreamError(f"--array {text}: a picture holds three bands")
    if array.target in ("mask.npy", "labels.npy") or len(array.target) > LONGEST:
        raise BandstreamError(f"--array {text}: the set cannot have a member {array.target} that holds bands")
    return array


def _classified(text: str, option: str, name: str, known: dict[str, tuple[str, ...]], used: set[str]) -> Classified:
    place, equals, own = text.partition("=")
    member, _, field = place.partition(":")
    name = own if equals else name
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise BandstreamError(f"{option} {text}: a name is up to {LONGEST} lower-case letters, digits and _")
    used.add(name)
    if name not in known and "" not in known:
        raise BandstreamError(f"{option} {text} needs its classes: --classes {name}=FILE, a name a line")
    return Classified(Pick(_member(member, option), field), name, known.get(name) or known[""])


def _member(text: str, option: str) -> str:
    member = text.lower()
    if not MEMBER.fullmatch(member):
        raise BandstreamError(f"{option} {text}: MEMBER is what follows the first dot of a file's name, such as s2.npy")
    return member


def _field(text: str, option: str) -> Pick:
    member, _, field = text.partition(":")
    if not field:
        raise BandstreamError(f"{option} {text}: expected MEMBER:FIELD, such as json:name")
    return Pick(_member(member, option), field)


def _place(text: str) -> tuple[Pick, Pick]:
    pick = _field(text, "--place")
    longitude, comma, latitude = pick.field.partition(",")
    if not comma or not longitude or not latitude or "," in latitude:
        raise BandstreamError(f"--place {text}: expected MEMBER:LON,LAT, such as json:lon,lat")
    return Pick(pick.member, longitude), Pick(pick.member, latitude)


def _reflectance(text: str) -> Reflectance:
    words = text.split(",")
    try:
        scale, offset = float(words[0]), float(words[1])
        if len(words) > 3 or not (scale > 0 and math.isfinite(scale) and math.isfinite(offset)):
            raise ValueError
    except (ValueError, IndexError):
        raise BandstreamError(f"--reflectance {text}: expected SCALE,OFFSET or SCALE,OFFSET,LEVEL") from None
    return Reflectance(scale=scale, offset=offset, level=words[2] if len(words) == 3 else "unknown")


def _classes(files: Iterable[tuple[str, Path]]) -> dict[str, tuple[str, ...]]:
    """The lines of each list of classes. Raises BandstreamError where one is none."""
    found: dict[str, tuple[str, ...]] = {}
    for name, path in files:
        lines = lines_of(path)
        while lines and not lines[-1]:
            lines.pop()
        if not lines or not all(lines) or len(set(lines)) != len(lines):
            raise BandstreamError(f"{path} is no list of classes, a different name on each line")
        if name in found:
            raise BandstreamError(f"--classes: two lists for {name or 'all labels and masks'}")
        found[name] = tuple(lines)
    return found
