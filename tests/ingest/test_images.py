"""Pictures: decoded as Pillow and rasterio do, whatever they are stored as; class folders, splits, keys; refusals."""

import io
import json
import os
import struct
import tarfile
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from rasterio.io import MemoryFile

from ingest.building.build import Options, ingest
from ingest.reading.geotiff import RasterError
from ingest.reading.keys import clean, unique
from ingest.reading.picture import read_indices, read_picture
from ingest.source import Entry, Rejected
from ingest.sources.images import Images
from shards.bands import PICTURE
from shards.errors import BandstreamError
from shards.layout import KEY
from shards.manifest import Manifest
from shards.shardset import ShardSet
from shards.verify import verify
from tests.ingest import archives
from tests.ingest.pictures import encode, pixels


def gdal(array: np.ndarray, driver: str = "GTiff", **options: Any) -> bytes:
    """(bands, H, W) written by GDAL."""
    count, height, width = array.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore")  # it lies nowhere
        with memory.open(
            driver=driver, count=count, height=height, width=width, dtype=array.dtype, **options
        ) as target:
            target.write(array)
        return bytes(memory.getbuffer())


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RGB = pixels(0)
CHW = RGB.transpose(2, 0, 1)
GREY = RGB[:, :, 0]
LOSSLESS: dict[str, tuple[bytes, np.ndarray]] = {
    "png": (encode(RGB), CHW),
    "bmp": (encode(RGB, "BMP"), CHW),
    "webp": (encode(RGB, "WEBP", lossless=True), CHW),
    "tiff": (encode(RGB, "TIFF"), CHW),
    "tiff-lzw": (encode(RGB, "TIFF", compression="tiff_lzw"), CHW),
    "tiff-tiles": (gdal(CHW, photometric="RGB", tiled=True, blockxsize=16, blockysize=16, compress="deflate"), CHW),
    "tiff-planes": (gdal(CHW, photometric="RGB", interleave="band"), CHW),
    "tiff-alpha": (gdal(np.concatenate([CHW, np.full_like(CHW[:1], 255)]), photometric="RGB", alpha="YES"), CHW),
    "png-by-gdal": (gdal(CHW, "PNG"), CHW),
    "grey": (encode(GREY), np.stack([GREY] * 3)),
    "grey-tiff": (gdal(GREY[None]), np.stack([GREY] * 3)),
    "bits": (encode(Image.fromarray(GREY > 99)), np.stack([np.where(GREY > 99, 255, 0)] * 3)),
    "palette": (
        encode(Image.fromarray(RGB).quantize(16)),
        np.asarray(Image.fromarray(RGB).quantize(16).convert("RGB")).transpose(2, 0, 1),
    ),
    "opaque": (encode(np.dstack([RGB, np.full_like(GREY, 255)])), CHW),
    "cmyk-tiff": (
        encode(Image.fromarray(np.dstack([255 - RGB, np.zeros_like(GREY)]), "CMYK"), "TIFF"),
        CHW,  # ink takes away its complement
    ),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_pixels_are_the_picture_s(name: str) -> None:
    data, expected = LOSSLESS[name]
    found = read_picture(data, name, None)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(read_picture(data, name, (24, 32)), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 5}])
def test_jpeg_as_gdal_decodes_it(options: dict[str, Any]) -> None:
    data = encode(RGB, "JPEG", **options)
    with MemoryFile(data) as memory, memory.open(driver="JPEG") as source:
        expected = source.read()
    apart = np.abs(read_picture(data, "x.jpg", None).astype(int) - expected)
    # two builds of libjpeg may round an inverse DCT otherwise, and enlarge chroma otherwise
    assert apart.max() <= 2 if options.get("subsampling") == 0 else apart.mean() < 3


def test_what_is_transparent_is_black() -> None:
    alpha = np.where(GREY > 99, 255, 0).astype(np.uint8)
    expected = CHW * (GREY > 99)
    np.testing.assert_array_equal(read_picture(encode(np.dstack([RGB, alpha])), "x", None), expected)
    grey = np.dstack([GREY, alpha])
    np.testing.assert_array_equal(read_picture(encode(grey), "x", None), np.stack([GREY * (GREY > 99)] * 3))
    half = read_picture(encode(np.dstack([RGB, np.full_like(GREY, 128)])), "x", None)
    assert np.abs(half - CHW * (128 / 255)).max() <= 1
    indices = (GREY > 99).astype(np.uint8)
    palette = Image.fromarray(indices, "P")
    palette.putpalette([200, 10, 20, 30, 140, 250])
    found = read_picture(encode(palette, transparency=0), "x", None)
    np.testing.assert_array_equal(found, np.array([30, 140, 250])[:, None, None] * indices)
    key = read_picture(encode(Image.fromarray(GREY), transparency=int(GREY[0, 0])), "x", None)
    np.testing.assert_array_equal(key, np.stack([np.where(GREY[0, 0] == GREY, 0, GREY)] * 3))


STORED = {  # how a picture has to lie in the file so that each orientation shows it upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(STORED[orientation](RGB))
    data = encode(stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    found = read_picture(data, "x", None)
    assert found.shape == CHW.shape
    if format == "JPEG":
        upright = read_picture(encode(stored, "JPEG"), "x", None).transpose(1, 2, 0)
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(found, np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1))
        assert (upright.shape[0] == 24) == (orientation < 5)
    else:
        np.testing.assert_array_equal(found, CHW)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (24, 32), (100, 37), (31, 200), (5, 5), (1, 400)])
def test_scaled_to_cover_and_cropped_about_the_centre(height: int, width: int) -> None:
    picture = pixels(1, height, width)
    found = read_picture(encode(picture), "x", (32, 32))
    side = min(height, width)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    expected = Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC, box)
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(read_picture(encode(stripes), "x", (32, 32)).astype(int)[:, :, 2:-2] - 127.5).max() < 4


def png(width: int, height: int) -> bytes:
    """A sound header of any size, and next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encode(RGB, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


SIXTEEN = CHW.astype(np.uint16) * 257
REFUSED: dict[str, tuple[bytes, str]] = {
    "grey of 16 bits": (encode(GREY.astype(np.uint16) * 257), "wrong-type"),
    "colours of 16 bits": (gdal(SIXTEEN, "PNG"), "wrong-type"),
    "colours of 16 bits, TIFF": (gdal(SIXTEEN, photometric="RGB"), "wrong-type"),
    "grey of 16 bits, TIFF": (gdal(SIXTEEN[:1]), "wrong-type"),
    "floats": (gdal(CHW[:1].astype(np.float32)), "wrong-type"),
    "near infrared taken for alpha": (
        gdal(np.concatenate([CHW, CHW[:1]]), photometric="RGB", alpha="NO"),
        "wrong-bands",
    ),
    "two bands": (gdal(CHW[:2]), "wrong-bands"),
    "five bands": (gdal(np.concatenate([CHW, CHW[:2]]), photometric="RGB"), "wrong-bands"),
    "bomb": (png(40_000, 40_000), "too-large"),
    "bomb that Pillow would only warn of": (png(10_000, 9_000), "too-large"),
    "bomb, JPEG": (jpeg_of(65_000, 65_000), "too-large"),
    "no pixels": (png(500, 500), "truncated"),
    "cut off": (encode(RGB, "JPEG")[:-40], "truncated"),
    "cut off, progressive": (encode(RGB, "JPEG", progressive=True)[:-40], "truncated"),
    "empty": (b"", "unreadable"),
    "a page": (b"<html>404</html>", "unreadable"),
    "another format": (encode(RGB, "GIF"), "unreadable"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(RasterError) as caught:
        read_picture(data, f"folder/{name}", (16, 16))
    assert caught.value.reason == reason
    assert "0x" not in caught.value.detail and "\n" not in caught.value.detail
    with pytest.raises(RasterError) as again:
        read_picture(data, f"folder/{name}", (16, 16))
    assert str(again.value) == str(caught.value)  # no address, no random name


SOUND = [data for data, _ in LOSSLESS.values()] + [encode(RGB, "JPEG"), encode(RGB, "JPEG", progressive=True)]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SOUND), st.integers(0, 1 << 30), st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)))
)
def test_damage_is_an_error_or_a_picture(data: bytes, cut: int, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    if cut % 3 == 0:
        del damaged[cut % len(damaged) :]
    for size in ((16, 16), None):
        try:
            found = read_picture(bytes(damaged), "x", size)
        except RasterError:  # and nothing else
            continue
        else:
            assert found.dtype == np.uint8 and found.shape[0] == 3 and (size is None or found.shape[1:] == size)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "BMP", "WEBP"]), st.floats(0, 0.95))
def test_a_cut_never_passes(format: str, share: float) -> None:
    data = encode(RGB, format)
    with pytest.raises(RasterError):
        read_picture(data[: int(len(data) * share)], "x", None)


def test_indices_are_not_colours() -> None:
    classes = np.random.default_rng(0).integers(0, 5, (9, 7)).astype(np.uint8)
    palette = Image.fromarray(classes, "P")
    palette.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7, 6, 6, 6, 5, 5, 5])
    for data in (encode(classes), encode(palette)):
        np.testing.assert_array_equal(read_indices(data, "x"), classes)
    for data in (encode(RGB), encode(classes.astype(np.uint16))):
        with pytest.raises(RasterError):
            read_indices(data, "x")


# --- the source


def write(root: Path, pictures: dict[str, bytes]) -> Path:
    for name, data in pictures.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def square(number: int, side: int = 16) -> bytes:
    return encode(pixels(number, side, side))


def convert(root: Path, target: Path, size: int | None = None, **options: Any) -> Manifest:
    return ingest(Images(root, size), target, Options(shard_samples=4, **options)).manifest


def rejections(target: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (target / "rejected.jsonl").read_text().splitlines()]
    return sorted((line["path"], line["reason"]) for line in lines)


def samples(target: Path) -> dict[str, tuple[str, str, np.ndarray]]:
    """File → (split, class or "", pixels)."""
    opened, found = ShardSet.open(target), {}
    for split in opened.manifest.splits:
        for index in range(opened.size(split)):
            sample = opened.read(split, index)
            spec = opened.manifest.labels.get("class")
            title = spec.classes[int(sample.labels["class"])] if spec else ""
            found[sample.json["file"]] = split, title, sample.arrays["rgb.npy"]
    return found


def pack(root: Path, path: Path, top: str = "") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        tar.add(root, top or ".")
    return path


def test_class_folders(tmp_path: Path) -> None:
    pictures = {f"{title}/{n}.png": square(n) for title, n in zip("abc" * 10, range(30), strict=True)}
    root = write(tmp_path / "in", pictures)
    manifest = convert(root, tmp_path / "set")
    assert verify(tmp_path / "set") == []
    assert manifest.band_names == ["red", "green", "blue"] == list(PICTURE)
    assert manifest.arrays["rgb.npy"].shape == (3, 16, 16) and manifest.arrays["rgb.npy"].dtype == "uint8"
    assert (manifest.labels["class"].kind, manifest.labels["class"].classes) == ("single", ["a", "b", "c"])
    assert (manifest.reflectance.scale, manifest.reflectance.level) == (1 / 255, "picture")
    found = samples(tmp_path / "set")
    assert found.keys() == pictures.keys()
    for name, (_, title, stored) in found.items():
        assert title == name[0]
        np.testing.assert_array_equal(stored.transpose(1, 2, 0), pixels(int(name[2:-4]), 16, 16))
    # a tenth of each class, not of all
    assert Counter((split, title) for split, title, _ in found.values()) == {
        **{("train", title): 8 for title in "abc"},
        **{(split, title): 1 for split in ("val", "test") for title in "abc"},
    }


def test_folder_tar_and_workers_give_the_same_bytes(tmp_path: Path) -> None:
    pictures = {
        f"{split}/{title}/{n}.jpg": encode(pixels(n), "JPEG")
        for split in ("train", "val")
        for title in "ab"
        for n in range(5)
    }
    root = write(tmp_path / "in", pictures | {"train/a/broken.jpg": b"no"})
    convert(root, tmp_path / "set", 20)
    expected = archives.contents(tmp_path / "set")
    for number, source in enumerate(
        [
            pack(root, tmp_path / "x.tar"),
            pack(root, tmp_path / "y.tar.gz"),
            pack(root, tmp_path / "z.tar", "wrapped/twice"),
        ]
    ):
        convert(source, tmp_path / f"{number}", 20, workers=1 + number % 2)
        found = archives.contents(tmp_path / f"{number}")
        if number < 2:
            assert found == expected
        else:  # the path in each json says where it lay
            assert {name.split("/")[0] for name in samples(tmp_path / f"{number}")} == {"wrapped"}
            assert [array.tobytes() for *_, array in samples(tmp_path / f"{number}").values()]
    convert(root, tmp_path / "two", 20, workers=2)
    assert archives.contents(tmp_path / "two") == expected


def test_split_folders(tmp_path: Path) -> None:
    names = ["train/cat/1.png", "train/dog/1.png", "valid/cat/1.png", "TEST/dog/1.png", "train/dog/deep/er/2.png"]
    root = write(tmp_path / "in", {name: square(n) for n, name in enumerate(names)})
    write(root, {"valid/cow/1.png": square(9), "train/loose.png": square(9), "loose.png": square(9)})
    convert(root, tmp_path / "set")
    found = {name: value[:2] for name, value in samples(tmp_path / "set").items()}
    assert found == {
        "train/cat/1.png": ("train", "cat"),
        "train/dog/1.png": ("train", "dog"),
        "train/dog/deep/er/2.png": ("train", "dog"),
        "valid/cat/1.png": ("val", "cat"),
        "TEST/dog/1.png": ("test", "dog"),
    }
    assert rejections(tmp_path / "set") == [
        ("loose.png", "unknown-split"),
        ("train/loose.png", "no-label"),
        ("valid/cow/1.png", "unknown-label"),
    ]
    # one file of a name in three folders: each keeps its own key
    keys = pq.read_table(tmp_path / "set" / "samples.parquet").to_pydict()
    by_file = dict(zip(keys["file"], keys["key"], strict=True))
    assert len(set(by_file.values())) == 5 and by_file["train/cat/1.png"].startswith("cat_1-")


def test_a_class_called_train(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {f"{title}/{n}.png": square(n) for title in ("train", "tree") for n in range(3)})
    assert convert(root, tmp_path / "set").labels["class"].classes == ["train", "tree"]
    write(root, {"test/1.png": square(1)})
    with pytest.raises(BandstreamError, match="look like splits, tree beside them"):
        convert(root, tmp_path / "x")
    write(tmp_path / "deep", {"train/a/1.png": square(1), "train/b/1.png": square(1), "unlabelled/1.png": square(1)})
    with pytest.raises(BandstreamError, match="train look like splits, unlabelled beside"):
        convert(tmp_path / "deep", tmp_path / "x")


@pytest.mark.parametrize("folder", ["", "pictures/", "a/b/"])
def test_without_class_folders(tmp_path: Path, folder: str) -> None:
    root = write(tmp_path / "in", {f"{folder}{n}.png": square(n) for n in range(12)})
    manifest = convert(root, tmp_path / "set")
    assert manifest.labels == {} and manifest.source["labels"] == "none"
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 10, "val": 1, "test": 1}
    assert set(pq.read_table(tmp_path / "set" / "samples.parquet")["key"].to_pylist()) == {str(n) for n in range(12)}


def test_splits_without_classes(tmp_path: Path) -> None:
    names = ["train/images/1.png", "train/images/2.png", "val/images/1.png"]
    root = write(tmp_path / "in", {name: square(n) for n, name in enumerate(names)})
    manifest = convert(root, tmp_path / "set")
    assert manifest.labels == {}
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 2, "val": 1}


def test_names_of_all_kinds(tmp_path: Path) -> None:
    long = "x" * 120
    names = [
        "Forêt/Forêt_1.png",
        "森林/1.png",
        "海/1.png",
        "a b/c.d.png",
        "a/b_c.png",
        "a_b/c.png",
        f"a/{long}1.png",
        f"a/{long}2.PNG",
        "a/same.png",
        "a/same.bmp",
    ]
    root = write(tmp_path / "in", {name: square(n) for n, name in enumerate(names)})
    write(
        root,
        {"a/.hidden.png": b"", "__MACOSX/a/x.png": b"", "a/Thumbs.db": b"", ".cache/a.png": b"", "readme.txt": b""},
    )
    manifest = convert(root, tmp_path / "set")
    assert verify(tmp_path / "set") == []
    assert manifest.rejected == {}
    rows = pq.read_table(tmp_path / "set" / "samples.parquet").to_pydict()
    assert set(rows["file"]) == set(names)
    assert all(KEY.fullmatch(key) for key in rows["key"])
    by_file = dict(zip(rows["file"], rows["key"], strict=True))
    assert by_file["a b/c.d.png"] == "a-b_c-d"
    assert by_file["Forêt/Forêt_1.png"] == "For-t_1"  # a name that begins with its class does not say it twice
    assert by_file["a/b_c.png"].startswith("a_b_c-") and by_file["a_b/c.png"].startswith("a_b_c-")
    assert manifest.labels["class"].classes == sorted({name.split("/")[0] for name in names})
    for name, (_, title, stored) in samples(tmp_path / "set").items():
        assert title == name.split("/")[0]
        np.testing.assert_array_equal(stored.transpose(1, 2, 0), pixels(names.index(name), 16, 16))


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    for name in (b"a\xff", b"b"):
        folder = tmp_path / "in" / os.fsdecode(name)
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / os.fsdecode(b"\xfe%d.png" % number)).write_bytes(square(number))
    (folder / os.fsdecode(b"\xfe.png")).write_bytes(b"damaged")
    manifest = convert(tmp_path / "in", tmp_path / "set")
    assert verify(tmp_path / "set") == []
    assert manifest.labels["class"].classes == ["a\\udcff", "b"]
    assert samples(tmp_path / "set").keys() == {f"{c}/\\udcfe{n}.png" for c in ("a\\udcff", "b") for n in range(3)}
    assert rejections(tmp_path / "set") == [("b/\\udcfe.png", "unreadable")]
    convert(pack(tmp_path / "in", tmp_path / "x.tar"), tmp_path / "tar")
    assert archives.contents(tmp_path / "tar") == archives.contents(tmp_path / "set")


@given(st.lists(st.tuples(st.text(max_size=100), st.text(max_size=20)), max_size=30, unique=True))
@settings(max_examples=60, deadline=None)
def test_keys_are_unique_and_do_not_depend_on_the_order(tmp_path_factory: Any, names: list[tuple[str, str]]) -> None:
    scratch = tmp_path_factory.mktemp("keys")
    entries: list[Entry | Rejected] = [
        Entry(clean(name, f"{folder}/{name}"), f"{folder}/{name}", extra={"n": name}, where=folder, stratum=folder)
        for name, folder in names
    ]
    found = [entry for entry in unique(entries, scratch) if isinstance(entry, Entry)]
    assert len({entry.key for entry in found}) == len({(e.key, e.path) for e in entries if isinstance(e, Entry)})
    assert all(KEY.fullmatch(entry.key) for entry in found)
    for before, after in zip(entries, found, strict=True):
        assert isinstance(before, Entry)
        assert (after.path, after.extra, after.where, after.stratum) == (
            before.path,
            before.extra,
            before.where,
            before.stratum,
        )
    again = [entry for entry in unique(reversed(entries), scratch) if isinstance(entry, Entry)]
    assert {entry.key for entry in again} == {entry.key for entry in found}


def test_damaged_pictures_are_rejected(tmp_path: Path) -> None:
    damaged = {
        f"a/{number}.{'tif' if 'TIFF' in name else 'png'}": data
        for number, (name, (data, _)) in enumerate(REFUSED.items())
    }
    root = write(tmp_path / "in", {f"{title}/ok{n}.png": square(n) for title in "ab" for n in range(3)} | damaged)
    manifest = convert(root, tmp_path / "set", 16)
    assert manifest.rejected == dict(sorted(Counter(reason for _, reason in REFUSED.values()).items()))
    assert [path for path, _ in rejections(tmp_path / "set")] == sorted(damaged)
    assert sum(split.samples for split in manifest.splits.values()) == 6
    convert(pack(root, tmp_path / "x.tar"), tmp_path / "tar", 16, workers=2)
    assert archives.contents(tmp_path / "tar") == archives.contents(tmp_path / "set")
    with pytest.raises(BandstreamError, match="--strict stops"):
        convert(root, tmp_path / "strict", 16, strict=True)


def test_sizes(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {f"{title}/{n}.png": square(n) for title in "ab" for n in range(3)})
    manifest = convert(root, tmp_path / "own")
    assert manifest.arrays["rgb.npy"].shape == (3, 16, 16) and manifest.source["pixels"] == "as they are"
    convert(root, tmp_path / "asked", 16)
    assert {name: array.tobytes() for name, (*_, array) in samples(tmp_path / "own").items()} == {
        name: array.tobytes() for name, (*_, array) in samples(tmp_path / "asked").items()
    }
    write(root, {"b/9.png": square(9, 20)})
    with pytest.raises(BandstreamError, match=r"not all squares of one size \(a/0.png 16 x 16, b/9.png 20 x 20\): say"):
        convert(root, tmp_path / "x")
    (root / "b" / "9.png").unlink()
    write(root, {f"a/{n}.png": square(n) for n in range(99)} | {"a/~late.png": square(9, 20)})
    assert convert(root, tmp_path / "late").rejected == {"wrong-size": 1}
    write(tmp_path / "wide", {f"{n}.png": encode(pixels(n)) for n in range(3)})
    with pytest.raises(BandstreamError, match="0.png 32 x 24"):
        convert(tmp_path / "wide", tmp_path / "x")
    assert convert(tmp_path / "wide", tmp_path / "wide-set", 8).arrays["rgb.npy"].shape == (3, 8, 8)


def test_nothing_to_ingest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "text", {"a/readme.txt": b"", ".hidden/x.png": b""})
    for name in ("empty", "text"):
        with pytest.raises(BandstreamError, match="holds no pictures: expected CLASS/FILE"):
            convert(tmp_path / name, tmp_path / "set")
    with pytest.raises(BandstreamError, match="name one"):
        ingest(Images([tmp_path / "empty", tmp_path / "text"]), tmp_path / "set", Options())
    write(tmp_path / "broken", {"a/1.png": b"", "b/1.png": b"x"})
    with pytest.raises(BandstreamError, match="not one of the first pictures can be read"):
        convert(tmp_path / "broken", tmp_path / "set")


def test_real_pictures(real_data: Path, tmp_path: Path) -> None:
    """EuroSAT's JPEGs, a few of each class, as Pillow decodes them."""
    few: Counter[str] = Counter()
    expected: dict[str, bytes] = {}
    with tarfile.open(real_data / "eurosat_rgb.tar") as tar:
        for member in tar:
            title = member.name.split("/")[-2] if member.isfile() else ""
            if title and few[title] < 10:
                few[title] += 1
                content = tar.extractfile(member)
                assert content is not None
                expected[member.name] = content.read()
    write(tmp_path / "in", expected)
    manifest = convert(tmp_path / "in", tmp_path / "set")
    assert manifest.rejected == {}
    assert manifest.labels["class"].classes == sorted(few) and len(few) == 10
    found = samples(tmp_path / "set")
    assert len(found) == 100
    for name, (_, title, stored) in found.items():
        assert name == f"{title}/{name.split('/')[-1]}" or name.split("/")[-2] == title
        (data,) = (data for path, data in expected.items() if path.endswith(name))
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(stored.transpose(1, 2, 0), np.asarray(image))
