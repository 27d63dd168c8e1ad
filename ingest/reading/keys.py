"""Keys of samples whose archive names them as it likes: made out of the characters a key may have, and unique."""

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ingest.building.plan import digest
from ingest.source import Entry, Rejected

LONGEST = 80
OTHER = re.compile(r"[^A-Za-z0-9_+=-]")


def clean(name: str, path: str) -> str:
    """A key for the sample that is called `name` and lies in `path`: what a key may not have becomes `-`; a name that
    is too long is cut and gets the mark of its path."""
    key = OTHER.sub("-", name) or "-"
    return key if len(key) <= LONGEST else _marked(key, path)


def printed(path: str) -> str:
    """A path as text that may go into JSON and tables: bytes that are no UTF-8 are written out."""
    return path.encode("utf-8", "backslashreplace").decode()


def unique(items: Iterable[Entry | Rejected], scratch: Path) -> Iterator[Entry | Rejected]:
    """The same entries; each of those that share a key gets the mark of its path behind it.

    So a key tells nothing about the order of a listing. Entries wait on scratch until all keys are known; memory holds
    some 30 bytes of each.
    """
    digests = array("Q")
    waiting = scratch / "listed.jsonl"
    with waiting.open("wb") as file:
        for item in items:
            if isinstance(item, Rejected):
                yield item
                continue
            digests.append(digest("key", 0, item.key))
            file.write(b"%b\t%b\n" % (item.dump(), json.dumps([item.where, item.group, item.stratum]).encode()))
    ordered = np.sort(np.frombuffer(digests, np.uint64))
    repeated = np.isin(np.frombuffer(digests, np.uint64), ordered[1:][ordered[1:] == ordered[:-1]])
    with waiting.open("rb") as file:
        for again, line in zip(repeated, file, strict=True):
            content, rest = line.split(b"\t", 1)
            where, group, stratum = json.loads(rest)
            entry = replace(Entry.load(content, b""), where=where, group=group, stratum=stratum)
            yield replace(entry, key=_marked(entry.key, entry.path)) if again else entry
    waiting.unlink()


def _marked(key: str, path: str) -> str:
    """A key with 48 bits of its path's hash."""
    mark = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{key[: LONGEST - 13]}-{mark}"
