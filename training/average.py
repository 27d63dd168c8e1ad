"""An exponential moving average of an encoder's weights, which is often better than where training left off."""

import copy
from typing import Any

import torch
from torch import nn


class Average:
    """Holds w̄ ← d w̄ + (1 - d) w, over weights and floating-point buffers; other buffers are those of the newest.

    d = min(decay, (1 + t) / (10 + t)) after t updates, so that the random beginning is soon forgotten, as in
    TensorFlow's ExponentialMovingAverage. `encoder` is the averaged one, for evaluation and export.
    """

    def __init__(self, encoder: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Take the weights of a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        new = dict(encoder.state_dict())
        pairs = [(kept, new[name]) for name, kept in self.encoder.state_dict().items()]
        floats = [(kept, value) for kept, value in pairs if kept.is_floating_point()]
        torch._foreach_lerp_([kept for kept, _ in floats], [value for _, value in floats], 1 - decay)
        for kept, value in pairs:
            if not kept.is_floating_point():
                kept.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"encoder": self.encoder.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.encoder.load_state_dict(state["encoder"])
        self.updates = state["updates"]
