"""Folders of multi-band GeoTIFFs, held to rasterio: bands by name, tiles, masks, nodata, names, splits, damage."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from ingest.building.build import Options, Told, ingest
from ingest.reading.bandlist import channel_order, parse_bands
from ingest.reading.classes import Classes, read_classes
from ingest.reading.geotiff import RasterError
from ingest.reading.raster import inspect, read_bands
from ingest.sources.geotiff import GeoTiff, command
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import Sample, ShardSet
from shards.verify import verify
from tests.ingest.archives import contents
from tests.ingest.levels import BANDS, LEVELS, levels, make, make_levels, pixels
from tests.ingest.rasters import UTM, scene, shifted, write


def convert(source: GeoTiff, target: Path, warnings: list[str] | None = None, **options: Any) -> Manifest:
    heard = (warnings if warnings is not None else []).append
    options = {"shard_samples": 8, **options}
    manifest = ingest(source, target, Options(**options), Told(warn=heard, say=heard)).manifest
    assert verify(target) == []
    return manifest


def everything(target: Path) -> dict[str, tuple[str, Sample]]:
    """Key → (split, sample) of all samples."""
    opened = ShardSet.open(target)
    return {
        sample.key: (split, sample)
        for split in opened.manifest.splits
        for sample in (opened.read(split, index) for index in range(opened.size(split)))
    }


def rejections(target: Path) -> dict[str, tuple[str, str]]:
    lines = map(json.loads, (target / "rejected.jsonl").read_text().splitlines())
    return {line["path"]: (line["reason"], line["detail"]) for line in lines}


def test_bands_by_name_bit_for_bit(tmp_path: Path) -> None:
    archive = make(tmp_path / "a", 5)
    manifest = convert(GeoTiff(archive, BANDS, level="L2A"), tmp_path / "set")
    assert manifest.band_names == ["B04", "B08", "B8A"]
    assert manifest.arrays["10m.npy"].bands == manifest.band_names
    assert manifest.source["stored_bands"] == BANDS.split(",")
    assert (manifest.reflectance.scale, manifest.reflectance.offset, manifest.reflectance.level) == (1e-4, 0, "L2A")
    assert manifest.source["nodata"] is None
    samples = everything(tmp_path / "set")
    assert samples.keys() == {f"r{number}" for number in range(5)}
    for number in range(5):
        _, sample = samples[f"r{number}"]
        with rasterio.open(archive / f"r{number}.tif") as file:
            np.testing.assert_array_equal(sample.arrays["10m.npy"], file.read([2, 1, 3]))
            assert sample.json["transform"] == list(file.transform)[:6]
            assert sample.json["bounds"] == list(file.bounds)
            assert [sample.json["lon"], sample.json["lat"]] == pytest.approx(list(file.lnglat()), abs=1e-6)
        assert sample.json["crs"] == "EPSG:32633"
        assert sample.json["file"] == f"r{number}.tif"


def test_real_tiles_in_another_naming_are_refused(real_data: Path, tmp_path: Path) -> None:
    stored = "B01,B02,B03,B04,B05,B06,B07,B08,B09,B10,B11,B12,B8A"
    convert(GeoTiff(real_data / "eurosat_ms", stored), tmp_path / "set")
    for _, sample in everything(tmp_path / "set").values():
        with rasterio.open(real_data / "eurosat_ms" / sample.json["file"]) as file:
            np.testing.assert_array_equal(sample.arrays["10m.npy"], file.read([*range(1, 9), 13, *range(9, 13)]))
    esa = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B10,B11,B12"
    with pytest.raises(BandstreamError, match="band order cannot be right"):
        convert(GeoTiff(real_data / "eurosat_ms", esa), tmp_path / "wrong")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16, "predictor": 2},
        {"compress": "lzw", "interleave": "pixel"},
        {"interleave": "band", "BIGTIFF": "YES"},
    ],
)
def test_types_and_layouts(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    planes = scene(0, 2, 48, dtype)
    planes[0, 0, 0] = -7 if dtype in ("int16", "float32") else 7
    write(tmp_path / "a" / "x.tif", planes, **options)
    manifest = convert(GeoTiff(tmp_path / "a", "one:500:10,two:600:10"), tmp_path / "set")
    array = manifest.arrays["10m.npy"]
    assert (array.dtype, array.shape) == (dtype, (2, 48, 48))
    ((_, sample),) = everything(tmp_path / "set").values()
    np.testing.assert_array_equal(sample.arrays["10m.npy"], planes)
    assert manifest.reflectance.scale == {"uint8": 1 / 255, "float32": 1.0}.get(dtype, 1e-4)


def test_what_the_array_is_called(tmp_path: Path) -> None:
    def member(name: str, bands: str, at: Affine, crs: str | None) -> str:
        write(tmp_path / name / "x.tif", scene(0), crs, at)
        return next(iter(convert(GeoTiff(tmp_path / name, bands), tmp_path / f"{name}-set").arrays))

    others = "a:500:1,b:600:1,c:700:1"
    assert member("ten", others, UTM, "EPSG:32633") == "10m.npy"
    assert member("half", others, Affine(0.5, 0, 5e5, 0, -0.5, 5e6), "EPSG:32633") == "0.5m.npy"
    assert member("eurosat", others, Affine(10.003, 0, 5e5, 0, -9.998, 5e6), "EPSG:32633") == "10m.npy"
    assert member("oblong", others, Affine(10, 0, 5e5, 0, -20, 5e6), "EPSG:32633") == "bands.npy"
    assert member("degrees", others, Affine(1e-4, 0, 15, 0, -1e-4, 45), "EPSG:4326") == "bands.npy"
    assert member("feet", others, Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:2263") == "3m.npy"
    assert member("nowhere", others, UTM, None) == "bands.npy"
    assert member("picture", "blue,green,red", UTM, "EPSG:32633") == "rgb.npy"
    opened = ShardSet.open(tmp_path / "picture-set")
    np.testing.assert_array_equal(opened.read("train", 0).arrays["rgb.npy"], scene(0)[::-1])
    degrees = ShardSet.open(tmp_path / "degrees-set").read("train", 0).json
    assert [degrees["lon"], degrees["lat"]] == [15.0016, 44.9984]


def test_rasters_that_differ_are_rejected(tmp_path: Path) -> None:
    archive = make(tmp_path / "a", 4)
    write(archive / "bands.tif", scene(0, 2))
    write(archive / "size.tif", scene(0, 3, 31))
    write(archive / "type.tif", scene(0, 3, 32, "int16"))
    write(archive / "double.tif", scene(0, 3, 32, "float64"))
    write(archive / "gsd.tif", scene(0), at=Affine(20, 0, 5e5, 0, -20, 5e6))
    write(archive / "south.tif", scene(0), at=Affine(10, 0, 5e5, 0, 10, 5e6))
    write(archive / "turned.tif", scene(0), at=Affine(10, 1, 5e5, 1, -10, 5e6))
    write(archive / "moon.tif", scene(0), at=Affine(10, 0, 5e12, 0, -10, 5e6))
    write(archive / "nodata.tif", scene(0), nodata=7)
    (archive / "empty.tif").write_bytes(b"")
    (archive / "text.tif").write_text("<html>404</html>")
    (archive / "folder.tif").mkdir()
    data = (archive / "r0.tif").read_bytes()
    (archive / "cut.tif").write_bytes(data[: len(data) // 2])
    convert(GeoTiff(archive, BANDS), tmp_path / "set")
    found = rejections(tmp_path / "set")
    assert {path: reason for path, (reason, _) in found.items()} == {
        "bands.tif": "wrong-bands",
        "size.tif": "wrong-size",
        "type.tif": "wrong-type",
        "double.tif": "wrong-type",
        "gsd.tif": "wrong-gsd",
        "south.tif": "not-north-up",
        "turned.tif": "not-north-up",
        "moon.tif": "misplaced",
        "nodata.tif": "wrong-nodata",
        "empty.tif": "unreadable",
        "text.tif": "unreadable",
        "cut.tif": "unreadable",
    }
    assert found["bands.tif"][1] == "2 bands, not 3"
    assert not any(str(tmp_path) in detail for _, detail in found.values())
    assert everything(tmp_path / "set").keys() == {f"r{number}" for number in range(4)}


def test_sets_that_cannot_be(tmp_path: Path) -> None:
    archive = make(tmp_path / "a", 2)
    write(tmp_path / "double" / "x.tif", scene(0, 3, 32, "float64"))
    write(tmp_path / "large" / "x.tif", np.zeros((3, 2600, 2600), np.uint16), compress="deflate")
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.tif").write_bytes(b"II*\0")
    for name, bands, told in [
        ("a", "B08,B04", "r0.tif has 3 bands, --bands names 2"),
        ("double", BANDS, "holds float64"),
        ("large", BANDS, "cut them with --patch"),
        ("none", BANDS, "holds no .tif"),
        ("broken", BANDS, "not one raster"),
    ]:
        with pytest.raises(BandstreamError, match=told):
            convert(GeoTiff(tmp_path / name, bands), tmp_path / "x")
    with pytest.raises(BandstreamError, match="--max-nodata needs"):
        convert(GeoTiff(archive, BANDS, max_nodata=0.5), tmp_path / "x")
    with pytest.raises(BandstreamError, match="--nodata -1 is no number of uint16"):
        convert(GeoTiff(archive, BANDS, nodata=-1), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_tiles(tmp_path: Path) -> None:
    """Every tile against rasterio's window of its raster, from a folder, a tar, and by two workers."""
    archive = tmp_path / "a"
    planes = {"big.tif": pixels(0, 70), "sub/wide.tif": pixels(1, 64)[:, :33], "sub/exact.tif": pixels(2, 32)}
    for number, (name, content) in enumerate(planes.items()):
        write(archive / name, content, at=shifted(number), tiled=True, blockxsize=16, blockysize=16)
    write(archive / "small.tif", pixels(0, 20))
    heard: list[str] = []
    manifest = convert(GeoTiff(archive, BANDS, patch=32), tmp_path / "set", heard)
    samples = everything(tmp_path / "set")
    assert samples.keys() == {
        *(f"big_{r}_{c}" for r in (0, 1) for c in (0, 1)),
        *("sub_wide_0_0", "sub_wide_0_1", "sub_exact_0_0"),
    }
    assert rejections(tmp_path / "set") == {"small.tif": ("wrong-size", "20 x 20 pixels, less than a tile of 32")}
    whole = 70 * 70 + 33 * 64 + 32 * 32 + 20 * 20
    assert [line for line in heard if f"{1 - 7 * 32 * 32 / whole:.1%} of their pixels" in line]
    assert manifest.arrays["10m.npy"].shape == (3, 32, 32)
    for _, sample in samples.values():
        row, column = sample.json["row"], sample.json["column"]
        window = Window(column, row, 32, 32)
        with rasterio.open(archive / sample.json["file"]) as file:
            np.testing.assert_array_equal(sample.arrays["10m.npy"], file.read([2, 1, 3], window=window))
            assert sample.json["transform"] == list(file.window_transform(window))[:6]
            assert sample.json["bounds"] == list(file.window_bounds(window))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(archive, "around/a")
    convert(GeoTiff(tmp_path / "a.tar.gz", BANDS, patch=32), tmp_path / "tar")
    convert(GeoTiff(archive, BANDS, patch=32), tmp_path / "two", workers=2)
    assert contents(tmp_path / "set") == contents(tmp_path / "tar") == contents(tmp_path / "two")


def test_a_raster_that_claims_to_be_endless(tmp_path: Path) -> None:
    make(tmp_path / "a", 2)
    sparse = {"tiled": True, "blockxsize": 16384, "blockysize": 16384, "SPARSE_OK": True, "BIGTIFF": "YES"}
    profile = {"driver": "GTiff", "count": 3, "height": 1 << 20, "width": 1 << 20, "dtype": "uint16", **sparse}
    with rasterio.open(tmp_path / "a" / "endless.tif", "w", **profile, crs="EPSG:32633", transform=UTM):
        pass
    convert(GeoTiff(tmp_path / "a", BANDS, patch=16), tmp_path / "set")
    found = rejections(tmp_path / "set")
    assert found == {"endless.tif": ("wrong-size", "1048576 x 1048576 pixels, more than 4,194,304 tiles")}
    convert(GeoTiff(tmp_path / "a", BANDS), tmp_path / "whole")
    assert rejections(tmp_path / "whole")["endless.tif"][0] == "wrong-size"


def test_tiles_of_a_raster_stay_together(tmp_path: Path) -> None:
    archive = make(tmp_path / "a", 40)
    manifest = convert(GeoTiff(archive, BANDS, patch=16), tmp_path / "set")
    assert {split: spec.samples for split, spec in manifest.splits.items()} == {"train": 128, "val": 16, "test": 16}
    splits: dict[str, set[str]] = {}
    for split, sample in everything(tmp_path / "set").values():
        splits.setdefault(sample.json["file"], set()).add(split)
    assert len(splits) == 40
    assert all(len(found) == 1 for found in splits.values())
    # a split file has the last word, and separates tiles where it says so
    names = {f"r0_{r}_{c}": ("train", "test")[c] for r in (0, 1) for c in (0, 1)}
    convert(GeoTiff(archive, BANDS, patch=16), tmp_path / "file", split_file=names)
    assert {key: split for key, (split, _) in everything(tmp_path / "file").items()} == names


@pytest.mark.parametrize("names", [("train", "val", "test"), ("train", "validation"), ("test", "valid", "train")])
def test_folders_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        make(tmp_path / "a" / name / "deep", 2 + number)
    convert(GeoTiff(tmp_path / "a", BANDS), tmp_path / "set")
    found: dict[str, int] = {}
    for key, (split, sample) in everything(tmp_path / "set").items():
        folder = sample.json["file"].split("/")[0]
        assert split == {"validation": "val", "valid": "val"}.get(folder, folder)
        assert key == f"{folder}_deep_{Path(sample.json['file']).stem}"
        found[folder] = found.get(folder, 0) + 1
    assert found == {name: 2 + number for number, name in enumerate(names)}
    write(tmp_path / "a" / "other" / "x.tif", pixels(9))
    convert(GeoTiff(tmp_path / "a", BANDS), tmp_path / "mixed")
    assert {path: reason for path, (reason, _) in rejections(tmp_path / "mixed").items()} == {"other/x.tif": "no-split"}


def test_masks_of_two_levels(tmp_path: Path) -> None:
    make_levels(tmp_path, 4)
    manifest = convert(levels(tmp_path), tmp_path / "set")
    assert {name: (mask.member, mask.classes) for name, mask in manifest.masks.items()} == {
        level: (f"{level}.mask.npy", names) for level, names in LEVELS.items()
    }
    for key, (_, sample) in everything(tmp_path / "set").items():
        for level in LEVELS:
            with rasterio.open(tmp_path / level / f"{key}.tif") as file:
                np.testing.assert_array_equal(sample.masks[level], file.read(1))
    convert(levels(tmp_path, patch=16), tmp_path / "tiles")
    for _, sample in everything(tmp_path / "tiles").values():
        window = Window(sample.json["column"], sample.json["row"], 16, 16)
        for level in LEVELS:
            with rasterio.open(tmp_path / level / sample.json["file"]) as file:
                np.testing.assert_array_equal(sample.masks[level], file.read(1, window=window))
    # the same from tars, one of them with a folder around
    for name in ("msi", *LEVELS):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(tmp_path / name, "x/y" if name == "L2" else name)
    masks = [(level, tmp_path / f"{level}.tar") for level in LEVELS]
    classes = [(level, tmp_path / f"{level}.txt") for level in LEVELS]
    convert(GeoTiff(tmp_path / "msi.tar", BANDS, masks, classes), tmp_path / "tar")
    assert contents(tmp_path / "tar") == contents(tmp_path / "set")


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    make(tmp_path / "a" / "images", 9)
    masks = tmp_path / "a" / "masks"
    good = np.full((32, 32), 1, np.uint8)
    for number in range(9):
        write(masks / f"r{number}.tif", good, at=shifted(number))
    write(masks / "r1.tif", good + 1, at=shifted(1))
    write(masks / "r2.tif", good, at=shifted(3))
    write(masks / "r3.tif", good[:, :31], at=shifted(3))
    write(masks / "r4.tif", good.astype(np.float32) / 2, at=shifted(4))
    write(masks / "r5.tif", np.stack([good, good]), at=shifted(5))
    (masks / "r6.tif").unlink()
    (masks / "r7.tif").write_bytes(b"II*\0")
    write(masks / "r8.tif", good.astype(np.float32), None)  # whole numbers, and no place to hold against
    (tmp_path / "classes.txt").write_text("a\nb\n")
    # images and masks below one folder: the masks are no images
    source = GeoTiff(tmp_path / "a", BANDS, [("", masks)], [("", tmp_path / "classes.txt")])
    manifest = convert(source, tmp_path / "set")
    assert list(manifest.masks) == ["mask"]
    assert {path: reason for path, (reason, _) in rejections(tmp_path / "set").items()} == {
        "r1.tif": "unknown-class",
        "r2.tif": "misplaced",
        "r3.tif": "wrong-size",
        "r4.tif": "wrong-type",
        "r5.tif": "wrong-bands",
        "r6.tif": "no-mask",
        "r7.tif": "unreadable",
    }
    samples = everything(tmp_path / "set")
    assert samples.keys() == {"r0", "r8"}
    assert all((sample.masks["mask"] == 1).all() for _, sample in samples.values())
    with pytest.raises(BandstreamError, match=r"--classes FILE is needed.*hold 0.5, 1, 2"):
        convert(GeoTiff(tmp_path / "a", BANDS, [("", masks)]), tmp_path / "x")
    with pytest.raises(BandstreamError, match="name each level"):
        GeoTiff(tmp_path / "a", BANDS, [("", masks), ("", masks)])
    with pytest.raises(BandstreamError, match="--masks has no such level"):
        GeoTiff(tmp_path / "a", BANDS, [("", masks)], [("L1", tmp_path / "classes.txt")])


def test_masks_lie_as_the_rasters_do_or_all_in_one_folder(tmp_path: Path) -> None:
    for split in ("train", "val"):
        make(tmp_path / "images" / split, 2)
        for number in range(2):
            mask = np.full((32, 32), number + 2 * (split == "val"), np.uint8)
            write(tmp_path / "nested" / split / f"r{number}.tiff", mask, at=shifted(number))
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    classes = [("", tmp_path / "classes.txt")]
    convert(GeoTiff(tmp_path / "images", BANDS, [("", tmp_path / "nested")], classes), tmp_path / "set")
    found = {key: int(sample.masks["mask"][0, 0]) for key, (_, sample) in everything(tmp_path / "set").items()}
    assert found == {"train_r0": 0, "train_r1": 1, "val_r0": 2, "val_r1": 3}
    (tmp_path / "one").mkdir()
    (tmp_path / "images").rename(tmp_path / "one" / "images")
    (tmp_path / "nested").rename(tmp_path / "one" / "masks")
    convert(GeoTiff(tmp_path / "one", BANDS, [("", tmp_path / "one" / "masks")], classes), tmp_path / "one-set")
    assert contents(tmp_path / "one-set") == contents(tmp_path / "set")
    (tmp_path / "one" / "images").rename(tmp_path / "images")
    flat = [("", tmp_path / "one" / "masks" / "val")]
    convert(GeoTiff(tmp_path / "images", BANDS, flat, classes), tmp_path / "flat")
    found = {key: int(sample.masks["mask"][0, 0]) for key, (_, sample) in everything(tmp_path / "flat").items()}
    assert found == {"train_r0": 2, "train_r1": 3, "val_r0": 2, "val_r1": 3}


def read(tmp_path: Path, text: str) -> Classes:
    (tmp_path / "classes.txt").write_text(text)
    return read_classes(tmp_path / "classes.txt")


def test_lists_of_classes(tmp_path: Path) -> None:
    stored = np.array([[0, 1], [2, 255]], np.uint8)
    plain = read(tmp_path, "a\n\nb, c\nd\n")
    assert plain.names == ("a", "b, c", "d")
    assert plain.apply(stored, None).tolist() == [[0, 1], [2, 255]]
    assert plain.apply(stored, 255).tolist() == [[0, 1], [2, 255]]
    with pytest.raises(RasterError, match="declares 2 as nodata, and d is class 2"):
        plain.apply(stored, 2)
    valued = read(tmp_path, "112,urban\n311, forest\n312,forest\n0,\n")
    assert valued.names == ("urban", "forest")
    clc = np.array([[112, 311], [312, 0]], np.uint16)
    assert valued.apply(clc, None).tolist() == [[0, 1], [1, 255]]
    assert valued.apply(np.array([[112, 999]], np.int32), 999).tolist() == [[0, 255]]
    assert valued.apply(np.array([[112, np.nan]], np.float32), np.nan).tolist() == [[0, 255]]
    assert read(tmp_path, "0,a\n7,b").apply(np.array([[0, 7]], np.uint8), 0).tolist() == [[0, 1]]  # it says 0 is a
    for values, told in [(np.array([[5]], np.uint16), "holds 5"), (np.array([[np.inf]]), "whole")]:
        with pytest.raises(RasterError, match=told):
            valued.apply(values, None)
    for text, told in [
        ("a\na\n", "line 2: a stands there twice"),
        ("1,a\n1,b\n", "line 2: the value 1"),
        ("1,a\nb\n", "line 2: some lines"),
        ("\n", "names no classes"),
        ("1,\n", "names no classes"),
        ("\n".join(map(str, range(300))), "300 classes"),
    ]:
        with pytest.raises(BandstreamError, match=told):
            read(tmp_path, text)


def test_nodata(tmp_path: Path) -> None:
    archive = tmp_path / "a"
    for number, missing in enumerate((0, 8, 16, 32)):
        planes = pixels(number)
        planes[:, :missing] = 65535
        write(archive / f"r{number}.tif", planes, at=shifted(number), nodata=65535)

    def taken(name: str, **options: Any) -> tuple[Manifest, dict[str, Sample]]:
        manifest = convert(GeoTiff(archive, BANDS, **options), tmp_path / name)
        return manifest, {key: sample for key, (_, sample) in everything(tmp_path / name).items()}

    manifest, samples = taken("plain")
    assert samples.keys() == {"r0", "r1", "r2"}  # a raster without any data is none
    assert manifest.source["nodata"] == 65535
    assert manifest.statistics["B04"].nodata == pytest.approx(0.25)
    assert rejections(tmp_path / "plain")["r3.tif"] == ("nodata", "100.00% of its numbers are nodata")
    assert samples["r1"].json["nodata"] == "65535"
    assert taken("half", max_nodata=0.25)[1].keys() == {"r0", "r1"}
    assert taken("none", max_nodata=0)[1].keys() == {"r0"}
    manifest, samples = taken("fill", nodata_fill=0)
    assert manifest.source["nodata"] == 0
    for number in range(3):
        planes = pixels(number)[[1, 0, 2]]
        planes[:, : number * 8] = 0
        np.testing.assert_array_equal(samples[f"r{number}"].arrays["10m.npy"], planes)
    assert taken("tiles", patch=16)[1].keys() == {
        *(f"r{n}_{r}_{c}" for n in (0, 1) for r in (0, 1) for c in (0, 1)),
        *("r2_1_0", "r2_1_1"),
    }
    # what the user says it is goes before what the files declare
    manifest, samples = taken("option", nodata=0, max_nodata=0.5)
    assert manifest.source["nodata"] == 0
    assert samples.keys() == {"r0", "r1", "r2", "r3"}


def test_floats_that_are_not_finite(tmp_path: Path) -> None:
    archive = tmp_path / "a"
    for number, value in enumerate((None, np.nan, np.inf, -9999.0)):
        planes = pixels(number).astype(np.float32) / 1e4
        if value is not None:
            planes[1, :4] = value
        write(archive / f"r{number}.tif", planes, at=shifted(number), nodata=-9999)
    warnings: list[str] = []
    manifest = convert(GeoTiff(archive, BANDS), tmp_path / "set", warnings)
    assert {path: reason for path, (reason, _) in rejections(tmp_path / "set").items()} == {
        "r1.tif": "not-finite",
        "r2.tif": "not-finite",
    }
    assert manifest.source["nodata"] == -9999
    assert any("counts in the statistics" in text for text in warnings)
    manifest = convert(GeoTiff(archive, BANDS, nodata_fill=-1), tmp_path / "fill")
    assert (manifest.source["nodata"], manifest.rejected) == (-1, {})
    assert manifest.statistics["B04"].min == -1
    for number in range(1, 4):
        expected = pixels(number)[[1, 0, 2]].astype(np.float32) / 1e4
        expected[0, :4] = -1
        found = everything(tmp_path / "fill")[f"r{number}"][1].arrays["10m.npy"]
        np.testing.assert_array_equal(found, expected)
    for path in archive.glob("*.tif"):  # NaN as declared nodata is no stored number
        with rasterio.open(path, "r+") as file:
            file.nodata = np.nan
    manifest = convert(GeoTiff(archive, BANDS), tmp_path / "nan")
    assert manifest.source["nodata"] is None
    assert manifest.rejected == {"not-finite": 2}


def test_names_become_keys(tmp_path: Path) -> None:
    names = [
        *("plain.tif", "with space.tif", "dots.v1.2.tif", "São Paulo.TIFF", "北京.tif", "東京.tif"),
        *("one/same.tif", "two/same.tif", "same.tif", "a/b.tif", "c/b.tif", "a_b.tif", "x" * 120 + ".tif"),
        "y" * 120 + "z.tif",
    ]
    for number, name in enumerate(names):
        write(tmp_path / "a" / name, pixels(number), at=shifted(number))
    manifest = convert(GeoTiff(tmp_path / "a", BANDS), tmp_path / "set")
    assert manifest.rejected == {}
    found = {sample.json["file"]: key for key, (_, sample) in everything(tmp_path / "set").items()}
    assert found.keys() == set(names)
    told = ("plain.tif", "with space.tif", "dots.v1.2.tif", "São Paulo.TIFF", "one/same.tif", "two/same.tif", "c/b.tif")
    assert [found[name] for name in told] == [
        *("plain", "with-space", "dots-v1-2", "S-o-Paulo", "one_same", "two_same", "c_b"),
    ]
    # of names that become the same, each gets a mark
    assert all(re.fullmatch(r"a_b-[0-9a-f]{12}", found[name]) for name in ("a/b.tif", "a_b.tif"))
    assert all(re.fullmatch(r"---[0-9a-f]{12}", found[name]) for name in ("北京.tif", "東京.tif"))
    for number, name in enumerate(names):
        sample = everything(tmp_path / "set")[found[name]][1]
        np.testing.assert_array_equal(sample.arrays["10m.npy"], pixels(number)[[1, 0, 2]])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a", "a")
    convert(GeoTiff(tmp_path / "a.tar", BANDS), tmp_path / "tar")
    assert contents(tmp_path / "tar") == contents(tmp_path / "set")


def test_names_that_cannot_be(tmp_path: Path) -> None:
    make(tmp_path / "a", 1)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a" / "r0.tif", "a/good.tif")
        tar.add(tmp_path / "a" / "r0.tif", "a/" + "long/" * 80 + "x.tif")
        tar.add(tmp_path / "a" / "r0.tif", "a/bad\udcff.tif")
        tar.add(tmp_path / "a" / "r0.tif", "../out.tif")
        link = tarfile.TarInfo("a/link.tif")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    convert(GeoTiff(tmp_path / "a.tar", BANDS), tmp_path / "set")
    assert everything(tmp_path / "set").keys() == {"good"}
    found = rejections(tmp_path / "set")
    assert sorted(reason for reason, _ in found.values()) == ["bad-name", "bad-name", "unsafe", "unsafe"]
    assert "bad\\udcff.tif" in found


def test_bands_as_they_are_named() -> None:
    bands, order = channel_order(parse_bands("nir:842:3, B8A,B02,red,swir:1600:0.5,B08"))
    assert [band.name for band in bands] == ["B02", "B08", "B8A", "red", "nir", "swir"]
    assert order == (3, 6, 2, 4, 1, 5)
    assert (bands[4].wavelength_nm, bands[4].gsd_m, bands[5].gsd_m) == (842, 3, 0.5)
    assert parse_bands("B02:492:10") == parse_bands("B02")
    for text, told in [
        ("B02,B02", "names B02 twice"),
        ("B13", "'B13' is none of B01"),
        ("", "'' is none of"),
        ("B02:450:30", "B02 is a known band of 492 nm"),
        ("nir:842", "is not NAME:WAVELENGTH_NM:GSD_M"),
        ("nir:842:x", "is not NAME"),
        ("nir:842:-1", "is not NAME"),
        ("n.r:842:1", "is not NAME"),
        ("nir:842:nan", "is not NAME"),
    ]:
        with pytest.raises(BandstreamError, match=told):
            parse_bands(text)


def test_products_whose_numbers_are_shifted_are_told_of(tmp_path: Path) -> None:
    name = "S2A_MSIL2A_20230613T101031_N0509_R022_T33UUP_20230613T161031.tif"
    write(tmp_path / "a" / name, pixels(0))
    warnings: list[str] = []
    convert(GeoTiff(tmp_path / "a", BANDS), tmp_path / "set", warnings)
    assert any("--offset -0.1" in text for text in warnings)
    ((_, sample),) = everything(tmp_path / "set").values()
    assert sample.json["date"] == "2023-06-13T10:10:31"
    warnings.clear()
    manifest = convert(GeoTiff(tmp_path / "a", BANDS, offset=-0.1), tmp_path / "told", warnings)
    assert (warnings, manifest.reflectance.offset) == ([], -0.1)


def test_damaged_rasters_never_crash(tmp_path: Path) -> None:
    """Flipped bits and cuts of a compressed and of a plain raster: RasterError, or a raster of the same size."""
    rng = np.random.default_rng(0)
    out = np.empty((3, 32, 32), np.uint16)
    for options in ({}, {"compress": "deflate", "interleave": "pixel"}):
        data = write(tmp_path / "x.tif", pixels(0), **options).read_bytes()
        refused = 0
        for number in range(150):
            damaged = bytearray(data)
            if number % 3 == 0:
                del damaged[int(rng.integers(len(data))) :]
            else:
                for _ in range(3):
                    damaged[int(rng.integers(min(len(data), 700)))] = int(rng.integers(256))
            (tmp_path / "y.tif").write_bytes(damaged)
            try:
                read_bands(str(tmp_path / "y.tif"), out)
            except RasterError as error:
                refused += 1
                last = error.detail
                assert last
        assert refused > 60


def test_a_block_that_is_absurd_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write(path, np.zeros((1, 64, 64), np.uint16), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    data = bytearray(path.read_bytes())
    for tag in (322, 323):  # the tile's width and height, shorts or longs
        at = data.index(tag.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00")
        data[at + 2 : at + 12] = b"\x04\x00\x01\x00\x00\x00" + (1 << 16).to_bytes(4, "little")
    path.write_bytes(data)
    assert inspect(str(path)).size == (64, 64)
    with pytest.raises(RasterError, match="blocks of 65536 x 65536"):
        read_bands(str(path), np.empty((1, 64, 64), np.uint16))


def test_the_command(tmp_path: Path) -> None:
    make_levels(tmp_path, 3)
    runner = click.testing.CliRunner()
    arguments = [str(tmp_path / "msi"), str(tmp_path / "set"), "--bands", BANDS, "--workers", "1", "--level", "L2A"]
    for level in LEVELS:
        arguments += ["--masks", f"{level}={tmp_path / level}", "--classes", f"{level}={tmp_path / level}.txt"]
    result = runner.invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "set" / "dataset.json").read_text()
    assert str(tmp_path) not in text
    assert Manifest.read(tmp_path / "set").source["options"] == {"bands": BANDS, "level": "L2A", "offset": 0.0}
    result = runner.invoke(command, [*arguments[:4], "--masks", "L1=none"])
    assert result.exit_code == 2
    assert "none" in result.output


@pytest.mark.parametrize("more", [bytes(5), bytes(30_000_000), b"\x07"])
def test_a_damaged_list_of_classes(tmp_path: Path, more: bytes) -> None:
    make_levels(tmp_path, 2)
    path = tmp_path / "L1.txt"
    path.write_bytes(path.read_bytes().rstrip() + more)
    with pytest.raises(BandstreamError, match="no list of classes|no text"):
        levels(tmp_path)
