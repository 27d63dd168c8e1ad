"""The made-up archive: judged by rasterio, beside the real one's bytes, and as a world that holds together."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from click.testing import CliRunner

from ingest.archives import clc
from ingest.synthetic import appearance, landscape, patterns, spectra
from ingest.synthetic.archive import class_names, make_archive, make_patch
from ingest.synthetic.command import synth
from ingest.synthetic.geography import CAPACITY, GRID, TILES, place, tile_corner
from ingest.synthetic.geotiff import template
from shards.errors import BandstreamError

SIDES = {band: side for bands, side in spectra.GROUPS for band in bands}
GSD = {120: 10, 60: 20, 20: 60}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("index", [0, 7, 95])
def test_files_are_what_was_made_and_lie_where_they_should(archive: Path, index: int) -> None:
    where, bands, reference = make_patch(0, index)
    folder = archive / "BigEarthNet-S2" / where.product / where.patch_id
    assert {path.name for path in folder.iterdir()} == {f"{where.patch_id}_{band}.tif" for band in SIDES}
    files = {folder / f"{where.patch_id}_{band}.tif": pixels for band, pixels in bands.items()}
    map_folder = archive / "Reference_Maps" / where.product / where.patch_id
    files[map_folder / f"{where.patch_id}_reference_map.tif"] = reference
    column, row = map(int, where.patch_id.split("_")[-2:])
    east, north = tile_corner(where.tile.name)
    for path, pixels in files.items():
        with rasterio.open(path) as raster:
            assert raster.dtypes == ("uint16",)
            assert raster.nodata == 0
            assert raster.crs.to_epsg() == 32600 + int(where.tile.name[:2])
            assert raster.crs.to_wkt().startswith(f'PROJCS["WGS 84 / UTM zone {where.zone}N"')
            gsd = GSD[len(pixels)]
            assert tuple(raster.transform)[:6] == (gsd, 0, east + 1200 * column, 0, -gsd, north - 1200 * row)
            assert raster.tags() == {"AREA_OR_POINT": "Area"}
            np.testing.assert_array_equal(raster.read(1), pixels)
        assert pixels.min() > 0, "0 is nodata"


def test_files_are_byte_for_byte_those_of_the_real_archive(real_data: Path) -> None:
    found = 0
    for path in sorted((real_data / "bigearthnet_v2").rglob("*.tif")):
        with rasterio.open(path) as raster:
            pixels, corner = raster.read(1), (int(raster.transform.c), int(raster.transform.f))
        made = template(len(pixels), GSD[len(pixels)], deflate="_map" in path.name)
        if "_map" not in path.name:
            assert made.raw(pixels, corner, 33) == path.read_bytes()
            found += 1
    assert found == 12


def test_place_of_a_real_patch_follows_from_its_name() -> None:
    # BigEarthNet v2 S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_75_43, v1 patches of the tiles 29UPU and 29SND
    assert tile_corner("33UUP") == (390000 - 75 * 1200, 5348400 + 43 * 1200)
    assert tile_corner("29UPU") == (604800 - 4 * 1200, 5834040 + 55 * 1200)
    assert tile_corner("29SND") == (567180 - 56 * 1200, 4358040 + 35 * 1200)


def test_metadata_has_the_columns_of_the_real_one_and_agrees_with_the_maps(archive: Path) -> None:
    table = pq.read_table(archive / "metadata.parquet")
    assert table.column_names == [
        *("patch_id", "labels", "split", "country", "s1_name", "s2v1_name"),
        *("contains_seasonal_snow", "contains_cloud_or_shadow"),
    ]
    rows = table.to_pylist()
    assert len({row["patch_id"] for row in rows}) == len(rows) == 96
    assert Counter(row["split"] for row in rows).keys() == {"train", "validation", "test"}
    for row in rows:
        product = row["patch_id"].rsplit("_", 2)[0]
        path = archive / "Reference_Maps" / product / row["patch_id"] / f"{row['patch_id']}_reference_map.tif"
        with rasterio.open(path) as raster:
            codes = np.unique(raster.read(1)).tolist()
        assert set(codes) <= clc.CLC_NAMES.keys()
        expected = {clc.CLASSES[clc.CLC_TO_CLASS[code]] for code in codes if code in clc.CLC_TO_CLASS}
        assert set(row["labels"]) == expected
        assert len(row["labels"]) == len(expected)
        assert 1 <= len(expected) <= 5


def test_same_bytes_by_any_number_of_workers(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("three", 3)):
        make_archive(tmp_path / name, 150, seed=5, workers=workers)
    one, three = bytes_of(tmp_path / "one"), bytes_of(tmp_path / "three")
    assert one.keys() == three.keys()
    assert len(one) == 150 * 13 + 1
    assert one == three


def test_seeds_differ_and_a_larger_archive_begins_with_the_smaller(archive: Path, tmp_path: Path) -> None:
    make_archive(tmp_path / "small", 10, seed=0, workers=1)
    make_archive(tmp_path / "other", 10, seed=1, workers=1)
    small, other = bytes_of(tmp_path / "small"), bytes_of(tmp_path / "other")
    for name in small.keys() - {"metadata.parquet"}:
        assert (archive / name).read_bytes() == small[name]
    assert not small.keys() & other.keys() - {"metadata.parquet"}


def test_places_are_unique_and_splits_are_apart() -> None:
    places = [place(3, index) for index in range(20_000)]
    cells = {(p.tile.name, p.column, p.row): p.split for p in places}
    assert len(cells) == len(places)
    assert all(0 <= p.column < GRID and 0 <= p.row < GRID for p in places)
    assert len({p.tile.country for p in places}) == 10
    assert len(TILES) * GRID * GRID == CAPACITY
    shares = Counter(p.split for p in places)
    assert 0.45 < shares["train"] / 20_000 < 0.55
    assert 0.2 < shares["test"] / 20_000 < 0.3
    pairs = [(split, cells[n, x + 1, y]) for (n, x, y), split in cells.items() if (n, x + 1, y) in cells]
    assert np.mean([a == b for a, b in pairs]) > 0.9, "neighbours share a split but for the borders of blocks"


def test_every_class_occurs_and_most_are_common() -> None:
    counts: Counter[str] = Counter()
    sizes = Counter()
    for index in range(3000):
        region, codes = landscape.lay_out(np.random.default_rng([9, index]), place(9, index))
        reference = np.array(codes, np.uint16)[region]
        names = class_names(reference)
        assert 1 <= len(names) <= 5
        assert np.bincount(region.ravel()).min() >= landscape.SMALLEST
        counts.update(names)
        sizes[len(names)] += 1
    assert set(counts) == set(clc.CLASSES)
    assert min(counts.values()) >= 30
    assert sum(count >= 90 for count in counts.values()) >= 15
    assert len(sizes) >= 4


def test_every_class_has_a_look() -> None:
    assert set(clc.CLC_TO_CLASS) <= set(appearance.LOOKS)
    for biome in landscape.LAND.values():
        assert set(biome) <= set(appearance.LOOKS)


def test_windows_stay_inside_the_patterns() -> None:
    # a window begins anywhere in the period and reaches as far as a turned, scaled and warped patch does
    reach = 59.5 * np.sqrt(2) * 1.15 + 3.5 * np.abs(patterns.bend()).max() * np.sqrt(2)
    assert reach < patterns.MARGIN / 2


def test_bands_behave_like_sentinel_2(archive: Path, real_data: Path) -> None:
    means: dict[str, list[float]] = {}
    correlations = []
    for index in range(96):
        _, bands, _ = make_patch(0, index)
        for band, pixels in bands.items():
            means.setdefault(band, []).append(float(pixels.mean()))
        coarse = bands["B08"].reshape(60, 2, 60, 2).mean((1, 3))
        correlations.append(np.corrcoef(coarse.ravel(), bands["B8A"].ravel())[0, 1])
    assert np.mean(correlations) > 0.9
    real: dict[str, list[float]] = {}
    for path in itertools.chain(
        (real_data / "bigearthnet_v1").rglob("*.tif"), (real_data / "bigearthnet_v2").rglob("*_B*.tif")
    ):
        with rasterio.open(path) as raster:
            real.setdefault(path.stem[-3:], []).append(float(raster.read(1).mean()))
    for band, values in real.items():
        # five real patches: the middle of the made-up ones lies in their range, widened by half
        assert 0.5 * min(values) < np.median(means[band]) < 1.5 * max(values), band


def test_refuses_what_it_would_overwrite(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(BandstreamError, match="not empty"):
        make_archive(tmp_path / "full", 3)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    with pytest.raises(BandstreamError, match="is a file"):
        make_archive(tmp_path / "full" / "thesis.txt", 3)
    with pytest.raises(BandstreamError, match="1 to"):
        make_archive(tmp_path / "new", CAPACITY + 1)
    assert not (tmp_path / "new").exists()


def test_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(synth, [str(tmp_path / "made"), "--patches", "5", "--seed", "2", "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "5 patches" in result.output
    assert len(list((tmp_path / "made" / "BigEarthNet-S2").glob("*/*/*.tif"))) == 60
    assert CliRunner().invoke(synth, [str(tmp_path / "none"), "--patches", "0"]).exit_code == 2
