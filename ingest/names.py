"""Keys from the names of files, which may hold anything: always the same, always allowed, never the same for two.

A key is the file's name without its suffix; where several files of the archive would have the same, it is their path;
where that is the same too, a hash of the path is added. Letters lose their accents, whatever else a key cannot hold
becomes `_`.
"""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable

import numpy as np

from ingest.folders import without_suffix

LONGEST = 80


def safe(text: str, longest: int = LONGEST) -> str:
    """Text as a key of at most `longest` characters; one that is longer ends in a hash of the whole."""
    plain = unicodedata.normalize("NFKD", text)
    key = re.sub(r"[^A-Za-z0-9_+=-]", "_", "".join(each for each in plain if not unicodedata.combining(each)))
    return _hashed(key, text, longest) if len(key) > longest or not key else key


def _hashed(key: str, text: str, longest: int) -> str:
    return f"{key[: longest - 9]}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


class Keys:
    """The keys of an archive's files, by their relative paths. Remembers 8 bytes a file (16 until it has seen all)."""

    def __init__(self, paths: Iterable[str], longest: int = LONGEST) -> None:
        self.longest = longest
        self.count = 0
        names, whole = array("Q"), array("Q")
        for path in paths:
            stem = without_suffix(path)
            names.append(_digest(self._of_name(stem)))
            whole.append(_digest(self._of_path(stem)))
            self.count += 1
        self._names = np.sort(np.frombuffer(names, np.uint64))
        self._twice, self._paths_twice = _repeated(self._names), _repeated(np.sort(np.frombuffer(whole, np.uint64)))

    def __getitem__(self, path: str) -> str:
        stem = without_suffix(path)
        key = self._of_name(stem)
        if not _holds(self._twice, _digest(key)):
            return key
        key = self._of_path(stem)
        another = "/" in stem and _holds(self._names, _digest(key))  # a file that is called as this one's path
        return _hashed(key, path, self.longest) if another or _holds(self._paths_twice, _digest(key)) else key

    def _of_name(self, stem: str) -> str:
        return safe(stem.rpartition("/")[2], self.longest)

    def _of_path(self, stem: str) -> str:
        return safe(stem.replace("/", "_"), self.longest)


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def _repeated(ordered: np.ndarray) -> np.ndarray:
    """Those of sorted numbers that occur more than once."""
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _holds(ordered: np.ndarray, digest: int) -> bool:
    at = int(np.searchsorted(ordered, np.uint64(digest)))
    return at < len(ordered) and int(ordered[at]) == digest
