"""How far probabilities can be believed: calibration error, Brier score, log loss, and a temperature fitted on val."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

BINS = 15
TEMPERATURES = (0.05, 20.0)


def probabilities(logits: np.ndarray, multi: bool, temperature: float = 1.0) -> np.ndarray:
    """Logits (n, K) → float64 (n, K): a softmax, or, where labels are many, a sigmoid a class."""
    found: np.ndarray = (expit if multi else _softmax)(logits.astype(np.float64) / temperature)
    return found


def log_loss(truth: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> float:
    """Mean negative log likelihood in nats: a sample, or, for multi-hot truth (n, K), a sample and class."""
    scaled = logits.astype(np.float64) / temperature
    if truth.ndim == 2:
        return float(-np.where(truth > 0, log_expit(scaled), log_expit(-scaled)).mean())
    return float(-log_softmax(scaled, 1)[np.arange(len(truth)), truth].mean())


def fit_temperature(truth: np.ndarray, logits: np.ndarray) -> float:
    """The one number that logits are divided by for the least log loss (Guo et al. 2017), within 1/20 and 20."""
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(lambda t: log_loss(truth, logits, np.exp(t)), bounds=(low, high), method="bounded")
    return float(np.exp(found.x))


def calibration(truth: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> dict[str, Any]:
    """Expected calibration error, Brier score, log loss, and the bins of the reliability diagram.

    Indices (n,): confidence is the largest probability, right where its class is the true one (Guo et al. 2017); Brier
    is the squared distance to the one-hot truth, summed over classes (Brier 1950: 0 to 2). Multi-hot (n, K): every
    sample and class is a yes or no with its own probability; Brier is the mean squared error (0 to 1).
    """
    found = probabilities(logits, truth.ndim == 2, temperature)
    if truth.ndim == 2:
        confidence, right = found.ravel(), (truth > 0).ravel()
        brier = float(np.mean((found - truth) ** 2))
    else:
        confidence, right = found.max(1), found.argmax(1) == truth
        brier = float(np.mean(((found - np.eye(found.shape[1])[truth]) ** 2).sum(1)))
    error, bins = reliability(confidence, right)
    return {"ece": error, "brier": brier, "nll": log_loss(truth, logits, temperature), "bins": bins}


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error over 15 bins of equal width, (i/15, (i+1)/15], and the bins that are not empty."""
    places = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    held = np.flatnonzero(counts)
    mean = np.bincount(places, confidence, BINS)[held] / counts[held]
    share = np.bincount(places, right, BINS)[held] / counts[held]
    bins = [
        {"confidence": float(c), "right": float(r), "count": int(n)}
        for c, r, n in zip(mean, share, counts[held], strict=True)
    ]
    return float((np.abs(mean - share) * counts[held]).sum() / len(confidence)), bins


def calibrate(val: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Of (truth, logits) of two splits: calibration on test as it is, and after a temperature fitted on val."""
    temperature = fit_temperature(*val)
    return {
        "temperature": temperature,
        "as_is": calibration(*test),
        "scaled": calibration(*test, temperature=temperature),
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = softmax(logits, 1)
    return found
