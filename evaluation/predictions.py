"""`test_predictions.npz`: what a run said of each test sample, so that runs can be compared on the same samples.

`predictions.npz`, which fine-tuning writes, holds the few patches that the report draws, not the split.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards import atomic
from shards.errors import BandstreamError

FILE = "test_predictions.npz"
KINDS = ("single", "multilabel", "segment")


@dataclass(frozen=True)
class Predictions:
    """Of n test samples and K classes.

    keys     str (n,), each once
    truth    int64 (n,) class indices, or uint8 (n, K) multi-hot; of `segment`, empty (n, 0)
    scores   float32 (n, K) probabilities; of `segment`, int64 (n, K, K): confusion matrices, a row a true class
    kind     `single`, `multilabel` or `segment`
    classes  names, K
    """

    keys: np.ndarray
    truth: np.ndarray
    scores: np.ndarray
    kind: str
    classes: list[str]


def save_predictions(
    folder: Path, keys: Sequence[str] | np.ndarray, truth: np.ndarray, scores: np.ndarray, kind: str,
    classes: Sequence[str],
) -> None:  # fmt: skip
    """Write the predictions of a test split to a run's folder, atomically; shapes as in `Predictions`.

    Of `segment`, `truth` is not looked at. Raises ValueError on shapes that do not fit each other.
    """
    count, width = len(keys), len(classes)
    keys = np.asarray(keys, np.str_)
    if kind == "segment":
        truth, scores = np.empty((count, 0), np.uint8), np.asarray(scores, np.int64)
    else:
        truth = np.asarray(truth, np.int64 if kind == "single" else np.uint8)
        scores = np.asarray(scores, np.float32)
    shapes = {"single": (count,), "multilabel": (count, width), "segment": (count, 0)}
    wanted = (count, width, width) if kind == "segment" else (count, width)
    if kind not in KINDS or truth.shape != shapes[kind] or scores.shape != wanted or len(np.unique(keys)) != count:
        raise ValueError(f"{kind} predictions of {count} keys: truth {truth.shape}, scores {scores.shape}")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, keys=keys, truth=truth, scores=scores, kind=np.array(kind), classes=np.array(list(classes), np.str_)
    )
    atomic.write_bytes(folder / FILE, buffer.getvalue())


def load_predictions(folder: Path) -> Predictions:
    """The predictions of a run. Raises BandstreamError where there are none, or they cannot be read."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as held:
            return Predictions(
                held["keys"], held["truth"], held["scores"], str(held["kind"]), [str(c) for c in held["classes"]]
            )
    except FileNotFoundError:
        raise BandstreamError(f"{folder} holds no {FILE}: evaluate or fine-tune again, which writes it") from None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BandstreamError(f"{folder / FILE} cannot be read ({error}): run that stage again") from None
