"""Large cells cut into patches once, on scratch, so that a patch can be read without decoding its whole cell again.

A shard holds patches of as many cells as it has samples. A file of records has the patches of some cells: a head of
HEAD bytes a cell (JSON, what its patches share), then its patches, row by row, each the planes of its arrays in their
order; all cells take the same number of bytes, so that a record is found by arithmetic.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ingest.source import Array
from shards import atomic
from shards.errors import BandstreamError

HEAD = 512


@dataclass(frozen=True)
class Grid:
    """How cells are cut: the arrays of a patch, and the sides of a cell and of a patch in pixels of the finest array.

    Patches lie side by side around the cell's middle; what is left over is a margin, whole pixels of every array.
    """

    arrays: dict[str, Array]
    cell: int
    patch: int

    @property
    def steps(self) -> dict[str, int]:
        """Pixels of the finest array in one of each member."""
        return {name: self.patch // array.size[0] for name, array in self.arrays.items()}

    @property
    def across(self) -> int:
        """Patches side by side in a cell."""
        return self.cell // self.patch

    @property
    def margin(self) -> int:
        """Pixels of the finest array that are left over on the left and at the top."""
        coarsest = max(self.steps.values())
        return (self.cell - self.across * self.patch) // 2 // coarsest * coarsest

    @property
    def patch_bytes(self) -> int:
        return sum(_bytes(array) for array in self.arrays.values())

    @property
    def cell_bytes(self) -> int:
        return HEAD + self.across**2 * self.patch_bytes

    def corner(self, number: int) -> tuple[int, int]:
        """(top, left) of patch `number` in the cell, in pixels of the finest array."""
        row, column = divmod(number, self.across)
        return self.margin + row * self.patch, self.margin + column * self.patch

    def empty(self) -> dict[str, np.ndarray]:
        """The planes of a whole cell, to be filled: member → (bands, H, W)."""
        sides = {name: self.cell // step for name, step in self.steps.items()}
        return {
            name: np.empty((len(array.bands), sides[name], sides[name]), array.dtype)
            for name, array in self.arrays.items()
        }

    def write(self, file: BinaryIO, number: int, head: Mapping[str, Any], planes: Mapping[str, np.ndarray]) -> None:
        """Write cell `number` of a file."""
        text = json.dumps(head).encode()
        if len(text) > HEAD:
            raise ValueError(f"a head of {len(text)} bytes")
        file.seek(number * self.cell_bytes)
        file.write(text.ljust(HEAD))
        steps = self.steps
        for top, left in map(self.corner, range(self.across**2)):
            for name, array in self.arrays.items():
                y, x, (height, width) = top // steps[name], left // steps[name], array.size
                file.write(planes[name][:, y : y + height, x : x + width].tobytes())

    def read(self, path: Path, number: int, patch: int, views: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Fill `views` (member → (bands, h, w)) with a patch of cell `number`; the cell's head."""
        begin = number * self.cell_bytes
        with path.open("rb") as file:
            head = os.pread(file.fileno(), HEAD, begin)
            raw = os.pread(file.fileno(), self.patch_bytes, begin + HEAD + patch * self.patch_bytes)
        if len(head) < HEAD or len(raw) < self.patch_bytes:
            raise BandstreamError(f"{path} was cut off while it was in use: run the ingest again")
        at = 0
        for name, array in self.arrays.items():
            view = views[name]
            view[...] = np.frombuffer(raw, array.dtype, view.size, at).reshape(view.shape)
            at += _bytes(array)
        content: dict[str, Any] = json.loads(head)
        return content


def recorded(records: Path, write: Callable[[BinaryIO], list[Any]]) -> list[Any]:
    """What `write` has to tell of a file of records that it fills, unless an earlier run did: both stay on scratch."""
    told = records.with_suffix(".json")
    if not records.exists():
        with atomic.replacing(records) as out:
            atomic.write_text(told, json.dumps(write(out)))
    found: list[Any] = json.loads(told.read_bytes())
    return found


def _bytes(array: Array) -> int:
    return len(array.bands) * array.size[0] * array.size[1] * np.dtype(array.dtype).itemsize
