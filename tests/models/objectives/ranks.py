"""Three steps of every objective, as one process or one of several: what test_ranks.py compares."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.models.objectives.tiny import tiny, views

CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("simclr", {}, (8, 8, 6)),
    ("moco-v2", {"queue": 12}, (8, 8, 6)),
    ("moco-v2", {"queue": 21, "symmetric": True}, (8, 8)),
    ("moco-v3", {"momentum": 0.5}, (8, 8, 6)),
    ("byol", {"momentum": 0.5}, (8, 8, 6)),
    ("simsiam", {}, (8, 8, 6)),
    ("vicreg", {}, (8, 8, 6)),
]
"""Method, knobs, sizes of the views. Queues wrap within the three steps."""


def run(rank: int = 0, world: int = 1) -> list[dict[str, torch.Tensor]]:
    """What each case's three steps gave: losses and metrics, means over ranks; gradients; all that moved."""
    return [_steps(*case, rank, world) for case in CASES]


def _steps(name: str, knobs: dict[str, Any], sizes: tuple[int, ...], rank: int, world: int) -> dict[str, torch.Tensor]:
    objective = tiny(name, seed=rank, **knobs)  # DistributedDataParallel makes weights and queues those of rank 0
    forward: nn.Module = nn.parallel.DistributedDataParallel(objective) if world > 1 else objective
    optimiser = torch.optim.SGD([parameter for parameter in objective.parameters() if parameter.requires_grad], 0.1)
    found: dict[str, torch.Tensor] = {}
    for step in range(3):
        mine = [view.chunk(world)[rank] for view in views(8, sizes, seed=step)]
        outcome = objective.loss(forward(mine))
        optimiser.zero_grad()
        outcome.loss.backward()
        told = torch.stack([outcome.loss.detach(), *outcome.metrics.values()])
        if world > 1:
            dist.all_reduce(told)
        found[f"{step} loss and metrics"] = told / world
        for key, parameter in objective.named_parameters():
            if parameter.grad is not None:
                found[f"{step} gradient of {key}"] = parameter.grad.clone()
        optimiser.step()
        objective.after_step(step, 3)
    return found | {f"at last {key}": value.clone() for key, value in objective.state_dict().items()}


def one_rank(rank: int, world: int, rendezvous: str, results: str) -> None:
    """Entry of a process: `run`, joined with the others over gloo; each rank writes what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    torch.save(run(rank, world), f"{results}.{rank}")
    dist.destroy_process_group()
