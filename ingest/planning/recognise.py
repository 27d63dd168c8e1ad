"""Which source an archive is of, by the names of its first files.

A source that can tell has a function `looks_like(names) -> bool` in its module, beside its `command`: `names` are
relative paths of files, with `/`, some hundreds from the beginning of the archive. One without is named by the user.
"""

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click

from ingest import sources
from ingest.reading import tar
from ingest.reading.unpack import unpacked
from shards.errors import BandstreamError

LOOKED_AT = 512
"""Files whose names are looked at."""
EACH = 16
"""Files of a folder, and folders in a folder, that are looked at."""


def source_maker(command: click.Command) -> Callable[..., Any]:
    """What makes a source, from `src` and its own options: the function behind its command of `source_command`."""
    make: Callable[..., Any] | None = getattr(command.callback, "__wrapped__", None)
    if make is None:
        raise BandstreamError(f"what an ingest of {command.name} takes cannot be said")
    return make


def recognised(src: Sequence[Path]) -> str | None:
    """The name of the source that `src` is of; None where there is no `src`. Raises BandstreamError where none of them
    takes it for its own, or more than one."""
    if not src:
        return None
    names = [name for path in src for name in islice(_names(path), LOOKED_AT)]
    known = sorted(module.name for module in pkgutil.iter_modules(sources.__path__))
    found = []
    for source in known:
        looks_like = getattr(importlib.import_module(f"ingest.sources.{source}"), "looks_like", None)
        if looks_like is not None and looks_like(names):
            found.append(source)
    if len(found) != 1:
        which = f"may be of {' or '.join(found)}" if found else "is not recognised"
        shown = " ".join(map(str, src))
        raise BandstreamError(f"{shown} {which}: say which, bandstream plan {'|'.join(found or known)} {shown}")
    return found[0]


def _names(path: Path) -> Iterator[str]:
    """Relative paths of some files: of a folder from all over it, of a tar from its beginning."""
    if path.is_dir():
        yield from _inside(path, path.name)
    elif not tar.NAME.search(path.name):
        yield path.name
    else:
        with path.open("rb") as raw:
            stream = tar.Seekable(raw) if path.suffix.lower() == ".tar" else tar.Stream(unpacked(raw, path))
            yield from (header.name for header in tar.headers_of(stream, path) if not header.name.endswith("/"))


def _inside(folder: Path, name: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        some = list(islice((entry for entry in entries if not entry.name.startswith(".")), 64 * EACH))
    yield from (f"{name}/{entry.name}" for entry in [entry for entry in some if not entry.is_dir()][:EACH])
    for entry in [entry for entry in some if entry.is_dir()][:EACH]:
        yield from _inside(Path(entry.path), f"{name}/{entry.name}")
