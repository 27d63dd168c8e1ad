"""Our shards are plain WebDataset: `webdataset` and Hugging Face `datasets` open them, with no code of ours."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.building.build import Options, ingest
from ingest.sources.images import Images
from shards.shardset import Sample, ShardSet

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def picture_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of twelve classes: labels are `cls`, of two digits."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(36):
        path = root / "in" / f"class{number % 12:02d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "PNG")
        path.write_bytes(stream.getvalue())
    ingest(Images(root / "in"), root / "set", Options(shard_samples=10))
    return root / "set"


@pytest.fixture(params=["shard_set", "picture_set"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def ours(opened: ShardSet, split: str) -> Iterator[Sample]:
    return (opened.read(split, index) for index in range(opened.size(split)))


def check(opened: ShardSet, sample: Sample, found: dict[str, Any]) -> None:
    """Everything of a sample, as another program has read it: members by name."""
    manifest = opened.manifest
    assert found["__key__"] == sample.key
    for member, array in sample.arrays.items():
        np.testing.assert_array_equal(found[member], array)
    for name, label in manifest.labels.items():
        np.testing.assert_array_equal(found[label.member], sample.labels[name])
    for name, mask in manifest.masks.items():
        np.testing.assert_array_equal(found[mask.member], sample.masks[name])
    assert found["json"] == sample.json
    members = {*sample.arrays, *(label.member for label in manifest.labels.values()), "json"}
    members |= {mask.member for mask in manifest.masks.values()}
    assert {name for name in found if not name.startswith("__")} == members


def test_webdataset(folder: Path) -> None:
    import webdataset

    opened = ShardSet.open(folder)
    for split in opened.manifest.splits:
        urls = [str(path) for path in opened.paths(split)]
        theirs = webdataset.WebDataset(urls, shardshuffle=False).decode()
        count = 0
        for sample, found in zip(ours(opened, split), theirs, strict=True):
            for member, array in opened.manifest.arrays.items():
                assert found[member].dtype == array.dtype
            check(opened, sample, found)
            count += 1
        assert count == opened.size(split)


def test_hugging_face(folder: Path, tmp_path: Path) -> None:
    import datasets

    opened = ShardSet.open(folder)
    files = {split: [str(path) for path in opened.paths(split)] for split in opened.manifest.splits}
    for split in files:
        theirs = datasets.load_dataset(
            "webdataset", data_files=files, split=split, cache_dir=str(tmp_path)
        ).with_format("numpy")
        assert len(theirs) == opened.size(split)
        for member, array in opened.manifest.arrays.items():  # its `numpy` makes int64 of all integers
            assert array.dtype in str(theirs.features[member])
        for sample, found in zip(ours(opened, split), theirs, strict=True):
            found["json"] = plain(found["json"])
            check(opened, sample, found)


def plain(value: Any) -> Any:
    """Python's own numbers, text and lists for NumPy's."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
