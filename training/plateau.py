"""A learning rate that falls where validation stands still."""

import math


class Plateau:
    """A factor on the learning rate, lowered after more than `patience` validations without a lower loss.

    As torch's ReduceLROnPlateau with its defaults: lower means by a share of 1e-4 at least. Of a score that is better
    the higher it is, give the negative.
    """

    def __init__(self, patience: int, lowering: float = 0.1) -> None:
        self.patience, self.lowering = patience, lowering
        self.factor, self.best, self.bad = 1.0, math.inf, 0

    def update(self, loss: float) -> None:
        """Take a validation's loss."""
        if loss < self.best - 1e-4 * abs(self.best if math.isfinite(self.best) else 0):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.factor, self.bad = self.factor * self.lowering, 0
