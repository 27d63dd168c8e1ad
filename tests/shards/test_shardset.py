"""Manifest, shard set and verify: what does not fit is refused, and named."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from shards import atomic
from shards.bands import SENTINEL2, esa_order, false_colour, true_colour
from shards.errors import BandstreamError
from shards.manifest import Manifest
from shards.shardset import ShardSet


@pytest.fixture
def copy(shard_set, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(shard_set, target)
    return target


def edit(folder, change):
    manifest = json.loads((folder / "dataset.json").read_text())
    change(manifest)
    (folder / "dataset.json").write_text(json.dumps(manifest))


def test_samples_are_what_tarfile_finds(shard_set):
    opened = ShardSet.open(shard_set)
    for split in opened.manifest.splits:
        number = 0
        for path in opened.paths(split):
            with tarfile.open(path) as tar:
                names = tar.getnames()
                for key in dict.fromkeys(name.partition(".")[0] for name in names):
                    sample = opened.read(split, number)
                    assert sample.key == key
                    for member, array in sample.arrays.items():
                        stored = np.load(io.BytesIO(tar.extractfile(f"{key}.{member}").read()), allow_pickle=False)
                        np.testing.assert_array_equal(array, stored)
                    assert sample.json == json.loads(tar.extractfile(f"{key}.json").read())
                    number += 1
        assert number == opened.size(split)


def test_labels_of_the_catalogue_are_those_of_the_shards(shard_set):
    opened = ShardSet.open(shard_set)
    name = next(iter(opened.manifest.labels))
    for split in opened.manifest.splits:
        stored = np.stack([opened.read(split, i).labels[name] for i in range(opened.size(split))])
        np.testing.assert_array_equal(opened.labels(split, name), stored)


def test_upsampled_bands_stand_in_manifest_order(shard_set):
    opened = ShardSet.open(shard_set)
    sample = opened.read("train", 0)
    image = opened.upsampled(sample)
    for channel, band in enumerate(opened.manifest.band_names):
        member, spec = next((m, a) for m, a in opened.manifest.arrays.items() if band in a.bands)
        plane = sample.arrays[member][spec.bands.index(band)]
        factor = image.shape[1] // plane.shape[0]
        np.testing.assert_array_equal(image[channel], np.kron(plane, np.ones((factor, factor))))


def test_an_unknown_split_is_named(shard_set):
    with pytest.raises(BandstreamError, match="no split 'dev': it has train"):
        ShardSet.open(shard_set).size("dev")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("bands"), "bands: Field required"),
        (lambda m: m.update(format_version=2), "format_version 2, this bandstream reads 1"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m["bands"].reverse(), "ESA order"),
        (lambda m: m["arrays"]["10m.npy"].update(offset=512), "10m.npy is said to begin at byte 512"),
        (lambda m: m.update(sample_bytes=m["sample_bytes"] + 512), "by its manifest"),
        (lambda m: m["arrays"]["10m.npy"]["bands"].__setitem__(0, "B03"), "arrays of date 0 hold"),
        (lambda m: m["splits"]["train"]["shards"].pop(), "do not add up"),
        (lambda m: m["statistics"].pop("B02"), "statistics"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="../x.tar"), "file"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copy, change, message):
    edit(copy, change)
    with pytest.raises(BandstreamError, match=message):
        ShardSet.open(copy)


def test_swapped_bands_of_one_array_are_the_manifests_word_but_other_shapes_are_refused(copy):
    edit(copy, lambda m: m["arrays"]["20m.npy"].update(shape=[6, 30, 120]))
    with pytest.raises(BandstreamError, match="20m"):
        ShardSet.open(copy)


def test_a_folder_without_a_manifest_says_what_to_do(tmp_path):
    with pytest.raises(BandstreamError, match="no shard set: it has no dataset.json"):
        ShardSet.open(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(BandstreamError, match="is not JSON"):
        ShardSet.open(tmp_path)


def test_damaged_shards_are_refused_at_opening(copy):
    shards = ShardSet.open(copy).paths("train")
    with shards[0].open("r+b") as file:
        file.truncate(file.seek(0, 2) - 512)
    with pytest.raises(BandstreamError, match=shards[0].name):
        ShardSet.open(copy)
    shards[0].unlink()
    with pytest.raises(BandstreamError, match="is missing"):
        ShardSet.open(copy)


def test_a_shard_of_another_stride_but_the_same_size_is_refused(copy):
    opened = ShardSet.open(copy)
    path = opened.paths("train")[0]
    data = bytearray(path.read_bytes())
    stride = opened.layout.sample_bytes
    data[stride : 2 * stride], data[:512] = data[:stride], bytes(512)
    path.write_bytes(data)
    with pytest.raises(BandstreamError, match=f"{path.name} does not fit its manifest"):
        ShardSet.open(copy)


def test_equal_sets_have_equal_fingerprints_and_others_do_not(copy):
    before = Manifest.read(copy).fingerprint()
    assert Manifest.read(copy).fingerprint() == before
    edit(copy, lambda m: m.update(seed=m["seed"] + 1))
    assert Manifest.read(copy).fingerprint() != before


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    atomic.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(path, {"a": float("nan")})

    def write_half():
        with atomic.replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_band_names_are_sorted_as_esa_does():
    assert esa_order(["B12", "B8A", "B09", "B08", "B01"]) == ["B01", "B08", "B8A", "B09", "B12"]
    assert list(SENTINEL2) == sorted(SENTINEL2, key=lambda b: SENTINEL2[b].wavelength_nm)
    with pytest.raises(BandstreamError, match="unknown band B8a"):
        esa_order(["B8a"])
    assert true_colour(["B02", "B03", "B04"]) == ("B04", "B03", "B02")
    assert true_colour(["red", "green", "blue"]) == ("red", "green", "blue")
    assert false_colour(["B03", "B04", "B8A"]) == ("B8A", "B04", "B03")
    assert false_colour(["red", "green", "blue"]) is None
