"""Cells cut into records, and the choice of dates."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.archives.cells import HEAD, Grid
from ingest.archives.dates import arrays_of, in_order, member, taken
from ingest.source import Array
from shards.errors import BandstreamError


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 30), st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_patch_comes_back(coarse: int, more: int, cells: int, random: object) -> None:
    """Patches are what slicing gives, whole pixels of every resolution, as near to the cell's middle as these allow."""
    patch, cell = 6 * coarse, 6 * (coarse + more)
    arrays = {
        "10m.npy": Array(("a", "b"), (patch, patch)),
        "20m.npy": Array(("c",), (patch // 2, patch // 2), "int16"),
        "60m.npy": Array(("d",), (patch // 6, patch // 6), "float32"),
    }
    grid = Grid(arrays, cell, patch)
    rng = np.random.default_rng(coarse * 100 + more)
    held = []
    for _ in range(cells):
        planes = grid.empty()
        for plane in planes.values():
            plane[...] = rng.integers(0, 30000, plane.shape)
        held.append(planes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records"
        with path.open("wb") as file:
            for number, planes in reversed(list(enumerate(held))):
                grid.write(file, number, {"number": number}, planes)
        assert path.stat().st_size == cells * grid.cell_bytes
        for number, planes in enumerate(held):
            for index in range(grid.across**2):
                top, left = grid.corner(index)
                assert top % 6 == left % 6 == 0
                assert 0 <= top <= cell - patch
                views = {name: np.empty((len(a.bands), *a.size), a.dtype) for name, a in arrays.items()}
                assert grid.read(path, number, index, views) == {"number": number}
                for name, step in (("10m.npy", 1), ("20m.npy", 2), ("60m.npy", 6)):
                    y, x, side = top // step, left // step, patch // step
                    np.testing.assert_array_equal(views[name], planes[name][:, y : y + side, x : x + side])
        left_over = cell - grid.across * patch
        assert left_over < patch
        assert abs(2 * grid.margin - left_over) <= 6
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BandstreamError, match="was cut off while it was in use"):
            grid.read(path, cells - 1, grid.across**2 - 1, views)


def test_a_head_that_is_too_long(tmp_path: Path) -> None:
    grid = Grid({"10m.npy": Array(("a",), (6, 6))}, 6, 6)
    with (tmp_path / "records").open("wb") as file, pytest.raises(ValueError, match="a head of"):
        grid.write(file, 0, {"text": "x" * HEAD}, grid.empty())


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 16))
def test_dates(times: list[int], dates: int) -> None:
    found = in_order((f"2020-01-{time:02}", (time, number)) for number, time in enumerate(times))
    assert [time for time, _ in found] == sorted(set(times))
    assert all(times.index(time) == number for time, number in found)  # of one time the first stays
    if len(found) >= dates:
        picked = taken(found, dates)
        ranks = [found.index(each) for each in picked]
        assert len(picked) == dates
        assert ranks[0] == 0
        steps = np.diff([*ranks, len(found)])  # round the year
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1


def test_members() -> None:
    arrays = arrays_of({"10m.npy": Array(("B02",), (6, 6)), "20m.npy": Array(("B05",), (3, 3))}, 2)
    assert list(arrays) == ["10m.npy", "20m.npy", "t1.10m.npy", "t1.20m.npy"]
    assert [array.time for array in arrays.values()] == [0, 0, 1, 1]
    assert (member("10m.npy", 0), member("10m.npy", 3)) == ("10m.npy", "t3.10m.npy")
