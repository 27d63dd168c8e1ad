"""One process or many: `torchrun` sets the environment, a plain start needs none."""

import inspect
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import nn

from models.objectives import Objective
from shards.errors import BandstreamError


@dataclass(frozen=True)
class Place:
    """Where this process stands: rank of `world_size`, and its device (`cpu` or `cuda`)."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def distributed(device: str) -> Iterator[Place]:
    """Join the group that torchrun started, if it did; leave it at the end. `device`: `auto`, `cpu` or `cuda`.

    After an error, which the other ranks may not have met, the group is not left: NCCL would wait for them, who wait
    for this one, and nobody would read of the error.
    """
    device = _found(device)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise BandstreamError(f"no GPU for process {local} of this machine, which has {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    if world_size > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    orderly = False
    try:
        yield Place(int(os.environ.get("RANK", 0)), world_size, torch.device(device))
        orderly = True
    except SystemExit:
        orderly = True
        raise
    finally:
        if orderly and dist.is_initialized():
            dist.destroy_process_group()


def alone(work: str, device: str) -> Place:
    """The place of work that one process does. Raises BandstreamError where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise BandstreamError(f"{work} runs in one process: start it without torchrun")
    return Place(0, 1, torch.device(_found(device)))


def _found(device: str) -> str:
    """`cpu` or `cuda`. Raises BandstreamError where a GPU is asked for and none can be used."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BandstreamError("no GPU can be used here: take --device cpu, or check the driver")
    return device


@contextmanager
def notices() -> Iterator[list[int]]:
    """A list to which SIGTERM and SIGUSR1 add themselves, as long as the block lasts, instead of ending the process."""
    told: list[int] = []
    kinds = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(kind, lambda number, frame: told.append(number)) for kind in kinds]
    try:
        yield told
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def any_rank(flag: bool, place: Place) -> bool:
    """Whether the flag is set on any rank: all ranks get the same answer."""
    if place.world_size == 1:
        return flag
    told = torch.tensor([int(flag)], device=place.device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())


def same_on_all_ranks(number: int, place: Place) -> bool:
    """Whether all ranks have the same number: all get the same answer."""
    if place.world_size == 1:
        return True
    ends = torch.tensor([number, -number], device=place.device)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    return bool(ends[0] == -ends[1])


def mean_over_ranks(values: torch.Tensor, place: Place) -> torch.Tensor:
    """The mean of a tensor over all ranks."""
    if place.world_size > 1:
        dist.all_reduce(values)
        values = values / place.world_size
    return values


def join_norms(objective: Objective) -> None:
    """SyncBatchNorm in the place of batch normalisation, but in parts that are `per_rank`.

    By timm, whose norms hold their activation, which torch's own conversion leaves out.
    """
    for part, module in list(objective.named_children()):
        if part not in objective.per_rank:
            setattr(objective, part, convert_sync_batchnorm(module))


def on_all_ranks(objective: Objective, place: Place) -> nn.Module:
    """The objective, its gradients averaged over all ranks, on GPUs with the batch statistics of all ranks joined, but
    for its parts whose own statistics matter (`per_rank`). Buffers are left to `share_buffers`, for sending a queue of
    negatives with every step takes longer than the step."""
    if place.device.type == "cuda":
        join_norms(objective)
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch's new name for it
    return nn.parallel.DistributedDataParallel(objective, **{name: False})  # type: ignore[arg-type]


def share_buffers(modules: Iterable[nn.Module], place: Place) -> None:
    """Give all ranks the buffers of the first: running statistics, where no SyncBatchNorm keeps them the same."""
    if place.world_size > 1:
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
