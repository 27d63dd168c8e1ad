"""What a run is validated by while it trains: the objective's loss on val, and neighbours where labels exist."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sklearn.metrics import average_precision_score
from torch import nn

from evaluation.features import image_statistics
from evaluation.pictures import colour_picture
from models.encoder import build_encoder
from pipeline.loader import Loader
from pipeline.views import ViewRecipe
from shards import atomic
from shards.errors import BandstreamError
from shards.shardset import ShardSet
from training.distributed import Place, mean_over_ranks
from training.recipe import Pretraining

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Wu et al. 2018 vote with weights exp(similarity / 0.07); of 200 neighbours, on a hundred times our samples."""
FLOORS, PROJECTED = "floors.json", 256


class Online:
    """Validates an objective. All ranks have to ask; all get the same numbers.

    The loss is that of training, with its views: the same samples and draws at every validation, in full batches of
    the batch size of training (or all of val, where that is less). The neighbours of val are sought in train, by the
    cosine of the encoder's features of whole patches; their score is the accuracy, or for multi-label the macro average
    precision. Beside it stand two floors, computed once and kept in floors.json: image statistics, and the same encoder
    with random weights. Where all of val have the same labels, nothing is scored by them. Raises BandstreamError on
    labels that the set does not have.
    """

    def __init__(
        self, shard_set: ShardSet, recipe: Pretraining, bands: list[str], out: Path, place: Place, threads: int | None
    ) -> None:
        self.recipe, self.out, self.place = recipe, out, place
        self._losses: Loader | None = None
        self._held: dict[str, float] = {}
        self._parts: dict[str, Loader] = {}
        splits, labels = shard_set.manifest.splits, shard_set.manifest.labels
        if recipe.knn not in ("auto", "none", *labels):
            raise BandstreamError(f"knn: the set has no labels {recipe.knn!r}: it has {', '.join(labels) or 'none'}")
        size = splits["val"].samples if "val" in splits and recipe.validate_epochs else 0
        limit = recipe.validate_samples
        shared: dict[str, Any] = {
            "seed": recipe.seed, "rank": place.rank, "world_size": place.world_size, "device": place.device.type,
            "threads": threads, "bands": bands,
        }  # fmt: skip
        world = place.world_size
        batch = min(recipe.batch_size, size // world * world)
        if batch >= 2 * world:
            some = np.arange(min(size, max(limit, batch)))
            self._losses = Loader(shard_set, "val", batch, recipe.views, subset=some, seasons=recipe.seasons, **shared)
        elif recipe.schedule == "plateau" or recipe.early_stopping:
            raise BandstreamError(
                f"{shard_set.place} has too few samples in val ({size}) to find a plateau or to stop early: take the "
                "cosine schedule, and no early stopping"
            )
        name = next(iter(labels), None) if recipe.knn == "auto" else recipe.knn
        if size >= world and name not in (None, "none"):
            self._many = labels[name].kind == "multilabel"
            self._classes = len(labels[name].classes)
            plain = [ViewRecipe.plain(recipe.view.size)]
            for split in ("train", "val"):
                some = np.arange(min(splits[split].samples, limit))
                self._parts[split] = Loader(
                    shard_set, split, min(recipe.batch_size, 256 * world), plain, training=False, labels=name,
                    subset=some, **shared,
                )  # fmt: skip

    @staticmethod
    def score(found: dict[str, float]) -> float:
        """By what a validation is the best, the higher the better: neighbours, or else the loss."""
        return found["knn"] if "knn" in found else -found["val_loss"]

    def validate(self, objective: nn.Module, encoder: nn.Module, autocast: Any) -> dict[str, float]:
        """`val_loss`, `val_` and the objective's other numbers, `knn`, `knn_statistics`, `knn_random`: those there are.

        Neither weights nor running statistics nor random numbers of training are touched.
        """
        found: dict[str, float] = {}
        with _evaluating(objective, self.place.device), _evaluating(encoder, self.place.device):
            if self._losses is not None:
                found |= self._loss(objective, autocast)
            if self._parts:
                if (score := self._knn(encoder)) is None:
                    self._close_parts()
                else:
                    found |= {"knn": score} | self._floors()
        return found

    def _loss(self, objective: nn.Module, autocast: Any) -> dict[str, float]:
        assert self._losses is not None
        self._losses.epoch = self._losses.cursor = 0
        totals: dict[str, torch.Tensor] = {}
        for batch in self._losses:
            views = [v.to(self.place.device, memory_format=torch.channels_last) for v in batch.views]
            with autocast():
                embedded = objective(views)
            outcome = objective.loss(embedded)  # type: ignore[operator]
            for name, value in {"loss": outcome.loss, **outcome.metrics}.items():
                totals[name] = totals.get(name, 0) + value.detach().float()
        means = mean_over_ranks(torch.stack(list(totals.values())) / len(self._losses), self.place).tolist()
        return {f"val_{name}": mean for name, mean in zip(totals, means, strict=True)}

    def _features(self, split: str, features: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, D) and labels of all samples over all ranks, on the CPU, in no particular order."""
        found: list[torch.Tensor] = []
        labels: list[Any] = []
        for batch in self._parts[split]:
            found.append(features(batch.views[0].to(self.place.device)).float().cpu())
            labels.append(batch.labels)
        mine: Any = (torch.cat(found), torch.cat(labels)) if found else None
        if self.place.world_size == 1:
            return mine  # type: ignore[no-any-return]
        parts: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(parts, mine)
        held = [part for part in parts if part is not None]
        return torch.cat([part[0] for part in held]), torch.cat([part[1] for part in held])

    def _knn(self, features: Any, standardised: bool = False) -> float | None:
        (bank, labels), (queries, truth) = self._features("train", features), self._features("val", features)
        if (truth == truth[0]).all():  # by which any neighbours are right, or none
            return None
        if standardised:
            mean, std = bank.mean(0), bank.std(0).clamp(min=1e-6)
            bank, queries = (bank - mean) / std, (queries - mean) / std
        if not self._many:
            labels = nn.functional.one_hot(labels, self._classes).float()
        return neighbour_score(bank, labels, queries, truth)

    def _floors(self) -> dict[str, float]:
        if self._held:
            return self._held
        path = self.out / FLOORS
        of = {"encoder": self.recipe.encoder, "seed": self.recipe.seed, "samples": self.recipe.validate_samples}
        held = json.loads(path.read_text()) if path.exists() else {}
        if held.get("of") != of:
            torch.manual_seed(self.recipe.seed)  # the generators of training are put back afterwards
            random = build_encoder(self.recipe.encoder, len(self._parts["val"].bands), self.recipe.view.size)
            random = random.to(self.place.device).eval()
            scores = {"knn_statistics": self._knn(image_statistics, True), "knn_random": self._knn(random)}
            held = {"of": of, "scores": scores}
            if self.place.is_main:
                atomic.write_json(path, held)
            if self.place.world_size > 1:
                dist.barrier()  # nobody looks for the file before it is there, and all compute or none
        self._held = dict(held["scores"])
        return self._held

    def _close_parts(self) -> None:
        for loader in self._parts.values():
            loader.close()
        self._parts = {}

    def close(self) -> None:
        self._close_parts()
        if self._losses is not None:
            self._losses.close()


def projected(
    shard_set: ShardSet, encoder: nn.Module, bands: list[str], size: int | None, device: torch.device
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Features (n, D) of up to PROJECTED whole patches of val (or train), what they are labelled, and a small picture
    of each, uint8 (n, S, S, 3): for an embedding projector."""
    manifest = shard_set.manifest
    split = "val" if "val" in manifest.splits else "train"
    name, spec = next(iter(manifest.labels.items()), (None, None))
    some = np.arange(min(PROJECTED, shard_set.size(split)))
    loader = Loader(shard_set, split, len(some), [ViewRecipe.plain(size)], training=False, device=device.type,
                    bands=bands, labels=name, subset=some)  # fmt: skip
    batch = next(iter(loader))
    with _evaluating(encoder, device):
        features = encoder(batch.views[0].to(device)).float().numpy(force=True)
    mean, std = (values[:, None, None] for values in loader.statistics)
    stored = batch.views[0].float().numpy(force=True) * std + mean
    pictures = [colour_picture(s, bands, manifest.reflectance, infrared=False)[::2, ::2] for s in stored]
    loader.close()
    told = [""] * len(some)
    if spec is not None and batch.labels is not None:
        hot = batch.labels if batch.labels.ndim == 2 else nn.functional.one_hot(batch.labels, len(spec.classes))
        told = [", ".join(spec.classes[k] for k in row.nonzero()[:, 0].tolist()) for row in hot]
    return features, told, np.stack(pictures)


def neighbour_score(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, truth: torch.Tensor) -> float:
    """The votes of the NEIGHBOURS nearest by cosine: accuracy of truth (q,), or macro average precision of (q, K).

    `bank` (n, D) with `labels` (n, K), `queries` (q, D); a class without a positive is left out.
    """
    bank, queries = nn.functional.normalize(bank, dim=1), nn.functional.normalize(queries, dim=1)
    votes = []
    for part in queries.split(1024):
        similarity, nearest = (part @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)  # (q, k)
        weight = ((similarity - 1) / TEMPERATURE).exp()
        votes.append((weight[:, :, None] * labels[nearest]).sum(1) / weight.sum(1, keepdim=True))
    scores = torch.cat(votes)
    if truth.ndim == 1:
        return float((scores.argmax(1) == truth).float().mean())
    present = truth.any(0).nonzero()[:, 0].tolist()
    return float(np.mean([average_precision_score(truth[:, k].numpy(), scores[:, k].numpy()) for k in present]))


@contextmanager
def _evaluating(module: nn.Module, device: torch.device) -> Iterator[None]:
    """In evaluation mode, without gradients; generators and modes are put back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
