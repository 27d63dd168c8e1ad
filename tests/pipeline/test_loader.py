"""Coverage, resume and what a view depends on."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.loader import Loader
from pipeline.reader import DEPTH, Reader
from pipeline.views import ViewRecipe
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from tests.pipeline.making import BANDS, make_set

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


def overwritten(batches):
    """Batches whose bytes are spoilt as soon as their buffer is given back."""
    for indices, samples, done in batches:

        def spoil(samples=samples, done=done):
            samples[:] = 255
            done()

        yield indices, samples, spoil


def test_the_graph_reads_buffers_where_they_lie_and_no_longer_than_it_keeps_them(folder, monkeypatch):
    def served(spoilt):
        loader = Loader(folder, "train", 6, [RECIPE, RECIPE], labels="land_cover")
        buffers, batches = [], loader._reader.batches
        if spoilt:
            monkeypatch.setattr(loader._reader, "batches", lambda plan: overwritten(batches(plan)))
        monkeypatch.setattr(
            loader._reader, "buffer", lambda n: buffers.append(Reader.buffer(loader._reader, n)) or buffers[-1]
        )
        held = [batch for _ in range(3) for batch in loader]
        loader.close()
        assert len(buffers) <= 3 * (DEPTH + 3), "a ring, not a buffer a batch"
        labels = [batch.labels.tolist() for batch in held]
        return [digests([batch]) for batch in held], labels

    assert served(spoilt=True) == served(spoilt=False)


def test_a_loader_that_is_dropped_takes_no_memory_from_under_the_graph(folder):
    code = f"""
import gc
from pipeline.loader import Loader
from pipeline.views import ViewRecipe
for _ in range(6):
    batches = iter(Loader({str(folder)!r}, "train", 6, [ViewRecipe(size=96, blur=1.0)] * 2))
    next(batches)
    del batches
    gc.collect()
next(iter(Loader({str(folder)!r}, "train", 6, [ViewRecipe(size=96)])))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_epoch_goes_on_over_other_ranks_and_batch_sizes(folder):
    """4 ranks, then 2, then 8, each with a global batch of its own: each sample once but for the reported tail."""
    options = {"views": [RECIPE], "seed": 9, "window": 3, "threads": 1}
    truth = digests(Loader(folder, "train", 7, **options))
    served, state = [], None
    for world, batch_size, batches in ((4, 12, 2), (2, 10, 1), (8, 16, 99)):
        loaders = [Loader(folder, "train", batch_size, rank=rank, world_size=world, **options) for rank in range(world)]
        for loader in loaders:
            if state:
                with pytest.raises(BandstreamError, match=r"batch size: \d+ then, \d+ now.*elastic=True"):
                    loader.load_state_dict(state)
                loader.load_state_dict(json.loads(json.dumps(state)), elastic=True)
            left_out = loader.left_out
            served += [digests([batch]) for _, batch in zip(range(batches), loader, strict=False)]
        if loaders[0].epoch == 0:
            state = loaders[0].state_dict()
            assert {loader.cursor for loader in loaders} == {state["cursor"]}
            assert {loader.left_out for loader in loaders} == {left_out}
    flat = {index: views for batch in served for index, views in batch.items()}
    assert len(flat) == sum(map(len, served)) == 77 - left_out
    assert left_out == (77 - 24 - 10) % 16
    assert all(truth[index] == views for index, views in flat.items())
    assert {loader.epoch for loader in loaders} == {1}
    assert loaders[0].left_out == 77 % 16


def test_what_is_saved_in_the_rest_of_an_elastic_epoch_is_resumed_as_ever(folder):
    first = Loader(folder, "train", 6, [RECIPE])
    next(iter(first))
    second = Loader(folder, "train", 10, [RECIPE])
    second.load_state_dict(first.state_dict(), elastic=True)
    next(iter(second))
    third = Loader(folder, "train", 10, [RECIPE])
    third.load_state_dict(second.state_dict())
    assert digests(third) == digests(second)


def test_windows_change_the_order_and_nothing_else(folder):
    truth = serve(folder)
    loader = Loader(folder, "train", 7, [RECIPE] * 2, seed=9, window=2)
    batches = list(loader)
    assert digests(batches) == truth
    shards = [index // 10 for batch in batches for index in batch.indices.tolist()]
    for shard in range(8):  # of 8 shards, two at a time: no shard is needed for longer than its window
        places = [place for place, of in enumerate(shards) if of == shard]
        assert places[-1] - places[0] < 20
    assert sum(one != other for one, other in pairwise(shards[:17])) > 4
    assert shards != [index // 10 for batch in loader for index in batch.indices.tolist()]


def test_windows_over_a_subset_hold_the_shards_it_has(folder):
    subset = np.random.default_rng(0).permutation(np.r_[3:9, 30:50, 70:77])
    loaders = [
        Loader(folder, "train", 4, [RECIPE], subset=subset, window=2, rank=rank, world_size=2) for rank in range(2)
    ]
    served = torch.stack([torch.stack([batch.indices for batch in loader]) for loader in loaders], 1).flatten().tolist()
    assert len(set(served)) == len(served) == 33 - 33 % 4 and set(served) <= set(subset.tolist())
    shards = [index // 10 for index in served]
    assert len(set(shards)) == 4  # two windows of two shards each
    assert all(max(i for i, s in enumerate(shards) if s == shard) - shards.index(shard) < 20 for shard in set(shards))


@pytest.fixture(scope="module")
def loader(folder):
    return Loader(folder, "train", 6, [RECIPE])


STATISTICS = dict.fromkeys(BANDS, (1000.0, 300.0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"batch_size": 12}, "batch size: 6 then, 12 now"),
        ({"views": [ViewRecipe(size=32)]}, "views.0.size: 24 then, 32 now"),
        ({"views": [RECIPE, RECIPE]}, "views.1: nothing then"),
        ({"bands": BANDS[::-1]}, r"bands: \['B01', 'B02'.* then, \['B12', 'B11'.* now"),
        ({"statistics": STATISTICS}, r"statistics.B01: \[.*\] then, \[1000.0, 300.0\] now"),
        ({"subset": np.arange(50)}, "subset: None then, [0-9a-f]{64} now"),
        ({"window": 2}, "window: None then, 2 now"),
        ({"split": "val"}, "split: train then, val now"),
        ({"dtype": "float16"}, "dtype: float32 then, float16 now"),
    ],
)
def test_resuming_on_other_data_is_refused_by_name(folder, change, named):
    options = {"split": "train", "batch_size": 6, "views": [RECIPE]}
    state = Loader(folder, **options).state_dict()
    loader = Loader(folder, **(options | change))
    for elastic in (False,) if "batch_size" in change else (False, True):
        with pytest.raises(BandstreamError, match=f"cannot resume on other data \\(.*{named}") as refused:
            loader.load_state_dict(state, elastic)
        assert "\n" not in str(refused.value)
    assert (loader.epoch, loader.cursor) == (0, 0)


@pytest.mark.parametrize("name", ["ORDER_VERSION", "DRAWS_VERSION", "dali"])
def test_resuming_with_other_versions_is_refused_by_name(folder, monkeypatch, name):
    state = Loader(folder, "train", 6, [RECIPE]).state_dict()
    monkeypatch.setattr(f"pipeline.loader.{name}", SimpleNamespace(__version__="0.1") if name == "dali" else 0)
    named = {"ORDER_VERSION": "order: 1 then, 0 now", "dali": "DALI: .* then, 0.1 now"}.get(
        name, r"draws: \d+ then, 0 now"
    )
    with pytest.raises(BandstreamError, match=named):
        Loader(folder, "train", 6, [RECIPE]).load_state_dict(state)


def test_resuming_on_another_shard_set_is_refused(folder, tmp_path):
    other = make_set(tmp_path / "other", {"train": 78, "val": 22})
    with pytest.raises(BandstreamError, match="shard set"):
        Loader(other, "train", 6, [RECIPE]).load_state_dict(Loader(folder, "train", 6, [RECIPE]).state_dict())


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda state: [1, 2], "a loader's state is a mapping, not"),
        (lambda state: {}, "no epoch, cursor, fingerprint"),
        (lambda state: {"model": 1, **{k: v for k, v in state.items() if k != "cursor"}}, "it has no cursor"),
        (lambda state: state | {"fingerprint": "x"}, "fingerprint 'x' is damaged"),
        (lambda state: state | {"cursor": -6}, "cursor -6 is damaged, whole numbers from 0 to 77"),
        (lambda state: state | {"cursor": 78}, "cursor 78 is damaged"),
        (lambda state: state | {"cursor": 6.0}, "cursor 6.0 is damaged"),
        (lambda state: state | {"cursor": "6"}, "cursor '6' is damaged"),
        (lambda state: state | {"cursor": True}, "cursor True is damaged"),
        (lambda state: state | {"cursor": None}, "cursor None is damaged"),
        (lambda state: state | {"epoch": -1}, "epoch -1 is damaged"),
        (lambda state: state | {"fingerprint": {}}, "shard set: nothing then"),
        (lambda state: state | {"fingerprint": state["fingerprint"] | {"season": "x"}}, "season: x then, nothing now"),
    ],
)
def test_a_damaged_or_foreign_state_is_told_in_one_line(loader, tamper, message):
    for elastic in (False, True):
        with pytest.raises(BandstreamError, match=message) as refused:
            loader.load_state_dict(tamper(loader.state_dict()), elastic)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    assert (loader.epoch, loader.cursor) == (0, 0)


def test_a_state_survives_json_and_torch(folder, tmp_path):
    options = {"subset": np.arange(60), "window": 2, "statistics": STATISTICS, "bands": BANDS[:3]}
    loader = Loader(folder, "train", 6, [RECIPE], **options)
    next(iter(loader))
    state = loader.state_dict()
    torch.save(state, tmp_path / "state.pt")
    for saved in (json.loads(json.dumps(state)), torch.load(tmp_path / "state.pt", weights_only=True)):
        assert saved == state
        again = Loader(folder, "train", 6, [RECIPE], **options)
        again.load_state_dict(saved)
        assert (again.epoch, again.cursor) == (0, 6)
    state["fingerprint"]["seed"] = 5  # a state is the caller's own
    with pytest.raises(BandstreamError, match="seed: 5 then"):
        loader.load_state_dict(state)


def test_evaluation_is_not_resumed(folder):
    training = Loader(folder, "train", 6, [RECIPE])
    evaluation = Loader(folder, "train", 6, [RECIPE], training=False)
    with pytest.raises(BandstreamError, match="evaluation begins anew"):
        evaluation.load_state_dict(training.state_dict())
    with pytest.raises(BandstreamError, match="training: False then, True now"):
        training.load_state_dict(evaluation.state_dict())


def test_a_loader_that_is_moved_while_it_is_iterated_says_so(folder):
    loader = Loader(folder, "train", 6, [RECIPE])
    start = loader.state_dict()
    batches = iter(loader)
    next(batches)
    loader.load_state_dict(start)
    with pytest.raises(BandstreamError, match="in the middle of an iteration"):
        next(batches)
    assert len(list(loader)) == 12


def test_subsets_stay_subsets(folder):
    subset = np.array([3, 70, 11, 5])
    loader = Loader(folder, "train", 2, [RECIPE], subset=subset)
    for _ in range(2):
        assert sorted(torch.cat([batch.indices for batch in loader]).tolist()) == [3, 5, 11, 70]
    for wrong in ([1, 1], [77], [-1], np.zeros(0, np.int64), [[1, 2]], [0.5], [True, False]):
        with pytest.raises(BandstreamError, match="subset"):
            Loader(folder, "train", 1, [RECIPE], subset=np.asarray(wrong))


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
        ({"bands": ["B02", "B10"]}, "has no bands B10: it has B01"),
        ({"bands": ["B02", "B02"]}, "B02, B02: name each once"),
        ({"split": "test"}, "no split 'test'"),
        ({"window": 0}, "windows of 0 shards"),
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


def test_killed_loaders_go_on_with_the_same_bits():
    """A sample of the proof: two processes that are killed together, twice."""
    from tests.proofs.loader_resume import main

    found = main({2: 2}, {"in windows of 4 shards": 4}, {})
    assert found["n"] == 2
