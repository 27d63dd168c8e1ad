"""MoCo v2 against loops: InfoNCE with a queue, how the queue moves, how keys are made, how their encoder follows."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shards.errors import BandstreamError
from tests.models.objectives.tiny import compare, cosine, randoms, tiny, views


def info_nce(query: np.ndarray, key: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """Equation 1 of He et al. 2020, a query at a time: its key among the queue's."""
    total = 0.0
    for n in range(len(query)):
        positive = math.exp(cosine(query[n], key[n]) / temperature)
        below = positive + sum(math.exp(cosine(query[n], negative) / temperature) for negative in queue)
        total -= math.log(positive / below)
    return total / len(query)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_the_loss_is_the_papers(temperature):
    objective = tiny("moco-v2", queue=7, temperature=temperature)
    queue = objective.queue.double().numpy()
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-6)
    compare(objective, randoms(2, 4, 6), lambda e: info_nce(e[0], e[1], queue, temperature), trained=1)


def test_symmetric_and_local_queries():
    objective = tiny("moco-v2", queue=7, symmetric=True)
    queue = objective.queue.double().numpy()

    def naive(e: list[np.ndarray]) -> float:
        # queries of views 0, 1 and of a local one, then keys of view 1 and view 0
        pairs = [(0, 3), (1, 4), (2, 3), (2, 4)]
        return float(np.mean([info_nce(e[query], e[key], queue, 0.2) for query, key in pairs]))

    compare(objective, randoms(5, 4, 6), naive, trained=3)
    plain = tiny("moco-v2", queue=7)
    queue = plain.queue.double().numpy()
    compare(plain, randoms(3, 4, 6), lambda e: sum(info_nce(e[q], e[2], queue, 0.2) for q in (0, 1)) / 2, trained=2)


def test_closed_forms():
    objective = tiny("moco-v2", queue=9, temperature=0.5)
    same = torch.ones(3, 6)
    objective.queue.copy_(F.normalize(torch.ones(9, 6), dim=1))
    collapsed = objective.loss([same, same])
    assert collapsed.loss.item() == pytest.approx(math.log(10), rel=1e-5)
    assert collapsed.metrics["top1"] == collapsed.metrics["top5"] == 0
    objective.queue.copy_(-objective.queue)
    apart = objective.loss([same, same])
    assert apart.loss.item() == pytest.approx(math.log(1 + 9 * math.exp(-4)), rel=1e-4)
    assert apart.metrics["top1"] == apart.metrics["top5"] == 1


def test_top_k_counts_keys_among_the_nearest():
    objective = tiny("moco-v2", queue=9)
    query, key = randoms(2, 30, 6)
    metrics = objective.loss([torch.tensor(query), torch.tensor(key)]).metrics
    nearer = [
        sum(cosine(q, negative) > cosine(q, k) for negative in objective.queue.double().numpy())
        for q, k in zip(query, key, strict=True)
    ]
    assert 0 < sum(count < 1 for count in nearer) < sum(count < 5 for count in nearer) < 30
    assert metrics["top1"].item() == pytest.approx(np.mean([count < 1 for count in nearer]))
    assert metrics["top5"].item() == pytest.approx(np.mean([count < 5 for count in nearer]))


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_queue_keeps_the_newest_keys(symmetric):
    objective = tiny("moco-v2", queue=11, symmetric=symmetric)
    kept = list(objective.queue.clone())  # oldest first
    at = 0
    for step in range(6):
        keys = [torch.tensor(each).float() for each in randoms(1 + symmetric, 4, 6, seed=step)]
        objective.loss([*keys, *keys])
        objective.after_step(step, 6)
        for key in F.normalize(torch.cat(keys), dim=1):
            kept = [*kept[1:], key]
            at = (at + 1) % 11
        torch.testing.assert_close(objective.queue.roll(-at, 0), torch.stack(kept))
        assert objective.place.item() == at


def test_a_batch_as_long_as_the_queue_replaces_it_and_a_longer_one_is_refused():
    objective = tiny("moco-v2", queue=4)
    keys = torch.randn(4, 6)
    objective.loss([keys, keys])
    objective.after_step(0, 1)
    torch.testing.assert_close(objective.queue, F.normalize(keys, dim=1))
    keys = torch.randn(5, 6)
    objective.loss([keys, keys])
    with pytest.raises(BandstreamError, match=r"^5 keys a step do not fit the queue of 4: raise queue$"):
        objective.after_step(0, 1)


def test_validation_leaves_the_queue_alone():
    objective = tiny("moco-v2").eval()
    before = objective.queue.clone()
    with torch.no_grad():
        objective.loss(objective(views(4)))
    objective.after_step(0, 1)
    assert torch.equal(objective.queue, before) and objective.place == 0
    objective.train()
    objective.loss(objective(views(4)))
    objective.after_step(0, 1)
    assert not torch.equal(objective.queue, before) and objective.place == 4


def test_an_outcomes_gradient_outlives_the_queues_move():
    objective = tiny("moco-v2")
    query = torch.randn(4, 6, requires_grad=True)
    loss = objective.loss([query, torch.randn(4, 6)]).loss
    (before,) = torch.autograd.grad(loss, query, retain_graph=True)
    objective.after_step(0, 1)
    (after,) = torch.autograd.grad(loss, query)
    assert torch.equal(before, after)


def test_the_key_encoder_follows():
    objective = tiny("moco-v2", momentum=0.9)
    names = ("key_encoder", "encoder"), ("key_head", "head")
    for step in range(2):
        with torch.no_grad():
            for parameter in [*objective.encoder.parameters(), *objective.head.parameters()]:
                parameter.add_(torch.randn_like(parameter))
        wanted = [
            0.9 * key.double() + 0.1 * online.double()
            for followed, leading in names
            for key, online in zip(
                getattr(objective, followed).parameters(), getattr(objective, leading).parameters(), strict=True
            )
        ]
        objective.after_step(step, 2)
        found = [key for followed, _ in names for key in getattr(objective, followed).parameters()]
        for one, other in zip(found, wanted, strict=True):
            assert not one.requires_grad
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_keys_of_shuffled_parts_are_put_back_in_order():
    objective = tiny("moco-v2", norm="batch", bn_samples=4)
    seen: list[torch.Tensor] = []
    objective.key_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    objective.key_encoder.eval()  # fixed statistics: a key is then its sample's alone, whatever the part
    objective.key_head.eval()
    _, second = views(13)
    _, keys = objective(views(13))
    assert [len(part) for part in seen] == [5, 4, 4]
    shuffled = torch.cat(seen)
    assert not torch.equal(shuffled, second)
    assert torch.equal(shuffled.flatten(1).sum(1).sort().values, second.flatten(1).sum(1).sort().values)
    seen.clear()
    objective.eval()
    torch.testing.assert_close(keys, objective(views(13))[1])
    assert [len(part) for part in seen] == [13]  # no shuffling where statistics are fixed


def test_keys_are_normalised_by_their_own_part_alone():
    objective = tiny("moco-v2", norm="batch", bn_samples=4)
    torch.manual_seed(5)
    _, keys = objective(views(8))
    torch.manual_seed(5)
    order = torch.randperm(8).tolist()
    _, second = views(8)
    for part in (order[:4], order[4:]):
        alone = objective.key_head(objective.key_encoder(second[part]))
        for place, sample in enumerate(part):
            torch.testing.assert_close(keys[sample], alone[place])


@pytest.mark.parametrize(("samples", "sizes"), [(3, [3]), (6, [3, 3]), (40, [20, 20]), (100, [34, 33, 33])])
def test_small_batches_are_shuffled_in_two_parts(samples, sizes):
    objective = tiny("moco-v2", norm="batch")
    seen: list[int] = []
    objective.key_encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    objective(views(samples))
    assert seen == sizes


def test_without_batch_statistics_nothing_is_shuffled():
    objective = tiny("moco-v2", bn_samples=2)
    sizes: list[int] = []
    objective.key_encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    objective(views(8))
    assert sizes == [8]
