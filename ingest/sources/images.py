"""Pictures in class folders, as torchvision's `ImageFolder` reads them: CLASS/FILE, or SPLIT/CLASS/FILE.

The class is the first folder below the split; pictures may lie deeper. Splits are folders called train, val (valid,
validation) and test. A folder around all is passed over, and one folder alone is no class: the set then has no labels.
Where train has classes, they are the set's, and a picture of another split in a folder that train does not have is
rejected, as is one without a class where others have one.

Files whose name begins with a dot or does not end as a picture's does are passed over. How pictures are decoded and
which are rejected: `ingest.reading.picture`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ingest.commands import source_command
from ingest.reading.files import Files, open_files
from ingest.reading.folders import WORDS
from ingest.reading.geotiff import RasterError
from ingest.reading.keys import clean, printed, unique
from ingest.reading.picture import MOST_BYTES, SUFFIXES, read_picture
from ingest.source import Array, Entry, Facts, Listening, Rejected, Schema
from shards.bands import PICTURE
from shards.errors import BandstreamError
from shards.manifest import LabelSpec, Reflectance

MEMBER, LABEL = "rgb.npy", "class"
LOOKED_AT = 64
"""Pictures whose size is looked at where none is given."""
JSON_BYTES, LONGEST_PATH = 1024, 800
"""Bytes of a sample's json, and the most that the path in it may take."""
SHOWN = Reflectance(scale=1 / 255, offset=0.0, level="picture")
"""Pictures state brightness and no reflectance: 0 is black, 1 white."""


@source_command
@click.option(
    "--size",
    type=click.IntRange(1, 8192),
    help="Side of the square that pictures are scaled (the shorter side, bicubic) and cropped (about the centre) to.  "
    "[default: that of the pictures, which must all be squares of one size; they are stored as they are]",
)
def command(src: tuple[Path, ...], size: int | None) -> "Images":
    """Convert pictures in class folders into the shard set DST.

    SRC is a folder, or a tar of it (.tar, .tar.gz, .tar.zst), of JPEG, PNG, WebP, BMP or TIFF pictures of 8 bits a
    channel: CLASS/FILE, SPLIT/CLASS/FILE with splits train, val and test, or pictures without class folders, which make
    a set without labels. Where no folder says the split, a tenth of each class goes to val and a tenth to test, by the
    seed. A sample's key, for --split-file, is CLASS_FILE without the suffix, or FILE where that begins with CLASS.
    """
    return Images(src, size)


def looks_like(names: Sequence[str]) -> bool:
    """Whether nearly all files are pictures as a camera or a browser has them, in folders."""
    pictures = [name for name in names if "/" in name and name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))]
    return len(pictures) > len(names) * 0.9


class Images:
    """Pictures of one folder or tar. `size`: side of the square to be stored; None: that of the pictures."""

    def __init__(self, src: Path | Sequence[Path], size: int | None = None) -> None:
        self.inputs = (src,) if isinstance(src, Path) else tuple(src)
        self.name = "pictures"
        self.size = size
        self._asked = size is not None
        self._files: Files | None = None
        self._top = ""
        self._split_folders = False
        self._classes: list[str] = []

    @property
    def schema(self) -> Schema:
        labels = {LABEL: LabelSpec(member="cls", kind="single", classes=[printed(name) for name in self._classes])}
        side = self.size or 0
        return Schema(
            bands=tuple(PICTURE.values()),
            arrays={MEMBER: Array(tuple(PICTURE), (side, side), "uint8")},
            reflectance=SHOWN,
            labels=labels if self._classes else {},
            masks={},
            json_bytes=JSON_BYTES,
            columns={"file": str},
            nodata=None,
        )

    def describe(self) -> dict[str, Any]:
        scaled = f"shorter side scaled to {self.size} (bicubic), cropped about the centre"
        return {
            "kind": "images",
            "labels": "names of folders" if self._classes else "none",
            "pixels": scaled if self._asked else "as they are",
        }

    def listing(self, listening: Listening) -> Iterator[Entry | Rejected]:
        if len(self.inputs) != 1:
            raise BandstreamError("pictures come from one folder or tar: name one, with a folder for each split in it")
        self._files = open_files(self.inputs[0], listening, _wanted)
        self._lay_out(self._files)
        if not self._asked:
            self.size = self._own_size(self._files)
        yield from self._files.refused()
        yield from unique(self._entries(self._files), listening.scratch)

    def _lay_out(self, files: Files) -> None:
        """Find the folder of splits or classes, and the classes. Raises BandstreamError where there are no pictures."""
        held = [tuple(folder.split("/")) if folder else () for folder, _ in _pictures(files)]
        if not held:
            raise BandstreamError(
                f"{self.inputs[0]} holds no pictures: expected CLASS/FILE or SPLIT/CLASS/FILE, with files that end "
                f"in {' '.join(SUFFIXES)}"
            )
        top: tuple[str, ...] = ()
        while len(names := {folder[: len(top) + 1] for folder in held}) == 1 and top not in names:
            (inner,) = names
            if _split(inner[-1]):
                break
            top = inner
        self._top = "/".join(top)
        first = {folder[len(top)] for folder in held if len(folder) > len(top)}
        splits = {name for name in first if _split(name)}
        self._split_folders = bool(splits) and splits == first
        # a class may well be called train, but not if folders lie in it, or one called test beside it
        deep = {folder[len(top)] for folder in held if len(folder) > len(top) + 1}
        if splits and splits != first and (len(splits) > 1 or splits & deep):
            raise BandstreamError(
                f"{self.inputs[0]}: {', '.join(sorted(splits))} look like splits, {sorted(first - splits)[0]} beside "
                "them does not: name a folder that holds splits alone, or classes alone"
            )
        skip = len(top) + self._split_folders
        classes: dict[str, set[str]] = {}
        for folder in held:
            if len(folder) > skip:
                split = _split(folder[skip - 1]) if self._split_folders else ""
                classes.setdefault(split, set()).add(folder[skip])
        every = set().union(*classes.values())
        self._classes = sorted(classes.get("train", every)) if len(every) > 1 else []

    def _own_size(self, files: Files) -> int:
        """The side of the pictures, by some of them. Raises BandstreamError where they differ."""
        sizes: dict[tuple[int, int], str] = {}
        left = LOOKED_AT
        for folder, names in _pictures(files):
            for name in names[: max(1, LOOKED_AT // 16)]:
                path = f"{folder}/{name}" if folder else name
                try:
                    data = files.read_folder(folder, [name], MOST_BYTES).get(name)
                    shape = read_picture(data or b"", path, None).shape
                except (OSError, RasterError):
                    continue
                sizes.setdefault((shape[1], shape[2]), path)
                left -= 1
            if left <= 0:
                break
        if not sizes:
            raise BandstreamError(f"{self.inputs[0]}: not one of the first pictures can be read: say --size")
        (height, width), path = next(iter(sizes.items()))
        if len(sizes) > 1 or height != width:
            others = "" if len(sizes) == 1 else "".join(f", {p} {w} x {h}" for (h, w), p in [*sizes.items()][1:2])
            raise BandstreamError(
                f"the pictures are not all squares of one size ({path} {width} x {height}{others}): "
                "say the side that they are to be scaled and cropped to, such as --size 224"
            )
        return height

    def _entries(self, files: Files) -> Iterator[Entry | Rejected]:
        skip = len(self._top.split("/")) if self._top else 0
        numbers = {name: number for number, name in enumerate(self._classes)}
        for folder, names in _pictures(files):
            below = folder.split("/")[skip:] if folder else []
            split = _split(below.pop(0)) if self._split_folders and below else ""
            title = below[0] if below else ""
            for name in names:
                path = f"{folder}/{name}" if folder else name
                if len(json.dumps(printed(path))) > LONGEST_PATH:
                    yield Rejected(printed(path), "bad-name", f"its path takes more than {LONGEST_PATH} bytes")
                elif self._split_folders and not split:
                    yield Rejected(printed(path), "unknown-split", "it lies beside the folders of the splits")
                elif self._classes and not title:
                    yield Rejected(printed(path), "no-label", "it lies in no class folder, as others do")
                elif self._classes and title not in numbers:
                    yield Rejected(printed(path), "unknown-label", f"train has no folder {printed(title)!r}")
                else:
                    stem = name.rpartition(".")[0]
                    whole = stem if not self._classes or stem.startswith(title) else f"{title}_{stem}"
                    labels: dict[str, tuple[int, ...]] = {LABEL: (numbers[title],)} if self._classes else {}
                    yield Entry(clean(whole, path), path, split, labels, stratum=title if self._classes else "")

    def read(self, entry: Entry, views: Mapping[str, np.ndarray]) -> Facts:
        told = printed(entry.path)
        folder, _, name = entry.path.rpartition("/")
        view = views[MEMBER]
        try:
            found = self._files.read_folder(folder, [name], MOST_BYTES)  # type: ignore[union-attr]
        except OSError as error:
            raise Rejected(told, "unreadable", error.strerror or str(error)) from None
        if name not in found:
            raise Rejected(told, "unreadable", "it is no longer there")
        data = found[name]
        if data is None:
            raise Rejected(told, "too-large", f"a file of more than {MOST_BYTES >> 20} MB")
        try:
            picture = read_picture(data, told, (view.shape[1], view.shape[2]) if self._asked else None)
        except RasterError as error:
            raise Rejected(told, error.reason, error.detail) from None
        if picture.shape != view.shape:
            raise Rejected(
                told,
                "wrong-size",
                f"{picture.shape[2]} x {picture.shape[1]} pixels, not {self.size} x {self.size}: "
                "with --size it would be scaled",
            )
        view[...] = picture
        return Facts(entry.labels, {"id": entry.key, "file": told}, None, "", {"file": told})


def _split(folder: str) -> str:
    """The split that a folder of this name is, "" where it is none."""
    return WORDS.get(folder.lower(), "")


def _wanted(path: str) -> bool:
    """Whether a file is a picture by its name, and not hidden."""
    hidden = path.startswith(".") or "/." in path or path.startswith("__MACOSX/") or "/__MACOSX/" in path
    return not hidden and path.lower().endswith(SUFFIXES)


def _pictures(files: Files) -> Iterator[tuple[str, list[str]]]:
    """Folders that hold pictures, with the names of those."""
    for folder, names in files.folders():
        found = [name for name in names if _wanted(f"{folder}/{name}" if folder else name)]
        if found:
            yield folder, found
