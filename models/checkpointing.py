"""Activation checkpointing: blocks are computed again on the way back instead of being kept (Chen et al. 2016)."""

import functools
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from shards.errors import BandstreamError


def set_checkpointing(net: nn.Module, name: str, on: bool) -> None:
    """Switch it on or off for an encoder's net. Losses, gradients and running statistics stay the same.

    timm's models bring their own; in smp's ResNets and in `cnn` it is the blocks of each stage. Raises BandstreamError
    for encoders that have neither.
    """
    inner: Any = getattr(net, "model", net)  # smp's wrapper of timm's models
    if hasattr(inner, "set_grad_checkpointing"):
        try:
            inner.set_grad_checkpointing(on)
        except (AssertionError, NotImplementedError) as error:
            raise BandstreamError(
                f"{name} has no activation checkpointing ({error}): leave checkpointing off"
            ) from None
    else:
        blocks = [
            block
            for stage, part in net.named_children()
            if stage.startswith(("layer", "stage")) and isinstance(part, nn.Sequential)
            for block in part
        ]
        if on and not blocks:
            raise BandstreamError(f"{name} has no activation checkpointing: leave it off, or take a ResNet or timm's")
        for block in blocks:
            block.__dict__.pop("forward", None)
            if on:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    for module in net.modules():
        if isinstance(module, _NormBase):
            for handle in module.__dict__.pop("_once", ()):
                handle.remove()
            if on and module.track_running_stats:
                hooks = module.register_forward_pre_hook(_pause), module.register_forward_hook(_go_on, always_call=True)
                module.__dict__["_once"] = hooks


def _pause(norm: Any, inputs: Any) -> None:
    # A block that is computed again sees its batch a second time, which running statistics must not count: with a
    # momentum of 0 they stay, and the counter is a copy. (Without them other tensors would be saved than at first.)
    if torch._C._current_graph_task_id() != -1:  # as torch.utils.checkpoint itself asks: is this a backward pass?
        norm.__dict__["_counted"] = norm.momentum, norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()


def _go_on(norm: Any, inputs: Any, output: Any) -> None:
    if "_counted" in norm.__dict__:
        norm.momentum, norm.num_batches_tracked = norm.__dict__.pop("_counted")
