"""Foreign WebDataset shards: held to `webdataset`'s own iteration; options, splits, keys, refusals."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.io import MemoryFile

from ingest.archives.foreign import parse_options
from ingest.archives.members import field_of, read_array, read_classes, read_json, read_label
from ingest.building.build import Options, Told, ingest
from ingest.commands import ingest as command
from ingest.reading.geotiff import RasterError
from ingest.sources.webdataset import WebDataset
from shards.bands import SENTINEL2
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import Sample, ShardSet
from shards.verify import verify
from tests.ingest import archives
from tests.ingest.foreign import CLASSES, COARSE, FINE, TEXT, npy, picture, sample, tif, write

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of six samples by webdataset's own writer, and a list of classes beside them."""
    folder = tmp_path_factory.mktemp("foreign") / "shards"
    folder.mkdir()
    for shard in range(4):
        with webdataset.TarWriter(str(folder / f"set-{shard:02d}.tar"), encoder=False) as writer:
            for number in range(6 * shard, 6 * shard + 6):
                writer.write(sample(number))
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def told(foreign: Path, **options: Any) -> Any:
    return parse_options(**{**TEXT, "classes": [("", foreign / "classes.txt")], **options})


def convert(source: WebDataset, target: Path, **options: Any) -> Manifest:
    return ingest(source, target, Options(shard_samples=5, **options)).manifest


def simple(src: Path | list[Path], target: Path, array: str = "s2.npy=B02,B03", **options: Any) -> Manifest:
    return convert(WebDataset(src, parse_options([array])), target, **options)


def stored(target: Path) -> Iterator[tuple[str, Sample]]:
    opened = ShardSet.open(target)
    for split in opened.manifest.splits:
        for index in range(opened.size(split)):
            yield split, opened.read(split, index)


def rejections(target: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (target / "rejected.jsonl").read_text().splitlines()]
    return sorted((line["path"], line["reason"]) for line in lines)


def test_as_webdataset_iterates(foreign: Path, tmp_path: Path) -> None:
    manifest = convert(WebDataset(foreign, told(foreign)), tmp_path / "set")
    assert verify(tmp_path / "set") == []
    assert manifest.rejected == {}
    assert manifest.band_names == [band for band in SENTINEL2 if band != "B10"]
    assert {name: array.bands for name, array in manifest.arrays.items()} == {
        "s2.npy": ["B02", "B03", "B04", "B08"],
        "s2_20m.npy": ["B05", "B06", "B07", "B8A", "B11", "B12"],
        "coarse.npy": ["B01", "B09"],
    }
    assert (manifest.labels["class"].member, manifest.labels["class"].kind) == ("cls", "single")
    assert (manifest.labels["tags"].member, manifest.labels["tags"].kind) == ("tags.labels.npy", "multilabel")
    assert manifest.masks["cover"].member == "mask.npy"
    found = {f"{one.json['source_shard']}/{one.json['source_key']}": one for _, one in stored(tmp_path / "set")}
    urls = [str(path) for path in sorted(foreign.glob("*.tar"))]
    count = 0
    for theirs in webdataset.WebDataset(urls, shardshuffle=False):
        count += 1
        ours = found[f"{Path(theirs['__url__']).name}/{theirs['__key__']}"]
        planes = dict(zip(FINE, np.load(io.BytesIO(theirs["s2.npy"])), strict=True))
        planes |= dict(zip(COARSE, np.load(io.BytesIO(theirs["s2_20m.npy"])).transpose(2, 0, 1), strict=True))
        with MemoryFile(theirs["coarse.tif"]) as memory, memory.open() as source:
            planes |= {"B09": source.read(1), "B01": source.read(3)}
        for member, array in manifest.arrays.items():
            for band, plane in zip(array.bands, ours.arrays[member], strict=True):
                np.testing.assert_array_equal(plane, planes[band])
        content = json.loads(theirs["json"])
        assert ours.labels["class"] == int(theirs["cls"])
        assert [CLASSES[k] for k in np.flatnonzero(ours.labels["tags"])] == sorted(
            set(content["tags"]), key=CLASSES.index
        )
        np.testing.assert_array_equal(ours.masks["cover"], np.asarray(Image.open(io.BytesIO(theirs["seg.png"]))))
        assert ours.key == theirs["__key__"].replace("/", "_")
        assert ours.json["id"] == content["name"]
        assert (ours.json["lon"], ours.json["lat"]) == (content["at"]["lon"], content["at"]["lat"])
        assert ours.json["date"] == content["date"].replace("Z", "+00:00") and ours.json["crs"] == "EPSG:4326"
    assert count == len(found) == 24
    rows = pq.read_table(tmp_path / "set" / "samples.parquet").to_pydict()
    assert set(rows["source_shard"]) == {f"set-{k:02d}.tar" for k in range(4)}
    assert min(rows["lon"]) == 8.0 and set(rows["lat"]) == {-40.5}


def test_ways_to_name_shards_and_workers_give_the_same_bytes(foreign: Path, tmp_path: Path) -> None:
    convert(WebDataset(foreign, told(foreign)), tmp_path / "folder")
    expected = archives.contents(tmp_path / "folder")
    tars = sorted(foreign.glob("*.tar"))
    for number, src in enumerate(
        [foreign / "set-{00..03}.tar", [*reversed(tars)], [foreign / "set-{00..01}.tar", *tars[2:]]]
    ):
        convert(WebDataset(src, told(foreign)), tmp_path / f"{number}", workers=1 + (number == 1))
        assert archives.contents(tmp_path / f"{number}") == expected
    with pytest.raises(BandstreamError, match="a shard is named twice"):
        convert(WebDataset([foreign, tars[0]], told(foreign)), tmp_path / "x")
    with pytest.raises(BandstreamError, match=r"set-04.tar does not exist"):
        convert(WebDataset(foreign / "set-{00..04}.tar", told(foreign)), tmp_path / "x")
    with pytest.raises(BandstreamError, match=r"set-\{0.tar does not exist"):
        convert(WebDataset(foreign / "set-{0.tar", told(foreign)), tmp_path / "x")
    braces = tmp_path / "in {a,b}" / "x{1}.tar"
    braces.parent.mkdir()
    shutil.copy(tars[0], braces)
    assert (
        sum(split.samples for split in convert(WebDataset(braces, told(foreign)), tmp_path / "b").splits.values()) == 6
    )


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed(foreign: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    for tar in foreign.glob("*.tar"):
        path = tmp_path / "in" / f"{tar.stem}{suffix}"
        if suffix.endswith("zst"):
            path.write_bytes(zstandard.compress(tar.read_bytes()))
        else:
            import gzip

            path.write_bytes(gzip.compress(tar.read_bytes()))
    convert(WebDataset(foreign, told(foreign)), tmp_path / "plain")
    convert(WebDataset(tmp_path / "in", told(foreign)), tmp_path / "set")
    plain = {one.key: one for _, one in stored(tmp_path / "plain")}
    for _, one in stored(tmp_path / "set"):
        assert one.json["source_shard"].endswith(suffix)
        for member, array in plain.pop(one.key).arrays.items():
            np.testing.assert_array_equal(one.arrays[member], array)
    assert not plain


def test_our_own_shards(shard_set: Path, tmp_path: Path) -> None:
    opened = ShardSet.open(shard_set)
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(opened.manifest.labels["land_cover"].classes))
    options = parse_options(
        [f"{name}={','.join(array.bands)}" for name, array in opened.manifest.arrays.items()],
        ["labels.npy=land_cover"],
        ["mask.npy=land_cover"],
        [("land_cover", classes)],
        "json:id",
        "json:lon,lat",
        "json:date",
        "0.0001,0,L2A",
    )
    manifest = convert(WebDataset(shard_set, options), tmp_path / "set")
    ours = opened.manifest
    assert manifest.rejected == {}
    for field in ("bands", "statistics", "labels", "masks", "reflectance"):
        assert getattr(manifest, field) == getattr(ours, field)
    assert {k: (a.bands, a.shape, a.dtype, a.offset) for k, a in manifest.arrays.items()} == {
        k: (a.bands, a.shape, a.dtype, a.offset) for k, a in ours.arrays.items()
    }
    before = {one.key: (split, one) for split, one in stored(shard_set)}
    for split, one in stored(tmp_path / "set"):
        was, old = before.pop(one.key)
        assert split == was
        for kind in ("arrays", "labels", "masks"):
            for name, array in getattr(old, kind).items():
                np.testing.assert_array_equal(getattr(one, kind)[name], array)
        assert all(one.json[key] == old.json[key] for key in ("id", "date", "lon", "lat"))
    assert not before


def test_several_dates(tmp_path: Path) -> None:
    content = {f"{time}10m.npy": npy(np.full((2, 4, 4), k, np.uint16)) for k, time in enumerate(("", "t1.", "t2."))}
    write(tmp_path / "x.tar", [{"__key__": "a", **content}])
    options = parse_options([f"{member}=B02,B03" for member in content])
    manifest = convert(WebDataset(tmp_path / "x.tar", options), tmp_path / "set")
    assert {name: array.time for name, array in manifest.arrays.items()} == {
        "10m.npy": 0,
        "t1.10m.npy": 1,
        "t2.10m.npy": 2,
    }
    with pytest.raises(BandstreamError, match="date 1 does not hold"):
        parse_options(["10m.npy=B02,B03", "t1.10m.npy=B02"])


def test_pictures_need_no_options(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (8, 10, 3), np.uint8) for _ in range(5)]
    samples = [{"__key__": f"{n}", "png": picture(image), "cls": b"1"} for n, image in enumerate(images)]
    write(tmp_path / "x.tar", samples)
    manifest = convert(WebDataset(tmp_path / "x.tar"), tmp_path / "set")
    assert (manifest.band_names, manifest.labels) == (["red", "green", "blue"], {})
    assert (manifest.reflectance.scale, manifest.reflectance.level) == (1 / 255, "picture")
    for _, one in stored(tmp_path / "set"):
        np.testing.assert_array_equal(one.arrays["rgb.npy"].transpose(1, 2, 0), images[int(one.key)])
    odd = [
        *samples,
        {"__key__": "odd", "png": picture(images[0][:7])},
        {"__key__": "jpg", "jpg": picture(images[0], "JPEG")},
    ]
    write(tmp_path / "odd.tar", odd)
    convert(WebDataset(tmp_path / "odd.tar"), tmp_path / "odd")
    assert rejections(tmp_path / "odd") == [("odd.tar/jpg", "missing-member"), ("odd.tar/odd.png", "wrong-size")]
    masked = parse_options(masks=["png"], classes=[("", write_text(tmp_path / "c", "a"))])
    with pytest.raises(BandstreamError, match="--size scales pictures, not other arrays"):
        convert(WebDataset(tmp_path / "odd.tar", masked, size=6), tmp_path / "x")
    manifest = convert(WebDataset(tmp_path / "odd.tar", size=6), tmp_path / "scaled")
    assert manifest.arrays["rgb.npy"].shape == (3, 6, 6) and manifest.rejected == {"missing-member": 1}


@pytest.mark.parametrize(
    ("label", "kind", "expected"),
    [
        ("cls", "single", lambda n: n % 3),
        ("txt", "single", lambda n: n % 3),
        ("json:cover", "single", lambda n: n % 3),
        ("json:tags", "multilabel", lambda n: [int(k in (n % 3, 2)) for k in range(3)]),
    ],
)
def test_labels(foreign: Path, tmp_path: Path, label: str, kind: str, expected: Callable[[int], Any]) -> None:
    options = parse_options(["s2.npy=B02,B03,B04,B08"], [label], classes=[("", foreign / "classes.txt")])
    manifest = convert(WebDataset(foreign, options), tmp_path / "set")
    assert manifest.labels["class"].kind == kind
    for _, one in stored(tmp_path / "set"):
        np.testing.assert_array_equal(one.labels["class"], expected(int(one.key[-6:])))


def test_keys_that_shards_share(tmp_path: Path) -> None:
    for shard in "ab":
        samples = [
            {"__key__": f"{n:04d}", "s2.npy": npy(np.full((2, 4, 4), 10 * (shard == "b") + n, np.uint16))}
            for n in range(3)
        ]
        write(tmp_path / "in" / f"{shard}.tar", [*samples, {**samples[0], "__key__": f"only-{shard}"}])
    manifest = simple(tmp_path / "in", tmp_path / "set")
    assert manifest.rejected == {}
    found = {one.key: one for _, one in stored(tmp_path / "set")}
    assert len(found) == 8 and {"only-a", "only-b"} < found.keys()
    for key, one in found.items():
        assert key.startswith(one.json["source_key"])
        number = int(one.json["source_key"]) if one.json["source_key"].isdigit() else 0
        assert (one.arrays["s2.npy"] == 10 * (one.json["source_shard"] == "b.tar") + number).all()
    # one key twice in one tar, apart from each other: two samples for webdataset; the same path, so the second is none
    write(tmp_path / "twice.tar", [{"__key__": key, "s2.npy": npy(np.zeros((2, 4, 4), np.uint16))} for key in "aba"])
    assert simple(tmp_path / "twice.tar", tmp_path / "twice").rejected == {"duplicate": 1}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-000", "train-001", "val-000", "test-000"], ["train", "train", "val", "test"]),
        (["cifar-train-000", "cifar-valid-000"], ["train", "val"]),
        (["train/0", "validation/0"], ["train", "val"]),
        (["testament-training.0", "testament-testing.1"], ["train", "test"]),
    ],
)
def test_splits_from_names(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    for number, name in enumerate(names):
        one = {"__key__": f"{number}", "s2.npy": npy(np.zeros((2, 4, 4), np.uint16))}
        write(tmp_path / "in" / f"{name}.tar", [one])
    simple(tmp_path / "in", tmp_path / "set")
    assert [split for _, split in sorted((one.key, split) for split, one in stored(tmp_path / "set"))] == splits
    write(tmp_path / "in" / "more.tar", [{**one, "__key__": "more"}])
    with pytest.raises(BandstreamError, match=r"the name of more.tar says no split .* as others do"):
        simple(tmp_path / "in", tmp_path / "x")
    source = WebDataset(tmp_path / "in", parse_options(["s2.npy=B02,B03"]), split_from="seed")
    assert "drawn" in convert(source, tmp_path / "drawn").source["split"]
    warned: list[str] = []
    alone = WebDataset(tmp_path / "in" / f"{names[-1]}.tar", parse_options(["s2.npy=B02,B03"]))
    ingest(alone, tmp_path / "alone", Options(), Told(warned.append))
    assert warned == (
        [] if "/" in names[0] else ["not one name of a shard says train: --split-from seed draws splits instead"]
    )
    source = WebDataset(tmp_path / "in" / "more.tar", parse_options(["s2.npy=B02,B03"]), split_from="names")
    with pytest.raises(BandstreamError, match="says no split"):
        convert(source, tmp_path / "x")


def without(member: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda one: {key: value for key, value in one.items() if key != member}


def having(member: str, data: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda one: {**one, member: data}


class Bomb:
    """Unpickled, it would leave a file."""

    path = Path()

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def facts(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda one: {**one, "json": json.dumps({**json.loads(one["json"]), **changes}).encode()}


HUGE = npy(np.zeros((4, 12, 12), np.uint16)).replace(b"(4, 12, 12)", b"(4,99999999)")
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no array": (without("s2.npy"), "missing-member"),
    "no label": (without("cls"), "missing-member"),
    "no mask": (without("seg.png"), "missing-member"),
    "no json": (without("json"), "missing-member"),
    "cut npy": (lambda one: {**one, "s2.npy": one["s2.npy"][:-5]}, "truncated"),
    "npy that claims more": (having("s2.npy", HUGE), "truncated"),
    "no npy": (having("s2.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': __import__('os')"), "unreadable"),
    "empty npy": (having("s2.npy", b""), "unreadable"),
    "other shape": (having("s2.npy", npy(np.zeros((4, 12, 13), np.uint16))), "wrong-size"),
    "other type": (having("s2.npy", npy(np.zeros((4, 12, 12), np.int16))), "wrong-type"),
    "other order": (having("s2.npy", npy(np.zeros((12, 12, 4), np.uint16))), "wrong-size"),
    "structured": (having("s2.npy", npy(np.zeros((4, 12, 12), [("a", "<u2")]))), "wrong-type"),
    "cut tif": (lambda one: {**one, "coarse.tif": one["coarse.tif"][:60]}, "unreadable"),
    "no tif": (having("coarse.tif", b"<html>404</html>"), "unreadable"),
    "tif of another size": (having("coarse.tif", tif(np.zeros((3, 2, 3), np.uint16))), "wrong-size"),
    "tif of other bands": (having("coarse.tif", tif(np.zeros((4, 2, 2), np.uint16))), "wrong-size"),
    "class unknown": (having("cls", b"3"), "unknown-label"),
    "class negative": (having("cls", b"-1"), "unknown-label"),
    "class no number": (having("cls", b"water"), "unknown-label"),
    "tag unknown": (facts(tags=["moon"]), "unknown-label"),
    "tag no list": (facts(tags="city"), "wrong-type"),
    "no tags": (facts(tags=None), "unknown-label"),
    "class in the map unknown": (having("seg.png", picture(np.full((12, 12), 3, np.uint8))), "unknown-class"),
    "map of another size": (having("seg.png", picture(np.zeros((12, 11), np.uint8))), "wrong-size"),
    "map in colours": (having("seg.png", picture(np.zeros((12, 12, 3), np.uint8))), "wrong-bands"),
    "cut map": (lambda one: {**one, "seg.png": one["seg.png"][:50]}, "truncated"),
    "json that is none": (having("json", b"{'a': 1}"), "unreadable"),
    "json that goes deep": (having("json", b"[" * 100_000), "unreadable"),
    "json without the fields": (having("json", b"[1]"), "no-metadata"),
    "no date": (facts(date="last summer"), "no-date"),
    "place as text": (facts(at={"lon": "8", "lat": 1}), "misplaced"),
    "place beyond": (facts(at={"lon": 8, "lat": 91}), "misplaced"),
    "place that is no number": (facts(at={"lon": float("nan"), "lat": 1}), "misplaced"),
    "long id": (facts(name="x" * 999), "bad-name"),
    "pickled": (lambda one: {**one, "s2.npy": npy(np.array([Bomb()]), allow_pickle=True)}, "wrong-type"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_rejected_line(foreign: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bomb, "path", tmp_path / "unpickled")
    damage, reason = DAMAGES[name]
    samples = [sample(number) for number in range(5)]
    samples[2] = damage(samples[2])
    write(tmp_path / "x.tar", samples)
    manifest = convert(WebDataset(tmp_path / "x.tar", told(foreign)), tmp_path / "set")
    assert manifest.rejected == {reason: 1}
    ((path, _),) = rejections(tmp_path / "set")
    assert path.startswith("x.tar/some/000002")
    assert verify(tmp_path / "set") == []
    assert not (tmp_path / "unpickled").exists()
    # where it is the first, the second says what the set is like
    write(tmp_path / "first.tar", [samples[2], *samples[:2]])
    # (what is sound but other than the rest would itself say it)
    if reason not in ("wrong-size", "wrong-type") or name in ("pickled", "structured"):
        source = WebDataset(tmp_path / "first.tar", told(foreign))
        assert convert(source, tmp_path / "first").rejected == {reason: 1}


def test_what_a_tar_should_not_hold(tmp_path: Path) -> None:
    good = npy(np.zeros((2, 4, 4), np.uint16))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in (
            "a.s2.npy",
            "__meta__/info.json",
            "__keys__",
            "noextension",
            "b.s2.npy",
            "b.S2.npy",
            "../c.s2.npy",
            "./d.s2.npy",
        ):
            info = tarfile.TarInfo(name)
            info.size = len(good)
            tar.addfile(info, io.BytesIO(good))
        link = tarfile.TarInfo("e.s2.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    simple(tmp_path / "x.tar", tmp_path / "set")
    assert {one.json["source_key"] for _, one in stored(tmp_path / "set")} == {"a", "d"}
    assert rejections(tmp_path / "set") == [
        ("x.tar/../c.s2.npy", "unsafe"),
        ("x.tar/b", "duplicate"),
        ("x.tar/e.s2.npy", "unsafe"),
    ]


def test_tars_that_are_cut_off(foreign: Path, tmp_path: Path) -> None:
    data = (foreign / "set-00.tar").read_bytes()
    for number, cut in enumerate((len(data) // 2, len(data) // 2 + 700, 100)):
        (tmp_path / f"{number}.tar").write_bytes(data[:cut])
        with pytest.raises(BandstreamError, match="download it again"):
            simple(tmp_path / f"{number}.tar", tmp_path / "set", "s2.npy=B02,B03,B04,B08")
    (tmp_path / "text.tar").write_bytes(b"x" * 2000)
    with pytest.raises(BandstreamError, match="damaged, or no tar"):
        simple(tmp_path / "text.tar", tmp_path / "set")
    write_text(tmp_path / "empty" / ".hidden" / "x.tar", "")
    with pytest.raises(BandstreamError, match=r"holds no \.tar"):
        simple(tmp_path / "empty", tmp_path / "set")
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    with pytest.raises(BandstreamError, match="they hold no samples"):
        simple(tmp_path / "none.tar", tmp_path / "set")


@pytest.mark.parametrize(
    ("content", "array", "message"),
    [
        (np.zeros((2, 4, 4), np.int32), "s2.npy=B02,B03", "holds int32: a set stores uint8, uint16"),
        (np.zeros((2, 4, 4), np.float64), "s2.npy=B02,B03", "holds float64"),
        (np.zeros((3, 4, 4), np.uint16), "s2.npy=B02,B03", r"shape \(3, 4, 4\), --array names 2 bands"),
        (np.zeros((2, 4, 2), np.uint16), "s2.npy=B02,B03", "which axis"),
        (np.zeros((4, 4), np.uint16), "s2.npy=B02,B03", "--array names 2 bands"),
    ],
)
def test_arrays_that_cannot_be_stored(tmp_path: Path, content: np.ndarray, array: str, message: str) -> None:
    write(tmp_path / "x.tar", [{"__key__": "a", "s2.npy": npy(content)}])
    with pytest.raises(BandstreamError, match=message):
        simple(tmp_path / "x.tar", tmp_path / "set", array)
    with pytest.raises(BandstreamError, match=r"say with --array .* the first sample, x.tar/a, has s2.npy"):
        convert(WebDataset(tmp_path / "x.tar"), tmp_path / "set")


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i2", ">i2", "<f4", ">f4"])
@pytest.mark.parametrize("fortran", [False, True])
def test_types_and_byte_orders(tmp_path: Path, dtype: str, fortran: bool) -> None:
    arrays = [
        np.random.default_rng(n).integers(0, 99, (2, 4, 5)).astype(dtype, "F" if fortran else "C") for n in range(3)
    ]
    write(tmp_path / "x.tar", [{"__key__": f"{n}", "s2.npy": npy(array)} for n, array in enumerate(arrays)])
    manifest = simple(tmp_path / "x.tar", tmp_path / "set")
    assert manifest.arrays["s2.npy"].dtype == np.dtype(dtype).name
    for _, one in stored(tmp_path / "set"):
        np.testing.assert_array_equal(one.arrays["s2.npy"], arrays[int(one.key)])


def test_floats_are_finite(tmp_path: Path) -> None:
    arrays = [np.full((2, 4, 4), value, np.float32) for value in (0.5, np.nan, np.inf, -1)]
    write(tmp_path / "x.tar", [{"__key__": f"{n}", "s2.npy": npy(array)} for n, array in enumerate(arrays)])
    manifest = simple(tmp_path / "x.tar", tmp_path / "set")
    assert manifest.rejected == {"not-finite": 2} and manifest.reflectance.scale == 1.0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"arrays": ["s2.npy"]}, "expected MEMBER=BAND"),
    ({"arrays": ["s2.pickle=B02"]}, r"a member \.npy, \.tif"),
    ({"arrays": ["s2.npy=B02,B99"]}, "unknown band 'B99'"),
    ({"arrays": ["s2.npy=B02,B02"]}, "named twice"),
    ({"arrays": ["s2.npy=-,-"]}, "named twice, or none"),
    ({"arrays": ["a.npy=B02", "b.npy=B02,B03"]}, "B02 is held twice"),
    ({"arrays": ["a.npy=B02", "a.tif=B03"]}, r"two members would be called a\.npy"),
    ({"arrays": ["a.npy=B02", "jpg=red,green,blue"]}, "not both"),
    ({"arrays": ["jpg=red,green"]}, "three bands"),
    ({"arrays": ["mask.npy=B02"]}, "cannot have a member"),
    ({"labels": ["cls"]}, "needs its classes"),
    ({"labels": ["cls=Bad"], "classes": [("", "ok")]}, "a name is"),
    ({"labels": ["cls", "txt"], "classes": [("", "ok")]}, "class names two labels"),
    ({"masks": ["mask.jpg"], "classes": [("", "ok")]}, "class maps are read from"),
    ({"classes": [("", "ok")]}, "of which there is none"),
    ({"labels": ["cls"], "classes": [("", "ok"), ("x", "ok")]}, "no --label or --mask has that name"),
    ({"labels": ["cls"], "classes": [("", "twice")]}, "is no list of classes"),
    ({"labels": ["cls"], "classes": [("", "missing")]}, "cannot be read as a list"),
    ({"place": "json:lon"}, "expected MEMBER:LON,LAT"),
    ({"date": "json"}, "expected MEMBER:FIELD"),
    ({"reflectance": "1e-4"}, "expected SCALE,OFFSET"),
    ({"reflectance": "0,0"}, "expected SCALE,OFFSET"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "ok").write_text("a\nb\n")
    (tmp_path / "twice").write_text("a\na\n")
    named = [(name, tmp_path / file) for name, file in options.get("classes", ())]
    with pytest.raises(BandstreamError, match=message):
        parse_options(**{**options, "classes": named})


def test_command(foreign: Path, tmp_path: Path) -> None:
    words = ["webdataset", str(foreign / "set-{00..03}.tar"), str(tmp_path / "set"), "--workers", "1"]
    for name, values in {"--array": TEXT["arrays"], "--label": TEXT["labels"], "--mask": TEXT["masks"]}.items():
        for value in values:
            words += [name, value]
    words += [
        "--classes",
        str(foreign / "classes.txt"),
        "--id",
        TEXT["id"],
        "--place",
        TEXT["place"],
        "--date",
        TEXT["date"],
    ]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    assert "24 samples" in result.output
    text = (tmp_path / "set" / "dataset.json").read_text()
    assert str(foreign) not in text and str(tmp_path) not in text
    shown = CliRunner().invoke(command, [*words[:2], str(tmp_path / "x"), "--array", "s2.npy"])
    assert shown.exit_code == 2 and "expected MEMBER=BAND" in shown.output
    # another order of classes is another set
    (tmp_path / "other.txt").write_text("\n".join(reversed(CLASSES)))
    words[words.index(str(foreign / "classes.txt"))] = str(tmp_path / "other.txt")
    assert "other options" in str(CliRunner().invoke(command, words).exception)


ARRAYS = [
    npy(np.arange(24).astype(kind).reshape(2, 3, 4))
    for kind in ("u1", "<u2", ">i2", "<f4", "<f8", "?", "<c8", "<M8[s]")
]


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(ARRAYS),
    st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4),
    st.integers(0, 300),
)
def test_npy_is_what_numpy_reads(data: bytes, flips: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data)
    for at, value in flips:
        damaged[at] = value
    content = bytes(damaged[: cut or None])
    try:
        found = read_array(content, "x.npy")
    except RasterError:
        return
    expected = np.load(io.BytesIO(content), allow_pickle=False)
    assert found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for member in ("x.npy", "npy", "tif", "jpg"):
        for content in (data, b"\x93NUMPY\x01\x00" + data, b"II*\0" + data):
            for read in (read_array, lambda d, m: read_classes(d, m, 3)):
                try:
                    read(content, member)
                except RasterError:
                    continue
    with suppress(RasterError):
        field_of(read_json(data), "a.b")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_labels_are_classes_or_refused(value: Any) -> None:
    try:
        kind, indices = read_label(value, {"a": 0, "b": 1, "": 2})
    except RasterError:
        return
    assert all(0 <= index < 3 for index in indices) and kind == ("multilabel" if isinstance(value, list) else "single")


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_rasterio_is_the_judge_of_tiffs(options: dict[str, Any]) -> None:
    array = np.random.default_rng(0).integers(1, 9999, (5, 37, 46)).astype(np.int16)
    data = tif(array, **options)
    np.testing.assert_array_equal(read_array(data, "a.tif"), array)
    told = set()
    for cut in (1, 10, 500, len(data) // 2, 1, 10):
        with pytest.raises(RasterError) as caught:
            read_array(data[:-cut], "a.tif")
        told.add(str(caught.value))
        assert "vsimem" not in str(caught.value)
    assert len(told) <= 4  # the same damage, the same words
