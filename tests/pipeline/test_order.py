"""Orders without a picture: bijections, mixed as they should be, the same on all ranks, and of no memory."""

import hashlib
import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.order import ORDER_VERSION, Order, Windows, permutation
from shards.errors import BandstreamError

shard_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5000), st.integers(-(2**40), 2**70), st.integers(0, 10**6))
def test_an_order_is_a_permutation(n, seed, epoch):
    np.testing.assert_array_equal(np.sort(permutation(np.arange(n), n, seed, epoch)), np.arange(n))


def test_orders_shuffle_globally_and_anew_in_every_epoch():
    n = 20_000
    orders = [permutation(np.arange(n), n, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for i, order in enumerate(orders):
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.03
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
        for other in orders[:i]:
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.03
    np.testing.assert_array_equal(permutation(np.array([10**9 - 1, 5]), 10**9, 0, 0) < 10**9, True)


@settings(max_examples=100, deadline=None)
@given(shard_sizes, st.integers(1, 15), st.integers(-(2**40), 2**70), st.integers(0, 10**6))
def test_windows_are_stretches_of_whole_shards(sizes, window, seed, epoch):
    windows = Windows(np.array(sizes), window)
    order = windows.permutation(np.arange(sum(sizes)), seed, epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(sum(sizes)))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    seen, at = [], 0
    while len(seen) < len(sizes):
        count = min(window, len(sizes) - len(seen))
        members = list(dict.fromkeys(shard_of[at:].tolist()))[:count]
        length = sum(sizes[shard] for shard in members)
        assert Counter(shard_of[at : at + length].tolist()) == {shard: sizes[shard] for shard in members}
        seen += members
        at += length
    assert at == sum(sizes) and sorted(seen) == list(range(len(sizes)))


def test_positions_of_a_window_order_may_be_asked_for_one_by_one_and_in_any_epoch():
    windows = Windows(np.array([7, 1, 30, 4]), 2)
    whole = {epoch: windows.permutation(np.arange(42), 3, epoch) for epoch in range(3)}
    for epoch, position in itertools.product((2, 0, 1), range(41, -1, -5)):
        assert windows.permutation(np.array([position]), 3, epoch)[0] == whole[epoch][position]
    assert len({order.tobytes() for order in whole.values()}) == 3


def evenness(permutations):
    """p-value of: each of k elements comes to each of k places alike, for permutations (m, k)."""
    count, k = permutations.shape
    table = np.zeros((k, k))
    np.add.at(table, (np.arange(k), permutations), 1)
    statistic = ((table - count / k) ** 2 / (count / k)).sum() * (k - 1) / k
    return stats.chi2((k - 1) ** 2).sf(statistic)


def test_tiny_orders_are_even():
    """Where a bad mixer would show first."""
    for n in (2, 3, 5, 12):
        orders = np.array([permutation(np.arange(n), n, 5, epoch) for epoch in range(2000)])
        assert evenness(orders) > 1e-4
        if n == 5:  # not only each place for itself
            every = Counter(map(tuple, orders.tolist()))
            assert stats.chisquare([every[each] for each in itertools.permutations(range(n))]).pvalue > 1e-4


@pytest.mark.parametrize("window", [1, 2])
def test_windows_are_even(window):
    windows = Windows(np.full(4, 3), window)
    shards, mixed = [], []
    for epoch in range(1000):
        order, _ = windows.shards(5, epoch)
        place = windows.permutation(np.arange(12), 5, epoch)
        unmixed = order.argsort()[place // 3] * 3 + place % 3
        shards.append(order)
        mixed.append(unmixed.reshape(-1, window * 3) - np.arange(0, 12, window * 3)[:, None])
    assert evenness(np.array(shards)) > 1e-4
    assert evenness(np.concatenate(mixed)) > 1e-4
    alike = np.mean(
        [(each[0] == each[-1]).all() for each in mixed]
    )  # windows of an epoch are mixed each in its own way
    assert alike < 2 / math.factorial(window * 3)


@settings(max_examples=60, deadline=None)
@given(shard_sizes, st.integers(1, 40), st.integers(1, 4), st.booleans(), st.sampled_from([None, 1, 3]))
def test_ranks_share_an_epoch_without_repeats(sizes, each, world, training, window):
    samples, batch = sum(sizes), each * world
    windows = Windows(np.array(sizes), window) if window and training else None
    if training and batch > samples:
        with pytest.raises(BandstreamError, match="full batches only"):
            Order(samples, batch, 0, True)
        return
    orders = [Order(samples, batch, 0, training, rank, world, windows) for rank in range(world)]
    flat = np.concatenate([order.batch(2, start) for order in orders for start in order.starts()])
    assert len(np.unique(flat)) == len(flat)
    assert len(flat) == samples - (samples % batch if training else 0)
    assert Order(samples, batch, 0, training).left_out() == samples - len(flat)
    if training:  # a global batch is one stretch of the epoch, whoever serves which part of it
        alone = Order(samples, batch, 0, True, windows=windows)
        for start in alone.starts():
            together = np.concatenate([order.batch(2, start) for order in orders])
            np.testing.assert_array_equal(together, alone.batch(2, start))


@settings(max_examples=60, deadline=None)
@given(shard_sizes, st.lists(st.tuples(st.integers(1, 8), st.integers(1, 6), st.integers(0, 9)), max_size=4))
def test_an_epoch_in_batches_of_several_sizes_misses_only_the_last_tail(sizes, legs):
    """Legs of (ranks, samples a rank, batches at most): each goes on where the one before stopped."""
    samples, cursor, served = sum(sizes), 0, []
    truth = Windows(np.array(sizes), 2).permutation(np.arange(samples), 4, 1)
    for number, (world, each, most) in enumerate(legs):
        if world * each > samples:
            continue
        orders = [
            Order(samples, world * each, 4, True, rank, world, Windows(np.array(sizes), 2)) for rank in range(world)
        ]
        starts = orders[0].starts(cursor)
        starts = starts if number == len(legs) - 1 else starts[:most]
        left_out = orders[0].left_out(cursor)
        for start in starts:
            served += [order.batch(1, start) for order in orders]
            cursor = start + world * each
        assert orders[0].left_out(cursor) == left_out
        if number == len(legs) - 1:
            assert samples - cursor == left_out
    flat = np.concatenate([np.zeros(0, int), *served])
    np.testing.assert_array_equal(flat, truth[:cursor])


def test_an_order_takes_no_memory_that_grows_with_the_samples():
    samples, shard = 10**8, 1000
    for windows, most in ((None, 300e3), (Windows(np.full(samples // shard, shard), 64), 6e6)):
        tracemalloc.start()
        order = Order(samples, 512, 0, True, windows=windows)
        starts = order.starts()
        for start in (starts[0], starts[len(starts) // 2], starts[-1]):
            assert len(np.unique(order.batch(3, start))) == 512
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most


def test_the_order_of_a_version_stays_what_it_was():
    """A run that is resumed with a later version must get the order it began with, or be refused."""
    windows = Windows(np.array([100, 37, 64, 1]), 2)
    orders = [
        permutation(np.arange(10_000), 10_000, seed=3, epoch=5),
        windows.permutation(np.arange(202), seed=3, epoch=5),
    ]
    digests = [hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] for order in orders]
    assert (ORDER_VERSION, digests) == (1, ["22e29475567d19b7", "b872623e6edc16df"])


@pytest.mark.parametrize("position", [-1, 12])
def test_positions_outside_an_epoch_are_refused(position):
    with pytest.raises(IndexError, match="0 to 11"):
        permutation(np.array([3, position]), 12, 0, 0)
    with pytest.raises(IndexError):
        Windows(np.array([5, 7]), 1).permutation(np.array([3, position]), 0, 0)


@pytest.mark.parametrize("window", [0, -1])
def test_windows_of_no_shards_are_refused(window):
    with pytest.raises(BandstreamError, match="at least 1"):
        Windows(np.array([5]), window)


def test_windows_of_another_set_are_refused():
    with pytest.raises(BandstreamError, match="windows over 5 samples"):
        Order(6, 2, 0, True, windows=Windows(np.array([5]), 1))


def test_what_windows_cost_in_mixing(monkeypatch):
    """A sample of the proof: pairs of one shard meet as often as chance, or as the windows, make them."""
    from tests.proofs import order_windows

    monkeypatch.setattr(order_windows, "SAMPLES", 55_000)
    found = order_windows.main((5, None))["windows"]
    pairs = 512 * 511 / 2
    assert found["all"]["pairs_of_one_shard"] == pytest.approx(pairs * 999 / 54_999, rel=0.02)
    assert found["5"]["pairs_of_one_shard"] == pytest.approx(pairs * 999 / 4_999, rel=0.05)  # few batches span windows
    assert found["5"]["distance_of_shard_mates"] == pytest.approx(5 / 55 / 3, rel=0.02)
    assert found["5"]["pairs_met_again_next_epoch"] > 2 * found["all"]["pairs_met_again_next_epoch"]
