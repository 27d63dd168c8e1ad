"""A learning rate that falls where the validation score stands still."""


class Plateau:
    """`scale` is the factor on the learning rate: multiplied by `factor` after more than `patience` epochs without a
    better score, as `torch.optim.lr_scheduler.ReduceLROnPlateau` does (mode max, threshold 0)."""

    def __init__(self, patience: int, factor: float) -> None:
        self.patience = patience
        self.factor = factor
        self.scale = 1.0
        self._best = float("-inf")
        self._since = -1

    def update(self, epoch: int, score: float) -> None:
        """Take the score that validation found after an epoch (0 is the first)."""
        if score > self._best:
            self._best, self._since = score, epoch
        elif epoch - self._since > self.patience:
            self.scale *= self.factor
            self._since = epoch
