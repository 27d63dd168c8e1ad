"""Sets under URLs of web servers and other stores: the samples of the folder, or an error that names the URL."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.remote import files, store
from shards.remote.cache import Part
from shards.shardset import ShardSet
from tests.pipeline.making import make_set
from tests.shards.cached import bytes_in
from tests.web import Site, web


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 1.0)
    monkeypatch.setattr(store, "FIRST_PAUSES_S", (0.02, 0.1))
    monkeypatch.setattr(store, "PAUSES_S", (0.02, 0.1, 0.1))
    monkeypatch.setattr(files, "AGAIN_S", (0.02, 0.1))


@pytest.fixture
def ranges() -> bool:
    """Whether the web server knows of them."""
    return False


@pytest.fixture
def site(shard_set: Path, tmp_path: Path, ranges: bool) -> Iterator[Site]:
    """A copy of the set behind a web server; `tmp_path / "set"`."""
    shutil.copytree(shard_set, tmp_path / "set")
    with web(tmp_path / "set", ranges) as site:
        yield site


def equal(one: ShardSet, other: ShardSet) -> bool:
    """Whether two sets hold the same samples, labels and catalogue."""
    for split in one.manifest.splits:
        for number in range(one.size(split)):
            first, second = one.read(split, number), other.read(split, number)
            assert first.key == second.key and first.json == second.json
            for name, array in first.arrays.items():
                np.testing.assert_array_equal(array, second.arrays[name])
            for name, array in first.masks.items():
                np.testing.assert_array_equal(array, second.masks[name])
        np.testing.assert_array_equal(one.labels(split, "land_cover"), other.labels(split, "land_cover"))
    return one.manifest == other.manifest


@pytest.mark.parametrize("ranges", [True, False])
def test_over_http(shard_set: Path, site: Site, tmp_path: Path) -> None:
    opened = ShardSet.open(f"{site.url}/", tmp_path / "cache")
    assert set(site.asked) == {"dataset.json"}
    assert equal(ShardSet.open(shard_set), opened)
    shards = [shard.file for split in opened.manifest.splits.values() for shard in split.shards]
    assert site.asked == dict.fromkeys([*shards, "samples.parquet", "dataset.json"], 1)
    assert site.ranged == 0
    again = ShardSet.open(site.url, tmp_path / "cache")
    assert equal(opened, again)
    assert site.asked == dict.fromkeys([*shards, "samples.parquet"], 1) | {"dataset.json": 2}


def test_errors_that_pass(shard_set: Path, site: Site, tmp_path: Path) -> None:
    for name in ("train-000000.tar", "samples.parquet"):
        site.faults[name] = ["503", "500", "429"]
    site.faults["dataset.json"] = ["503", "flip"]
    site.faults["train-000001.tar"] = ["cut", "flip", "404"]
    site.faults["train-000002.tar"] = ["unsized"]
    site.faults["test-000000.tar"] = ["flip", "cut", "cut"]
    assert equal(ShardSet.open(shard_set), ShardSet.open(site.url, tmp_path / "cache"))
    assert not any(site.faults.values())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("flip", r"does not have the sha256 of its manifest \(asked 3 times\): it was damaged or replaced there"),
        ("cut", "failed again and again .*mend that and run the same command again, what was fetched is kept"),
        ("404", r"is missing \(asked 3 times\)"),
        ("403", "access denied .*403.*check the credentials, and that they may read there"),
        ("500", "failed again and again .*500"),
    ],
)
def test_errors_for_good(site: Site, tmp_path: Path, fault: str, message: str) -> None:
    opened = ShardSet.open(site.url, tmp_path / "cache")
    site.faults["train-000001.tar"] = [fault] * 20
    with pytest.raises(BandstreamError, match=f"^{site.url}.*{message}"):
        opened.read("train", 20)
    assert opened.read("train", 0).key
    assert bytes_in(tmp_path / "cache") == opened.file("train", 0).bytes


@pytest.mark.parametrize("harm", ["shorter", "longer", "other", "empty"])
def test_objects_of_another_size(shard_set: Path, site: Site, tmp_path: Path, harm: str) -> None:
    path = tmp_path / "set" / "train-000001.tar"
    content = path.read_bytes()
    changed = {
        "shorter": content[:-1],
        "longer": content + b"more",
        "other": path.with_name("train-000000.tar").read_bytes(),
        "empty": b"",
    }
    path.write_bytes(changed[harm])
    opened = ShardSet.open(site.url, tmp_path / "cache")
    if harm == "longer":  # what the manifest speaks of is there
        assert opened.read("train", 20).json == ShardSet.open(shard_set).read("train", 20).json
        return
    size = len(changed[harm])
    what = f"has {size} bytes, by its manifest {len(content)}" if harm != "other" else "does not have the sha256"
    with pytest.raises(BandstreamError, match=rf"^{site.url}/train-000001\.tar {what}"):
        opened.read("train", 20)
    assert bytes_in(tmp_path / "cache") == 0


def test_manifests_that_are_none(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "set" / "dataset.json"
    whole = path.read_text()
    for content, message in (
        ("<html>", "dataset.json: not a JSON object"),
        ("[]", "dataset.json: not a JSON object"),
        (whole.replace('"seed": 0', '"seed": 1'), r"dataset.json: changed since it was written.*\(read 3 times\)"),
    ):
        path.write_text(content)
        with pytest.raises(BandstreamError, match=f"^{site.url}/{message}"):
            ShardSet.open(site.url, tmp_path / "cache")
    path.unlink()
    with pytest.raises(BandstreamError, match=f"^{site.url} is no shard set: it has no dataset.json"):
        ShardSet.open(site.url, tmp_path / "cache")


def test_a_set_that_was_changed_meets_nothing_old(site: Site, shard_set: Path, tmp_path: Path) -> None:
    first = ShardSet.open(site.url, tmp_path / "cache")
    first.read("train", 0)
    folder = tmp_path / "set"
    shutil.rmtree(folder)
    make_set(folder, {"train": 20})
    second = ShardSet.open(site.url, tmp_path / "cache")
    sample, expected = (opened.read("train", 3) for opened in (second, ShardSet.open(folder)))
    assert sample.key == expected.key
    np.testing.assert_array_equal(sample.arrays["10m.npy"], expected.arrays["10m.npy"])
    with pytest.raises(BandstreamError, match=r"train-000001\.tar has \d+ bytes|does not have the sha256"):
        first.read("train", 20)  # opened before, and replaced under it
    assert first.read("train", 0).key == ShardSet.open(shard_set).read("train", 0).key


def test_a_copy_that_was_damaged_here_is_fetched_again(shard_set: Path, site: Site, tmp_path: Path) -> None:
    opened = ShardSet.open(site.url, tmp_path / "cache")
    opened.read("train", 0)
    copy = tmp_path / "cache" / opened.file("train", 0).local_name
    content = bytearray(copy.read_bytes())
    content[100_000] ^= 1
    copy.write_bytes(content)
    again = ShardSet.open(site.url, tmp_path / "cache")
    with pytest.warns(RuntimeWarning, match=rf"{copy}, a copy of {site.url}/train-000000.tar, was damaged on this"):
        sample = again.read("train", 0)
    np.testing.assert_array_equal(sample.arrays["10m.npy"], ShardSet.open(shard_set).read("train", 0).arrays["10m.npy"])
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == opened.file("train", 0).sha256
    assert site.asked["train-000000.tar"] == 2


def test_a_shard_that_does_not_fit_its_manifest(site: Site, tmp_path: Path) -> None:
    """Its checksum is right, and it holds something else: the headers are looked at, as in a folder."""
    path = tmp_path / "set" / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[:512] = bytes(512)
    path.write_bytes(content)
    told = json.loads((tmp_path / "set" / "dataset.json").read_text())
    told["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    Manifest.model_validate(told).write(tmp_path / "set")
    with pytest.raises(BandstreamError, match=rf"^{site.url}/train-000000\.tar does not fit its manifest"):
        ShardSet.open(site.url, tmp_path / "cache").read("train", 0)


def test_no_room(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROOM_S", 0.3)
    opened = ShardSet.open(site.url)
    size = opened.file("train", 0).bytes
    small = ShardSet.open(site.url, tmp_path / "cache", cache_gb=1.5 * size / 1e9)
    with small.hold("train", 0):
        begin = time.monotonic()
        with pytest.raises(BandstreamError, match=r"no room for http.*train-000001\.tar \(.* GB\).*GB are in use"):
            small.read("train", 20)
        assert time.monotonic() - begin < 5
    assert small.read("train", 20).key
    tiny = ShardSet.open(site.url, tmp_path / "cache", cache_gb=0.5 * size / 1e9)
    with pytest.raises(BandstreamError, match=r"train-000000\.tar has .* GB, the cache"):
        tiny.read("train", 0)


def test_other_stores(shard_set: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(shard_set), "/remote-set", recursive=True)
    assert equal(ShardSet.open(shard_set), ShardSet.open("memory://remote-set", tmp_path / "cache"))
    assert ShardSet.open(f"file://{shard_set}").root == shard_set
    memory.rm("/remote-set/samples.parquet")
    opened = ShardSet.open("memory://remote-set", tmp_path / "other")
    with pytest.raises(BandstreamError, match=r"^memory://remote-set/samples\.parquet is missing"):
        opened.labels("train", "land_cover")


def test_urls_that_cannot_be(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(BandstreamError, match="Protocol not known: nowhere"):
        ShardSet.open("nowhere://a/b", cache)
    with pytest.raises(BandstreamError, match="looks like a URL that was taken for a path"):
        ShardSet.open(Path("s3://bucket/set"), cache)
    with pytest.raises(BandstreamError, match="^http://127.0.0.1:9/set cannot be reached"):
        ShardSet.open("http://user:secret@127.0.0.1:9/set", cache)


def test_a_part_is_given_back_when_the_fetch_fails(site: Site, tmp_path: Path) -> None:
    opened = ShardSet.open(site.url, tmp_path / "cache")
    assert opened.remote is not None
    part = opened.remote.cache.claim(opened.file("train", 0))
    assert isinstance(part, Part)
    site.faults["train-000000.tar"] = ["404"] * 3
    with pytest.raises(BandstreamError, match="is missing"):
        opened.hold("train", 0, part)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]
