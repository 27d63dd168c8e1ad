"""What is watched, on features of known spread and rank, and what is said of a collapse."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import BandstreamError
from training.distributed import Place
from training.recipe import Watching
from training.watch import (
    MEASURED,
    PATIENCE,
    Watch,
    alignment,
    effective_rank,
    feature_std,
    measure,
    sameness,
    uniformity,
)

PLACE = Place(0, 1, torch.device("cpu"))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_spread_is_one_on_the_sphere_and_zero_at_a_point():
    assert feature_std(noise(4000, 64)).item() == pytest.approx(1, abs=0.01)
    assert feature_std(noise(1, 64).expand(50, 64)).item() == pytest.approx(0, abs=1e-6)
    point = noise(1, 64)
    assert feature_std(F.normalize(point) + 0.01 * noise(500, 64) / 8).item() == pytest.approx(0.01, rel=0.1)


def test_alignment_and_uniformity_are_the_papers():
    x, y = noise(20, 6), noise(20, 6, seed=1)
    a, b = ((v / v.norm(dim=1, keepdim=True)).double().numpy() for v in (x, y))
    assert alignment(x, y).item() == pytest.approx(np.mean([((p - q) ** 2).sum() for p, q in zip(a, b, strict=True)]))
    pairs = [math.exp(-2 * ((p - q) ** 2).sum()) for p, q in itertools.combinations(a, 2)]
    assert uniformity(x).item() == pytest.approx(math.log(np.mean(pairs)), rel=1e-5)
    assert uniformity(x[:1].expand(9, 6)).item() == pytest.approx(0, abs=1e-5)
    assert uniformity(noise(500, 512)).item() == pytest.approx(-4, abs=0.02)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_effective_rank_is_that_of_the_features(rank):
    left, _ = torch.linalg.qr(noise(40, rank) - noise(40, rank).mean(0))
    right, _ = torch.linalg.qr(noise(30, rank, seed=1))
    x = left @ right.T + 7  # singular values all one, but for what the mean takes: it is orthogonal to `left`
    assert effective_rank(x).item() == pytest.approx(rank, rel=1e-3)
    singular = np.linalg.svd((noise(9, 5).double() - noise(9, 5).double().mean(0)).numpy(), compute_uv=False)
    share = singular / singular.sum()
    assert effective_rank(noise(9, 5)).item() == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_sameness_is_zero_for_the_same_and_one_for_strangers():
    x = noise(300, 32)
    assert sameness(x, x).item() == pytest.approx(0, abs=1e-5)
    assert sameness(x, noise(300, 32, seed=1)).item() == pytest.approx(1, abs=0.02)


def test_the_encoder_is_looked_at_as_it_will_be_used_and_left_as_it_was():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    views = [noise(6, 3, 2, 2), noise(6, 3, 2, 2, seed=1)]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    random = torch.get_rng_state()
    found = measure(encoder, views, noise(9, 4))
    assert torch.get_rng_state().equal(random) and encoder.training
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())
    features = encoder.eval()(views[0])
    told = dict(zip(MEASURED, found.tolist(), strict=True))
    assert told["encoder_std"] == pytest.approx(feature_std(features).item())
    assert told["feature_std"] == pytest.approx(feature_std(noise(9, 4)[:6]).item())


HEALTHY = {"loss": 4.0, "feature_std": 0.6, "uniformity": -2.0, "encoder_std": 0.2, "alignment": 0.1, "sameness": 0.4,
           "effective_rank": 20.0, "embedding_rank": 30.0}  # fmt: skip


def judged(changes, first=HEALTHY, steps=40):
    """What a watch says at each look of an epoch of 40 steps whose numbers change at half of it."""
    watch = Watch(Watching(), 40, PLACE)
    assert watch.look_steps == 4
    said = [watch.judge(1, first)]
    for step in range(4, steps + 1, 4):
        state = watch.state_dict()
        watch = Watch(Watching(), 40, PLACE)  # as if resumed
        watch.load_state_dict(state)
        said.append(watch.judge(step, first | changes if step > 20 else first))
    return said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"feature_std": 0.01}, "embeddings collapsed"),
        ({"encoder_std": 0.01}, "encoder's features collapsed"),
        ({"effective_rank": 1.1}, "encoder's features collapsed onto a line"),
        ({"embedding_rank": 1.1}, "embeddings collapsed onto a line"),
        ({"sameness": 1.0}, "no longer tells samples apart"),
        ({"loss": 16.0}, "loss grew"),
    ],
)
def test_a_collapse_is_named_within_the_epoch(changes, named):
    said = judged(changes)
    assert [bool(word) for word in said].index(True) == 5 + PATIENCE and named in said[-1]


def test_a_healthy_run_and_one_that_begins_alike_are_left_alone():
    assert not any(judged({"feature_std": 0.3, "encoder_std": 0.1, "sameness": 0.9}))
    alike = HEALTHY | {"feature_std": 0.02, "encoder_std": 0.004, "sameness": 0.99, "effective_rank": 1.4}
    assert not any(judged({"feature_std": 0.015, "encoder_std": 0.003, "sameness": 1.0}, alike))


def test_numbers_that_are_not_finite_are_remembered_and_rollbacks_are_counted():
    watch = Watch(Watching(rollbacks=2), 40, PLACE)
    watch.note(torch.tensor(1.0), torch.tensor(2.0))
    assert watch.all_finite()
    watch.note(torch.tensor(1.0), torch.tensor(math.inf))
    watch.note(torch.tensor(1.0), torch.tensor(2.0))
    assert not watch.all_finite() and watch.all_finite()
    watch.go_back("x", "y")
    watch.go_back("x", "y")
    assert watch.factor == 0.25
    with pytest.raises(BandstreamError, match="x, after 2 rollbacks: y"):
        watch.go_back("x", "y")


def test_weights_are_good_to_go_back_to_beyond_the_grace_and_without_doubts():
    watch = Watch(Watching(), 40, PLACE)
    watch.judge(1, HEALTHY)
    assert watch.grace == 20 and not watch.is_well(20) and watch.is_well(21)
    watch.judge(22, HEALTHY | {"feature_std": 0.001})
    assert not watch.is_well(22)
    watch.judge(23, HEALTHY)
    assert watch.is_well(23)
