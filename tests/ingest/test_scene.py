"""Scenes held to rasterio and zarr: pixels, offsets, what is left out, kinds of products, damage."""

import errno
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.building.build import Options, Told, ingest
from ingest.scenes import cutting
from ingest.scenes.files import ProductFiles
from ingest.scenes.find import inspect
from ingest.scenes.model import Scene
from ingest.scenes.safe import _polygons, open_product, parse
from ingest.source import Rejected
from ingest.sources.scene import Scenes, command
from shards.bands import SENTINEL2
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.verify import verify
from tests.ingest import products
from tests.ingest.archives import contents
from tests.ingest.products import Planes, name_of, planes_of, scl_of, write_cogs, write_eopf, write_raster, write_safe

SIZE, PATCH = 144, 24
ARRAYS = {"10m.npy": ("B02", "B03", "B04", "B08"), "20m.npy": ("B05", "B06", "B07", "B8A", "B11", "B12")}
OLD, NEW = name_of(), name_of(baseline="N0510", date="20180122T133229", made="20240301T101010")


@pytest.fixture(scope="module")
def planes() -> Planes:
    return planes_of(size=SIZE)


@pytest.fixture(scope="module")
def old(planes: Planes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product of N0214: no offset."""
    return write_safe(tmp_path_factory.mktemp("old"), OLD, planes, scl=scl_of(SIZE))


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product sensed in 2018 and reprocessed as N0510, with an offset; some of its numbers lie below 1000."""
    return write_safe(tmp_path_factory.mktemp("new"), NEW, planes_of(size=SIZE, seed=1), -1000, scl=scl_of(SIZE))


def convert(target: Path, *sources: Path, workers: int = 1, said: list[str] | None = None, **options: Any) -> Manifest:
    told = Told(said.append if said is not None else lambda text: None)
    scenes = Scenes(sources, options.pop("patch", PATCH), **options)
    return ingest(scenes, target, Options(shard_samples=16, workers=workers), told).manifest


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """Key → member → array or json of every sample, read by tarfile and NumPy."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, member = info.name.partition(".")
                data = tar.extractfile(info).read()  # type: ignore[union-attr]
                found.setdefault(key, {})[member] = json.loads(data) if member == "json" else np.load(io.BytesIO(data))
    return found


def rejections(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def expected(raster: Path, bounds: list[float]) -> np.ndarray:
    """What rasterio reads inside these bounds."""
    with rasterio.open(raster) as file:
        window = rasterio.windows.from_bounds(*bounds, transform=file.transform).round_lengths().round_offsets()
        return np.asarray(file.read(1, window=window))


def without_offset(pixels: np.ndarray, offset: int) -> np.ndarray:
    return np.maximum(pixels.astype(int) - offset, 0)


def native(product: Path, band: str) -> Path:
    return next(product.rglob(f"*_{band}_{SENTINEL2[band].gsd_m}m.jp2"), None) or next(product.rglob(f"*_{band}.jp2"))


def check_pixels(folder: Path, rasters: dict[str, dict[str, Path]], offsets: dict[str, int]) -> int:
    """Every plane of every sample against rasterio; how many samples there are."""
    manifest = Manifest.read(folder)
    found = samples(folder)
    for key, sample in found.items():
        told = sample["json"]
        for member, array in manifest.arrays.items():
            for band, plane in zip(array.bands, sample[member], strict=True):
                pixels = expected(rasters[told["product"]][band], told["bounds"])
                assert np.array_equal(plane, without_offset(pixels, offsets[told["product"]])), (key, band)
        assert told["offset_removed"] == offsets[told["product"]]
        planes = [expected(rasters[told["product"]][band], told["bounds"]) for band in manifest.band_names]
        low = [((plane > 0) & (plane <= offsets[told["product"]])).mean() for plane in planes]
        assert told["clipped_share"] == pytest.approx(max(low), abs=1e-6)
        assert told["nodata_share"] == pytest.approx(max((plane == 0).mean() for plane in planes), abs=1e-6)
    return len(found)


def test_safe_products_of_both_radiometries(old: Path, new: Path, tmp_path: Path) -> None:
    """The reprocessed scene of 2018 has its offset removed, the newer one of an older baseline has none."""
    manifest = convert(tmp_path / "set", old, new)
    assert manifest.source["offset_removed"] == {"N0214": 0, "N0510": 1000}
    assert {name: array.shape for name, array in manifest.arrays.items()} == {
        "10m.npy": (4, 24, 24),
        "20m.npy": (6, 12, 12),
        "60m.npy": (2, 4, 4),
    }
    assert manifest.arrays["60m.npy"].bands == ["B01", "B09"]
    assert manifest.reflectance.model_dump() == {"scale": 1e-4, "offset": 0, "level": "L2A"}
    bands = manifest.band_names
    rasters = {path.stem: {band: native(path, band) for band in bands} for path in (old, new)}
    assert check_pixels(tmp_path / "set", rasters, {OLD: 0, NEW: 1000}) == 2 * 6 * 4
    assert verify(tmp_path / "set") == []
    told = samples(tmp_path / "set")[f"{OLD}_r2_c3"]["json"]
    left, top = products.LEFT + 3 * 240, products.TOP - 2 * 240
    assert told["transform"] == [10, 0, left, 0, -10, top]
    assert told["bounds"] == [left, top - 240, left + 240, top]
    assert (told["crs"], told["date"], told["tile"]) == ("EPSG:32722", "2021-01-22T13:32:29", "T22HFD")
    assert (told["processing_baseline"], told["nodata_share"], told["cloud_share"]) == ("N0214", 0, 0)
    assert (
        len({tuple((key, type(value)) for key, value in s["json"].items()) for s in samples(tmp_path / "set").values()})
        == 1
    )
    rows = pq.read_table(tmp_path / "set" / "samples.parquet").to_pylist()
    assert {(row["product"], row["processing_baseline"]) for row in rows} == {(OLD, "N0214"), (NEW, "N0510")}


@pytest.mark.parametrize(
    ("name", "baseline", "offset", "asked", "removed"),
    [
        ("N0400", "0400", -1000, None, 1000),
        ("N0400", "0214", 0, None, 0),  # name and XML contradict each other: the XML decides
        ("N0214", "0510", -1000, None, 1000),
        ("N0214", "0214", -1000, None, 1000),
        ("N0510", "0510", 0, None, "no-offset"),  # an XML that should name an offset and does not
        ("N0510", "0510", 0, 1000, 1000),
        ("N0510", "0510", 0, 0, 0),
        ("N0510", "0510", -1000, 0, 1000),  # what is asked holds only where the product does not say
        ("N0214", "0214", 0, 1000, 0),
        ("N0400", "0400", 500, None, "no-offset"),
    ],
)
def test_whose_word_on_the_offset_counts(
    planes: Planes, tmp_path: Path, name: str, baseline: str, offset: int, asked: int | None, removed: int | str
) -> None:
    bands = {band: planes[band] for band in ("B02", "B05")}
    safe = write_safe(tmp_path, name_of(baseline=name), bands, offset, baseline)
    said: list[str] = []
    if isinstance(removed, str):
        with pytest.raises(BandstreamError, match=removed):
            convert(tmp_path / "set", safe, bands=("B02", "B05"), offset=asked)
        return
    convert(tmp_path / "set", safe, bands=("B02", "B05"), offset=asked, said=said)
    rasters = {safe.stem: {band: native(safe, band) for band in bands}}
    assert check_pixels(tmp_path / "set", rasters, {safe.stem: removed}) == 6 * 4
    assert Manifest.read(tmp_path / "set").source["offset_removed"] == {f"N{baseline}": removed}
    assert any("the metadata is believed" in text for text in said) == (name != f"N{baseline}")


def test_offsets_that_differ_between_bands(planes: Planes, tmp_path: Path) -> None:
    offsets = dict.fromkeys(SENTINEL2, -1000) | {"B05": -900, "B09": 0}
    safe = write_safe(tmp_path, name_of(baseline="N0400"), planes, offsets)
    manifest = convert(tmp_path / "set", safe)
    found = samples(tmp_path / "set")
    assert len(found) == 24
    for sample in found.values():
        for member, array in manifest.arrays.items():
            for band, plane in zip(array.bands, sample[member], strict=True):
                pixels = expected(native(safe, band), sample["json"]["bounds"])
                assert np.array_equal(plane, without_offset(pixels, -offsets[band]))
        assert sample["json"]["offset_removed"] == [-offsets[band] for band in manifest.band_names]


@pytest.mark.parametrize("offset", [0, -1000])
def test_level_1c(tmp_path: Path, offset: int) -> None:
    name = name_of("L1C", "N0500" if offset else "N0209")
    safe = write_safe(tmp_path, name, planes_of("L1C", SIZE), offset)
    manifest = convert(tmp_path / "set", safe)
    assert manifest.reflectance.level == "L1C"
    assert manifest.arrays["60m.npy"].bands == ["B01", "B09", "B10"]
    rasters = {name: {band: native(safe, band) for band in manifest.band_names}}
    assert check_pixels(tmp_path / "set", rasters, {name: -offset}) == 24
    assert "cloud_share" not in next(iter(samples(tmp_path / "set").values()))["json"]
    with pytest.raises(BandstreamError, match="has no cloud mask, which --max-cloud needs"):
        convert(tmp_path / "cloud", safe, max_cloud=0.5)


def test_cloud_masks_of_level_1c(tmp_path: Path) -> None:
    """MSK_CLASSI of newer products and MSK_CLOUDS of older ones, of the same clouds."""
    planes = planes_of("L1C", SIZE)
    both = [write_safe(tmp_path, name_of("L1C", baseline), planes, 0, "0209") for baseline in ("N0400", "N0209")]
    mask = np.zeros((3, 24, 24), np.uint8)
    mask[0, 4:8, 8:16] = 1  # opaque: patches r1 c2, c3
    mask[1, 12:14, 12:16] = 1  # cirrus: the upper half of r3 c3
    mask[2, 16:, 16:] = 1  # snow
    write_raster(next(both[0].glob("GRANULE/*")) / "QI_DATA" / "MSK_CLASSI_B00.jp2", mask, 60)

    def polygon(kind: str, rows: slice, columns: slice) -> str:
        xs = [products.LEFT + 60 * edge for edge in (columns.start, columns.stop)]
        ys = [products.TOP - 60 * edge for edge in (rows.start, rows.stop)]
        corners = " ".join(
            f"{x:.0f} {y:.0f}" for x, y in [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])]
        )
        ring = f"<gml:LinearRing><gml:posList>{corners}</gml:posList></gml:LinearRing>"
        return (
            f"<eop:MaskFeature><eop:maskType>{kind}</eop:maskType><eop:extentOf><gml:Polygon><gml:exterior>{ring}"
            "</gml:exterior></gml:Polygon></eop:extentOf></eop:MaskFeature>"
        )

    features = polygon("OPAQUE", slice(4, 8), slice(8, 16)) + polygon("CIRRUS", slice(12, 14), slice(12, 16))
    gml = f'<eop:Mask xmlns:eop="http://o/eop" xmlns:gml="http://o/gml"><eop:maskMembers>{features}</eop:maskMembers></eop:Mask>'
    folder = next(both[1].glob("GRANULE/*")) / "QI_DATA"
    folder.mkdir()
    (folder / "MSK_CLOUDS_B00.gml").write_text(gml)
    for number, product in enumerate(both):
        convert(tmp_path / str(number), product, max_cloud=0.4)
        left_out = {
            line["path"].rpartition("/")[2] for line in rejections(tmp_path / str(number)) if line["reason"] == "cloud"
        }
        assert left_out == {"r1_c2", "r1_c3", "r3_c3"}
        convert(tmp_path / f"all{number}", product)
        shares = {key[-5:]: sample["json"]["cloud_share"] for key, sample in samples(tmp_path / f"all{number}").items()}
        assert {key: share for key, share in shares.items() if share} == {"r1_c2": 1, "r1_c3": 1, "r3_c3": 0.5}


def test_nodata_and_clouds_are_left_out(old: Path, tmp_path: Path) -> None:
    convert(tmp_path / "all", old, max_nodata=1.0)
    found = samples(tmp_path / "all")
    assert len(found) == 36
    for key, sample in found.items():
        row, column = int(key[-4]), int(key[-1])
        assert sample["json"]["nodata_share"] == {0: 1.0, 1: 0.5}.get(column, 0.0)
        assert sample["json"]["cloud_share"] == (0.0 if row > 1 or column == 0 else 0.5 if column == 1 else 1.0)
    for options, left in (
        ({"max_nodata": 0.5}, 30),
        ({"max_nodata": 0.49}, 24),
        ({"max_cloud": 0.0, "max_nodata": 1.0}, 26),
        ({"max_cloud": 0.5, "max_nodata": 1.0}, 28),
        ({"max_cloud": 0.0}, 16),
    ):
        target = tmp_path / str(options)
        manifest = convert(target, old, **options)
        assert sum(split.samples for split in manifest.splits.values()) == left
        assert sum(manifest.rejected.values()) == len(rejections(target)) == 36 - left
        kept = samples(target)
        assert all(np.array_equal(kept[key][member], found[key][member]) for key in kept for member in ARRAYS)


def test_the_same_bytes_from_a_zip_and_with_workers(old: Path, new: Path, tmp_path: Path) -> None:
    convert(tmp_path / "folder", old, new)
    whole = contents(tmp_path / "folder")
    zips = tmp_path / "zips"
    zips.mkdir()
    stored = products.pack(old, zips / f"{OLD}.zip")
    deflated = products.pack(new, zips / f"{NEW}.SAFE.zip", zipfile.ZIP_DEFLATED)
    for number, (sources, workers) in enumerate((((deflated, stored), 1), ((zips,), 2), ((old.parent, new), 1))):
        convert(tmp_path / str(number), *sources, workers=workers)
        assert contents(tmp_path / str(number)) == whole, number


def test_a_run_that_was_interrupted_goes_on(
    old: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tmp_path / "whole", old, new)
    monkeypatch.setattr(cutting, "BLOCK_ROWS", 2 * PATCH)  # three blocks a scene
    reads: list[str] = []
    honest = cutting.read_rows

    def counted(raster: Any, *window: int) -> np.ndarray:
        reads.append(raster.name)
        if len(reads) == 30:
            raise KeyboardInterrupt
        return honest(raster, *window)

    monkeypatch.setattr(cutting, "read_rows", counted)
    scratch = tmp_path / "scratch"
    options = Options(shard_samples=16, scratch=scratch)
    with pytest.raises(KeyboardInterrupt):
        ingest(Scenes((old, new), PATCH), tmp_path / "set", options)
    done = sorted(scratch.rglob("*.records"))
    assert len(done) == 2
    assert not list(scratch.rglob("*.tmp"))
    ingest(Scenes((old, new), PATCH), tmp_path / "set", options)
    assert len(reads) == 30 + 12 * 4
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_a_place_lies_in_one_split(planes: Planes, tmp_path: Path) -> None:
    """Three dates of one tile and one of its neighbour, which overlaps it by half."""
    size, bands = 480, ("B02",)
    rng = np.random.default_rng(0)
    dates = ("20200101T000000", "20210101T000000", "20220101T000000")
    for date in dates:
        plane = rng.integers(1, 9000, (size, size)).astype(np.uint16)
        write_safe(tmp_path, name_of(date=date), {"B02": plane}, 0, manifest=False)
    convert(tmp_path / "set", *tmp_path.glob("*.SAFE"), bands=bands)
    places: dict[tuple[float, ...], set[str]] = {}
    for row in pq.read_table(tmp_path / "set" / "samples.parquet").to_pylist():
        places.setdefault((row["lon"], row["lat"]), set()).add(row["split"])
    assert len(places) == 400
    assert all(len(splits) == 1 for splits in places.values())
    count = {split: sum(splits == {split} for splits in places.values()) for split in ("train", "val", "test")}
    assert count["val"] in range(40, 56) and count["test"] in range(40, 56)
    # by blocks of 2 x 2 patches on the ground, not patch by patch
    blocks: dict[tuple[float, float], set[str]] = {}
    for sample in samples(tmp_path / "set").values():
        left, _, _, top = sample["json"]["bounds"]
        split = places[sample["json"]["lon"], sample["json"]["lat"]]
        blocks.setdefault(((left + 120) // 480, (top - 120) // 480), set()).update(split)
    assert all(len(splits) == 1 for splits in blocks.values())


STAC = {"datetime": "2022-01-22T13:32:29.024Z", "s2:mgrs_tile": "22HFD"}


@pytest.mark.parametrize(
    ("properties", "offset", "asked", "removed"),
    [
        ({"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": True}, -0.1, None, 0),
        ({"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": True}, None, None, 0),
        ({"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": False}, -0.1, None, 1000),
        ({"s2:processing_baseline": "05.00"}, -0.1, None, 1000),
        ({"s2:processing_baseline": "05.00"}, 0, None, 0),
        ({"s2:processing_baseline": "02.14"}, 0, None, 0),
        ({"s2:processing_baseline": "02.14"}, None, None, 0),
        ({"s2:processing_baseline": "05.10"}, None, None, 1000),  # as on the Planetary Computer
        ({"s2:processing_baseline": "05.10"}, None, 0, 0),
        ({"sentinel:boa_offset_applied": True, "s2:processing_baseline": "04.00"}, None, None, 0),
        ({"s2:processing_baseline": "03.00"}, -0.1, None, "no-offset"),  # a contradiction in itself
        ({"s2:processing_baseline": "03.00"}, -0.1, 0, 0),
        ({}, None, None, "no-offset"),
        ({}, None, 0, 0),
        (None, None, None, "no-offset"),
    ],
)
def test_offsets_of_geotiffs(
    planes: Planes,
    tmp_path: Path,
    properties: dict[str, Any] | None,
    offset: float | None,
    asked: int | None,
    removed: int | str,
) -> None:
    bands = {band: planes[band] for band in ("B02", "B8A")}
    item = None if properties is None else STAC | properties
    folder = write_cogs(tmp_path / "S2B_22HFD_20220122_0_L2A", bands, None, item, offset)
    if isinstance(removed, str):
        with pytest.raises(BandstreamError, match=removed):
            convert(tmp_path / "set", folder, bands=tuple(bands), offset=asked)
        return
    convert(tmp_path / "set", folder, bands=tuple(bands), offset=asked)
    rasters = {folder.name: {band: folder / f"{band}.tif" for band in bands}}
    assert check_pixels(tmp_path / "set", rasters, {folder.name: removed}) == 24


def test_geotiffs_named_as_on_the_planetary_computer(planes: Planes, tmp_path: Path) -> None:
    name = name_of(baseline="N0400", date="20220122T133229")
    properties = STAC | {"s2:processing_baseline": "04.00", "s2:product_uri": f"{name}.SAFE"}
    pattern = "T22HFD_20220122T133229_{band}_{gsd}m.tif"
    folder = write_cogs(tmp_path / "any", planes, scl_of(SIZE), properties, None, pattern)
    write_raster(folder / pattern.format(band="B01", gsd=20), planes["B01"].repeat(3, 0).repeat(3, 1) // 2, 20)
    write_raster(folder / pattern.format(band="B04", gsd=20), planes["B04"][::2, ::2] // 2, 20)
    manifest = convert(tmp_path / "set", folder, max_cloud=0.9)
    assert manifest.rejected == {"cloud": 8, "nodata": 12}
    rasters = {name: {b: folder / pattern.format(band=b, gsd=SENTINEL2[b].gsd_m) for b in manifest.band_names}}
    assert check_pixels(tmp_path / "set", rasters, {name: 1000}) == 16
    assert next(iter(samples(tmp_path / "set").values()))["json"]["date"] == "2022-01-22T13:32:29"
    convert(tmp_path / "zipped", products.pack(folder, tmp_path / "any.zip"), max_cloud=0.9)
    assert contents(tmp_path / "zipped") == contents(tmp_path / "set")


def test_geotiffs_with_the_xml_of_their_product(planes: Planes, tmp_path: Path) -> None:
    safe = write_safe(tmp_path, name_of(baseline="N0400"), planes, -1000)
    folder = write_cogs(tmp_path / "tifs", planes)
    (folder / "MTD_MSIL2A.xml").write_bytes((safe / "MTD_MSIL2A.xml").read_bytes())
    convert(tmp_path / "set", folder)
    convert(tmp_path / "safe", safe)
    assert contents(tmp_path / "set") == contents(tmp_path / "safe")


def test_assets_are_known_by_their_keys_too(planes: Planes, tmp_path: Path) -> None:
    """Files that were given other names than the STAC item has: its offsets are still found."""
    bands = {"B02": planes["B02"], "B8A": planes["B8A"]}
    folder = write_cogs(tmp_path / "S2B_22HFD_20220122_0_L2A", bands, None, STAC | {"s2:processing_baseline": "04.00"})
    item = folder / f"{folder.name}.json"
    assets = {
        key: {"href": f"https://a.test/{key}.tif", "raster:bands": [{"scale": 0.0001, "offset": offset}]}
        for key, offset in {"blue": 0, "nir08": 0, "blue-jp2": -0.1, "nir08-jp2": -0.1}.items()
    }
    item.write_text(json.dumps(json.loads(item.read_text()) | {"assets": assets}))
    convert(tmp_path / "set", folder, bands=("B02", "B8A"))
    rasters = {folder.name: {band: folder / f"{band}.tif" for band in bands}}
    assert check_pixels(tmp_path / "set", rasters, {folder.name: 0}) == 24


@pytest.mark.parametrize("version", [2, 3])
def test_eopf(planes: Planes, tmp_path: Path, version: int) -> None:
    name = name_of(baseline="N0511", date="20250610T103641")
    path = write_eopf(tmp_path / f"{name}.zarr", planes, scl_of(SIZE), version=version)
    manifest = convert(tmp_path / "set", path, max_nodata=1.0)
    group = zarr.open_group(str(path), mode="r")
    found = samples(tmp_path / "set")
    assert len(found) == 36
    for sample in found.values():
        left, bottom, right, top = sample["json"]["bounds"]
        for member, array in manifest.arrays.items():
            gsd = int(member[:2])
            rows = slice(int(products.TOP - top) // gsd, int(products.TOP - bottom) // gsd)
            columns = slice(int(left - products.LEFT) // gsd, int(right - products.LEFT) // gsd)
            for band, plane in zip(array.bands, sample[member], strict=True):
                stored = group[f"measurements/reflectance/r{gsd}m/{band.lower()}"][rows, columns]  # type: ignore[index]
                assert np.array_equal(plane, without_offset(np.asarray(stored), 1000))
    assert (found[f"{name}_r0_c3"]["json"]["cloud_share"], found[f"{name}_r3_c3"]["json"]["cloud_share"]) == (1, 0)
    zipped = products.pack(path, tmp_path / "product.zarr.zip")
    convert(tmp_path / "zipped", zipped, max_nodata=1.0)
    assert contents(tmp_path / "zipped") == contents(tmp_path / "set")
    # the same scene as SAFE: the same bytes, but for what the manifest says of it
    convert(tmp_path / "safe", write_safe(tmp_path, name, planes, -1000, scl=scl_of(SIZE)), max_nodata=1.0)
    assert contents(tmp_path / "safe") == contents(tmp_path / "set")


@pytest.mark.parametrize(
    ("baseline", "offset", "version", "removed"),
    [
        ("N0214", 0.0, "", 0),
        ("N0214", None, "", 0),
        ("N0500", 0.0, "05.00", 0),  # its attributes say that nothing is to be added
        ("N0500", -0.1, "05.00", 1000),
        ("N0500", None, "05.00", "no-offset"),
    ],
)
def test_offsets_of_eopf(
    planes: Planes, tmp_path: Path, baseline: str, offset: float | None, version: str, removed: int | str
) -> None:
    name = name_of(baseline=baseline)
    properties = {"processing:version": version} if version else {}
    path = write_eopf(tmp_path / f"{name}.zarr", {"B8A": planes["B8A"]}, offset=offset, properties=properties)
    if isinstance(removed, str):
        with pytest.raises(BandstreamError, match=removed):
            convert(tmp_path / "set", path, bands=("B8A",))
        return
    convert(tmp_path / "set", path, bands=("B8A",))
    whole = planes["B8A"]
    for key, sample in samples(tmp_path / "set").items():
        row, column = int(key[-4]) * 12, int(key[-1]) * 12
        assert sample["json"]["offset_removed"] == removed
        assert np.array_equal(
            sample["20m.npy"][0], without_offset(whole[row : row + 12, column : column + 12], removed)
        )


def test_eopf_of_level_1c(tmp_path: Path) -> None:
    name = name_of("L1C", "N0511")
    flags = np.zeros((24, 24), np.uint8)
    flags[:4, 8:12], flags[4:8, 8:12], flags[8:12, 8:12] = 1, 2, 4  # opaque, cirrus, snow
    path = write_eopf(tmp_path / f"{name}.zarr", planes_of("L1C", SIZE), flags=flags)
    manifest = convert(tmp_path / "set", path, max_cloud=0.5)
    assert manifest.arrays["60m.npy"].bands == ["B01", "B09", "B10"]
    assert {line["path"][-5:] for line in rejections(tmp_path / "set") if line["reason"] == "cloud"} == {
        "r0_c2",
        "r1_c2",
    }


def test_two_baselines_of_one_scene_do_not_collide(planes: Planes, old: Path, tmp_path: Path) -> None:
    again = write_safe(tmp_path, name_of(baseline="N0500", made="20230101T000000"), planes, -1000, scl=scl_of(SIZE))
    copy = tmp_path / "copy" / old.name
    copy.parent.mkdir()
    copy.symlink_to(old)
    manifest = convert(tmp_path / "set", old, again, copy)
    assert sum(split.samples for split in manifest.splits.values()) == 48
    assert manifest.rejected == {"nodata": 24, "duplicate": 1}


def test_what_cannot_stand_in_one_set(planes: Planes, old: Path, tmp_path: Path) -> None:
    level_1c = write_safe(tmp_path, name_of("L1C", "N0209"), planes_of("L1C", SIZE))
    with pytest.raises(BandstreamError, match="is L1C, .* is L2A: ingest them apart"):
        convert(tmp_path / "x", old, level_1c)
    other = write_safe(tmp_path, name_of(date="20220101T000000"), planes, quantification=1000)
    with pytest.raises(BandstreamError, match=r"scale 0.001, .* and 0.0001: ingest them apart"):
        convert(tmp_path / "x", old, other)
    with pytest.raises(BandstreamError, match="has no cloud mask, which --max-cloud needs"):
        convert(tmp_path / "x", other, max_cloud=1.0)
    manifest = convert(tmp_path / "scale", other)
    assert manifest.reflectance.scale == 1e-3
    fewer = write_safe(tmp_path, name_of(date="20230101T000000"), {b: planes[b] for b in planes if b != "B09"})
    convert(tmp_path / "set", fewer, old)
    assert [line for line in rejections(tmp_path / "set") if line["reason"] != "nodata"] == [
        {
            "path": name_of(date="20230101T000000"),
            "reason": "missing-band",
            "detail": "B09 not there: name the bands that all scenes have with --bands",
        }
    ]
    manifest = convert(tmp_path / "bands", fewer, old, bands=("B02", "B03", "B05"))
    assert sum(split.samples for split in manifest.splits.values()) == 48
    assert {name: array.bands for name, array in manifest.arrays.items()} == {
        "10m.npy": ["B02", "B03"],
        "20m.npy": ["B05"],
    }


def test_rasters_that_do_not_lie_together(planes: Planes, tmp_path: Path) -> None:
    def broken(number: int, band: str, plane: np.ndarray, **options: Any) -> Path:
        safe = write_safe(tmp_path, name_of(date=f"2021010{number}T000000"), planes, manifest=False)
        path = native(safe, band)
        path.unlink()
        write_raster(path, plane, SENTINEL2[band].gsd_m, **options)
        return safe

    cases = [
        (broken(1, "B05", planes["B05"], left=products.LEFT + 20), "B05_20m.jp2: misplaced: its corner is"),
        (broken(2, "B05", planes["B05"], crs="EPSG:32721"), "B05_20m.jp2: misplaced: it is in EPSG:32721"),
        (
            broken(3, "B02", np.pad(planes["B02"], ((0, 12), (0, 0)), mode="edge")),
            "B02_10m.jp2: misplaced: it covers 156 rows",
        ),
        (broken(4, "B05", planes["B04"]), "B05_20m.jp2: misplaced: it covers 288 rows"),
        (broken(5, "B09", planes["B09"].astype(np.uint8)), "B09_60m.jp2: wrong-type: uint8, not uint16"),
        (broken(6, "B09", np.stack([planes["B09"]] * 3)), "B09_60m.jp2: wrong-bands: 3 bands in one file"),
        (
            broken(7, "B09", planes["B09"], crs=None, transform=rasterio.Affine.identity()),
            "it has no coordinate system",
        ),
    ]
    for safe, why in cases:
        with pytest.raises(BandstreamError, match=why):
            convert(tmp_path / "x", safe)


def test_sizes_that_do_not_divide(tmp_path: Path) -> None:
    """10 m rasters that end inside a pixel of 60 m: whole patches are taken, what is left over is not."""
    planes = planes_of(size=156)
    planes = {band: plane[: 150 * 10 // SENTINEL2[band].gsd_m] for band, plane in planes.items()}
    planes |= {band: plane[:-1] for band, plane in planes.items() if len(plane) == 150}
    safe = write_safe(tmp_path, OLD, planes)
    manifest = convert(tmp_path / "set", safe)
    rasters = {OLD: {band: native(safe, band) for band in manifest.band_names}}
    assert check_pixels(tmp_path / "set", rasters, {OLD: 0}) == 24
    with pytest.raises(BandstreamError, match="156 x 149 pixels, smaller than a patch of 150"):
        convert(tmp_path / "x", safe, patch=150)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_truncated_rasters(
    old: Path, planes: Planes, tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL, let to use several threads, gives half a raster without an exception; none of it may go in."""
    monkeypatch.setenv("GDAL_NUM_THREADS", "ALL_CPUS")
    safe = write_safe(tmp_path, name_of(date="20220101T000000"), planes, scl=scl_of(SIZE))
    raster = native(safe, "B04")
    raster.write_bytes(raster.read_bytes()[: int(raster.stat().st_size * share)])
    manifest = convert(tmp_path / "set", old, safe)
    assert sum(split.samples for split in manifest.splits.values()) == 24
    assert [line["path"] for line in rejections(tmp_path / "set") if line["reason"] == "unreadable"] == [
        f"{safe.stem}/{raster.relative_to(safe)}"
    ]
    assert str(tmp_path) not in (tmp_path / "set" / "rejected.jsonl").read_text()


def test_a_raster_damaged_in_its_middle(old: Path, planes: Planes, tmp_path: Path) -> None:
    """JPEG 2000 decodes most flipped bits to something: the checksums of the product and of the .zip tell."""
    safe = write_safe(tmp_path, name_of(date="20220101T000000"), planes, scl=scl_of(SIZE))
    raster = native(safe, "B8A")
    data = bytearray(raster.read_bytes())
    data[len(data) // 2] ^= 4
    raster.write_bytes(data)
    with pytest.raises(BandstreamError, match="B8A_20m.jp2: damaged: its checksum is not that of manifest.safe"):
        convert(tmp_path / "x", safe)
    zipped = products.pack(old, tmp_path / "a.zip")
    packed = bytearray(zipped.read_bytes())
    packed[packed.index(native(old, "B8A").read_bytes()) + 3000] ^= 4
    zipped.write_bytes(packed)
    with pytest.raises(BandstreamError, match="B8A_20m.jp2: unreadable: Bad CRC-32"):
        convert(tmp_path / "x", zipped)


def test_a_damaged_geotiff(planes: Planes, tmp_path: Path) -> None:
    """Compressed GeoTIFFs do not tell all damage either: the STAC item's checksum does, and the CRC of a .zip."""
    bands = {"B02": planes["B02"]}
    properties = STAC | {"s2:processing_baseline": "02.14", "s2:product_type": "S2MSI2A"}
    folder = write_cogs(tmp_path / "a", bands, None, properties)
    raster, item = folder / "B02.tif", folder / "a.json"
    content = json.loads(item.read_text())
    digest = hashlib.sha256(raster.read_bytes()).hexdigest()
    content["assets"]["b02"] |= {"file:checksum": f"1220{digest}", "file:size": raster.stat().st_size}
    item.write_text(json.dumps(content))
    convert(tmp_path / "set", folder, bands=("B02",))
    zipped = products.pack(folder, tmp_path / "a.zip")
    data = bytearray(raster.read_bytes())
    data[len(data) // 2] ^= 1
    packed = bytearray(zipped.read_bytes())
    packed[packed.index(raster.read_bytes()) + len(data) // 2] ^= 1
    zipped.write_bytes(packed)
    raster.write_bytes(data)
    with pytest.raises(BandstreamError, match="B02.tif: damaged: its checksum is not that of its STAC item"):
        convert(tmp_path / "x", folder, bands=("B02",))
    with pytest.raises(BandstreamError, match="B02.tif: unreadable: Bad CRC-32"):
        convert(tmp_path / "x", zipped, bands=("B02",))


def test_damaged_products(old: Path, planes: Planes, tmp_path: Path) -> None:
    def safe_with(number: int, text: str | bytes) -> Path:
        safe = write_safe(tmp_path, name_of(date=f"2021020{number}T000000"), {"B02": planes["B02"]})
        content = text.encode() if isinstance(text, str) else text
        (safe / "MTD_MSIL2A.xml").write_bytes(content)
        return safe

    bomb = (
        "<!DOCTYPE a ["
        + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 30 if n else "x" * 99}">' for n in range(9))
        + "]><a>&e8;</a>"
    )
    eopf = write_eopf(tmp_path / "a.zarr", {"B02": planes["B02"]})
    (eopf / "measurements" / "reflectance" / "r10m" / "b02" / "0.0").write_bytes(b"damage")
    empty = tmp_path / "empty.zip"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("readme.txt", "")
    (tmp_path / "no.zip").write_bytes(b"PK\3\4 no zip")
    cases = [
        (safe_with(1, "<a"), "unreadable: it is not XML"),
        (safe_with(2, bomb), "unreadable: it is not XML"),
        (safe_with(3, "<a/>"), "no-scale: its metadata has no quantification value"),
        (safe_with(4, "<a><PROCESSING_LEVEL>Level-1C</PROCESSING_LEVEL></a>"), "wrong-level: it says L1C"),
        (eopf, "measurements/reflectance/r10m/b02: unreadable"),
        (empty, "no-product: it holds no Sentinel-2 product"),
        (tmp_path / "no.zip", "it is no .zip that can be read"),
        (tmp_path / "absent", "does not exist"),
        (old / "DATASTRIP", "does not exist"),
    ]
    for path, why in cases:
        with pytest.raises(BandstreamError, match=why) as told:
            convert(tmp_path / "x", path, bands=("B02",))
        # but for the input as it was typed, no path of this machine
        text = str(told.value).replace(str(path), "").replace(str(tmp_path / "x"), "")
        assert str(tmp_path) not in text
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BandstreamError, match="holds no Sentinel-2 product that can be taken: expected SAFE"):
        convert(tmp_path / "x", tmp_path / "nothing")


def test_no_room_is_left(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    convert(tmp_path / "whole", old)
    monkeypatch.setattr(cutting, "BLOCK_ROWS", 3 * PATCH)
    honest, written = cutting._write, []

    def write(file: Any, at: int, plane: np.ndarray) -> None:
        written.append(at)
        return full() if len(written) == 200 else honest(file, at, plane)

    monkeypatch.setattr(cutting, "_write", write)
    with pytest.raises(BandstreamError, match="no room is left in .* for patch rows 3 to 5 .* with --scratch"):
        convert(tmp_path / "set", old)
    assert len(list((tmp_path / "set").rglob("*.records"))) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    convert(tmp_path / "set", old)
    assert len(written) == 200 + 12 * 12
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_names_that_are_no_keys(planes: Planes, tmp_path: Path) -> None:
    """Keys are made of what a product is called, shortened where it must be, and differ where products do."""
    one, two = (tmp_path / (f"a scene, of {'long ' * 20}" + end) for end in ("one", "two"))
    for folder in (one, two):
        write_cogs(folder, {"B02": planes["B02"]}, scl_of(SIZE))
    manifest = convert(tmp_path / "set", one, two, bands=("B02",), offset=0)
    assert sum(split.samples for split in manifest.splits.values()) == 48
    assert max(map(len, samples(tmp_path / "set"))) <= 80


def test_an_absurd_size_is_not_believed(planes: Planes, tmp_path: Path) -> None:
    folder = write_cogs(tmp_path / name_of(), {"B02": planes["B02"]})
    with rasterio.open(
        folder / "B02.tif", "w", driver="GTiff", width=200_000, height=200_000, count=1, dtype="uint16", tiled=True,
        sparse_ok=True, crs="EPSG:32722", transform=rasterio.transform.from_origin(0, 0, 10, 10),
    ):  # fmt: skip
        pass
    with pytest.raises(BandstreamError, match=r"B02.tif: wrong-size: 200000 x 200000 pixels"):
        convert(tmp_path / "x", folder, bands=("B02",))
    eopf = write_eopf(tmp_path / f"{name_of()}.zarr", {"B02": planes["B02"]})
    array = eopf / "measurements" / "reflectance" / "r10m" / "b02" / ".zarray"
    array.write_text(json.dumps(json.loads(array.read_text()) | {"shape": [10**9, 10**9], "chunks": [10**9, 10**9]}))
    with pytest.raises(BandstreamError, match="wrong-size: its shape is"):
        convert(tmp_path / "x", eopf, bands=("B02",))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_to_metadata_is_told_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A product whose metadata was changed anywhere is a scene or is rejected; nothing else is raised."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        bands = {"B02": planes_of(size=SIZE)["B02"]}
        write_safe(folder, name_of(baseline="N0400"), bands, -1000)
        write_cogs(folder / "cog", bands, None, STAC | {"s2:processing_baseline": "04.00"}, -0.1)
        write_eopf(folder / f"{name_of()}.zarr", bands)
        for path in list(folder.rglob("*")):
            if path.suffix in (".xml", ".json", ".safe") or path.name in (".zattrs", ".zarray"):
                path.with_name(f".kept-{path.name}").write_bytes(path.read_bytes())
    kept = data.draw(st.sampled_from(sorted(folder.rglob(".kept-*"))))
    content = bytearray(kept.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        piece = data.draw(st.sampled_from([b"", b"0", b"-", b"<", b'"', b"{}", b"[1]", b"null", b"1e999", b"\xff"]))
        content[at : at + data.draw(st.integers(0, 9))] = piece
    target = kept.with_name(kept.name.removeprefix(".kept-"))
    target.write_bytes(content)
    try:
        for product in (folder / f"{name_of(baseline='N0400')}.SAFE", folder / "cog", folder / f"{name_of()}.zarr"):
            assert all(isinstance(found, Scene | Rejected) for found in inspect((product, None)))
    finally:
        target.write_bytes(kept.read_bytes())


@pytest.mark.parametrize("patch", [12, 24, 30, 60])
def test_the_real_product(real_data: Path, tmp_path: Path, patch: int) -> None:
    """Its rasters were made smaller, all to 100 x 100 pixels of 1098 m: one grid, so one array, pixel by pixel."""
    folder = next((real_data / "sentinel2_safe").iterdir())
    manifest = convert(tmp_path / "set", folder, patch=patch)
    assert {name: array.shape for name, array in manifest.arrays.items()} == {"10m.npy": (12, patch, patch)}
    assert manifest.source["pixel_m"] == 1098
    rasters = {folder.stem: {band: native(folder, band) for band in manifest.band_names}}
    taken = check_pixels(tmp_path / "set", rasters, {folder.stem: 0})
    left_out = len(rejections(tmp_path / "set"))
    assert taken + left_out == (100 // patch) ** 2 and taken >= left_out
    scl = next(folder.rglob("*_SCL_20m.jp2"))
    for sample in samples(tmp_path / "set").values():
        classes = expected(scl, sample["json"]["bounds"])
        assert sample["json"]["cloud_share"] == pytest.approx(np.isin(classes, (3, 8, 9, 10)).mean(), abs=1e-6)
        shares = [(expected(path, sample["json"]["bounds"]) == 0).mean() for path in rasters[folder.stem].values()]
        assert sample["json"]["nodata_share"] == pytest.approx(max(shares), abs=1e-6)


def test_the_real_products_metadata(real_data: Path) -> None:
    scene = open_product(ProductFiles(next((real_data / "sentinel2_safe").iterdir())), None)
    assert (scene.level, scene.baseline, scene.tile, scene.scale) == ("L2A", "N0214", "T22HBD", 1e-4)
    assert set(scene.taken.values()) == {0}
    assert len(scene.bands) == 12
    folder = next((real_data / "sentinel2_safe").iterdir())
    polygons = list(
        _polygons(parse(ProductFiles(folder), str(next(folder.rglob("MSK_CLOUDS_B00.gml")).relative_to(folder))), "x")
    )
    assert [len(rings) for rings in polygons] == [1, 1]
    assert polygons[0][0][:2] == ((211740.0, 5801860.0), (211980.0, 5801860.0))


def test_the_command(old: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    for wrong, why in (
        (["--patch", "100"], "no multiple of 6"),
        (["--bands", "B99"], "unknown band B99"),
        (["--max-cloud", "2"], ""),
    ):
        outcome = runner.invoke(command, [str(old), str(tmp_path / "x"), *wrong])
        assert outcome.exit_code == 2 and why in outcome.output
    outcome = runner.invoke(
        command,
        [
            str(old),
            str(tmp_path / "set"),
            "--patch",
            "24",
            "--bands",
            "B04,B02",
            "--max-cloud",
            "0.5",
            "--workers",
            "1",
        ],
    )
    assert outcome.exit_code == 0, outcome.output
    manifest = Manifest.read(tmp_path / "set")
    assert manifest.band_names == ["B02", "B04"]
    options = {"patch": 24, "max_nodata": 0.05, "max_cloud": 0.5, "bands": "B04,B02"}
    assert manifest.source["options"] == options
    assert str(tmp_path) not in json.dumps(manifest.model_dump())


def test_the_metadata_of_another_product(old: Path, new: Path, tmp_path: Path) -> None:
    """Swapped, they would take an offset from the wrong numbers."""
    for path, other in ((old, new), (new, old)):
        copy = shutil.copytree(path, tmp_path / path.name)
        (copy / "MTD_MSIL2A.xml").write_bytes((other / "MTD_MSIL2A.xml").read_bytes())
    with pytest.raises(BandstreamError, match=f"another-product: it is the metadata of {OLD}"):
        convert(tmp_path / "set", tmp_path / new.name)
    shutil.copytree(old, tmp_path / "both" / old.name)
    manifest = convert(tmp_path / "set", tmp_path / new.name, tmp_path / "both")
    assert manifest.rejected["another-product"] == 1
    # a product of which only the time of processing is another, as in copies, and an older name of its tag
    xml = (old / "MTD_MSIL2A.xml").read_text()
    again = xml.replace(OLD[-15:] + ".SAFE", "20240101T000000.SAFE")
    older = xml.replace("PRODUCT_URI>", "PRODUCT_URI_2A>").replace(
        "<PRODUCT_URI_2A>", f"<PRODUCT_URI_1C>{OLD.replace('L2A', 'L1C')}.SAFE</PRODUCT_URI_1C><PRODUCT_URI_2A>"
    )
    for number, text in enumerate((again, older)):
        copy = tmp_path / "both" / old.name
        assert text != xml
        (copy / "MTD_MSIL2A.xml").write_text(text)
        assert "another-product" not in convert(tmp_path / f"copy{number}", tmp_path / "both").rejected
