"""Schedules. What is known beforehand is data: one number a step; a plateau is found while training."""

import math
from typing import Any

import numpy as np


def warmup_cosine(peak: float, steps: int, warmup: int, final: float = 0.0) -> np.ndarray:
    """Learning rates float64 (steps,): linear from peak / warmup to `peak`, then half a cosine down to `final`.

    The cosine of Loshchilov and Hutter 2017 (SGDR) without restarts; its last step is one before `final`.
    """
    warmup = min(warmup, steps)
    falling = np.arange(steps - warmup) / max(steps - warmup, 1)
    cosine = final + (peak - final) * (1 + np.cos(np.pi * falling)) / 2
    return np.concatenate([warmup_constant(peak, warmup, warmup), cosine])


def warmup_constant(peak: float, steps: int, warmup: int) -> np.ndarray:
    """Learning rates float64 (steps,): linear from peak / warmup to `peak`, which they keep."""
    return peak * np.minimum((np.arange(steps) + 1) / max(warmup, 1), 1.0)


def rate_curve(schedule: str, peak: float, steps: int, warmup: int) -> np.ndarray:
    """The rates of a recipe's `schedule`, float64 (steps,); those of a plateau are lowered while training."""
    return (warmup_cosine if schedule == "cosine" else warmup_constant)(peak, steps, warmup)


class Plateau:
    """A factor on the learning rate, lowered after more than `patience` validations without a lower loss.

    As torch's ReduceLROnPlateau with its defaults: lower means by a share of 1e-4 at least. A patience of None never
    lowers it.
    """

    def __init__(self, patience: int | None, lowering: float = 0.1) -> None:
        self.patience, self.lowering = patience, lowering
        self.factor, self.best, self.bad = 1.0, math.inf, 0

    def update(self, loss: float) -> None:
        """Take a validation's loss."""
        if loss < self.best - 1e-4 * abs(self.best if math.isfinite(self.best) else 0):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.patience is not None and self.bad > self.patience:
            self.factor, self.bad = self.factor * self.lowering, 0

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "best": self.best, "bad": self.bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.best, self.bad = state["factor"], state["best"], state["bad"]


class Best:
    """The best validation so far, and how long ago that was; `patience` in steps, None: never out of it."""

    def __init__(self, patience: int | None) -> None:
        self.patience, self.value, self.step = patience, -math.inf, 0

    def update(self, value: float, step: int) -> bool:
        """Take the score of a step, the higher the better; whether it is the best so far."""
        better = value > self.value
        if better:
            self.value, self.step = value, step
        return better

    def over(self, step: int) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and math.isfinite(self.value) and step - self.step >= self.patience

    def forget(self, step: int) -> None:
        """Begin anew at a step: what was the best is no more."""
        self.value, self.step = -math.inf, step

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.value, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.step = state["score"], state["step"]
