"""What is learned, by name, and the part of it that is used: against reading every sample one by one."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.target import choose_target, class_counts, labelled
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.pipeline.making import make_set
from tests.web import web

SIZES = {"train": 60, "val": 3}
SIDE = 16


def fields(number: int, grid: tuple[int, int]) -> np.ndarray:
    """Class 1 everywhere, class 3 in a third of the masks, class 9 in one of ten, some pixels ignored."""
    mask = np.ones(grid, np.uint8)
    if number % 3 == 0:
        mask[:, : 1 + number % 7] = 3
    if number % 10 == 0:
        mask[-2:] = 9
    mask[: number % 4] = 255
    return mask


def opened(folder: Path, **options: object) -> ShardSet:
    arrays = {"10m.npy": (["B02", "B03"], SIDE)}
    return ShardSet.open(make_set(folder, SIZES, arrays=arrays, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return opened(tmp_path_factory.mktemp("target") / "set", mask=fields)


def test_classes_are_counted_in_each_sample(made: ShardSet, tmp_path: Path) -> None:
    masks = class_counts(made, "train", choose_target(made, "segment"))
    labels = class_counts(made, "train", choose_target(made, "classify"))
    assert masks.shape == labels.shape == (60, 19)
    for i in range(60):
        sample = made.read("train", i)
        mask = sample.masks["land_cover"]
        assert masks[i].tolist() == [(mask == k).sum() for k in range(19)]
        assert labels[i].tolist() == sample.labels["land_cover"].tolist()  # type: ignore[union-attr]
    single = opened(tmp_path / "set", single=True)
    target = choose_target(single, "classify", "land_cover")
    assert target.kind == "single"
    assert np.array_equal(class_counts(single, "train", target).argmax(1), single.labels("train", "land_cover"))


def test_masks_of_a_url_are_counted_alike(made: ShardSet, tmp_path: Path) -> None:
    with web(made.root, ranges=True) as site:
        remote = ShardSet.open(site.url, cache=tmp_path / "cache", cache_gb=1)
        counts = class_counts(remote, "train", choose_target(remote, "segment"))
    assert np.array_equal(counts, class_counts(made, "train", choose_target(made, "segment")))


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_stratified_by_the_classes_in_them_and_nested(made: ShardSet, seed: int) -> None:
    target = choose_target(made, "segment")
    counts = class_counts(made, "train", target)
    before: set[int] = set()
    for fraction in (0.1, 0.3, 0.5, 1.0):
        used = labelled(made, target, fraction, seed)
        assert before <= set(used.subset.tolist())
        before = set(used.subset.tolist())
        assert used.counts.tolist() == counts[used.subset].sum(0).tolist()
        there = (counts[used.subset] > 0).sum(0)
        assert np.abs(there - fraction * (counts > 0).sum(0)).max() <= 1.5, "each class in its share"
    assert used.missing == []


def test_classes_that_a_fraction_leaves_out_are_named(tmp_path: Path) -> None:
    made = opened(tmp_path / "set", label=lambda n: 5 if n == 0 else n % 2, single=True)
    everything = labelled(made, choose_target(made, "classify"), 1.0, 0)
    assert everything.missing == [], "classes of which the set has no sample are not missing"
    few = [labelled(made, choose_target(made, "classify"), 0.1, seed) for seed in range(3)]
    assert ["class 5"] in [used.missing for used in few]


@pytest.mark.parametrize(
    ("options", "task", "fraction", "told"),
    [
        ({"mask": lambda n, grid: np.full(grid, 255, np.uint8)}, "segment", 1.0, "all 60 labelled masks are ignored"),
        ({"mask": lambda n, grid: np.full(grid, 4, np.uint8)}, "segment", 0.5, r"one class alone \(class 4\)"),
        ({"single": True, "label": lambda n: 2}, "classify", 1.0, r"one class alone \(class 2\)"),
        ({}, "classify", 0.01, "label fraction 0.01 of 60 samples leaves one: raise it"),
        ({}, "classify", 0.0, "label fraction 0"),
        ({}, "segment", 1.0, "has no masks"),
    ],
)
def test_what_cannot_be_learned_is_one_line(
    tmp_path: Path, options: dict[str, object], task: str, fraction: float, told: str
) -> None:
    made = opened(tmp_path / "set", **options)
    with pytest.raises(BandstreamError, match=told) as caught:
        labelled(made, choose_target(made, task), fraction, 0)
    assert "\n" not in str(caught.value)


def test_an_unknown_target_is_told_what_there_is(made: ShardSet) -> None:
    for task, what in (("classify", "labels"), ("segment", "masks")):
        with pytest.raises(BandstreamError, match=f"no {what} 'soil': it has land_cover"):
            choose_target(made, task, "soil")
