"""SSL4EO-S12: all seasons of a place in one sample, pixel by pixel as rasterio reads them."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import webdataset
from click.testing import CliRunner
from rasterio.transform import Affine

from ingest.building.build import Options, ingest
from ingest.reading import geotiff
from ingest.sources import ssl4eo
from ingest.sources.ssl4eo import SSL4EO
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet
from shards.verify import verify
from tests.ingest.archives import contents
from tests.ingest.seasons import HEIGHT, S2C, SEASONS, SIDES, WIDTH, date_name, write_band, write_place
from tests.ingest.tiff import tiff

CHECKER = Path(__file__).parents[3] / "shared" / "checks" / "check_shards.py"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten places of L1C, four seasons each, and one of L2A."""
    root = tmp_path_factory.mktemp("ssl4eo")
    for number in range(10):
        write_place(root / "s2c", number)
    write_place(root / "s2a", 3, bands=[band for band in S2C if band != "B10"])
    return root


@pytest.fixture(scope="module")
def made(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "set"
    ingest(SSL4EO(archive, "L1C"), target, Options(shard_samples=4))
    return target


def rejections(target: Path) -> dict[str, str]:
    lines = map(json.loads, (target / "rejected.jsonl").read_text().splitlines())
    return {line["path"]: line["reason"] for line in lines}


def convert(source: Path, target: Path, dates: int = 4, level: str = "", **options: Any) -> Manifest:
    return ingest(SSL4EO(source, level, dates), target, Options(**options)).manifest


def copy_of(archive: Path, root: Path, places: int = 2) -> Path:
    for number in range(places):
        shutil.copytree(archive / "s2c" / f"{number:07d}", root / "s2c" / f"{number:07d}")
    return root


def test_every_pixel_of_every_date(archive: Path, made: Path) -> None:
    assert verify(made) == []
    if CHECKER.exists():
        result = subprocess.run([sys.executable, CHECKER, made], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    manifest = Manifest.read(made)
    assert manifest.rejected == {}
    assert manifest.band_names == [f"B{int(b[1:]):02}" if b != "B8A" else b for b in S2C]
    assert list(manifest.arrays) == [
        *("10m.npy", "20m.npy", "60m.npy"),
        *(f"t{time}.{name}" for time in (1, 2, 3) for name in ("10m.npy", "20m.npy", "60m.npy")),
    ]
    opened, seen = ShardSet.open(made), set()
    for split in manifest.splits:
        for index in range(opened.size(split)):
            sample = opened.read(split, index)
            seen.add(sample.key)
            for member, array in manifest.arrays.items():
                folder = archive / "s2c" / sample.key / date_name(SEASONS[array.time])
                for band, plane in zip(array.bands, sample.arrays[member], strict=True):
                    with rasterio.open(folder / f"{band.replace('B0', 'B')}.tif") as source:
                        np.testing.assert_array_equal(plane, source.read(1))
            told = sample.json
            assert told["dates"] == [f"{t[:4]}-{t[4:6]}-{t[6:11]}:{t[11:13]}:{t[13:]}" for t in SEASONS]
            assert (told["offsets_removed"], told["processing_baselines"]) == ([0] * 4, [""] * 4)
            assert (told["crs"], told["tile"]) == ("EPSG:4326", "T15QXA")
            corner = 10 + int(sample.key)
            assert told["bounds"] == pytest.approx([corner, 45.5 - HEIGHT, corner + WIDTH, 45.5], abs=1e-9)
            assert told["lon"] == pytest.approx(corner + WIDTH / 2, abs=1e-6)
            assert told["lat"] == pytest.approx(45.5 - HEIGHT / 2, abs=1e-6)
    assert seen == {f"{number:07d}" for number in range(10)}


def test_statistics_count_all_dates(made: Path) -> None:
    manifest, opened = Manifest.read(made), ShardSet.open(made)
    pixels = [
        opened.read("train", index).arrays[f"{prefix}10m.npy"][0]
        for index in range(opened.size("train"))
        for prefix in ("", "t1.", "t2.", "t3.")
    ]
    told = manifest.statistics["B02"]
    assert told.count == opened.size("train") * 4 * 264 * 264
    assert told.mean == pytest.approx(np.mean(pixels))
    assert told.std == pytest.approx(np.std(pixels))


def test_others_read_the_dates(made: Path) -> None:
    """WebDataset and DALI's reader find each date under its own extension, which begins at the first dot of a name."""
    from nvidia.dali import fn, pipeline_def

    tar = next(made.glob("train-*.tar"))
    opened = ShardSet.open(made)
    first = opened.read("train", 0)
    sample = next(iter(webdataset.WebDataset(str(tar), shardshuffle=False).decode()))
    assert sample["__key__"] == first.key
    for member, pixels in first.arrays.items():
        np.testing.assert_array_equal(sample[member], pixels)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def read() -> Any:
        return tuple(
            fn.readers.webdataset(
                paths=[str(tar)], index_paths=[str(tar.with_suffix(".idx"))], ext=["10m.npy", "t3.60m.npy"]
            )
        )

    pipe = read()
    pipe.build()
    for member, output in zip(("10m.npy", "t3.60m.npy"), pipe.run(), strict=True):
        array = np.load(io.BytesIO(np.asarray(output.as_array()[0]).tobytes()))
        np.testing.assert_array_equal(array, first.arrays[member])


def test_loader_serves_the_first_date(made: Path) -> None:
    """Views are of date 0 alone, standardised, whatever the other dates hold."""
    from pipeline.loader import Loader
    from pipeline.views import ViewRecipe

    opened = ShardSet.open(made)
    statistics = opened.manifest.statistics
    mean = np.array([statistics[band].mean for band in opened.manifest.band_names])[:, None, None]
    std = np.array([statistics[band].std for band in opened.manifest.band_names])[:, None, None]
    fine = [number for number, band in enumerate(opened.manifest.band_names) if band in ("B02", "B03", "B04", "B08")]
    for batch in Loader(opened, "train", 2, [ViewRecipe.plain()], training=False, threads=1):
        for view, index in zip(batch.views[0].numpy(), batch.indices.tolist(), strict=True):
            sample = opened.read("train", index)
            expected = [(opened.upsampled(sample, time) - mean) / std for time in range(4)]
            np.testing.assert_allclose(view[fine], expected[0][fine], atol=1e-3)
            assert all(np.abs(view[fine] - expected[time][fine]).mean() > 0.01 for time in (1, 2, 3))
            # coarser bands are interpolated: they are nearest to their own date
            apart = [np.abs(view - each).mean() for each in expected]
            assert apart.index(min(apart)) == 0


def test_info_and_preview(made: Path, tmp_path: Path) -> None:
    from cli import bandstream

    told = CliRunner().invoke(bandstream, ["info", str(made)])
    assert told.exit_code == 0, told.output
    assert "array t3.60m.npy: uint16 3 x 44 x 44, B01 B09 B10 (date 3)" in told.output
    told = CliRunner().invoke(bandstream, ["preview", str(made), "--out", str(tmp_path / "sheet.png"), "--count", "2"])
    assert told.exit_code == 0, told.output


def test_fast_path_takes_longitude_and_latitude(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next((archive / "s2c" / "0000000").glob("*/B2.tif"))
    slow, fast = np.empty((264, 264), np.uint16), np.empty((264, 264), np.uint16)
    expected = geotiff.read_rasterio(str(path), slow)
    monkeypatch.setattr(geotiff, "read_rasterio", lambda *_: pytest.fail("this file needs no GDAL"))
    header = geotiff.Reader().read(str(path), fast)
    np.testing.assert_array_equal(fast, slow)
    assert header.epsg == expected.epsg == 4326
    assert header.transform == pytest.approx(expected.transform, rel=1e-12)


@pytest.mark.parametrize(("dates", "expected"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2])])
def test_fewer_dates_lie_evenly(archive: Path, tmp_path: Path, dates: int, expected: list[int]) -> None:
    root = copy_of(archive, tmp_path / "archive")
    manifest = convert(root, tmp_path / "set", dates)
    assert manifest.source["dates"] == dates
    assert {array.time for array in manifest.arrays.values()} == set(range(dates))
    sample = ShardSet.open(tmp_path / "set").read("train", 0)
    assert sample.json["products"] == [date_name(SEASONS[number]) for number in expected]
    last = archive / "s2c" / sample.key / date_name(SEASONS[expected[-1]]) / "B3.tif"
    with rasterio.open(last) as source:
        member = f"t{dates - 1}.10m.npy" if dates > 1 else "10m.npy"
        np.testing.assert_array_equal(sample.arrays[member][1], source.read(1))


def test_the_same_bytes_from_tars_folders_and_workers(archive: Path, tmp_path: Path) -> None:
    root = copy_of(archive, tmp_path / "archive", 3)
    for name, mode in (("s2.tar", "w"), ("s2_l1c.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(root / "s2c", "s2c")
    sources = [root, root / "s2c", tmp_path / "s2.tar", tmp_path / "s2_l1c.tar.gz"]
    made = []
    for number, source in enumerate(sources):
        convert(source, tmp_path / f"set{number}", workers=1 + number % 2, shard_samples=2)
        made.append(contents(tmp_path / f"set{number}"))
    assert all(each == made[0] for each in made)


def test_levels(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(BandstreamError, match="both L1C and L2A: say which with --level"):
        convert(archive, tmp_path / "set")
    manifest = convert(archive, tmp_path / "l2a", level="L2A")
    assert (manifest.reflectance.level, len(manifest.bands)) == ("L2A", 12)
    assert convert(archive / "s2a", tmp_path / "inner").reflectance.level == "L2A"
    with pytest.raises(BandstreamError, match="holds L1C, not L2A"):
        convert(archive / "s2c", tmp_path / "wrong", level="L2A")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BandstreamError, match="holds no Sentinel-2 of SSL4EO-S12"):
        convert(tmp_path / "empty", tmp_path / "none")


def test_what_is_rejected(archive: Path, tmp_path: Path) -> None:
    root = copy_of(archive, tmp_path / "archive", 10)
    places = {number: root / "s2c" / f"{number:07d}" for number in range(10)}
    shutil.rmtree(places[0] / date_name(SEASONS[2]))
    (places[1] / date_name(SEASONS[1]) / "B10.tif").unlink()
    truncated = places[2] / date_name(SEASONS[3]) / "B8A.tif"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    write_band(places[3] / date_name(SEASONS[0]) / "B1.tif", 44, 1, (13, 45.6))  # elsewhere than the other bands
    for band in S2C:  # a whole date of another place
        write_band(places[4] / date_name(SEASONS[1]) / f"{band}.tif", SIDES.get(band, 132), 1, (15, 45.5))
    write_band(places[5] / date_name(SEASONS[0]) / "B2.tif", 264, 1, (15, 45.5), dtype="uint8")
    write_band(places[6] / date_name(SEASONS[0]) / "B2.tif", 200, 1, (16, 45.5))
    late = places[7] / date_name(SEASONS[3])
    late.rename(late.with_name(date_name("20220301T162931")))
    (places[8] / "not-a-date").mkdir()
    write_place(root / "s2c", 10)
    nowhere = root / "s2c" / "0000010" / date_name(SEASONS[0])
    for band in S2C:
        side = SIDES.get(band, 132)
        pixels = np.zeros((side, side), np.uint16)
        (nowhere / f"{band}.tif").write_bytes(tiff(pixels, place=(32633, 10, float("inf"), 0)))
    manifest = convert(root, tmp_path / "set")
    assert rejections(tmp_path / "set") == {
        "0000000": "too-few-dates",
        f"0000001/{date_name(SEASONS[1])}": "missing-band",
        f"0000002/{date_name(SEASONS[3])}/B8A.tif": "truncated",
        f"0000003/{date_name(SEASONS[0])}": "misplaced",
        f"0000004/{date_name(SEASONS[1])}": "misplaced",
        f"0000005/{date_name(SEASONS[0])}/B2.tif": "wrong-type",
        f"0000006/{date_name(SEASONS[0])}/B2.tif": "wrong-size",
        f"0000007/{date_name('20220301T162931')}": "unknown-offset",
        "0000008": "bad-name",
        f"0000010/{date_name(SEASONS[0])}": "misplaced",
    }
    assert sum(split.samples for split in manifest.splits.values()) == 1


def test_offset_of_the_product(archive: Path, tmp_path: Path) -> None:
    """Of two dates one is of a product of baseline 05.00: 1000 is taken from that one alone."""
    root = copy_of(archive, tmp_path / "archive", 1)
    folder = root / "s2c" / "0000000" / date_name(SEASONS[2])
    product = "S2A_MSIL1C_20200924T162929_N0500_R083_T15QXA_20230402T054411"
    (folder / "metadata.json").write_text(json.dumps({"PRODUCT_ID": product, "PROCESSING_BASELINE": "05.00"}))
    convert(root, tmp_path / "set", 2)
    sample = ShardSet.open(tmp_path / "set").read("train", 0)
    assert (sample.json["offsets_removed"], sample.json["processing_baselines"]) == ([0, 1000], ["", "N0500"])
    assert sample.json["products"] == [date_name(SEASONS[0]), product]
    for time, offset in ((0, 0), (1, 1000)):
        with rasterio.open(root / "s2c" / "0000000" / date_name(SEASONS[2 * time]) / "B4.tif") as source:
            expected = np.maximum(source.read(1).astype(int) - offset, 0)
        np.testing.assert_array_equal(sample.arrays["t1.10m.npy" if time else "10m.npy"][2], expected)


def test_larger_patches_are_cropped_to_their_middle(archive: Path, tmp_path: Path) -> None:
    """On the grid of 60 m, so that all resolutions stay aligned; the place moves along."""
    root = copy_of(archive, tmp_path / "archive", 1)
    place = root / "s2c" / "0000000"
    size = {"B1": 47, "B9": 47, "B10": 47} | dict.fromkeys(("B2", "B3", "B4", "B8"), 282)
    for band in S2C:
        side = size.get(band, 141)
        x, y = WIDTH * 47 / 44 / side, HEIGHT * 47 / 44 / side  # a pixel of 60 m more to the left and top, two on
        transform = Affine(x, 0, 10 - WIDTH / 44 - x / 2, 0, -y, 45.5 + HEIGHT / 44 + y / 2)
        write_band(place / date_name(SEASONS[1]) / f"{band}.tif", side, 7, (10, 45.5), transform=transform)
    convert(root, tmp_path / "set")
    sample = ShardSet.open(tmp_path / "set").read("train", 0)
    for member, band, plane, left, side in (
        ("t1.10m.npy", "B2", 0, 6, 264), ("t1.20m.npy", "B5", 0, 3, 132), ("t1.60m.npy", "B10", 2, 1, 44)
    ):  # fmt: skip
        with rasterio.open(place / date_name(SEASONS[1]) / f"{band}.tif") as source:
            expected = source.read(1)[left : left + side, left : left + side]
        np.testing.assert_array_equal(sample.arrays[member][plane], expected)
    write_band(place / date_name(SEASONS[1]) / "B2.tif", 288, 7, (10, 45.5))
    with pytest.raises(BandstreamError, match="not one input could be taken"):
        convert(root, tmp_path / "uneven")
    assert rejections(tmp_path / "uneven") == {f"0000000/{date_name(SEASONS[1])}/B3.tif": "wrong-size"}


def test_command(archive: Path, tmp_path: Path) -> None:
    root = copy_of(archive, tmp_path / "archive", 1)
    arguments = [str(root), str(tmp_path / "set"), "--dates", "2", "--workers", "1"]
    told = CliRunner().invoke(ssl4eo.command, arguments)
    assert told.exit_code == 0, told.output
    assert "1 samples (train 1), 13 bands" in told.output
