"""Both versions of BigEarthNet: what is taken, with what labels, masks and splits, and what is refused and why."""

import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from rasterio.warp import transform

from ingest.archives import clc
from ingest.building.build import Options, Told, ingest
from ingest.source import Listening
from ingest.sources import bigearthnet
from ingest.sources.bigearthnet import BigEarthNet
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet
from shards.verify import verify
from tests.ingest import archives
from tests.ingest.archives import V2_TILE, make_v1, make_v2, patch_name, v1_name
from tests.ingest.tiff import tiff

CHECKER = Path(__file__).parents[3] / "shared" / "checks" / "check_shards.py"


def convert(root: Path, target: Path, warnings: list[str] | None = None, **options: Any) -> Manifest:
    source = BigEarthNet(root)
    told = (warnings if warnings is not None else []).append
    return ingest(source, target, Options(shard_samples=4, **options), Told(warn=told)).manifest


def check(target: Path, archive: Path) -> None:
    """The set is sound by our own verify and, where it is at hand, by the independent checker."""
    assert verify(target) == []
    if CHECKER.exists():
        result = subprocess.run(
            [sys.executable, CHECKER, target, "--against", archive], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr


def rejections(target: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (target / "rejected.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_v2(tmp_path_factory.mktemp("v2"), 12)


def test_version_2(v2: Path, tmp_path: Path) -> None:
    manifest = convert(v2, tmp_path / "set")
    check(tmp_path / "set", v2)
    assert manifest.source["version"] == "2"
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert manifest.rejected == {}
    opened = ShardSet.open(tmp_path / "set")
    numbers = {patch_name(number): number for number in range(12)}
    for split in manifest.splits:
        hot = opened.labels(split, "land_cover")
        for index in range(opened.size(split)):
            sample = opened.read(split, index)
            number = numbers.pop(sample.key)
            for member, array in manifest.arrays.items():
                for band, plane in zip(array.bands, sample.arrays[member], strict=True):
                    np.testing.assert_array_equal(plane, archives.bands(number)[band])
            names = [clc.CLASSES[k] for k in np.flatnonzero(sample.labels["land_cover"])]
            assert sorted(names) == archives.labels_of(number)
            np.testing.assert_array_equal(hot[index], sample.labels["land_cover"])
            codes = archives.reference(number)
            expected = np.vectorize(lambda code: clc.CLC_TO_CLASS.get(code, 255))(codes)
            np.testing.assert_array_equal(sample.masks["land_cover"], expected)
            _, size, left, top = archives.place(number, 120)
            assert sample.json["transform"] == [size, 0, left, 0, -size, top]
            assert sample.json["bounds"] == [left, top - 1200, left + 1200, top]
            lon, lat = transform("EPSG:32633", "EPSG:4326", [left + 600], [top - 600])
            assert sample.json["lon"] == pytest.approx(lon[0], abs=1e-6)
            assert sample.json["lat"] == pytest.approx(lat[0], abs=1e-6)
            told = {key: sample.json[key] for key in ("id", "date", "crs", "processing_baseline", "offset_removed")}
            assert told == {
                "id": sample.key,
                "date": "2017-06-13T10:10:31",
                "crs": "EPSG:32633",
                "processing_baseline": "N9999",
                "offset_removed": 0,
            }
            assert (sample.json["tile"], sample.json["country"], sample.json["nodata"]) == ("T33UUP", "Austria", "0")
    assert not numbers


def test_version_1(tmp_path: Path) -> None:
    names = [["Peatbogs", "Burnt areas"], ["Sea and ocean", "Estuaries"], ["Airports"], ["Glaciers and perpetual snow"]]
    archive = make_v1(tmp_path / "v1", [*names, ["Rice fields"], ["Pastures"]])
    (archive / v1_name(5) / f"{v1_name(5)}_labels_metadata.json").unlink()
    manifest = convert(archive, tmp_path / "set")
    check(tmp_path / "set", archive)
    assert manifest.source["version"] == "1"
    assert manifest.masks == {}
    assert manifest.rejected == {"no-class": 1, "no-metadata": 1, "unknown-label": 1}
    reasons = {line["path"].split("/")[0]: line["reason"] for line in rejections(tmp_path / "set")}
    assert reasons == {v1_name(2): "no-class", v1_name(3): "unknown-label", v1_name(5): "no-metadata"}
    opened = ShardSet.open(tmp_path / "set")
    found = {}
    for index in range(opened.size("train")):
        sample = opened.read("train", index)
        found[sample.key] = [clc.CLASSES[k] for k in np.flatnonzero(sample.labels["land_cover"])]
        # version 1 writes 09:30:20 as T93020, and its product's baseline in the metadata
        assert sample.json["date"] == "2017-09-24T09:30:20"
        assert (sample.json["processing_baseline"], sample.json["tile"]) == ("N0205", "T35VPK")
    assert found == {v1_name(0): ["Inland wetlands"], v1_name(1): ["Marine waters"], v1_name(4): ["Arable land"]}


@pytest.mark.parametrize("order", [1, -1])
def test_versions_are_not_mixed(v2: Path, tmp_path: Path, order: int) -> None:
    """Whichever came last used to say what all were: version 1's labels were lost without a word."""
    make_v1(tmp_path / "v1", [["Pastures"]])
    with pytest.raises(BandstreamError, match="both versions of BigEarthNet: ingest them apart"):
        ingest(BigEarthNet([v2, tmp_path / "v1"][::order]), tmp_path / "set", Options())


def test_a_folder_of_something_else_changes_no_version(tmp_path: Path) -> None:
    make_v1(tmp_path / "v1", [["Pastures"]])
    (tmp_path / "other" / "AnnualCrop").mkdir(parents=True)
    (tmp_path / "other" / "AnnualCrop" / "AnnualCrop_1.tif").write_bytes(b"")
    manifest = ingest(BigEarthNet([tmp_path / "v1", tmp_path / "other"]), tmp_path / "set", Options()).manifest
    assert manifest.source["version"] == "1"
    assert manifest.labels
    assert manifest.rejected == {"no-metadata": 1}


def test_a_patch_is_no_archive(v2: Path, tmp_path: Path) -> None:
    patch = next((v2 / "BigEarthNet-S2").glob("*/*"))
    with pytest.raises(BandstreamError, match="is a patch itself: name the folder that holds it"):
        ingest(BigEarthNet(patch), tmp_path / "set", Options())


@pytest.mark.parametrize("version", ["bigearthnet_v1", "bigearthnet_v2"])
def test_real_patches(real_data: Path, tmp_path: Path, version: str) -> None:
    warnings: list[str] = []
    manifest = convert(real_data / version, tmp_path / "set", warnings)
    check(tmp_path / "set", real_data / version)
    assert manifest.rejected == {}
    assert manifest.splits["train"].samples == (4 if version.endswith("v1") else 1)
    if version.endswith("v2"):
        assert len(warnings) == 1
        assert "covers not one" in warnings[0]
        assert manifest.source["masks"].startswith("none: the reference maps")


def test_inner_folder_and_files_elsewhere(v2: Path, tmp_path: Path) -> None:
    inner = v2 / "BigEarthNet-S2"
    plain = convert(inner, tmp_path / "plain")
    assert (plain.labels, plain.masks) == ({}, {})
    assert plain.splits["train"].samples == 10  # a tenth each to val and test
    source = BigEarthNet(inner, [v2 / "metadata.parquet"], v2 / "Reference_Maps")
    full = ingest(source, tmp_path / "full", Options(shard_samples=4)).manifest
    assert full.masks
    assert full.splits == convert(v2, tmp_path / "set").splits


def test_split_file(v2: Path, tmp_path: Path) -> None:
    from ingest.building.plan import read_split_file

    lines = ["patch,split", *(f"{patch_name(n)},{('train', 'validation', 'test')[n % 3]}" for n in range(11))]
    (tmp_path / "split.csv").write_text("\n".join(lines))
    manifest = convert(v2, tmp_path / "set", split_file=read_split_file(tmp_path / "split.csv"))
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 4, "val": 4, "test": 3}
    assert manifest.rejected == {"no-split": 1}
    for wrong in ("a,training\n", "a\n", "a,train\na,test\n", ""):
        (tmp_path / "wrong.csv").write_text(wrong)
        with pytest.raises(BandstreamError, match=r"wrong\.csv"):
            read_split_file(tmp_path / "wrong.csv")


def test_a_place_that_is_unknown_is_no_place(tmp_path: Path) -> None:
    patch = tmp_path / "a" / "BigEarthNet-S2" / V2_TILE / patch_name(0)
    patch.mkdir(parents=True)
    for band, plane in archives.bands(0).items():
        (patch / f"{patch.name}_{band}.tif").write_bytes(tiff(plane, place=None))
    convert(tmp_path / "a", tmp_path / "set")
    rows = pq.read_table(tmp_path / "set" / "samples.parquet")
    assert rows["lon"][0].as_py() is None and rows["lat"][0].as_py() is None
    content = ShardSet.open(tmp_path / "set").read("train", 0).json
    assert (content["crs"], content["lon"], content["lat"]) == ("", 0.0, 0.0)
    check(tmp_path / "set", tmp_path / "a")


def test_offset_of_later_baselines_is_removed(tmp_path: Path) -> None:
    archive = tmp_path / "a"
    name = patch_name(0).replace("N9999", "N0400")
    archives.write_patch(archive / "BigEarthNet-S2" / V2_TILE.replace("N9999", "N0400") / name, 0)
    convert(archive, tmp_path / "set")
    sample = ShardSet.open(tmp_path / "set").read("train", 0)
    assert sample.json["offset_removed"] == 1000
    expected = np.maximum(archives.bands(0)["B02"].astype(int) - 1000, 0)
    np.testing.assert_array_equal(sample.arrays["10m.npy"][0], expected)


def rewrite(band: str, content: Callable[[bytes, int], bytes]) -> Callable[[Path, Path, int], None]:
    def damage(patch: Path, root: Path, number: int) -> None:
        path = patch / f"{patch.name}_{band}.tif"
        path.write_bytes(content(path.read_bytes(), number))

    return damage


def metadata_row(patch: str, column: str, value: Any) -> Callable[[Path, Path, int], None]:
    def damage(folder: Path, root: Path, number: int) -> None:
        rows = pq.read_table(root / "metadata.parquet").to_pylist()
        for row in rows:
            if row["patch_id"] == folder.name:
                row[column] = value
        rows = [row for row in rows if row["patch_id"] is not None]
        pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")

    return damage


def unreadable(patch: Path, root: Path, number: int) -> None:
    path = patch / f"{patch.name}_B05.tif"
    path.unlink()
    path.mkdir()


def duplicate(patch: Path, root: Path, number: int) -> None:
    shutil.copytree(patch, root / "BigEarthNet-S2" / f"{V2_TILE}X" / patch.name)


def resized(data: bytes, number: int) -> bytes:
    return tiff(np.zeros((120, 119), np.uint16), place=archives.place(number, 120))


def floats(data: bytes, number: int) -> bytes:
    return tiff(np.zeros((60, 60), np.float32), place=archives.place(number, 60))


def elsewhere(data: bytes, number: int) -> bytes:
    return tiff(np.zeros((60, 60), np.uint16), place=archives.place(number + 1, 60))


DAMAGES: dict[str, tuple[Callable[[Path, Path, int], None], str]] = {
    "truncated": (rewrite("B02", lambda data, _: data[:5000]), "truncated"),
    "truncated-header": (rewrite("B12", lambda data, _: data[:50]), "truncated"),
    "empty-file": (rewrite("B01", lambda data, _: b""), "truncated"),
    "missing-band": (lambda patch, root, _: (patch / f"{patch.name}_B8A.tif").unlink(), "missing-band"),
    "wrong-size": (rewrite("B03", resized), "wrong-size"),
    "float-band": (rewrite("B06", floats), "wrong-type"),
    "no-tiff": (rewrite("B07", lambda data, _: b"<html>404</html>"), "unreadable"),
    "folder-for-file": (unreadable, "unreadable"),
    "elsewhere": (rewrite("B11", elsewhere), "misplaced"),
    "duplicate": (duplicate, "duplicate"),
    "unknown-label": (metadata_row("", "labels", ["Moon"]), "unknown-label"),
    "no-labels": (metadata_row("", "labels", []), "no-class"),
    "unknown-split": (metadata_row("", "split", "holdout"), "unknown-split"),
    "no-metadata": (metadata_row("", "patch_id", None), "no-metadata"),
    "no-map": (lambda patch, root, _: shutil.rmtree(root / "Reference_Maps" / V2_TILE / patch.name), "no-map"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_rejected_line(tmp_path: Path, name: str) -> None:
    archive = make_v2(tmp_path / "a", 6)
    damage, reason = DAMAGES[name]
    damage(archive / "BigEarthNet-S2" / V2_TILE / patch_name(4), archive, 4)
    manifest = convert(archive, tmp_path / "set")
    assert manifest.rejected == {reason: 1}
    lines = rejections(tmp_path / "set")
    assert [line["reason"] for line in lines] == [reason]
    assert patch_name(4) in lines[0]["path"]
    assert lines[0]["detail"]
    assert verify(tmp_path / "set") == []
    total = sum(split.samples for split in manifest.splits.values())
    assert total == (6 if reason == "duplicate" else 5)
    with pytest.raises(BandstreamError, match=reason):
        convert(archive, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict" / "dataset.json").exists()


def test_a_whole_shard_of_damage(tmp_path: Path) -> None:
    archive = make_v2(tmp_path / "a", 6, metadata=False, maps=False)
    for entry in BigEarthNet(archive).listing(Listening(tmp_path)):
        (archive / "BigEarthNet-S2" / entry.path / f"{entry.key}_B02.tif").unlink()
    with pytest.raises(BandstreamError, match="not one input could be taken"):
        convert(archive, tmp_path / "set")
    assert len(rejections(tmp_path / "set")) == 6
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_band_order_that_cannot_be_right(tmp_path: Path) -> None:
    archive = make_v2(tmp_path / "a", 4, metadata=False, maps=False)
    rng = np.random.default_rng(0)
    for number in range(4):
        patch = archive / "BigEarthNet-S2" / V2_TILE / patch_name(number)
        noise = tiff(rng.integers(0, 9999, (60, 60)).astype(np.uint16), place=archives.place(number, 60))
        (patch / f"{patch.name}_B8A.tif").write_bytes(noise)
    with pytest.raises(BandstreamError, match="band order cannot be right"):
        convert(archive, tmp_path / "set")


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other" / "sub" / "deep").mkdir(parents=True)
    with pytest.raises(BandstreamError, match="does not exist"):
        convert(tmp_path / "none", tmp_path / "set")
    with pytest.raises(BandstreamError, match="holds no patches"):
        convert(tmp_path / "empty", tmp_path / "set")
    with pytest.raises(BandstreamError, match="holds no patches"):
        convert(tmp_path / "other", tmp_path / "set")
    with pytest.raises(BandstreamError, match="neither a folder nor a .tar"):
        convert(tmp_path / "file", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def pack(folder: Path, path: Path, names: Iterable[str] = ("",), reverse: bool = False) -> Path:
    """A folder's files, or those below `names`, as a tar, compressed as the name of `path` says."""
    mode = {".gz": "w:gz", ".zst": "w"}.get(path.suffix, "w")
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for top in names:
            files = sorted((folder / top).rglob("*"), reverse=reverse)
            for file in files or [folder / top]:
                tar.add(file, file.relative_to(folder).as_posix(), recursive=False)
    if path.suffix == ".zst":
        path.write_bytes(zstandard.compress(path.read_bytes()))
    return path


@pytest.fixture(scope="module")
def v2_set(v2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every byte of the set made from the folder."""
    target = tmp_path_factory.mktemp("v2_set") / "set"
    convert(v2, target)
    return archives.contents(target)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_the_archive_as_it_was_downloaded(v2: Path, v2_set: dict[str, bytes], tmp_path: Path, suffix: str) -> None:
    whole = pack(v2, tmp_path / f"whole{suffix}")
    convert(whole, tmp_path / "whole")
    assert archives.contents(tmp_path / "whole") == v2_set
    # files of a patch may lie anywhere in a tar, and folders around all
    moved = tmp_path / "around" / "BigEarthNet"
    moved.parent.mkdir()
    moved.symlink_to(v2)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        names = [str(path.relative_to(v2)) for path in v2.rglob("*") if path.is_file()]
        for name in random.Random(0).sample(names, len(names)):
            tar.add(v2 / name, f"BigEarthNet/{name}")
    convert(tmp_path / "x.tar", tmp_path / "shuffled")
    assert archives.contents(tmp_path / "shuffled") == v2_set


def test_archives_of_their_own(v2: Path, v2_set: dict[str, bytes], tmp_path: Path) -> None:
    """Patches in two archives, reference maps in a third, metadata beside; in one folder of maps or as `--maps`."""
    first = pack(v2, tmp_path / "S2-a.tar.zst", [f"BigEarthNet-S2/{V2_TILE}/{patch_name(n)}" for n in range(5)])
    second = pack(v2, tmp_path / "S2-b.tar", [f"BigEarthNet-S2/{V2_TILE}/{patch_name(n)}" for n in range(5, 12)])
    maps = pack(v2, tmp_path / "Reference_Maps.tar.gz", ["Reference_Maps"])
    inner = pack(v2 / "Reference_Maps", tmp_path / "inner.tar.zst")
    metadata = v2 / "metadata.parquet"
    for number, source in enumerate(
        [
            BigEarthNet([first, second, maps, metadata]),
            BigEarthNet([inner, second, first], [metadata]),
            BigEarthNet([second, first], [metadata], maps),
            BigEarthNet([first, second], [metadata], inner),
            BigEarthNet([first, second, metadata, v2 / "Reference_Maps"]),
        ]
    ):
        ingest(source, tmp_path / str(number), Options(shard_samples=4))
        assert archives.contents(tmp_path / str(number)) == v2_set, number
    with pytest.raises(BandstreamError, match="only metadata"):
        ingest(BigEarthNet([metadata]), tmp_path / "none", Options())
    with pytest.raises(BandstreamError, match="holds no patches"):
        ingest(BigEarthNet([maps]), tmp_path / "none", Options())


@pytest.mark.parametrize("name", sorted(DAMAGES.keys() - {"folder-for-file"}))  # in a tar that is no file at all
def test_damage_is_the_same_from_a_tar(tmp_path: Path, name: str) -> None:
    archive = make_v2(tmp_path / "a", 6)
    DAMAGES[name][0](archive / "BigEarthNet-S2" / V2_TILE / patch_name(4), archive, 4)
    convert(archive, tmp_path / "folder")
    convert(pack(archive, tmp_path / "a.tar"), tmp_path / "tar")
    assert archives.contents(tmp_path / "tar") == archives.contents(tmp_path / "folder")


def test_files_that_are_too_large_to_be_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_v2(tmp_path / "a", 6)
    convert(archive, tmp_path / "folder")
    monkeypatch.setattr(bigearthnet, "LARGEST", 20_000)
    convert(pack(archive, tmp_path / "a.tar"), tmp_path / "tar")
    assert archives.contents(tmp_path / "tar") == archives.contents(tmp_path / "folder")


def test_version_1_from_a_tar(tmp_path: Path) -> None:
    archive = make_v1(tmp_path / "v1", [["Peatbogs"], ["Airports"], ["Rice fields"]])
    convert(archive, tmp_path / "folder")
    with tarfile.open(tmp_path / "v1.tar.gz", "w:gz") as tar:
        tar.add(archive, "BigEarthNet-v1.0")
    convert(tmp_path / "v1.tar.gz", tmp_path / "tar")
    assert archives.contents(tmp_path / "tar") == archives.contents(tmp_path / "folder")


@pytest.mark.parametrize("version", ["bigearthnet_v1", "bigearthnet_v2"])
def test_real_patches_from_a_tar(real_data: Path, tmp_path: Path, version: str) -> None:
    convert(real_data / version, tmp_path / "folder")
    convert(pack(real_data / version, tmp_path / "real.tar.zst"), tmp_path / "tar")
    assert archives.contents(tmp_path / "tar") == archives.contents(tmp_path / "folder")


def test_what_is_left_out_on_request(v2: Path, tmp_path: Path) -> None:
    lists = tmp_path / "snow.csv", tmp_path / "clouds.csv"
    lists[0].write_text(f"{patch_name(1)}\n{patch_name(2)}\n")
    lists[1].write_text(f'"{patch_name(2)}"\r\nS2B_of_another_archive\r\n')
    ingest(BigEarthNet(v2, exclude=lists), tmp_path / "set", Options())
    keys = pq.read_table(tmp_path / "set" / "samples.parquet")["key"].to_pylist()
    assert set(keys) == {patch_name(n) for n in range(12) if n not in (1, 2)}
    assert [line["reason"] for line in rejections(tmp_path / "set")] == ["excluded"] * 2
    (tmp_path / "wrong.csv").write_text("patch one\n")
    with pytest.raises(BandstreamError, match=r"wrong\.csv is no list of patches"):
        ingest(BigEarthNet(v2, exclude=[tmp_path / "wrong.csv"]), tmp_path / "x", Options())


def test_filters_on_the_flags_of_the_metadata(tmp_path: Path) -> None:
    archive = make_v2(tmp_path / "a", 6, maps=False)
    with pytest.raises(BandstreamError, match="has no column contains_seasonal_snow"):
        ingest(BigEarthNet(archive, without=["seasonal-snow"]), tmp_path / "x", Options())
    rows = pq.read_table(archive / "metadata.parquet").to_pylist()
    for number, row in enumerate(rows):
        row |= {"contains_seasonal_snow": number == 1, "contains_cloud_or_shadow": number in (1, 4)}
    pq.write_table(pa.Table.from_pylist(rows), archive / "metadata.parquet")
    for without, left_out in [((), set()), (("seasonal-snow",), {1}), (("cloud-or-shadow", "seasonal-snow"), {1, 4})]:
        target = tmp_path / "-".join(["set", *without])
        ingest(BigEarthNet(archive, without=without), target, Options())
        keys = pq.read_table(target / "samples.parquet")["key"].to_pylist()
        assert set(keys) == {patch_name(n) for n in range(6) if n not in left_out}
    (archive / "metadata.parquet").unlink()
    with pytest.raises(BandstreamError, match="--without needs the flags"):
        ingest(BigEarthNet(archive, without=["seasonal-snow"]), tmp_path / "x", Options())


def test_what_parquet_says_of_damage_is_one_line(tmp_path: Path) -> None:
    root = archives.make_v2(tmp_path / "a", 2)
    data = (root / "metadata.parquet").read_bytes()
    (root / "metadata.parquet").write_bytes(data[:4] + bytes(600) + data[604:])
    with pytest.raises(BandstreamError, match=r"\Ametadata.parquet cannot be read as Parquet .*\Z"):  # . is no new line
        ingest(BigEarthNet(root), tmp_path / "set", Options())
