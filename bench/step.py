"""A step of train.py without its bookkeeping: views in, weights moved; what the benches of training time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from models.encoder import build_encoder
from models.objectives import build_objective
from training.accumulation import backward
from training.optimiser import build_optimiser, set_learning_rate
from training.precision import in_bfloat16


class TrainingStep:
    """Model, optimiser and precision as train.py sets them up by a resolved recipe (`Pretraining.resolved`).

    `steps` are counted, for what moves with them (momentum encoders); the rate is the peak of the recipe's.
    """

    def __init__(self, recipe: Any, bands: int, device: str) -> None:
        self.recipe, self.device = recipe, torch.device(device)
        encoder = build_encoder(recipe.encoder, bands, recipe.view.size)
        encoder.checkpointing(recipe.checkpointing)
        self.objective = build_objective(recipe.method, encoder, recipe.objective).to(self.device)
        self.model: nn.Module = self.objective.to(memory_format=torch.channels_last)
        if recipe.compile:
            self.model = torch.compile(self.model)  # type: ignore[assignment]
        self.optimiser = build_optimiser({self.objective: 1.0}, recipe.optimiser, recipe.weight_decay, recipe.momentum)
        set_learning_rate(self.optimiser, recipe.peak_lr)
        smallest = min(view.size for view in recipe.views if view.size)
        self.half = in_bfloat16(recipe.precision, self.device, smallest)
        self.steps = 0

    def __call__(self, views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Two (or more) views, each (N, C, S, S) → the loss, still on its device: nothing here waits for it."""
        moved = [view.to(self.device, memory_format=torch.channels_last) for view in views]
        self.optimiser.zero_grad(set_to_none=True)
        outcome = backward(self.model, self.objective.loss, moved, self.recipe.accumulate, self._autocast)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.objective.after_step(self.steps, 1_000_000)
        self.steps += 1
        loss: torch.Tensor = outcome.loss.detach()
        return loss

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)
