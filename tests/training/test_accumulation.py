"""A step over micro-batches is the step over the joined batch, for every method; drop-out, batch norm, two ranks."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tests.training.methods import NAMES, small_objective, small_views
from training.accumulation import backward
from training.distributed import Place, on_all_ranks


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(found, expected, method=""):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=f"{method} {name}")


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("local", [0, 2])
def test_micro_batches_are_the_joined_batch(method, local):
    views = small_views(12, local)
    model = small_objective(method)
    for step in range(2):  # the second with a queue, and a momentum encoder that lags
        twin = small_objective(method)
        twin.load_state_dict(model.state_dict())
        joined = backward(twin, twin.loss, views)
        model.zero_grad()
        parted = backward(model, model.loss, views, 3)
        torch.testing.assert_close(parted.loss, joined.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parted.embeddings, joined.embeddings, rtol=1e-4, atol=1e-5)
        close(gradients(model), gradients(twin))
        assert len(gradients(model)) > 4
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(0.1 * p.grad)
        model.after_step(step, 2)
        views = small_views(12, local, seed=2 + step)


def test_unequal_micro_batches_are_the_joined_batch_too():
    one, other = small_objective("simclr"), small_objective("simclr")
    backward(one, one.loss, small_views(10), 3)
    backward(other, other.loss, small_views(10))
    close(gradients(one), gradients(other))


def test_the_second_pass_drops_what_the_first_did():
    """With drop-out, gradients are those of the loss that was told: as by hand, with the masks of each micro-batch."""
    views, model = small_views(8), small_objective("simclr", dropout=0.5)
    twin = small_objective("simclr", dropout=0.5)
    torch.manual_seed(5)
    outcome = backward(model, model.loss, views, 2)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    parts = [twin([view[k : k + 4] for view in views]) for k in (0, 4)]
    assert torch.get_rng_state().equal(after)
    by_hand = twin.loss([torch.cat(pieces) for pieces in zip(*parts, strict=True)])
    by_hand.loss.backward()
    torch.testing.assert_close(outcome.loss, by_hand.loss)
    close(gradients(model), gradients(twin))


@pytest.mark.parametrize("method", NAMES)
def test_running_statistics_move_once_a_micro_batch(method):
    model, twin = (small_objective(method, batch_norm=True) for _ in range(2))
    views = small_views(8)
    backward(model, model.loss, views, 2)
    for k in (0, 4):
        twin([view[k : k + 4] for view in views])
    for (name, one), (_, other) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        shuffled = method == "moco-v2" and name.startswith("key_")  # in parts that are drawn anew
        if ("running" in name or "tracked" in name) and not shuffled:
            torch.testing.assert_close(one, other, msg=name)


def one_rank(rank, world, rendezvous, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found = {}
    for method in NAMES:
        bare = small_objective(method)
        model = on_all_ranks(bare, Place(rank, world, torch.device("cpu")))
        reductions = []
        model.register_comm_hook(reductions, _counted)
        outcome = backward(model, bare.loss, [view.chunk(world)[rank] for view in small_views(12)], 2)
        loss = outcome.loss.detach().clone()
        dist.all_reduce(loss)
        found[method] = (loss / world, gradients(bare), len(reductions))
    if rank == 0:
        torch.save(found, results)
    dist.destroy_process_group()


def _counted(told, bucket):
    told.append(bucket.index())
    return allreduce_hook(None, bucket)


def test_two_ranks_with_micro_batches_are_one_joined_batch_and_synchronise_once(tmp_path):
    mp.start_processes(one_rank, (2, str(tmp_path / "meet"), str(tmp_path / "out.pt")), nprocs=2, start_method="spawn")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    for method in NAMES:
        model = small_objective(method)
        joined = backward(model, model.loss, small_views(12))
        loss, expected, reductions = found[method]
        torch.testing.assert_close(loss, joined.loss.detach(), rtol=1e-5, atol=1e-6, msg=method)
        close(expected, gradients(model), method)
        assert reductions == 1, method
