"""Probes of frozen features. Whatever is chosen is chosen on the val split; the test split is scored once."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from evaluation.standardising import scaling
from shards.errors import BandstreamError

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
NEIGHBOURS = (5, 20, 50)


@dataclass(frozen=True)
class Linear:
    """A fitted linear probe: `logits(x)` are `(x - mean) / scale @ weight.T + bias`; `multi`: one sigmoid a class."""

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    weight: np.ndarray  # (K, D)
    bias: np.ndarray  # (K,)
    multi: bool

    def standardised(self, features: np.ndarray) -> np.ndarray:
        """float32 (n, D)."""
        found: np.ndarray = ((features - self.mean) / self.scale).astype(np.float32)
        return found

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Features (n, D) → float32 (n, K)."""
        found: np.ndarray = self.standardised(features) @ self.weight.T + self.bias
        return found


class Probed(NamedTuple):
    """Scores (n, K) on the test split, what was chosen on val, and, of a linear probe, what was fitted."""

    scores: np.ndarray
    chosen: float
    model: Linear | None = None


def linear_probe(train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], test: np.ndarray,
                 classes: int) -> Probed:  # fmt: skip
    """Logistic regression by L-BFGS on standardised features, its weight decay chosen on val.

    `train` and `val` are (features (n, D), labels (n, K) multi-hot or (n,) class indices); multi-label is one against
    rest for each class. Raises BandstreamError where val has no label at all.
    """
    _refuse_unknown(val[1])
    mean, scale = scaling(train[0])
    inputs = [torch.from_numpy(((x - mean) / scale).astype(np.float32)) for x in (train[0], val[0], test)]
    target = torch.from_numpy(train[1])
    best: tuple[float, float, np.ndarray, nn.Linear] | None = None
    for strength in STRENGTHS:
        model = _fit(inputs[0], target, classes, strength)
        with torch.inference_mode():
            on_val, on_test = (_probabilities(model(x), target.ndim == 2) for x in inputs[1:])
        score = _score(val[1], on_val)
        if best is None or score > best[0]:
            best = score, strength, on_test, model
    assert best is not None
    weight, bias = (part.detach().numpy() for part in (best[3].weight, best[3].bias))
    return Probed(best[2], best[1], Linear(mean, scale, weight, bias, target.ndim == 2))


def knn(train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], test: np.ndarray,
        classes: int) -> Probed:  # fmt: skip
    """Votes of the nearest neighbours by cosine similarity, weighted by it; their number chosen on val.

    Raises BandstreamError where val has no label at all.
    """
    _refuse_unknown(val[1])
    labels = train[1] if train[1].ndim == 2 else np.eye(classes)[train[1]]
    candidates = [k for k in NEIGHBOURS if k <= len(labels)] or [len(labels)]
    scored = [(_score(val[1], _votes(train[0], labels, val[0], k)), k) for k in candidates]
    chosen = max(scored)[1]
    return Probed(_votes(train[0], labels, test, chosen), chosen)


def _votes(train: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    bank = train / np.linalg.norm(train, axis=1, keepdims=True).clip(1e-12)
    scores = np.empty((len(queries), labels.shape[1]))
    for start in range(0, len(queries), 1024):
        part = queries[start : start + 1024]
        similarity = part / np.linalg.norm(part, axis=1, keepdims=True).clip(1e-12) @ bank.T  # (q, n)
        nearest = np.argpartition(-similarity, k - 1, 1)[:, :k]  # (q, k)
        weight = np.take_along_axis(similarity, nearest, 1).clip(1e-6)
        scores[start : start + 1024] = (weight[:, :, None] * labels[nearest]).sum(1) / weight.sum(1, keepdims=True)
    return scores


def _fit(inputs: torch.Tensor, target: torch.Tensor, classes: int, strength: float) -> nn.Linear:
    model = nn.Linear(inputs.shape[1], classes)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200, history_size=20, line_search_fn="strong_wolfe")
    multi = target.ndim == 2

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = model(inputs)
        if multi:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
        else:
            loss = nn.functional.cross_entropy(logits, target)
        loss = loss + strength * model.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return model


def _probabilities(logits: torch.Tensor, multi: bool) -> np.ndarray:
    found: np.ndarray = (logits.sigmoid() if multi else logits.softmax(1)).numpy()
    return found


def _refuse_unknown(val: np.ndarray) -> None:
    if not len(val) or (val.ndim == 2 and not val.any()):
        raise BandstreamError("the val split has no label at all: nothing can be chosen by it")


def _score(truth: np.ndarray, scores: np.ndarray) -> float:
    """What is chosen by: macro average precision, or accuracy."""
    if truth.ndim == 1:
        return float((scores.argmax(1) == truth).mean())
    present = np.flatnonzero(truth.any(0))
    return float(np.mean([average_precision_score(truth[:, k], scores[:, k]) for k in present]))
