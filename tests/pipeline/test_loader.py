"""Coverage, resume and what a view depends on."""

import hashlib
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.loader import Loader
from pipeline.views import ViewRecipe
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.pipeline.making import make_set

RECIPE = ViewRecipe(size=24, blur=0.5, gain=0.2, offset=0.1, noise=0.1, grey=0.2, band_dropout=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("loader") / "set", {"train": 77, "val": 23})


def digests(batches):
    """(epoch-independent) sample → digest of each of its views."""
    return {
        index: tuple(hashlib.sha256(view[n].numpy().tobytes()).hexdigest() for view in batch.views)
        for batch in batches
        for n, index in enumerate(batch.indices.tolist())
    }


def serve(folder, batch_size=7, epoch=0, **options):
    loader = Loader(folder, "train", batch_size, [RECIPE, RECIPE], seed=9, **options)
    loader.set_epoch(epoch)
    served = digests(loader)
    loader.close()
    return served


def test_a_view_depends_on_seed_epoch_sample_and_view_alone(folder):
    truth = serve(folder, threads=1)
    assert len(truth) == 77
    assert all(first != second for first, second in truth.values())
    others = [
        serve(folder, 64),
        serve(folder, threads=2),
        *(serve(folder, 9, rank=rank, world_size=3) for rank in range(3)),
    ]
    for other in others:
        assert other and all(truth[index] == views for index, views in other.items())
    assert all(truth[index] != views for index, views in serve(folder, epoch=1).items())


@pytest.mark.parametrize("world", [1, 3])
def test_training_repeats_nothing_and_leaves_out_the_reported_tail(folder, world):
    loaders = [Loader(folder, "train", 12, [RECIPE], rank=rank, world_size=world) for rank in range(world)]
    orders = []
    for _ in range(3):
        served = [batch.indices for loader in loaders for batch in loader]
        assert all(len(indices) == 12 // world for indices in served)
        flat = torch.cat(served).tolist()
        assert len(set(flat)) == len(flat) == 77 - loaders[0].left_out
        assert loaders[0].left_out == 77 % 12
        orders.append(flat)
    assert orders[0] != orders[1] != orders[2]
    assert {loader.epoch for loader in loaders} == {3}


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_serves_each_sample_once(folder, world):
    for _ in range(2):  # loaders anew, too
        loaders = [
            Loader(folder, "val", 4, [ViewRecipe.plain(24)], training=False, rank=r, world_size=world)
            for r in range(world)
        ]
        for _ in range(3):
            flat = torch.cat([batch.indices for loader in loaders for batch in loader]).tolist()
            assert sorted(flat) == list(range(23))


def test_resuming_goes_on_with_the_same_bits_on_any_number_of_ranks(folder):
    whole = Loader(folder, "train", 6, [RECIPE], seed=2)
    batches = [batch for _ in range(2) for batch in whole]
    per_epoch = len(whole)
    for stop in (0, 1, 5, per_epoch - 1, per_epoch, per_epoch + 4):
        first = Loader(folder, "train", 6, [RECIPE], seed=2)
        taken = 0
        while taken < stop:
            for _ in first:
                taken += 1
                if taken == stop:
                    break
        state = first.state_dict()
        rest = Counter(item for batch in batches[stop:] for item in digests([batch]).items())
        for world in (1, 2):
            resumed = Counter()
            for rank in range(world):
                loader = Loader(folder, "train", 6, [RECIPE], seed=2, rank=rank, world_size=world)
                loader.load_state_dict(state)
                while loader.epoch < 2:
                    resumed.update(digests(loader).items())
            assert resumed == rest


def test_an_iteration_left_in_the_middle_goes_on_where_it_was(folder):
    loader = Loader(folder, "train", 6, [RECIPE])
    seen = [next(iter(loader)).indices.tolist() for _ in range(3)]
    seen += [batch.indices.tolist() for batch in loader]
    assert seen == [batch.indices.tolist() for batch in Loader(folder, "train", 6, [RECIPE])]


def test_batches_stay_valid_while_they_are_held(folder):
    loader = Loader(folder, "train", 6, [RECIPE, RECIPE])
    held = list(loader)
    again = Loader(folder, "train", 6, [RECIPE, RECIPE])
    assert digests(held) == {k: v for batch in again for k, v in digests([batch]).items()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"batch_size": 12}, "batch size: 6 then, 12 now"),
        ({"views": [ViewRecipe(size=32)]}, "views"),
        ({"bands": ["B02", "B03"]}, "bands"),
        ({"subset": np.arange(50)}, "subset"),
        ({"split": "val"}, "split"),
        ({"dtype": "float16"}, "dtype: float32 then, float16 now"),
    ],
)
def test_resuming_on_other_data_is_refused_by_name(folder, change, named):
    options = {"split": "train", "batch_size": 6, "views": [RECIPE]}
    state = Loader(folder, **options).state_dict()
    with pytest.raises(BandstreamError, match=named):
        Loader(folder, **(options | change)).load_state_dict(state)


def test_resuming_on_another_shard_set_is_refused(folder, tmp_path):
    other = make_set(tmp_path / "other", {"train": 78, "val": 22})
    with pytest.raises(BandstreamError, match="shard set"):
        Loader(other, "train", 6, [RECIPE]).load_state_dict(Loader(folder, "train", 6, [RECIPE]).state_dict())


def test_subsets_stay_subsets(folder):
    subset = np.array([3, 70, 11, 5])
    loader = Loader(folder, "train", 2, [RECIPE], subset=subset)
    for _ in range(2):
        assert sorted(torch.cat([batch.indices for batch in loader]).tolist()) == [3, 5, 11, 70]
    for wrong in ([1, 1], [77], [-1], []):
        with pytest.raises(BandstreamError, match="subset"):
            Loader(folder, "train", 1, [RECIPE], subset=np.array(wrong, np.int64))


def test_labels_and_samples_belong_together(folder):
    loader = Loader(folder, "train", 7, [ViewRecipe.plain(120)], labels="land_cover", seed=4)
    opened = ShardSet.open(folder)
    table = opened.labels("train", "land_cover")
    mean, std = (
        np.array([getattr(opened.manifest.statistics[b], k) for b in loader.bands])[[1, 2, 3, 7]]
        for k in ("mean", "std")
    )
    for batch in loader:
        np.testing.assert_array_equal(batch.labels.numpy(), table[batch.indices])
        for n, index in enumerate(batch.indices.tolist()):
            stored = opened.read("train", index).arrays["10m.npy"]
            view = (stored - mean[:, None, None]) / std[:, None, None]
            np.testing.assert_allclose(batch.views[0][n][[1, 2, 3, 7]], view, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 100}, "full batches only"),
        ({"batch_size": 7, "world_size": 2}, "does not divide over 2 ranks"),
        ({"labels": "crops"}, "no labels 'crops': it has land_cover"),
        ({"masks": "crops"}, "no masks 'crops': it has none"),
        ({"bands": ["B02", "B10"]}, "no band B10|no statistics for B10"),
        ({"split": "test"}, "no split 'test'"),
        ({"device": "cuda:0"}, "device 'cuda:0' is neither 'cpu' nor 'cuda'"),
    ],
)
def test_what_cannot_be_served_is_refused(folder, options, message):
    with pytest.raises(BandstreamError, match=message):
        Loader(folder, **({"split": "train", "batch_size": 7, "views": [RECIPE]} | options))


def test_a_mask_goes_with_one_view(tmp_path):
    folder = make_set(tmp_path / "set", {"train": 4}, mask=lambda number, grid: np.zeros(grid, np.uint8))
    with pytest.raises(BandstreamError, match="one view"):
        Loader(folder, "train", 2, [RECIPE, RECIPE], masks="land_cover")


def test_damaged_shards_never_reach_the_graph(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "train-000002.tar"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(BandstreamError, match=r"train-000002\.tar has \d+ bytes"):
        Loader(copy, "train", 7, [RECIPE])


def test_a_shard_that_shrinks_while_it_is_read_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    loader = Loader(copy, "train", 7, [RECIPE])
    for path in copy.glob("train-*.tar"):
        with path.open("r+b") as file:
            file.truncate(1000)
    with pytest.raises(BandstreamError, match="it changed while it was read"):
        list(loader)


def test_the_share_of_waiting_is_measured(folder):
    loader = Loader(folder, "train", 7, [RECIPE])
    list(loader)
    assert loader.waiting > 0
