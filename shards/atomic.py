"""Files appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp"
"""Every temporary file is `.NAME.RANDOM.tmp` in the folder of its final place: two writers of one file, be they on two
hosts of a network file system, never share one, and whoever renames last has written the whole."""


@contextmanager
def replacing(path: Path | str, before: Callable[[], object] = lambda: None) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends, and vanishes when it raises.

    `before` is called last of all before the rename, with the content safe on disk; what it raises stops it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path | str, data: bytes, before: Callable[[], object] = lambda: None) -> None:
    """Write `data` to `path` atomically; `before` as for `replacing`."""
    with replacing(path, before) as file:
        file.write(data)


def write_text(path: Path | str, text: str, before: Callable[[], object] = lambda: None) -> None:
    """Write `text` as UTF-8 to `path` atomically; `before` as for `replacing`."""
    write_bytes(path, text.encode(), before)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinity are errors, for JSON has neither."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
