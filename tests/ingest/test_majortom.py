"""Major TOM Core: cells and patches of them, one date or several, pixel by pixel as rasterio reads them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rasterio.warp import transform

from ingest.archives import parquet
from ingest.building.build import Options, Told, ingest
from ingest.building.plan import _draw
from ingest.sources import majortom
from ingest.sources.majortom import MajorTOM
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet
from shards.verify import verify
from tests.ingest.archives import contents
from tests.ingest.grid_cells import (
    BASELINES,
    CELLS,
    L1C,
    L2A,
    STEP,
    TIMES,
    pixels_of,
    product,
    row,
    tif,
    write,
    write_metadata,
)
from tests.ingest.tiff import tiff

CHECKER = Path(__file__).parents[3] / "shared" / "checks" / "check_shards.py"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files: three dates of each of two cells, spread over both, and one date of the others."""
    root = tmp_path_factory.mktemp("majortom")
    write(root / "images" / "part_00001.parquet", [row(CELLS[0], 1), row(CELLS[2], 0), row(CELLS[1], 0)])
    write(
        root / "images" / "part_00002.parquet",
        [
            row(CELLS[0], 2, compress="lzw", tiled=True, blockxsize=64, blockysize=64),
            row(CELLS[0], 0),
            row(CELLS[1], 2, compress=None),
            row(CELLS[1], 1),
            row(CELLS[3], 0),
        ],
    )
    write_metadata(root, {(cell, number): 10.0 * number for cell in CELLS for number in range(3)})
    return root


def convert(root: Path, target: Path, warnings: list[str] | None = None, **options: Any) -> Manifest:
    own = {name: options.pop(name) for name in ("patch", "dates", "max_nodata", "max_cloud") if name in options}
    return ingest(MajorTOM(root, **own), target, Options(**options), Told()).manifest


def check(target: Path) -> None:
    assert verify(target) == []
    if CHECKER.exists():
        result = subprocess.run([sys.executable, CHECKER, target], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def samples(target: Path) -> dict[str, Any]:
    opened = ShardSet.open(target)
    found = [opened.read(split, index) for split in opened.manifest.splits for index in range(opened.size(split))]
    return {sample.key: sample for sample in found}


def rejections(target: Path) -> dict[str, str]:
    return {
        line["path"]: line["reason"] for line in map(json.loads, (target / "rejected.jsonl").read_text().splitlines())
    }


def stored(cell: str, number: int, band: str) -> np.ndarray:
    """What a set has of a band: the offset of baseline 05.09 is removed."""
    offset = 1000 if BASELINES[number] == "N0509" else 0
    return np.maximum(pixels_of(cell, number, band).astype(int) - offset, 0)


def test_whole_cells(archive: Path, tmp_path: Path) -> None:
    manifest = convert(archive, tmp_path / "set")
    check(tmp_path / "set")
    assert manifest.rejected == {}
    assert manifest.band_names == L2A
    found = samples(tmp_path / "set")
    assert len(found) == 8
    for cell, number in [(cell, n) for cell in CELLS[:2] for n in range(3)] + [(CELLS[2], 0), (CELLS[3], 0)]:
        sample = found[f"{cell}_{TIMES[number]}"]
        for member, array in manifest.arrays.items():
            for band, plane in zip(array.bands, sample.arrays[member], strict=True):
                np.testing.assert_array_equal(plane, stored(cell, number, band))
        left, top = 434635.0219440222 + 10_000 * CELLS.index(cell), 4494792.138317
        told = sample.json
        assert told["transform"] == pytest.approx([10, 0, left, 0, -10, top])
        assert told["bounds"] == pytest.approx([left, top - 1560, left + 1560, top])
        lon, lat = transform("EPSG:32612", "EPSG:4326", [left + 780], [top - 780])
        assert (told["lon"], told["lat"]) == pytest.approx((lon[0], lat[0]), abs=1e-6)
        assert told["dates"] == [f"{t[:4]}-{t[4:6]}-{t[6:11]}:{t[11:13]}:{t[13:]}" for t in (TIMES[number],)]
        assert told["processing_baselines"] == [BASELINES[number]]
        assert told["offsets_removed"] == [1000 if number == 1 else 0]
        first = [told["date"], told["processing_baseline"], told["offset_removed"]]
        assert [[each] for each in first] == [told["dates"], told["processing_baselines"], told["offsets_removed"]]
        assert (told["grid_cell"], told["tile"], told["products"]) == (cell, "T12TVK", [product(number)])


def test_patches_of_several_dates(archive: Path, tmp_path: Path) -> None:
    manifest = convert(archive, tmp_path / "set", patch=72, dates=3)
    check(tmp_path / "set")
    assert manifest.rejected == {"too-few-dates": 2}
    assert set(rejections(tmp_path / "set")) == set(CELLS[2:])
    found = samples(tmp_path / "set")
    assert set(found) == {f"{cell}_{y}_{x}" for cell in CELLS[:2] for y in (0, 1) for x in (0, 1)}
    for key, sample in found.items():
        cell, y, x = key[:9], int(key[10]), int(key[12])
        for member, array in manifest.arrays.items():
            side = array.shape[1]
            top, left = (72 * y + 6) * side // 72, (72 * x + 6) * side // 72
            for band, plane in zip(array.bands, sample.arrays[member], strict=True):
                expected = stored(cell, array.time, band)[top : top + side, left : left + side]
                np.testing.assert_array_equal(plane, expected)
        corner = 434635.0219440222 + 10_000 * CELLS.index(cell) + 10 * (72 * x + 6)
        assert sample.json["bounds"][0] == pytest.approx(corner)
        assert sample.json["bounds"][3] == pytest.approx(4494792.138317 - 10 * (72 * y + 6))
        assert sample.json["offsets_removed"] == [0, 1000, 0]
        assert sample.json["products"] == [product(0), product(1), product(2)]


def test_cells_stay_in_one_split(archive: Path, tmp_path: Path) -> None:
    manifest = convert(archive, tmp_path / "set", patch=36)
    opened = ShardSet.open(tmp_path / "set")
    cells = {
        split: {opened.read(split, index).json["grid_cell"] for index in range(opened.size(split))}
        for split in manifest.splits
    }
    assert sum(map(len, cells.values())) == len(CELLS)
    assert cells["train"]
    assert sum(split.samples for split in manifest.splits.values()) == 8 * 16


def test_tenths_end_where_the_nearest_cell_does() -> None:
    def drawn(sizes: list[int]) -> list[list[int]]:
        hashes = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
        splits = _draw(hashes, np.zeros(len(hashes), np.uint32))
        assert all(len(set(splits[hashes == number])) == 1 for number in range(len(sizes)))
        return [[number for number in range(len(sizes)) if splits[hashes == number][0] == split] for split in (1, 2)]

    assert drawn([64]) == [[], []]
    assert drawn([64] * 2) == [[], []]
    assert drawn([64] * 10) == [[0], [1]]
    assert drawn([64] * 40) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert drawn([70, 58] * 5) == [[0], [1]]


def test_two_dates_lie_evenly(archive: Path, tmp_path: Path) -> None:
    convert(archive, tmp_path / "set", dates=2)
    found = samples(tmp_path / "set")
    assert set(found) == {CELLS[0], CELLS[1]}
    assert found[CELLS[0]].json["products"] == [product(0), product(1)]
    np.testing.assert_array_equal(found[CELLS[0]].arrays["t1.10m.npy"][2], stored(CELLS[0], 1, "B04"))


def test_l1c(tmp_path: Path) -> None:
    write(tmp_path / "a" / "part.parquet", [row(CELLS[0], 1, L1C), row(CELLS[1], 1, L1C)])
    manifest = convert(tmp_path / "a", tmp_path / "set")
    assert (manifest.reflectance.level, manifest.band_names) == ("L1C", L1C)
    sample = next(iter(samples(tmp_path / "set").values()))
    np.testing.assert_array_equal(sample.arrays["60m.npy"][2], stored(sample.json["grid_cell"], 1, "B10"))


@pytest.mark.parametrize("patch", [0, 72])
def test_the_same_bytes_from_any_layout_and_workers(archive: Path, tmp_path: Path, patch: int) -> None:
    rows = [row for path in sorted(archive.glob("images/*")) for row in pq.read_table(path).to_pylist()]
    write(tmp_path / "one.parquet", rows[::-1], group=3)
    convert(archive, tmp_path / "first", patch=patch, workers=1, shard_samples=3)
    convert(tmp_path / "one.parquet", tmp_path / "second", patch=patch, workers=2, shard_samples=3)
    convert(archive, tmp_path / "third", patch=patch, workers=1, shard_samples=3, scratch=tmp_path / "scratch")
    first = contents(tmp_path / "first")
    assert first == contents(tmp_path / "second") == contents(tmp_path / "third")
    assert not (tmp_path / "scratch").exists() or not list((tmp_path / "scratch").iterdir())


def test_clouds(archive: Path, tmp_path: Path) -> None:
    manifest = convert(archive, tmp_path / "set", max_cloud=10)
    assert manifest.rejected == {"clouds": 2}
    manifest = convert(archive, tmp_path / "dates", dates=2, max_cloud=10)
    assert all(sample.json["products"] == [product(0), product(1)] for sample in samples(tmp_path / "dates").values())
    with pytest.raises(BandstreamError, match=r"needs the cloud cover of metadata\.parquet"):
        convert(archive / "images", tmp_path / "none", max_cloud=10)
    write_metadata(tmp_path, {(CELLS[0], 0): 3.0})
    source = MajorTOM((archive / "images", tmp_path / "metadata.parquet"), max_cloud=10)
    assert ingest(source, tmp_path / "few", Options()).manifest.rejected == {"no-metadata": 7}


def test_nodata(tmp_path: Path) -> None:
    half = row(CELLS[0], 0)
    for band in L2A:
        pixels = np.maximum(pixels_of(CELLS[0], 0, band), 1)
        pixels[: len(pixels) // 2] = 0
        half[band] = tif(pixels, STEP.get(band, 1), 434635.0219440222)
    write(tmp_path / "a" / "part.parquet", [half, row(CELLS[1], 0)])
    assert convert(tmp_path / "a", tmp_path / "whole", max_nodata=0.4).rejected == {"nodata": 1}
    assert convert(tmp_path / "a", tmp_path / "more", max_nodata=0.5).rejected == {}
    convert(tmp_path / "a", tmp_path / "patches", patch=72, max_nodata=0.5)
    assert set(rejections(tmp_path / "patches")) == {f"{CELLS[0]}/{product(0)}_0_{x}" for x in (0, 1)}


@pytest.mark.parametrize("patch", [0, 72])
def test_what_is_rejected(archive: Path, tmp_path: Path, patch: int) -> None:
    rows = [row(cell, 0) for cell in CELLS] + [row(cell, 1) for cell in CELLS] + [row(cell, 2) for cell in CELLS]
    rows[0]["B8A"] = rows[0]["B8A"][:-200]
    rows[1]["B10"] = None
    rows[1]["B09"] = None
    rows[2]["B02"] = tif(pixels_of(CELLS[2], 0, "B02").astype(np.uint8), 1, 0.0)
    rows[3]["B12"] = tif(pixels_of(CELLS[3], 0, "B12"), 2, 434635.0219440222)  # of another cell's place
    rows[4]["B03"] = b"no TIFF at all"
    rows[5]["B03"] = tif(pixels_of(CELLS[1], 1, "B03", 144), 1, 444635.0219440222)
    for band in L2A:
        rows[9][band] = tiff(pixels_of(CELLS[1], 2, band), place=(0, 10, float("inf"), 0))
    rows[6]["grid_cell"] = "somewhere"
    rows[7]["product_id"] = "S2B_MSIL2A_20230715T181919_R127_T12TVK_20231115T211527"
    rows[8]["product_id"] = product(2, "L1C")
    for each in rows:
        each.pop("B10", None)
    write(tmp_path / "a" / "images" / "part_1.parquet", rows)
    (tmp_path / "a" / "images" / "part_2.parquet").write_bytes(b"PAR1 and nothing else")
    pq.write_table(pa.table({"B02": [b""], "grid_cell": [""]}), tmp_path / "a" / "images" / "part_3.parquet")
    write(tmp_path / "a" / "images" / "part_4.parquet", [row(CELLS[0], 0, L1C)])
    convert(tmp_path / "a", tmp_path / "set", patch=patch)
    name = "part_1.parquet"
    assert rejections(tmp_path / "set") == {
        f"{CELLS[0]}/{product(0)}/B8A": "truncated",
        f"{CELLS[1]}/{product(0)}": "missing-band",
        f"{CELLS[2]}/{product(0)}/B02": "wrong-type",
        f"{CELLS[3]}/{product(0)}/B12": "misplaced",
        f"{CELLS[0]}/{product(1)}/B03": "unreadable",
        f"{CELLS[1]}/{product(1)}/B03": "wrong-size",
        f"{name}/somewhere/{product(1)}": "bad-name",
        f"{name}/{CELLS[3]}/{rows[7]['product_id']}": "unknown-offset",
        f"{name}/{CELLS[0]}/{product(2, 'L1C')}": "bad-name",
        f"{CELLS[1]}/{product(2)}/B02": "misplaced",
        "part_2.parquet": "unreadable",
        "part_3.parquet": "another-kind",
        "part_4.parquet": "another-kind",
    }
    assert len(samples(tmp_path / "set")) == 2 * (4 if patch else 1)


def test_dates_of_other_places(tmp_path: Path) -> None:
    """The same cell by a product of the neighbouring UTM zone: not the same pixels."""
    rows = [row(CELLS[0], 0), row(CELLS[0], 1, epsg=32613), row(CELLS[1], 0), row(CELLS[1], 1)]
    write(tmp_path / "a.parquet", rows)
    for name, patch in (("whole", 0), ("patches", 72)):
        manifest = convert(tmp_path / "a.parquet", tmp_path / name, patch=patch, dates=2)
        assert manifest.rejected == {"misplaced": 4 if patch else 1}


def test_twice_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(CELLS[0], 0), row(CELLS[0], 0), row(CELLS[0], 1)])
    assert convert(tmp_path / "a.parquet", tmp_path / "set").rejected == {"duplicate": 1}
    assert convert(tmp_path / "a.parquet", tmp_path / "dates", dates=2).rejected == {}
    convert_to = tmp_path / "three"
    with pytest.raises(BandstreamError, match="too-few-dates: 2 dates, the set has 3"):
        convert(tmp_path / "a.parquet", convert_to, dates=3)


def test_rerun_uses_what_was_cut(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies after the cells were cut goes on with them, and ends with the same bytes."""
    convert(archive, tmp_path / "expected", patch=72)
    with monkeypatch.context() as patched:
        patched.setattr("ingest.building.build.make_all", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(archive, tmp_path / "set", patch=72)
    cut = sorted((tmp_path / "set" / ".partial" / "scratch").glob("cells-*"))
    assert len(cut) == 4
    with monkeypatch.context() as patched:
        patched.setattr(parquet, "decode", lambda *_: pytest.fail("cut already"))
        convert(archive, tmp_path / "set", patch=72)
    assert contents(tmp_path / "set") == contents(tmp_path / "expected")


def test_command(archive: Path, tmp_path: Path) -> None:
    arguments = [str(archive), str(tmp_path / "set"), "--workers", "1"]
    told = CliRunner().invoke(majortom.command, [*arguments, "--patch", "70"])
    assert (told.exit_code, "70 is no multiple of 6" in told.output) == (2, True)
    told = CliRunner().invoke(majortom.command, [*arguments, "--patch", "72", "--dates", "2", "--max-nodata", "0.5"])
    assert told.exit_code == 0, told.output
    assert "8 samples" in told.output
    assert Manifest.read(tmp_path / "set").source["options"] == {"patch": 72, "dates": 2, "max_nodata": 0.5}
    with pytest.raises(BandstreamError, match="--patch 240 is larger than the cells of 156 pixels"):
        convert(archive, tmp_path / "large", patch=240)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BandstreamError, match="holds no images"):
        convert(tmp_path / "empty", tmp_path / "none")


def test_a_damaged_first_cell_does_not_decide_their_size(tmp_path: Path) -> None:
    """B02 and B05 of it are swapped: a cell of 78 pixels, as it seems."""
    rows = [row(CELLS[0], 0), row(CELLS[1], 0), row(CELLS[2], 0)]
    rows[0]["B02"], rows[0]["B05"] = rows[0]["B05"], rows[0]["B02"]
    write(tmp_path / "a" / "images" / "part_00001.parquet", rows)
    write(tmp_path / "a" / "images" / "part_00002.parquet", [row(CELLS[3], 0, L2A) | {"B02": b""}])
    assert convert(tmp_path / "a", tmp_path / "set").rejected == {"truncated": 1, "wrong-size": 1}
    assert len(samples(tmp_path / "set")) == 2
