"""Files to cache, and a process that uses a cache wildly: `python -m tests.shards.cached FOLDER GB SEED SECONDS`.

It takes files at random, fetches those that are not there in small steps, uses several at a time, holds each against
its checksum, and prints how many files it fetched and how many it found. It may be killed at any moment.
"""

import hashlib
import os
import random
import sys
import time
from pathlib import Path

from shards.remote.cache import Cache, File, Held, Part

FILES = 12


def content(number: int) -> bytes:
    """Of a file: 20 to 60 kB."""
    draw = random.Random(number)
    return draw.randbytes(draw.randrange(20_000, 60_000))


def file(number: int) -> File:
    data = content(number)
    return File(f"{number}.tar", len(data), hashlib.sha256(data).hexdigest())


def bytes_in(folder: Path) -> int:
    """Bytes of all files of a cache, each counted once while it is renamed."""
    seen: dict[int, int] = {}
    for entry in os.scandir(folder):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue
        seen[status.st_ino] = status.st_size
    return sum(seen.values())


def main(folder: str, gb: str, seed: str, seconds: str) -> None:
    draw, cache = random.Random(seed), Cache(folder, float(gb))
    held: list[Held] = []
    fetched = found = 0
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        number = draw.randrange(FILES)
        got = cache.claim(file(number))
        if isinstance(got, Part):
            data = content(number)
            for start in range(0, len(data), 5000):
                got.write(data[start : start + 5000])
                time.sleep(draw.uniform(0, 0.004))
            assert got.wrong() == ""
            got = got.finish()
            fetched += 1
        elif isinstance(got, Held):
            found += 1
            assert got.sha256() == file(number).sha256
            if not got.checked:
                cache.confirm(got)
        if isinstance(got, Held):
            held.append(got)
            assert os.pread(got.descriptor, 1 << 20, 0) == content(number)
        while len(held) > 2 or (held and draw.random() < 0.3):
            held.pop(draw.randrange(len(held))).close()
        if not isinstance(got, Held):
            time.sleep(0.002)
    print(fetched, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
