"""Verify: a changed byte anywhere, and files that are missing, extra, swapped or stale, are named."""

import hashlib
import json
import shutil

import pytest

from shards import catalogue
from shards.errors import BandstreamError
from shards.manifest import Manifest, changed
from shards.shardset import ShardSet
from shards.verify import verify

EXTRA = dict.fromkeys(("country", "tile", "processing_baseline"), str)


@pytest.fixture
def copy(shard_set, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(shard_set, target)
    return target


def as_of_early(folder):
    """Take from the manifest what early writers did not put there."""
    manifest = json.loads((folder / "dataset.json").read_text())
    for name in ("columns", "files", "manifest_sha256"):
        del manifest[name]
    (folder / "dataset.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def test_a_sound_set_has_no_problems_and_every_byte_is_counted(shard_set):
    told = []
    assert verify(shard_set, lambda done, total: told.append((done, total))) == []
    size = sum(path.stat().st_size for path in shard_set.glob("*.tar"))
    assert told[-1] == (size, size)


def test_single_bits_anywhere_are_found():
    """A few of the flips that the long proof does in their thousand."""
    from tests.proofs.verify_flips import main

    assert main(flips=60, seed=3)["found"] == 60


def test_missing_extra_swapped_and_stale_files_are_named(copy):
    first, second = ShardSet.open(copy).paths("train")[:2]
    kept = first.read_bytes(), second.read_bytes()
    first.write_bytes(kept[1])
    second.write_bytes(kept[0])
    problems = verify(copy)
    assert f"{first.name}: it holds what belongs to {second.name}" in problems
    assert f"{second.name}: it holds what belongs to {first.name}" in problems
    first.write_bytes(kept[0])
    second.write_bytes(kept[1])
    assert verify(copy) == []
    (copy / "train-999999.tar").write_bytes(kept[0])
    assert verify(copy) == ["train-999999.tar: not in the manifest"]
    (copy / "train-999999.tar").unlink()
    kept_index = first.with_suffix(".idx").read_bytes()
    shutil.copy(second.with_suffix(".idx"), first.with_suffix(".idx"))
    assert f"{first.stem}.idx: stale, its rows do not fit {first.name}" in verify(copy)
    first.with_suffix(".idx").write_bytes(kept_index)
    second.unlink()
    assert verify(copy) == [f"{second.name}: missing"]


@pytest.mark.parametrize("name", ["samples.parquet", "rejected.jsonl", "train-000000.idx"])
def test_each_file_is_missed(copy, name):
    (copy / name).unlink()
    assert verify(copy) == [f"{name}: missing"]


def test_the_manifest_is_covered_by_its_own_checksum(copy):
    path = copy / "dataset.json"
    sound = path.read_bytes()
    stated = json.loads(sound)["manifest_sha256"]
    # any language can do this: the file, its own digits as zeros
    assert hashlib.sha256(sound.replace(stated.encode(), b"0" * 64)).hexdigest() == stated
    assert sound == Manifest.read(copy).encoded()
    for old, new in [(b'"Pastures"', b'"Pasturez"'), (b"\n }", b"\n\t}"), (stated[:9].encode(), b"000000000")]:
        assert sound.count(old) >= 1
        path.write_bytes(sound.replace(old, new, 1))
        assert verify(copy)[0].startswith("dataset.json: changed since it was written")
    path.write_bytes(sound[:-1])
    assert "dataset.json" in verify(copy)[0]


def test_a_manifest_that_cannot_be_read_is_an_error(copy):
    path = copy / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b"{", b"[", 1))
    with pytest.raises(BandstreamError, match=r"dataset.json"):
        verify(copy)


def test_sets_of_early_writers_are_held_to_what_their_manifest_has(copy):
    as_of_early(copy)
    assert verify(copy) == []
    assert Manifest.read(copy).files is None
    assert changed((copy / "dataset.json").read_bytes()) == ""
    path = copy / "rejected.jsonl"
    path.write_text('{"path": "x", "reason": "new", "detail": ""}\n')
    assert verify(copy) == ["rejected.jsonl: its reasons are not those the manifest counts"]


@pytest.mark.parametrize("column", ["key", "split", "shard", "position", "labels"])
def test_a_catalogue_that_says_otherwise_than_the_shards_is_found_without_a_checksum(copy, column):
    as_of_early(copy)
    table = catalogue.read(copy / catalogue.FILE).to_pydict()
    values = table[column]
    other = next(number for number, value in enumerate(values) if value != values[0])
    values[0], values[other] = values[other], values[0]
    with catalogue.writing(copy, EXTRA, ["labels"]) as add:
        add(table)
    (problem,) = verify(copy)
    assert problem.startswith("samples.parquet: does not list the samples where the shards hold them")


def test_catalogues_that_cannot_be_read_are_problems(copy):
    as_of_early(copy)
    rows = catalogue.read(copy / catalogue.FILE).to_pydict()
    with catalogue.writing(copy, EXTRA, ["labels"]) as add:
        add({name: values[:-1] for name, values in rows.items()})
    assert verify(copy) == ["samples.parquet: lists 95 samples, by the manifest 96"]
    with catalogue.writing(copy, EXTRA) as add:
        add(rows)
    assert verify(copy) == ["samples.parquet: has no column labels"]
    (copy / "samples.parquet").write_bytes(b"x")
    assert verify(copy)[0].startswith("samples.parquet: cannot be read")


def test_a_key_that_occurs_twice_is_found(copy):
    """Two equal shards under two names, which the manifest states."""
    manifest = json.loads((copy / "dataset.json").read_text())
    shards = manifest["splits"]["train"]["shards"]
    for end in ("tar", "idx"):
        shutil.copy(copy / f"train-000000.{end}", copy / f"train-000001.{end}")
    shards[1] = {**shards[0], "file": "train-000001.tar"}
    (copy / "dataset.json").write_text(json.dumps(manifest))
    problems = verify(copy)
    repeated = [problem for problem in problems if "also stands in train-000000.tar" in problem]
    assert len(repeated) == shards[0]["samples"]


def test_a_shard_that_cannot_be_read_is_a_problem(copy, monkeypatch):
    import errno

    from shards import verify as module

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error", str(copy / "train-000000.tar"))

    monkeypatch.setattr(module, "_fill", fail)
    assert "train-000000.tar: cannot be read (Input/output error)" in verify(copy)
