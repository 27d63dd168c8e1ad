"""Copies and leakage: held to comparisons of all with all, to SciPy's transform and to PROJ."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.fft
from click.testing import CliRunner, Result
from rasterio.warp import transform

from cli import bandstream
from ingest.building.build import Options, ingest
from ingest.checking import leakage, likeness
from ingest.checking.audit import EXACT, NEAR, OVERLAP, Audit
from ingest.checking.leakage import Footprints
from ingest.reading.utm import lon_lat
from ingest.sources.bigearthnet import BigEarthNet
from shards.shardset import ShardSet
from tests.ingest.archives import V2_TILE, make_v2, patch_name, write_patch
from tests.pipeline.making import make_set


def picture(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """A smooth picture of its own for each number, the same scene in all bands, at a tenth of full scale."""
    rng = np.random.default_rng(number)
    count, size, _ = shape
    coarse = rng.uniform(0.2, 1, (count, 6, 6))
    fine = np.stack([np.kron(each, np.ones((size // 6 + 1,) * 2))[:size, :size] for each in coarse])
    return (fine * np.iinfo(dtype).max / 10).astype(dtype)


def audit(*words: object) -> Result:
    return CliRunner().invoke(bandstream, ["audit", *map(str, words)])


def test_copies_are_found_and_told_apart(tmp_path: Path) -> None:
    """Of 40 samples 30 to 33 are changed copies of 0 to 3, and 34 an exact one of 4."""

    def image(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
        planes = picture(number - 30 if 30 <= number < 35 else number, bands, shape, dtype).astype(float)
        rng = np.random.default_rng([number, shape[1]])
        if number == 30:
            planes *= 1.02
        if number == 31:
            planes += rng.normal(0, 0.02, shape) * planes.mean()
        if number == 32:
            planes = np.round(planes / 64) * 64
        if number == 33:
            planes = np.roll(planes, 1, 2)
        return planes.astype(dtype)

    folder = make_set(tmp_path / "set", {"train": 30, "test": 10}, image=image, shard_samples=7)
    found = Audit(folder).run()
    assert found.pairs[EXACT].tolist() == [[4, 34]]
    assert found.pairs[NEAR].tolist() == [[0, 30], [1, 31], [2, 32], [3, 33]]
    assert found.across == {EXACT: 1, NEAR: 4, OVERLAP: 0}
    assert found.groups == (1, 2)
    result = audit(folder, "--out", tmp_path / "pairs.parquet")
    assert result.exit_code == 1
    assert (
        "exact copies: 2 samples in 1 groups, 1 pairs across splits\n  P00004 (train) and P00034 (test)"
        in result.stdout
    )
    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [(row["kind"], row["key_a"], row["key_b"]) for row in rows] == [
        ("exact", "P00004", "P00034"),
        *[("near", f"P{number:05d}", f"P{number + 30:05d}") for number in range(4)],
    ]
    assert rows[0]["shard_b"] == "test-000000.tar" and rows[0]["position_b"] == 4 and rows[0]["split_b"] == "test"
    assert all(0.9 <= row["measure"] <= 1 for row in rows)


def test_a_set_without_copies_exits_with_0(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", {"train": 20, "test": 10}, image=picture)
    result = audit(folder, "--out", tmp_path / "pairs.jsonl")
    assert result.exit_code == 0
    assert (tmp_path / "pairs.jsonl").read_text() == ""
    assert "the places of 30 samples are unknown" in result.stdout


@pytest.mark.parametrize(("bands", "side"), [(["red", "green", "blue"], 64), (["B08"], 12), (["B04", "B08"], 50)])
def test_sets_of_few_bands_and_odd_sizes(tmp_path: Path, bands: list[str], side: int) -> None:
    def image(number: int, names: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
        planes = picture(min(number, 24), names, shape, dtype).astype(float)
        return (planes * (1.02 if number == 25 else 1)).astype(dtype)

    sizes = {"train": 20, "val": 6}
    folder = make_set(tmp_path / "set", sizes, image=image, arrays={"10m.npy": (bands, side)}, dtype="uint16")
    found = Audit(folder).run()
    assert found.pairs[NEAR].tolist() == [[24, 25]]


def test_flat_patches_are_compared_for_exact_copies_alone(tmp_path: Path) -> None:
    def image(number: int, bands: list[str], shape: tuple[int, int, int], dtype: str) -> np.ndarray:
        return np.full(shape, 100 if number < 2 else 200 + number, dtype)

    found = Audit(make_set(tmp_path / "set", {"train": 5}, image=image)).run()
    assert found.pairs[EXACT].tolist() == [[0, 1]]
    assert len(found.pairs[NEAR]) == 0
    assert any("4 flat patches" in note for note in found.notes)
    assert not found.leaks


def test_cells_and_spectrum(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 5000, (3, 50, 120)).astype(np.uint16)
    cells = likeness.cells(planes, 16)
    ends = [np.arange(17) * size // 16 for size in (50, 120)]
    for row in range(16):
        for column in range(16):
            inside = planes[:, ends[0][row] : ends[0][row + 1], ends[1][column] : ends[1][column + 1]]
            np.testing.assert_allclose(cells[:, row, column], inside.mean((1, 2)), rtol=1e-5)
    spectrum = likeness._transform(16) @ cells @ likeness._transform(16).T
    np.testing.assert_allclose(spectrum, scipy.fft.dctn(cells, axes=(1, 2), norm="ortho"), rtol=1e-3, atol=0.5)


def test_candidates_are_those_that_share_a_piece() -> None:
    """Against a comparison of all with all: none is missed whose turned bits leave one piece whole."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (400, 192), np.uint8)
    for number in range(200, 400):
        bits[number] = bits[number - 200]
        bits[number, rng.choice(192, rng.integers(0, 60), replace=False)] ^= 1
    found = likeness.candidates(np.packbits(bits, axis=1, bitorder="little").view(np.uint64))
    pieces = likeness.pieces(400, 3)
    assert pieces.shape == (likeness.PIECES, 12) and len(np.unique(pieces)) == 192
    expected = set()
    for first in range(400):
        for second in range(first + 1, 400):
            same = bits[first] == bits[second]
            if (~same).sum() <= 48 and same[pieces].all(1).any():
                expected.add((first, second))
    assert {tuple(pair) for pair in found.pairs.tolist()} == expected
    assert len(expected) > 100
    assert found.crowded == 0


def test_many_alike_are_not_compared_all_with_all_and_it_is_said() -> None:
    found = likeness.candidates(np.zeros((5000, 3), np.uint64))
    assert len(found.pairs) < 5000 * (likeness.NEIGHBOURS + 1)
    assert found.crowded > 4000


def test_groups_of_equal_hashes() -> None:
    hashes = np.array([[5, 1], [2, 2], [5, 1], [5, 2], [2, 2], [5, 1]], np.uint64)
    assert [group.tolist() for group in likeness.exact_groups(hashes)] == [[1, 4], [0, 2, 5]]
    assert list(likeness.exact_groups(np.empty((0, 2), np.uint64))) == []


def in_utm(zones: np.ndarray, left: np.ndarray, bottom: np.ndarray, size: float) -> Footprints:
    bounds = np.stack([left, bottom, left + size, bottom + size], 1)
    centres = np.array(
        [lon_lat(32600 + int(z), x + size / 2, y + size / 2) for z, x, y in zip(zones, left, bottom, strict=True)]
    )
    names = sorted(set(zones.tolist()))
    return Footprints(np.array([names.index(z) for z in zones], np.int16), bounds, centres, [1.0] * len(names))


def test_overlaps_are_those_of_all_with_all() -> None:
    rng = np.random.default_rng(1)
    count, size = 400, 1200.0
    left, bottom = 500_000 + rng.integers(0, 150, count) * 100.0, 5_000_000 + rng.integers(0, 150, count) * 100.0
    split = rng.integers(0, 3, count).astype(np.uint8)
    places = in_utm(np.full(count, 33), left, bottom, size)
    found = leakage.overlaps(places, split, 3)
    expected = {}
    for i in range(count):
        for j in range(i + 1, count):
            width, height = size - abs(left[i] - left[j]), size - abs(bottom[i] - bottom[j])
            if split[i] != split[j] and width > 0 and height > 0 and width * height / size**2 >= leakage.LEAST:
                expected[i, j] = width * height / size**2
    assert {tuple(pair) for pair in found.pairs.tolist()} == set(expected) and len(expected) > 100
    for pair, share in zip(found.pairs.tolist(), found.shares, strict=True):
        assert share == pytest.approx(expected[tuple(pair)], rel=1e-5)
    assert found.total == len(expected)
    touched = {(i, split[j]) for i, j in expected} | {(j, split[i]) for i, j in expected}
    assert {(i, s) for i, s in zip(*np.nonzero(found.touched), strict=True)} == touched


def test_neighbours_that_touch_do_not_overlap() -> None:
    left = 500_000 + np.arange(10) * 1200.0
    found = leakage.overlaps(in_utm(np.full(10, 33), left, np.full(10, 5e6), 1200.0), np.arange(10).astype("u1") % 2, 2)
    assert found.total == 0


def test_overlaps_where_two_zones_meet_are_near_those_of_proj() -> None:
    """Footprints of zones 32 and 33 around 12 degrees east; the share by points that PROJ carries over."""
    rng = np.random.default_rng(2)
    count, size = 60, 1200.0
    zones = np.repeat([32, 33], count)
    x32, y32 = (np.array(v) for v in transform("EPSG:4326", "EPSG:32632", [12.0], [48.0]))
    x33, y33 = (np.array(v) for v in transform("EPSG:4326", "EPSG:32633", [12.0], [48.0]))
    left = np.concatenate([x32 + rng.uniform(-4000, 4000, count), x33 + rng.uniform(-4000, 4000, count)])
    bottom = np.concatenate([y32 + rng.uniform(-4000, 4000, count), y33 + rng.uniform(-4000, 4000, count)])
    found = leakage.overlaps(in_utm(zones, left, bottom, size), np.repeat([0, 1], count).astype("u1"), 2)
    shares = {tuple(pair): float(s) for pair, s in zip(found.pairs.tolist(), found.shares, strict=True)}
    grid = (np.arange(24) + 0.5) / 24 * size
    seen = 0
    for i in range(count):
        xs, ys = (each.ravel() for each in np.meshgrid(left[i] + grid, bottom[i] + grid))
        there_x, there_y = map(np.array, transform("EPSG:32632", "EPSG:32633", xs, ys))
        for j in range(count, 2 * count):
            inside = (there_x >= left[j]) & (there_x < left[j] + size) & (there_y >= bottom[j])
            true = float((inside & (there_y < bottom[j] + size)).mean())
            assert abs(shares.get((i, j), 0.0) - true) < 0.1, (i, j)
            seen += true > 0.2
    assert seen > 20


def test_overlaps_across_the_date_line_and_of_degrees() -> None:
    bounds = np.array([[179.99, 0.0, 180.01, 0.02], [-180.005, 0.0, -179.985, 0.02], [10.0, 60.0, 10.02, 60.02]])
    centres = np.array([[180.0, 0.01], [-179.995, 0.01], [10.01, 60.01]])
    places = Footprints(np.array([0, 1, 0], np.int16), bounds, centres, [0.0, 0.0])
    found = leakage.overlaps(places, np.array([0, 1, 1], np.uint8), 2)
    assert found.pairs.tolist() == [[0, 1]]
    assert found.shares[0] == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(places.half_sizes()[2], [0.01 * 111_320 * np.cos(np.radians(60.01)), 0.01 * 111_320])


def test_an_archive_with_a_patch_under_two_names(tmp_path: Path) -> None:
    """Patch 4 (train) stands there again as patch 31 (validation): an exact copy on the same ground."""
    root = make_v2(tmp_path / "archive", 32, maps=False)
    folder = root / "BigEarthNet-S2" / V2_TILE / patch_name(31)
    shutil.rmtree(folder)
    write_patch(folder, 4)
    ingest(BigEarthNet(root), tmp_path / "set", Options(shard_samples=8))
    result = audit(tmp_path / "set", "--out", tmp_path / "pairs.jsonl")
    assert result.exit_code == 1
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(row["kind"], {row["key_a"], row["key_b"]}) for row in rows] == [
        ("exact", {patch_name(4), patch_name(31)}),
        ("overlap", {patch_name(4), patch_name(31)}),
    ]
    assert {row["split_a"] for row in rows} == {"train"} and {row["split_b"] for row in rows} == {"val"}
    assert rows[1]["measure"] == 1.0
    assert "1 of 4 samples of val (25.0%) overlap train" in result.stdout
    assert "unknown" not in result.stdout
    assert ShardSet.open(tmp_path / "set").size("val") == 4
