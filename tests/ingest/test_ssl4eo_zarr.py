"""SSL4EO-S12 version 1.1: zipped Zarr, a place a file inside tars, or many places a file."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rasterio.warp import transform

from ingest.archives import ssl4eo_zarr
from ingest.archives.ssl4eo_zarr import SSL4EOZarr, find
from ingest.building.build import Options, Told, ingest
from ingest.sources import ssl4eo
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet
from shards.verify import verify
from tests.ingest.archives import contents
from tests.ingest.zipped_seasons import BANDS, LEFT, TOP, chunk, name_of, pixels, place, products, write_shard


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ssl4eo11")
    shard = {f"{name_of(n)}.zarr.zip": place(n) for n in (1, 2)}
    write_shard(root / "train" / "S2L2A" / "ssl4eos12_shard_000001.tar", shard)
    backwards = place(3, [0, 1, 2, 3], bands=pixels(3)[:, ::-1], band=np.array(BANDS[::-1]))
    write_shard(root / "train" / "S2L2A" / "ssl4eos12_shard_000002.tar", {f"{name_of(3)}.zarr.zip": backwards})
    val = {f"{name_of(1, 'val')}.zarr.zip": place(4)}
    write_shard(root / "val" / "S2L2A" / "ssl4eos12_shard_000001.tar", val)
    return root


def convert(root: Path, target: Path, dates: int = 4, **options: Any) -> Manifest:
    level, files = find([root], "")
    return ingest(SSL4EOZarr(files, level, dates), target, Options(**options), Told()).manifest


def samples(target: Path) -> dict[str, Any]:
    opened = ShardSet.open(target)
    found = [opened.read(split, index) for split in opened.manifest.splits for index in range(opened.size(split))]
    return {sample.key: sample for sample in found}


def test_shards(archive: Path, tmp_path: Path) -> None:
    manifest = convert(archive, tmp_path / "set")
    assert verify(tmp_path / "set") == []
    assert manifest.rejected == {}
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 3, "val": 1}
    assert manifest.band_names == BANDS
    found = samples(tmp_path / "set")
    keys = {name_of(1): 1, name_of(2): 2, name_of(3): 3, name_of(1, "val"): 4}
    assert set(found) == set(keys)
    for key, number in keys.items():
        for time in range(4):
            member = f"t{time}.10m.npy" if time else "10m.npy"
            assert found[key].arrays[member].dtype == np.int16
            np.testing.assert_array_equal(found[key].arrays[member], pixels(number)[time])
        told = found[key].json
        assert told["products"] == products(number)
        assert told["dates"][0] == "2020-03-23T16:29:31"
        assert told["offsets_removed"] == [0] * 4
        left = LEFT + 3000 * number
        assert told["transform"] == [10, 0, left, 0, -10, TOP]
        assert told["bounds"] == [left, TOP - 2640, left + 2640, TOP]
        lon, lat = transform("EPSG:32632", "EPSG:4326", [left + 1320], [TOP - 1320])
        assert (told["lon"], told["lat"]) == pytest.approx((lon[0], lat[0]), abs=1e-6)


def test_chunks(tmp_path: Path) -> None:
    for split, number, numbers in (("train", 1, [5, 6, 7]), ("val", 1, [8])):
        path = tmp_path / "a" / split / "S2L2A" / f"{name_of(number, split, 6)}.zarr.zip"
        path.parent.mkdir(parents=True)
        path.write_bytes(chunk(numbers))
    manifest = convert(tmp_path / "a", tmp_path / "set", dates=2)
    assert verify(tmp_path / "set") == []
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 3, "val": 1}
    found = samples(tmp_path / "set")
    for number in (5, 6, 7, 8):
        sample = found[f"{number:07d}"]
        for member, time in (("10m.npy", 0), ("t1.10m.npy", 2)):
            np.testing.assert_array_equal(sample.arrays[member], np.maximum(pixels(number)[time], 0))
        assert sample.json["products"] == [products(number)[0], products(number)[2]]
        assert sample.json["offsets_removed"] == [1000, 1000]
        assert sample.json["bounds"][0] == LEFT + 3000 * number
    convert(tmp_path / "a", tmp_path / "again", dates=2, workers=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "set")


def test_what_is_rejected(archive: Path, tmp_path: Path) -> None:
    good = place(9)
    members = {
        name_of(1): place(1),
        name_of(2): good[:-1000],
        name_of(3): good.replace(b"bands/0.0.0.0", b"bands/9.9.9.9"),
        name_of(4): place(4, bands=pixels(4).astype(np.float32)),
        name_of(5): place(5, [0, 1]),
        name_of(6): place(6, band=np.array(["B02", *BANDS[1:]])),
        name_of(7): place(7, file_id=np.array(["no date"] * 4)),
        name_of(8): place(8, center_lat=np.float64(np.nan)),
        name_of(9): place(9, bands=pixels(9)[:, :, :100, :100]),
        name_of(10): b"",
        "something_else": good,
    }
    write_shard(tmp_path / "S2L2A" / "ssl4eos12_shard_000001.tar", {f"{n}.zarr.zip": d for n, d in members.items()})
    convert(tmp_path / "S2L2A", tmp_path / "set")
    lines = map(json.loads, (tmp_path / "set" / "rejected.jsonl").read_text().splitlines())
    expected = ["unreadable", "missing-pixels", "wrong-type", "too-few-dates", "missing-band", "bad-name"]
    expected += ["unreadable", "wrong-size", "unreadable"]
    assert {line["path"]: line["reason"] for line in lines} == {
        **{f"{name_of(2 + index)}.zarr.zip": reason for index, reason in enumerate(expected)},
        "something_else.zarr.zip": "bad-name",
    }
    (tmp_path / "b" / "S2L2A").mkdir(parents=True)
    (tmp_path / "b" / "S2L2A" / f"{name_of(1, digits=6)}.zarr.zip").write_bytes(chunk([1])[:-1000])
    with pytest.raises(BandstreamError, match="unreadable: not as zipped Zarr"):
        convert(tmp_path / "b" / "S2L2A", tmp_path / "none")


def test_command(archive: Path, tmp_path: Path) -> None:
    arguments = [str(archive), str(tmp_path / "set"), "--dates", "2", "--workers", "1"]
    told = CliRunner().invoke(ssl4eo.command, arguments)
    assert told.exit_code == 0, told.output
    assert Manifest.read(tmp_path / "set").source["version"] == "1.1"
    one = archive / "val" / "S2L2A" / "ssl4eos12_shard_000001.tar"
    told = CliRunner().invoke(ssl4eo.command, [str(one), str(tmp_path / "one"), "--workers", "1"])
    assert told.exit_code == 0, told.output
    assert "1 samples (val 1), 12 bands" in told.output


@pytest.mark.parametrize("name", ["x", "band", "file_id", "crs"])
def test_absurd_shapes_take_no_memory(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(io.BytesIO(place(2))) as whole:
        members = {member: whole.read(member) for member in whole.namelist()}
    told = json.loads(members[f"{name}/.zarray"])
    told["shape"] = told["chunks"] = [1 << 31, *told["shape"][1:]]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for member, content in (members | {f"{name}/.zarray": json.dumps(told).encode()}).items():
            archive.writestr(member, content)
    files = {f"{name_of(1)}.zarr.zip": place(1), f"{name_of(2)}.zarr.zip": data.getvalue()}
    write_shard(tmp_path / "S2L2A" / "ssl4eos12_shard_000001.tar", files)
    assert convert(tmp_path / "S2L2A", tmp_path / "set").rejected == {"unreadable": 1}
    assert f"{name} of shape (2147483648" in (tmp_path / "set" / "rejected.jsonl").read_text()


def test_a_zip_that_unpacks_to_more_than_a_place(tmp_path: Path) -> None:
    data = io.BytesIO(place(2))
    with zipfile.ZipFile(data, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bands/more", bytes(ssl4eo_zarr.LARGEST))
    files = {f"{name_of(1)}.zarr.zip": place(1), f"{name_of(2)}.zarr.zip": data.getvalue()}
    write_shard(tmp_path / "S2L2A" / "ssl4eos12_shard_000001.tar", files)
    assert convert(tmp_path / "S2L2A", tmp_path / "set").rejected == {"unreadable": 1}
