"""Is it still learning? What is watched of the features, and when a run is over: a falling loss does not say so.

All measures are of L2-normalised vectors, but for the rank, which is of centred ones.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import BandstreamError
from training.distributed import Place
from training.recipe import Watching

LOOKS_AN_EPOCH, LOOK_STEPS = 10, 10
"""Features are looked at so often in an epoch, or every LOOK_STEPS steps where that is more often."""
GRACE = 20, 100
"""Steps in which no run is ended: half an epoch, but at least and at most so many."""
PATIENCE = 4
"""Looks in a row that must find features collapsed."""
APART, STRANGERS = 0.8, 0.98
"""Sameness: features that began below the first told samples apart; above the second they tell nothing of them."""
GREW = 3
"""Times (the first loss + 1) above which a loss has grown out of bounds."""
DIMENSION = 1.5
"""Effective rank under which features that began with more lie on a line, or nearly."""
MEASURED = ("feature_std", "uniformity", "encoder_std", "alignment", "sameness", "effective_rank", "embedding_rank")


def feature_std(x: torch.Tensor) -> torch.Tensor:
    """Spread of (n, D) over the sphere: 1 where it is even, 0 where all are one point."""
    unit = F.normalize(x.float(), dim=1)
    return unit.std(0).mean() * math.sqrt(x.shape[1])


def alignment(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the two views (n, D) of a sample, 0 to 4: Wang and Isola 2020, with α = 2."""
    return (F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)).square().sum(1).mean()


def uniformity(x: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mean Gaussian potential of all pairs of (n, D), -4 at best, 0 at worst: Wang and Isola 2020,
    with t = 2."""
    unit = F.normalize(x.float(), dim=1)
    squared = 2 - 2 * unit @ unit.T  # (n, n)
    pairs = torch.ones_like(squared, dtype=torch.bool).triu(1)
    return (-2 * squared).masked_fill(~pairs, -math.inf).exp().sum().div(pairs.sum()).log()


def effective_rank(x: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of the singular values of (n, D), centred: Roy and Vetterli 2007. At most n - 1."""
    centred = (x.float() - x.float().mean(0)).double()
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    # numbers that are not finite are found elsewhere; the decomposition would raise
    singular = torch.linalg.eigvalsh(gram.nan_to_num(0, 0, 0)).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-300)
    entropy: torch.Tensor = torch.special.entr(share).sum()
    return entropy.exp().float()


def sameness(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared distance of the two views (n, D) of a sample, as a share of that of views of different samples: 0 where
    features say which sample it is, 1 where they say nothing of it."""
    x, y = F.normalize(x.float(), dim=1), F.normalize(y.float(), dim=1)
    squared = (2 - 2 * x @ y.T).clamp(min=0)  # (n, n)
    same = squared.diagonal().mean()
    others = (squared.sum() - squared.diagonal().sum()) / (len(x) * (len(x) - 1))
    return same / others.clamp(min=1e-12)


@torch.no_grad()
def measure(encoder: nn.Module, views: list[torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
    """The numbers that MEASURED names, float32 (7,), on the device.

    `embeddings` (n, D) are what the loss saw of the first view; the encoder's own features are taken of both views, in
    evaluation mode, as whoever uses the encoder will see them. A head can collapse while the encoder does not, and the
    encoder behind a head that keeps its outputs apart.
    """
    was_training = encoder.training
    encoder.eval()
    first, second = encoder(torch.cat(views)).float().chunk(2)
    encoder.train(was_training)
    embeddings = embeddings[: len(first)].float()
    found = [feature_std(embeddings), uniformity(embeddings), feature_std(first), alignment(first, second),
             sameness(first, second), effective_rank(first), effective_rank(embeddings)]  # fmt: skip
    return torch.stack([value.float() for value in found])


class Watch:
    """Judges each look at the features against the first one, and keeps count of rollbacks.

    `epoch_steps`: steps of an epoch. A run is stopped after PATIENCE looks in a row at which, beyond the steps of
    GRACE, its embeddings or the encoder's features have drawn together, far below where they began.
    """

    def __init__(self, knobs: Watching, epoch_steps: int, place: Place) -> None:
        self.knobs = knobs
        self.look_steps = max(1, min(LOOK_STEPS, epoch_steps // LOOKS_AN_EPOCH))
        self.grace = max(GRACE[0], min(GRACE[1], epoch_steps // 2))
        self.doubts, self.rollbacks, self.factor = 0, 0, 1.0
        self.beginning: dict[str, float] = {}
        self._not_finite = torch.zeros((), device=place.device)

    def note(self, *values: torch.Tensor) -> None:
        """Take numbers of a step, without waiting for the device: any that is not finite is remembered."""
        for value in values:
            self._not_finite += (~value.detach().isfinite()).any()

    def all_finite(self) -> bool:
        """Whether all numbers since the last call were finite. Waits for the device."""
        fine = not self._not_finite.item()
        self._not_finite.zero_()
        return fine

    def judge(self, step: int, values: dict[str, float]) -> str | None:
        """Look at a step's loss and the numbers in MEASURED; what is wrong with them, once PATIENCE is at its end."""
        if not self.beginning:
            self.beginning = {name: values[name] for name in ("loss", *MEASURED)}
        elif step <= self.grace:  # a queue of random negatives makes the first losses too small
            self.beginning["loss"] = max(self.beginning["loss"], values["loss"])
        wrong = self._wrong(values)
        self.doubts = self.doubts + 1 if wrong else 0
        return wrong if self.doubts >= PATIENCE and step > self.grace else None

    def _wrong(self, now: dict[str, float]) -> str | None:
        then, share = self.beginning, self.knobs.of_beginning
        if now["feature_std"] < min(self.knobs.feature_std, share * then["feature_std"]):
            return (
                f"the embeddings collapsed (feature std {now['feature_std']:.3f}, at first {then['feature_std']:.3f})"
            )
        if now["encoder_std"] < min(self.knobs.encoder_std, share * then["encoder_std"]):
            return (
                f"the encoder's features collapsed (std {now['encoder_std']:.4f}, at first {then['encoder_std']:.3f})"
            )
        for name, told in (("effective_rank", "encoder's features"), ("embedding_rank", "embeddings")):
            if now[name] < min(DIMENSION, share * then[name]):
                return f"the {told} collapsed onto a line (effective rank {now[name]:.1f}, at first {then[name]:.1f})"
        if now["loss"] > GREW * (abs(then["loss"]) + 1):
            return f"the loss grew (to {now['loss']:.3g}, at first {then['loss']:.3g})"
        if now["sameness"] > STRANGERS and then["sameness"] < APART:
            return (
                f"the encoder no longer tells samples apart (views of one are {now['sameness']:.2f} times as far apart "
                f"as views of different ones, at first {then['sameness']:.2f})"
            )
        return None

    def is_well(self, step: int) -> bool:
        """Whether the weights of a step may be gone back to: without doubts, and beyond the steps of grace, in which a
        rate that is too high has not shown yet what it did."""
        return step > self.grace and not self.doubts

    def go_back(self, why: str, way_out: str) -> None:
        """Count a rollback, and lower the rate. Raises BandstreamError where there were too many."""
        if self.rollbacks >= self.knobs.rollbacks:
            raise BandstreamError(f"{why}, after {self.rollbacks} rollbacks: {way_out}")
        self.rollbacks, self.doubts = self.rollbacks + 1, 0
        self.factor *= self.knobs.rollback_factor

    def state_dict(self) -> dict[str, Any]:
        return {"doubts": self.doubts, "beginning": self.beginning, "rollbacks": self.rollbacks, "factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.doubts, self.beginning = state["doubts"], dict(state["beginning"])
        self.rollbacks, self.factor = state["rollbacks"], state["factor"]
