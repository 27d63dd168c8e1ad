"""EuroSAT, multispectral and RGB, held to rasterio and Pillow: bands, classes, splits, and what is refused."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from ingest.building.build import Options, Told, ingest
from ingest.sources.eurosat import BANDS, BLOCK_KM, CLASSES, STORED, EuroSAT, block_of
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet
from shards.verify import verify
from tests.ingest import rasters
from tests.ingest.archives import contents
from tests.ingest.eurosat import bands, make_ms, write


def convert(source: EuroSAT, target: Path, **options: Any) -> Manifest:
    manifest = ingest(source, target, Options(**{"shard_samples": 16, **options}), Told()).manifest
    assert verify(target) == []
    return manifest


def everything(target: Path) -> dict[str, tuple[str, Any]]:
    """Key → (split, sample) of all samples."""
    opened = ShardSet.open(target)
    return {
        sample.key: (split, sample)
        for split in opened.manifest.splits
        for sample in (opened.read(split, index) for index in range(opened.size(split)))
    }


def rejections(target: Path) -> dict[str, str]:
    return {
        line["path"]: line["reason"] for line in map(json.loads, (target / "rejected.jsonl").read_text().splitlines())
    }


@pytest.fixture(scope="module")
def ms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ms(tmp_path_factory.mktemp("ms") / "EuroSAT_MS", 2)


def test_real_tiles(real_data: Path, tmp_path: Path) -> None:
    manifest = convert(EuroSAT(real_data / "eurosat_ms"), tmp_path / "set")
    assert manifest.rejected == {}
    assert manifest.arrays["10m.npy"].shape == (13, 64, 64)
    assert manifest.band_names == [*BANDS]
    assert manifest.band_names.index("B8A") == 8
    assert (manifest.reflectance.scale, manifest.reflectance.level) == (1e-4, "L1C")
    samples = everything(tmp_path / "set")
    assert samples.keys() == {"AnnualCrop_1", "SeaLake_3000"}
    for key, (_, sample) in samples.items():
        with rasterio.open(real_data / "eurosat_ms" / key.partition("_")[0] / f"{key}.tif") as file:
            for plane, band in zip(sample.arrays["10m.npy"], BANDS, strict=True):
                np.testing.assert_array_equal(plane, file.read(STORED.index(band) + 1))
            assert sample.json["transform"] == list(file.transform)[:6]
            assert sample.json["bounds"] == pytest.approx(list(file.bounds), abs=1e-6)
            assert sample.json["crs"] == str(file.crs)
            assert [sample.json["lon"], sample.json["lat"]] == pytest.approx(list(file.lnglat()), abs=1e-6)
        assert CLASSES[int(sample.labels["land_use"])] == key.partition("_")[0]
        # what Helber et al. store last is the band inside B08, and cirrus is dark
        planes = dict(zip(BANDS, sample.arrays["10m.npy"].astype(float), strict=True))
        assert planes["B10"].mean() < 20
        assert abs(planes["B8A"].mean() / planes["B08"].mean() - 1) < 0.2


def test_bands_and_labels_of_every_tile(ms: Path, tmp_path: Path) -> None:
    manifest = convert(EuroSAT(ms), tmp_path / "set")
    assert manifest.labels["land_use"].classes == sorted(CLASSES)
    assert manifest.labels["land_use"].member == "cls"
    samples = everything(tmp_path / "set")
    assert len(samples) == 20
    for index, title in enumerate(CLASSES):
        for number in (1, 2):
            _, sample = samples[f"{title}_{number}"]
            for band, plane in zip(manifest.arrays["10m.npy"].bands, sample.arrays["10m.npy"], strict=True):
                np.testing.assert_array_equal(plane, bands(index * 2 + number)[band])
            assert sample.labels["land_use"] == index
            assert sample.json["class"] == title
    assert manifest.statistics["B10"].mean < 40 < 2000 < manifest.statistics["B11"].mean


def test_folder_tar_and_zip_give_the_same(ms: Path, tmp_path: Path) -> None:
    convert(EuroSAT(ms), tmp_path / "set")
    expected = contents(tmp_path / "set")
    with tarfile.open(tmp_path / "EuroSAT_MS.tar", "w") as tar:
        tar.add(ms, "EuroSAT_MS")
    with tarfile.open(tmp_path / "EuroSAT_MS.tar.gz", "w:gz") as tar:
        for path in sorted(ms.rglob("*.tif"), reverse=True):
            tar.add(path, f"ds/images/remote_sensing/otherDatasets/sentinel_2/tif/{path.relative_to(ms)}")
    with zipfile.ZipFile(tmp_path / "EuroSAT_MS.zip", "w", zipfile.ZIP_DEFLATED) as zip_:
        for path in sorted(ms.rglob("*.tif")):
            zip_.write(path, f"EuroSAT_MS/{path.relative_to(ms)}")
    for name in ("EuroSAT_MS.tar", "EuroSAT_MS.tar.gz", "EuroSAT_MS.zip"):
        convert(EuroSAT(tmp_path / name), tmp_path / f"{name}-set")
        assert contents(tmp_path / f"{name}-set") == expected, name


def test_pictures(real_data: Path, tmp_path: Path) -> None:
    tiles = {}
    with tarfile.open(real_data / "eurosat_rgb.tar") as tar, tarfile.open(tmp_path / "few.tar", "w") as few:
        for number, member in enumerate(tar):
            if number % 100 == 0:
                data = tar.extractfile(member).read()
                tiles[Path(member.name).stem] = np.asarray(Image.open(io.BytesIO(data)))
                few.addfile(member, io.BytesIO(data))
    manifest = convert(EuroSAT(tmp_path / "few.tar"), tmp_path / "set")
    assert manifest.band_names == ["red", "green", "blue"]
    assert manifest.source["version"] == "RGB"
    samples = everything(tmp_path / "set")
    assert samples.keys() == tiles.keys()
    assert len(tiles) == 80
    for key, (_, sample) in samples.items():
        np.testing.assert_array_equal(sample.arrays["rgb.npy"], tiles[key].transpose(2, 0, 1))
        assert CLASSES[int(sample.labels["land_use"])] == key.partition("_")[0]
        assert (sample.json["crs"], sample.json["lon"]) == ("", 0.0)
    with tarfile.open(tmp_path / "few.tar") as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    convert(EuroSAT(tmp_path / "folder" / "eurosat_rgb"), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "set")
    with pytest.raises(BandstreamError, match="JPEGs have none"):
        convert(EuroSAT(tmp_path / "few.tar", "spatial"), tmp_path / "x")


def test_drawn_splits_are_stratified(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "jpeg")
    for title in CLASSES:
        (tmp_path / "a" / title).mkdir(parents=True)
        for number in range(30):
            (tmp_path / "a" / title / f"{title}_{number}.jpg").write_bytes(picture.getvalue())
    convert(EuroSAT(tmp_path / "a"), tmp_path / "set", shard_samples=512)
    opened = ShardSet.open(tmp_path / "set")
    counts = {split: np.bincount(opened.labels(split, "land_use")).tolist() for split in opened.manifest.splits}
    assert counts == {"train": [24] * 10, "val": [3] * 10, "test": [3] * 10}
    splits = [{key: split for key, (split, _) in everything(tmp_path / "set").items()}]
    convert(EuroSAT(tmp_path / "a"), tmp_path / "other", seed=1)
    splits.append({key: split for key, (split, _) in everything(tmp_path / "other").items()})
    assert splits[0] != splits[1]


def test_spatial_split_cuts_no_block(tmp_path: Path) -> None:
    archive = make_ms(tmp_path / "a", 6, step=12)  # 8 km apart: some three tiles a block
    manifest = convert(EuroSAT(archive, "spatial"), tmp_path / "set")
    assert {"train", "val", "test"} == manifest.splits.keys()
    blocks: dict[str, set[str]] = {}
    for split, sample in everything(tmp_path / "set").values():
        blocks.setdefault(block_of(sample.json["lon"], sample.json["lat"]), set()).add(split)
    assert len(blocks) > 15
    assert all(len(splits) == 1 for splits in blocks.values())
    assert sum(spec.samples for spec in manifest.splits.values()) == 60
    convert(EuroSAT(archive, "spatial"), tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "set")


def test_blocks_have_their_size() -> None:
    for lat in (0.0, 36.2, 52.5, 69.9):
        row = [block_of(lon / 1000, lat) for lon in range(10_000, 12_000)]
        kilometres = np.cos(np.radians(lat)) * 111.195 * 2
        assert kilometres / BLOCK_KM - 0.1 < len(set(row)) < kilometres / BLOCK_KM + 2
    assert len({block_of(10.0, lat / 1000) for lat in range(40_000, 42_000)}) in (9, 10)  # 222 km


def test_lists_of_a_split(ms: Path, tmp_path: Path) -> None:
    """torchgeo's lists, Kaggle's tables; in the archive or beside it; several, contradicting and unreadable ones."""
    parts = {
        "train": [t for t in CLASSES if t < "I"],
        "val": ["Industrial", "Pasture"],
        "test": [t for t in CLASSES if t > "Pb"],
    }
    lists = tmp_path / "lists"
    lists.mkdir()
    for split, titles in parts.items():
        (lists / f"eurosat-{split}.txt").write_text("".join(f"{title}_1.jpg\n{title}_2.tif\n" for title in titles))
    expected = {f"{title}_{n}": split for split, titles in parts.items() for title in titles for n in (1, 2)}
    expected.pop("PermanentCrop_2")
    test = lists / "eurosat-test.txt"
    test.write_text(test.read_text().replace("PermanentCrop_2.tif\n", ""))
    convert(EuroSAT(ms, splits=lists), tmp_path / "set")
    assert {key: split for key, (split, _) in everything(tmp_path / "set").items()} == expected
    assert rejections(tmp_path / "set") == {"PermanentCrop/PermanentCrop_2.tif": "no-split"}
    assert Manifest.read(tmp_path / "set").source["split"] == "the archive's"

    inside = tmp_path / "inside"
    shutil.copytree(ms, inside)
    names = {"train": "train", "val": "validation", "test": "test"}
    for split, titles in parts.items():
        rows = [f"{row},{title}/{title}_{n}.tif,3,{title}" for row, title in enumerate(titles) for n in (1, 2)]
        (inside / f"{names[split]}.csv").write_text("\n".join([",Filename,Label,ClassName", *rows]))
    convert(EuroSAT(inside), tmp_path / "tables")
    found = {key: split for key, (split, _) in everything(tmp_path / "tables").items()}
    assert found == expected | {"PermanentCrop_2": "test"}
    convert(EuroSAT(inside, "random"), tmp_path / "drawn")
    assert "drawn" in Manifest.read(tmp_path / "drawn").source["split"]

    (lists / "eurosat-spatial-train.txt").write_text("Forest_1.tif\n")
    convert(EuroSAT(ms, splits=lists), tmp_path / "several")  # EuroSAT's own are meant
    assert contents(tmp_path / "several") == contents(tmp_path / "set")
    (lists / "eurosat-val.txt").write_text("Forest_1.tif\n")
    with pytest.raises(BandstreamError, match="Forest_1 in"):
        convert(EuroSAT(ms, splits=lists), tmp_path / "x")
    (lists / "eurosat-val.txt").write_text("Pasture_1.tif\n<html>\n")
    with pytest.raises(BandstreamError, match=r"line 2 .* names no tile"):
        convert(EuroSAT(ms, splits=lists), tmp_path / "x")
    for path in lists.glob("eurosat-[tv]*"):
        path.rename(lists / f"other-{path.name}")
    with pytest.raises(BandstreamError, match="several splits"):
        convert(EuroSAT(ms, splits=lists), tmp_path / "x")
    with pytest.raises(BandstreamError, match="holds no lists"):
        convert(EuroSAT(ms, splits=ms), tmp_path / "x")


def test_a_file_in_another_band_order_is_noticed(ms: Path, tmp_path: Path) -> None:
    shutil.copytree(ms, tmp_path / "a")
    write(tmp_path / "a" / "Forest" / "Forest_1.tif", 1, BANDS)
    convert(EuroSAT(tmp_path / "a"), tmp_path / "set")
    assert rejections(tmp_path / "set") == {"Forest/Forest_1.tif": "wrong-order"}
    for path in (tmp_path / "a").rglob("*.tif"):
        write(path, 1, BANDS)
    with pytest.raises(BandstreamError, match="B8A last"):
        convert(EuroSAT(tmp_path / "a"), tmp_path / "all")


def test_damage_and_odd_files_are_rejected(ms: Path, tmp_path: Path) -> None:
    root = tmp_path / "a"
    shutil.copytree(ms, root)
    tile = root / "River" / "River_1.tif"
    tile.write_bytes(tile.read_bytes()[:50_000])
    (root / "River" / "River_2.tif").write_bytes(b"")
    rasters.write(root / "Forest" / "Forest_1.tif", np.zeros((12, 64, 64), np.uint16))
    rasters.write(root / "Forest" / "Forest_2.tif", np.zeros((13, 64, 65), np.uint16))
    rasters.write(root / "Highway" / "Highway_1.tif", np.zeros((13, 64, 64), np.float32))
    shutil.copy(ms / "Pasture" / "Pasture_1.tif", root / "Highway" / "Pasture_1.tif")
    shutil.copy(ms / "Pasture" / "Pasture_1.tif", root / "Pasture" / "Pasture 3.tif")
    shutil.copytree(root / "Pasture", root / "again" / "Pasture")
    shutil.copytree(root / "Pasture", root / "Desert")
    shutil.copy(ms / "SeaLake" / "SeaLake_1.tif", root / "SeaLake" / "SeaLake_3.TIF")
    manifest = convert(EuroSAT(root), tmp_path / "set")
    assert rejections(tmp_path / "set") == {
        "River/River_1.tif": "unreadable",
        "River/River_2.tif": "unreadable",
        "Forest/Forest_1.tif": "wrong-bands",
        "Forest/Forest_2.tif": "wrong-size",
        "Highway/Highway_1.tif": "wrong-type",
        "Highway/Pasture_1.tif": "wrong-class",
        "Pasture/Pasture 3.tif": "bad-name",
        "Pasture/Pasture_1.tif": "duplicate",
        "Pasture/Pasture_2.tif": "duplicate",
        "Desert/Pasture_1.tif": "unknown-class",
        "Desert/Pasture_2.tif": "unknown-class",
        "Desert/Pasture 3.tif": "unknown-class",
    }
    assert sum(split.samples for split in manifest.splits.values()) == 16
    with pytest.raises(BandstreamError, match="strict"):
        convert(EuroSAT(root), tmp_path / "strict", strict=True)


def test_damaged_pictures_are_rejected(real_data: Path, tmp_path: Path) -> None:
    with tarfile.open(real_data / "eurosat_rgb.tar") as tar:
        member = tar.next()
        data = tar.extractfile(member).read()
    folder = tmp_path / "a" / "AnnualCrop"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    (folder / "AnnualCrop_0.jpg").write_bytes(data)
    for number in range(1, 60):
        damaged = bytearray(data)
        if number % 2:
            del damaged[int(rng.integers(len(data))) :]
        else:
            damaged[int(rng.integers(600))] ^= int(rng.integers(1, 256))
        (folder / f"AnnualCrop_{number}.jpg").write_bytes(damaged)
    small = io.BytesIO()
    Image.new("RGB", (32, 64)).save(small, "jpeg")
    (folder / "AnnualCrop_99.jpg").write_bytes(small.getvalue())
    manifest = convert(EuroSAT(tmp_path / "a"), tmp_path / "set")
    reasons = rejections(tmp_path / "set")
    assert reasons["AnnualCrop/AnnualCrop_99.jpg"] == "wrong-size"
    assert sum(manifest.rejected.values()) > 25
    assert "AnnualCrop_0" in everything(tmp_path / "set")


def test_what_is_no_eurosat(tmp_path: Path, ms: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BandstreamError, match="holds no EuroSAT"):
        convert(EuroSAT(tmp_path / "empty"), tmp_path / "x")
    shutil.copytree(ms, tmp_path / "both")
    (tmp_path / "both" / "River" / "River_1.jpg").write_bytes(b"")
    with pytest.raises(BandstreamError, match="pictures and multispectral"):
        convert(EuroSAT(tmp_path / "both"), tmp_path / "x")
    rasters.write(tmp_path / "nowhere" / "River" / "River_1.tif", np.stack(list(bands(0).values())), None)
    with pytest.raises(BandstreamError, match="no-place"):
        convert(EuroSAT(tmp_path / "nowhere", "spatial"), tmp_path / "x")
