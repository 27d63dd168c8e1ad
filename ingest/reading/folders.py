"""Folders of files of one kind: where they begin, which split a folder stands for, names and paths."""

from collections.abc import Callable, Collection

from ingest.reading.files import Files

SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
"""Names of folders that say which split their files belong to."""
WORDS = SPLITS | {"training": "train", "testing": "test"}
"""The same with what else archives of other fields are seen to call them."""


def top_of(files: Files, wanted: Callable[[str], bool], aside: Collection[str] = ()) -> str:
    """The folder that holds the wanted files, or folders of them: below folders that hold nothing but another one.

    `aside`: folders that are passed over.
    """
    at = ""
    while True:
        inside = [name for name in files.inside(at) if joined(at, name) not in aside]
        if len(inside) != 1 or inside[0] in SPLITS or any(map(wanted, files.names(at))):
            return at
        at = joined(at, inside[0])


def joined(*parts: str) -> str:
    """A path of those of its parts that are not empty."""
    return "/".join(part for part in parts if part)


def without_suffix(path: str) -> str:
    """A path without the suffix of its last part."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


def stem(path: str) -> str:
    """The last part of a path, without its suffix."""
    return without_suffix(path).rpartition("/")[2]
