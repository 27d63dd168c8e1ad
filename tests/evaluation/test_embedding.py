"""Embeddings in Zarr and Parquet: what they hold, and that kills leave no trace in their bytes."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from cli import bandstream
from evaluation import embedding as module
from evaluation.embedding import Embedding, write_parquet
from evaluation.features import image_statistics
from evaluation.samples import sample_keys
from evaluation.subject import Subject
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.pipeline.making import make_set

ROOT = Path(__file__).parents[2]
SIZES = {"train": 53, "val": 20, "test": 21}
STATISTICS = ("--encoder", "statistics", "--device", "cpu", "--threads", 1, "--batch-size", 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding") / "set"
    return make_set(folder, SIZES, arrays={"10m.npy": (["B02", "B03", "B04", "B08"], 16)})


def call(*words: object) -> None:
    bandstream.main(args=[str(word) for word in words], standalone_mode=False)


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, and of those beside it that were left over."""
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_rows_are_the_samples_in_order_with_their_keys_places_dates_and_labels(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 16)
    call("embed", made, *STATISTICS, "--out", tmp_path / "e.zarr", "--parquet", tmp_path / "new" / "e.parquet")
    opened = ShardSet.open(made)
    group = zarr.open_group(tmp_path / "e.zarr", mode="r")
    assert sorted(group.group_keys()) == ["test", "train", "val"]
    assert group["train/embedding"].chunks == (16, 28) and group["train/embedding"].shape == (53, 28)
    mean, std = np.array([(s.mean, s.std) for s in opened.manifest.statistics.values()]).T[:, :, None, None]
    for split, size in SIZES.items():
        held = {name: group[f"{split}/{name}"][:] for name in ("embedding", "key", "date", "lon", "lat", "labels")}
        assert held["key"].tolist() == [opened.read(split, i).key for i in range(size)]
        assert set(held["date"].tolist()) == {"2017-06-01"} and not held["lon"].any() and not held["lat"].any()
        assert np.array_equal(held["labels"], opened.labels(split, "land_cover"))
        views = [(opened.upsampled(opened.read(split, i)) - mean) / std for i in range(size)]
        expected = image_statistics(torch.from_numpy(np.stack(views).astype(np.float32))).numpy()
        assert np.allclose(held["embedding"], expected, atol=1e-4)
    table = pq.read_table(tmp_path / "new" / "e.parquet").to_pydict()
    assert table["split"] == ["test"] * 21 + ["train"] * 53 + ["val"] * 20, "splits by name"
    assert table["key"][21:74] == sample_keys(opened, "train").tolist()
    assert table["labels"][21:74] == [[n % 19] for n in range(53)]
    assert np.array_equal(np.array(table["embedding"][21:74], np.float32), group["train/embedding"][:])


def test_some_bands_alone_in_the_order_asked_for(made: Path, tmp_path: Path) -> None:
    for name, more in (("all", ()), ("some", ("--bands", "B04,B02"))):
        call("embed", made, *STATISTICS, "--splits", "val", *more, "--out", tmp_path / f"{name}.zarr")
    every, some = (zarr.open_group(tmp_path / f"{name}.zarr", mode="r") for name in ("all", "some"))
    assert some.attrs["bands"] == ["B04", "B02"] and list(some.attrs["statistics"]) == ["B02", "B04"]
    by_band = every["val/embedding"][:].reshape(SIZES["val"], 7, 4)
    np.testing.assert_allclose(some["val/embedding"][:], by_band[:, :, [2, 0]].reshape(SIZES["val"], 14), atol=1e-6)
    with pytest.raises(BandstreamError):
        call("embed", made, *STATISTICS, "--splits", "train", "--out", tmp_path / "some.zarr")


def test_splits_are_added_and_what_is_there_is_left_alone(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    call("embed", made, *STATISTICS, "--out", out, "--splits", "val")
    before = {path: path.stat().st_mtime_ns for path in (out / "val").rglob("*") if path.is_file()}
    call("embed", made, *STATISTICS, "--out", out, "--splits", "val,test")
    assert {path: path.stat().st_mtime_ns for path in (out / "val").rglob("*") if path.is_file()} == before
    assert sorted(zarr.open_group(out, mode="r").group_keys()) == ["test", "val"]
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_mixing_is_refused_with_what_differs(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    call("embed", made, *STATISTICS, "--out", out, "--splits", "val")
    other = make_set(tmp_path / "other", SIZES, arrays={"10m.npy": (["B02", "B03", "B04", "B08"], 16)}, single=True)
    for words, said in (
        ((other, *STATISTICS, "--out", out), "data differ"),
        ((made, *STATISTICS, "--view-size", 8, "--out", out), "view_size differ"),
        ((made, *STATISTICS, "--encoder", "random:tu-resnet10t", "--out", out), "encoder, weights differ"),
        ((made, *STATISTICS, "--out", tmp_path / "other"), "no group of"),
        ((made, *STATISTICS, "--out", tmp_path / "x.zarr", "--splits", "dev"), "no split 'dev'"),
    ):
        with pytest.raises(BandstreamError, match=said):
            call("embed", *words)
    assert not (tmp_path / "x.zarr").exists()
    with pytest.raises(BandstreamError, match="no group of"):
        write_parquet(tmp_path / "x.zarr", tmp_path / "x.parquet")


def test_a_set_without_labels_is_embedded_too(made: Path, tmp_path: Path) -> None:
    opened = ShardSet.open(made)
    opened.manifest = opened.manifest.model_copy(update={"labels": {}})
    subject = Subject("image statistics", image_statistics, None)
    Embedding(opened, subject, tmp_path / "e.zarr", 8, None, None).write("val", threads=1)
    assert "labels" not in zarr.open_group(tmp_path / "e.zarr", mode="r")["val"]
    assert write_parquet(tmp_path / "e.zarr", tmp_path / "e.parquet") == 20


KILLED = """
import itertools, os, pathlib, signal, sys
from cli import bandstream
import evaluation.embedding as module, evaluation.commands.embed, evaluation.subject, pipeline.loader, zarr

module.BLOCK_ROWS = 16

def mortal(after):
    "Die by SIGKILL before the n-th rename or wait for the disk: amid chunks, between blocks, before publishing."
    left = itertools.count(after, -1)
    def dying(function):
        def counted(*words, **options):
            if next(left) <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*words, **options)
        return counted
    for name in ("replace", "rename"):
        setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
    os.fsync = dying(os.fsync)

made, out = sys.argv[1:]
words = [made, "--encoder", "statistics", "--device", "cpu", "--threads", "1", "--batch-size", "8", "--out"]
for after in (1, 9, 17, 26, 33, 41, 58, 70, None):  # one process after the other, on one folder
    child = os.fork()
    if not child:
        if after is not None:
            mortal(after)
        bandstream.main(args=["embed", *words, out], standalone_mode=False)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(after, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "finished", flush=True)
"""


def test_kills_leave_the_same_bytes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 16)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    out = tmp_path / "killed" / "e.zarr"
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, made, out], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    ended = [line.split()[-1] for line in ran.stdout.splitlines() if line.split()[-1] in ("9", "finished")]
    assert ended.count("9") >= 6 and ended[-1] == "finished", ran.stdout
    call("embed", made, *STATISTICS, "--out", tmp_path / "whole" / "e.zarr")
    assert tree(out) == tree(tmp_path / "whole" / "e.zarr")


def test_an_interrupted_run_goes_on_only_with_the_same_encoder_and_batches(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 16)
    opened, calls = ShardSet.open(made), iter(range(100))

    def failing(views: torch.Tensor) -> torch.Tensor:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return image_statistics(views)

    subject = Subject("image statistics", failing, None)
    with pytest.raises(KeyboardInterrupt):
        Embedding(opened, subject, tmp_path / "e.zarr", 8, None, None).write("train", threads=1)
    for batch, size, said in ((4, None, "--batch-size 8"), (8, 8, "view_size differ")):
        with pytest.raises(BandstreamError, match=said):
            Embedding(opened, subject, tmp_path / "e.zarr", batch, size, None).write("train", threads=1)
    assert Embedding(opened, subject, tmp_path / "e.zarr", 8, None, None).write("train", threads=1) == 53 - 32
