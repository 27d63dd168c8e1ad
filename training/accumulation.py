"""One step over several micro-batches that equals the step over all of them joined, also where the loss compares
samples with each other: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"
(GradCache).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

Autocast = Callable[[], AbstractContextManager[Any]]


def backward(
    model: nn.Module,
    loss: Callable[[Sequence[torch.Tensor]], Any],
    views: Sequence[torch.Tensor],
    micro_batches: int = 1,
    autocast: Autocast = nullcontext,
) -> Any:
    """Add the gradients of one step to those of the model's parameters; what `loss` returned (its `.loss` is followed).

    `model` maps views, a list of (n, C, S, S), to a flat sequence of tensors whose first dimension is that of the
    samples; `loss` maps that sequence, over all samples, to the outcome. Two passes: all micro-batches are embedded
    without gradients, the loss is taken of the whole, and each is embedded again to carry on the gradients that the
    loss has with respect to its embeddings. The second pass repeats the first's random numbers (dropout, drop path).
    Under DistributedDataParallel only the last micro-batch synchronises gradients.

    Batch normalisation sees each micro-batch by itself, as it sees each rank by itself without SyncBatchNorm: with it
    the step is that of the joined batch but for those statistics. Its running statistics are moved by the second pass
    alone, once a micro-batch.
    """
    if micro_batches == 1:
        with autocast():
            embedded = model(list(views))
        outcome = loss(embedded)
        outcome.loss.backward()
        return outcome
    device = views[0].device
    parts = list(zip(*(view.tensor_split(micro_batches) for view in views), strict=True))
    statistics = _batch_statistics(model)
    before = [buffer.clone() for buffer in statistics]
    random, first = [], []
    with torch.no_grad():
        for part in parts:
            random.append(_random_state(device))
            with autocast():
                first.append(tuple(model(list(part))))
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
    leaves = [torch.cat(pieces).requires_grad_() for pieces in zip(*first, strict=True)]
    outcome = loss(leaves)
    outcome.loss.backward()
    # a momentum encoder's outputs are leaves, too: what comes to them ends here
    gradients = [None if leaf.grad is None else leaf.grad.split([len(p[0]) for p in parts]) for leaf in leaves]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        silent: Any = getattr(model, "no_sync", nullcontext)  # DistributedDataParallel has it, compiled or not
        with nullcontext() if last else silent():
            _set_random_state(device, random[number])
            with autocast():
                again = tuple(model(list(part)))
            pairs = [(e, g[number]) for e, g in zip(again, gradients, strict=True) if g is not None and e.requires_grad]
            torch.autograd.backward([embedding for embedding, _ in pairs], [gradient for _, gradient in pairs])
    return outcome


def _batch_statistics(model: nn.Module) -> list[torch.Tensor]:
    """The running statistics of all batch normalisation, of a momentum encoder's as well."""
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
