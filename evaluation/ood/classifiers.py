"""What is asked how sure it is: an encoder with a linear probe, or a fine-tuned classifier, on features made once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from evaluation.features import Features, frozen
from evaluation.probe import Linear
from evaluation.standardising import Statistics
from evaluation.subject import FINE_TUNED
from models.encoder import build_encoder
from models.export import DESCRIPTION, load_encoder
from models.heads import Classifier
from shards.errors import BandstreamError

RESULTS = "results.json"
CHUNK = 4096


class Head:
    """Features float32 (n, D) → logits (n, K), and logits of stochastic passes, in which dropout is left on."""

    def __init__(self, net: nn.Module, probe: Linear | None = None) -> None:
        self.net, self.probe = net.cpu().eval(), probe

    @classmethod
    def of_probe(cls, probe: Linear) -> "Head":
        net = nn.Linear(probe.weight.shape[1], probe.weight.shape[0])
        net.weight.data, net.bias.data = torch.from_numpy(probe.weight), torch.from_numpy(probe.bias)
        return cls(net, probe)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float64 (n, K)."""
        with torch.inference_mode():
            found: np.ndarray = self.net(self._inputs(features)).double().numpy()
        return found

    def passes(self, features: np.ndarray, count: int, dropout: float, seed: int) -> np.ndarray:
        """float64 (count, n, K): with the head's own dropout, where it has some (Gal & Ghahramani 2016), else with a
        share `dropout` of its input features zeroed and the rest scaled up."""
        own = [part for part in self.net.modules() if isinstance(part, nn.Dropout) and part.p > 0]
        inputs, found = self._inputs(features), []
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            for part in own:
                part.train()
            for _ in range(count):
                parts = [
                    self.net(chunk if own else F.dropout(chunk, dropout, training=True))
                    for chunk in inputs.split(CHUNK)
                ]
                found.append(torch.cat(parts).double().numpy())
            for part in own:
                part.eval()
        return np.stack(found)

    def _inputs(self, features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.probe.standardised(features) if self.probe else features)


@dataclass(frozen=True)
class FineTuned:
    """A classifier that `bandstream finetune` wrote: its encoder as a function of views, its head with the dropout that
    it was trained with, its results, and what its views were standardised with, where the run says so."""

    features: Features
    head: Head
    results: dict[str, Any]
    statistics: Statistics | None


def is_fine_tuned(folder: str) -> bool:
    """Whether a folder holds a fine-tuned model, not a pretrained encoder."""
    return (Path(folder) / FINE_TUNED).is_file()


def load_fine_tuned(folder: str, device: torch.device) -> FineTuned:
    """Raises BandstreamError where a file is missing or damaged, and on a run that segments."""
    try:
        results = json.loads((Path(folder) / RESULTS).read_bytes())
        state = load_file(Path(folder) / FINE_TUNED)
        kind, name, bands, classes = (results[key] for key in ("kind", "encoder", "bands", "classes"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BandstreamError(
            f"the run in {folder} cannot be read ({str(error).splitlines()[0]}): fine-tune again"
        ) from None
    if kind == "segment":
        raise BandstreamError(f"{folder} segments: out-of-distribution scores are of classifiers")
    if (Path(folder) / DESCRIPTION).is_file():
        encoder, info = load_encoder(folder, bands)
        statistics = {band.name: (band.mean, band.std) for band in info.bands}
    else:
        encoder, statistics = build_encoder(name, len(bands), view_size_of(results)), None
    model: Any = Classifier(encoder, len(classes))
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BandstreamError(
            f"{folder}/{FINE_TUNED} is not of a {name} for {len(classes)} classes: {str(error).splitlines()[0]}"
        ) from None
    dropout = float(results["recipe"].get("dropout") or 0)
    head = Head(nn.Sequential(nn.Dropout(dropout), model.head) if dropout else model.head)
    return FineTuned(frozen(model.encoder, device), head, results, statistics)


def view_size_of(results: dict[str, Any]) -> int | None:
    """Pixels of a fine-tuning run's views; None: the patch's own."""
    size: int | None = results["recipe"]["view"]["size"]
    return size
