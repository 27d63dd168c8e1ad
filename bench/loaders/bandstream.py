"""Ours: two views end to end, reading alone, and the stages between and around them, each by itself."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import evict
from pipeline.loader import Loader
from pipeline.order import Order
from pipeline.reader import Read, Reader
from pipeline.views import ViewRecipe
from shards.errors import BandstreamError
from shards.shardset import ShardSet

Batches = Iterator[tuple[int, list[Any]]]
"""What a phase yields: how many samples a batch holds, and the tensors to be consumed."""
KEPT = 4
"""Batches that are held in memory where the reader is left out."""


class Replay:
    """In place of a reader: the bytes of the first batches it was asked for, from memory, over and over."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.kept: list[np.ndarray] = []

    def batches(self, plan: Iterable[np.ndarray]) -> Iterator[Read]:
        for number, indices in enumerate(plan):
            if number >= len(self.kept) and len(self.kept) < KEPT:
                raw = self.reader.buffer(len(indices))
                self.reader.read(indices, raw)
                self.kept.append(raw)
            yield indices, self.kept[number % len(self.kept)], lambda: None

    def close(self) -> None:
        self.reader.close()


class Bandstream:
    """The phases of the bench on the train split of a shard set; each is a method that returns batches."""

    def __init__(self, folder: Path, batch_size: int, recipe: ViewRecipe, threads: int, device: str = "cpu") -> None:
        self.shard_set = ShardSet.open(folder)
        self.batch_size, self.recipe, self.threads, self.device = batch_size, recipe, threads, device

    def loader(self, recipe: ViewRecipe, dtype: str = "float32") -> Loader:
        return Loader(
            self.shard_set, "train", self.batch_size, [recipe] * 2, threads=self.threads, device=self.device,
            dtype=dtype,
        )  # fmt: skip

    def views(self, recipe: ViewRecipe | None = None) -> Batches:
        """Two views of every sample, epoch after epoch."""
        return _served(self.loader(recipe or self.recipe))

    def half(self) -> Batches:
        """Two views of every sample in float16."""
        return _served(self.loader(self.recipe, "float16"))

    def every_augmentation(self) -> Batches:
        """Two views with everything that a recipe can ask for on bands."""
        return self.views(
            ViewRecipe(
                size=self.recipe.size, blur=0.5, gain=0.2, brightness=0.2, contrast=0.2, offset=0.2, noise=0.1,
                grey=0.2, band_dropout=0.2, cutout=0.5,
            )
        )  # fmt: skip

    def graph(self) -> Batches:
        """Draws and graph, fed from memory: what the views cost when reading costs nothing."""
        loader = self.loader(self.recipe)
        loader._reader = Replay(loader._reader)  # type: ignore[assignment]
        return _served(loader)

    def read(self, epochs: int | None = None) -> Batches:
        """The bytes of every sample, in the shuffled order of training."""
        layout = self.shard_set.layout
        prefix = max(layout[name].end for name in self.shard_set.manifest.arrays)
        reader = Reader(self.shard_set, "train", prefix, self.threads, pinned=self.device == "cuda")
        order = Order(self.shard_set.size("train"), self.batch_size, 0, training=True)
        rounds = itertools.count() if epochs is None else range(epochs)
        plan = (order.batch(epoch, start) for epoch in rounds for start in order.starts())

        def batches() -> Batches:
            try:
                for indices, raw, done in reader.batches(plan):
                    yield len(indices), [raw]
                    done()
            finally:
                reader.close()

        return batches()

    def read_cold(self) -> Batches:
        """One epoch of reading, the shards out of the page cache at its beginning."""
        batches = self.read(epochs=1)
        self._evict()
        return batches

    def views_cold(self) -> Batches:
        """One epoch of two views, the shards out of the page cache at its beginning."""
        loader = self.loader(self.recipe)
        self._evict()
        return _served(loader, epochs=1)

    def train(self) -> Batches:
        """Steps of SimCLR with a ResNet-18 on the loader's batches."""
        loader = self.loader(self.recipe)
        step = _training_step(len(loader.bands), self.device)
        return ((samples, step(views)) for samples, views in _served(loader))

    def train_replayed(self) -> Batches:
        """The same steps on one batch that stays in memory: what training does when views cost nothing."""
        loader = self.loader(self.recipe)
        step = _training_step(len(loader.bands), self.device)
        served = _served(loader)
        samples, views = next(served)
        kept = [view.clone() for view in views]
        served.close()  # type: ignore[attr-defined]
        return ((samples, step(kept)) for _ in itertools.count())

    def _evict(self) -> None:
        paths = self.shard_set.paths("train")
        resident = evict(paths)
        if resident > 0.01:
            raise BandstreamError(
                f"{resident:.0%} of {paths[0].parent} stay in the page cache: put the data on a disk (--data)"
            )


def _served(loader: Loader, epochs: int | None = None) -> Batches:
    try:
        for _ in itertools.count() if epochs is None else range(epochs):
            for batch in loader:
                yield len(batch.indices), batch.views
    finally:
        loader.close()


def _training_step(bands: int, device: str) -> Any:
    """Steps of train.py with SimCLR and AdamW: two views → the loss, as the tensors to be consumed."""
    from bench.step import TrainingStep
    from training.recipe import Pretraining

    head = {"temperature": 0.2, "projection_hidden": 512, "projection_out": 128}
    step = TrainingStep(Pretraining(optimiser="adamw", clip=5.0, objective=head).resolved(), bands, device)
    return lambda views: [step(views).reshape(1)]
