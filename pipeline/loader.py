"""The loader: batches of augmented views as torch tensors, resumable by (epoch, cursor)."""

import ctypes
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia import dali

from pipeline.draws import DRAWS_VERSION, Draws, draw
from pipeline.graph import ViewGraph
from pipeline.held import Held
from pipeline.order import ORDER_VERSION, Order, Plan, Windows
from pipeline.reader import Read, Reader
from pipeline.resume import checked
from pipeline.views import Seasons, ViewRecipe
from shards.errors import BandstreamError
from shards.shardset import ShardSet

TRIM_BATCHES = 128
"""Batches of the graph on a CPU after which free memory goes back to the system. Its executor takes and frees buffers
of some MB for every batch, from several threads: glibc keeps them in pieces that fit ever worse, a GB in 500 batches
of 64 pairs. Giving back takes about a percent of the time, and more where it is done more often."""


@dataclass(frozen=True)
class Batch:
    """A batch of N samples.

    views    one float tensor (N, C, H, W) a view, standardised
    indices  int64 (N,): sample numbers in the split
    labels   float32 (N, K) multi-hot or int64 (N,), or None
    mask     uint8 (N, H, W), aligned with the view, or None
    """

    views: list[torch.Tensor]
    indices: torch.Tensor
    labels: torch.Tensor | None
    mask: torch.Tensor | None


class _Fed(NamedTuple):
    """A batch that the graph is at work on: what it was given, and what gives the buffer of its bytes back."""

    indices: np.ndarray
    labels: torch.Tensor | None
    inputs: tuple[np.ndarray, ...]
    done: Callable[[], None]


class Loader:
    """Streams one split of a shard set.

    Training takes full global batches of a seeded order that is new in every epoch; the tail (`left_out`) is not
    served. Evaluation (`training=False`) serves each sample once, in the set's order. An iteration serves the rest of
    the current epoch and then moves on to the next one.

    Parameters: `batch_size` over all ranks; `views`, one recipe a view; `labels`, `masks`, names in the manifest to
    serve along (a mask needs exactly one view); `bands`, names in the order wanted (default: the manifest's);
    `statistics`, band → (mean, std) in stored numbers to standardise with (default: the manifest's); `subset`, sample
    numbers of the split to stay within; `window`, shards that an epoch of training mixes at a time, for sets that the
    page cache or the disk cannot serve in any order (default: the whole split; evaluation reads shard after shard);
    `seasons`, which date of a place that has several a view shows: the `first`, one that is drawn, the `same` for all
    views, or drawn and `different` for the views of a pair (more views than dates begin again with the first one's);
    `device`, `cpu` or `cuda` (this process's current one); `dtype`, `float32` or `float16`; `threads` of the graph and
    of the reader; `cache` and `cache_gb` for a URL, as `ShardSet.open` has them.

    Views are the same bits whatever the batch size, the ranks and the threads: they depend on (seed, epoch, sample,
    view) alone. Tensors share memory with the graph's outputs and stay valid as long as they are held.
    """

    def __init__(
        self,
        shard_set: ShardSet | Path | str,
        split: str,
        batch_size: int,
        views: Sequence[ViewRecipe],
        *,
        seed: int = 0,
        training: bool = True,
        rank: int = 0,
        world_size: int = 1,
        device: str = "cpu",
        threads: int | None = None,
        labels: str | None = None,
        masks: str | None = None,
        bands: Sequence[str] | None = None,
        statistics: Mapping[str, tuple[float, float]] | None = None,
        subset: np.ndarray | None = None,
        window: int | None = None,
        seasons: Seasons = "first",
        dtype: str = "float32",
        cache: Path | str | None = None,
        cache_gb: float | None = None,
    ) -> None:
        if device not in ("cpu", "cuda"):
            raise BandstreamError(f"device {device!r} is neither 'cpu' nor 'cuda'; which GPU: torch.cuda.set_device")
        self.shard_set = shard_set if isinstance(shard_set, ShardSet) else ShardSet.open(shard_set, cache, cache_gb)
        manifest = self.shard_set.manifest
        self.split = split
        self.bands = self.shard_set.chosen_bands(bands)
        self.views = tuple(views)
        self.seed = seed
        self.training = training
        self.seasons = seasons
        self.dtype = dtype
        self.device = device
        self.waiting = 0.0
        self._served = 0
        self.epoch = self.cursor = 0
        self.window = window if training else None
        self._subset = None if subset is None else _within(subset, self.shard_set.size(split), split)
        samples = self.shard_set.size(split) if self._subset is None else len(self._subset)
        windows = None if self.window is None else self._windows(self.window)
        self.order = Order(samples, batch_size, seed, training, rank, world_size, windows)
        self._label = _known(manifest.labels, labels, "labels", self.shard_set.place)
        self._mask = _known(manifest.masks, masks, "masks", self.shard_set.place)
        if self._mask and len(self.views) != 1:
            raise BandstreamError(f"a mask goes with one view, not with {len(self.views)}")
        self.statistics = _statistics(manifest.statistics if statistics is None else statistics, self.bands)

        layout = self.shard_set.layout
        members = [*manifest.arrays, *(spec.member for spec in (self._label, self._mask) if spec)]
        threads = threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        self._reader = Reader(
            self.shard_set, split, max(layout[name].end for name in members), threads, pinned=device == "cuda"
        )
        self._reader.check(self._batches(self.epoch, self.order.starts()))
        self._plan: Iterator[Read] = iter(())
        self._under_way: deque[_Fed] = deque()
        self._held = Held()
        self._graph = ViewGraph(
            manifest,
            layout,
            self.views,
            self.bands,
            self.statistics,
            batch_size=self.order.local_batch,
            source=self._feed,
            mask=self._mask.member if self._mask else None,
            device=device,
            threads=threads,
            dtype=dtype,
            seasons=seasons,
        )
        height, width = self._graph.grid
        self._aspect = width / height

    def __len__(self) -> int:
        """Batches that this rank serves in a whole epoch."""
        return len(self.order.starts())

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each view, in pixels."""
        return [self._graph.size(recipe) for recipe in self.views]

    @property
    def left_out(self) -> int:
        """Samples at the current epoch's end that training does not serve, over all ranks."""
        return self.order.left_out(self.cursor)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; a no-op where the loader is in it already, so that a resumed one goes on."""
        if epoch != self.epoch:
            self.epoch, self.cursor = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        if not self.training:
            self.cursor = 0
        self._drain()
        epoch, starts = self.epoch, self.order.starts(self.cursor)
        self._plan = self._reader.batches(self._batches(epoch, starts))
        for start in starts:
            began = time.perf_counter()
            outputs = self._graph.pipe.run()
            fed = self._under_way.popleft()
            fed.done()
            tensors = [torch.from_dlpack(output.as_tensor()) for output in outputs]
            self.waiting += time.perf_counter() - began
            self._served += 1
            if self.device == "cpu" and self._served % TRIM_BATCHES == 0:
                ctypes.CDLL(None).malloc_trim(0)
            self.cursor = min(start + self.order.batch_size, self.order.samples)
            here = epoch, self.cursor
            mask = tensors.pop() if self._mask else None
            batch = Batch(tensors, torch.from_numpy(fed.indices), fed.labels, mask)
            try:
                yield batch
            finally:
                if self.device == "cuda":
                    self._held.add(batch)
            if (self.epoch, self.cursor) != here:
                raise BandstreamError("the loader was moved in the middle of an iteration: leave it and begin another")
        self._drain()
        self.epoch, self.cursor = epoch + 1, 0

    def _windows(self, window: int) -> Windows:
        """Windows over the shards that the split, or its subset, has samples in."""
        if self._subset is None:
            specs = self.shard_set.manifest.splits[self.split].shards
            return Windows(np.array([shard.samples for shard in specs]), window)
        self._subset = np.sort(self._subset)
        shards, _ = self.shard_set.locate(self.split, self._subset)
        return Windows(np.unique(shards, return_counts=True)[1], window)

    def _within_split(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of the order (n,) → sample numbers of the split (n,)."""
        return numbers if self._subset is None else self._subset[numbers]

    def _batches(self, epoch: int, starts: range) -> Plan:
        """Sample numbers (n,) of the split, of each batch of an epoch that begins at one of these places."""
        return Plan(lambda start: self._within_split(self.order.batch(epoch, start)), starts)

    def _feed(self) -> tuple[np.ndarray, ...]:
        """One batch for the graph, which reads it where it lies: it stays as it is until its outputs are there."""
        indices, samples, done = next(self._plan)
        labels = None
        if self._label:
            raw = self.shard_set.layout.view(samples, self._label.member)
            if self._label.kind == "multilabel":
                labels = torch.from_numpy(raw.astype(np.float32))
            else:
                digits = 10 ** np.arange(raw.shape[1])[::-1]
                labels = torch.from_numpy((raw.astype(np.int64) - ord("0")) @ digits)
        inputs = self._graph.inputs(samples, self.draws(indices))
        self._under_way.append(_Fed(indices, labels, inputs, done))
        return inputs

    def draws(self, indices: np.ndarray) -> list[Draws]:
        """What is drawn for sample numbers (N,) in the current epoch, an entry a view."""
        return [
            draw(recipe, self.seed, self.epoch, indices, view, len(self.bands), self._aspect, self._graph.dates,
                 self.seasons)
            for view, recipe in enumerate(self.views)
        ]  # fmt: skip

    def _drain(self) -> None:
        """Empty the graph of what an epoch, or an iteration that was left in the middle, has in it."""
        self._plan.close() if hasattr(self._plan, "close") else None
        self._plan = iter(())
        while True:
            try:
                self._graph.pipe.run()
            except StopIteration:
                break
        self._graph.pipe.reset()
        self._under_way.clear()

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: epoch, samples of it served over all ranks, and what the data depend on."""
        return {"epoch": self.epoch, "cursor": self.cursor, "fingerprint": deepcopy(self._fingerprint)}

    def load_state_dict(self, state: Mapping[str, Any], elastic: bool = False) -> None:
        """Go where another loader stood, on any number of ranks.

        The rest of the epoch is what it would have been, bit for bit. `elastic`: its global batch may have been of
        another size; the epoch then goes on from the first sample that was not served, and `left_out` is the tail of
        that. Raises BandstreamError naming what differs, or what is wrong with the state.
        """
        if not self.training:
            raise BandstreamError("evaluation begins anew with each iteration: only a loader for training is resumed")
        self.epoch, self.cursor = checked(state, self._fingerprint, self.order.samples, elastic)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        mean, std = self.statistics
        return {
            "shard set": self.shard_set.manifest.fingerprint(),
            "split": self.split,
            "training": self.training,
            "subset": None if self._subset is None else hashlib.sha256(self._subset.tobytes()).hexdigest(),
            "window": self.window,
            "bands": self.bands,
            "statistics": {name: [float(m), float(s)] for name, m, s in zip(self.bands, mean, std, strict=True)},
            "views": {str(number): recipe.model_dump(mode="json") for number, recipe in enumerate(self.views)},
            "seasons": self.seasons,
            "batch size": self.order.batch_size,
            "seed": self.seed,
            "dtype": self.dtype,
            "order": ORDER_VERSION,
            "draws": DRAWS_VERSION,
            "DALI": dali.__version__,
        }

    def close(self) -> None:
        """Stop reading and close the shards."""
        self._held.clear()
        self._drain()
        self._reader.close()


def _within(subset: np.ndarray, total: int, split: str) -> np.ndarray:
    """A subset of [0, total), int64 (n,). Raises BandstreamError where it is empty, repeats or leaves that range."""
    numbers = np.asarray(subset)
    distinct = np.unique(numbers)
    whole = numbers.dtype.kind in "iu" and numbers.ndim == 1 and 0 < len(distinct) == len(numbers)
    if not whole or distinct[0] < 0 or distinct[-1] >= total:
        raise BandstreamError(f"a subset of {split} names samples 0 to {total - 1}, each once and at least one")
    return numbers.astype(np.int64)


def _known(specs: Mapping[str, Any], name: str | None, what: str, place: str) -> Any:
    if name is not None and name not in specs:
        raise BandstreamError(f"{place} has no {what} {name!r}: it has {', '.join(specs) or 'none'}")
    return None if name is None else specs[name]


def _statistics(source: Mapping[str, Any], bands: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std), each float64 (C,). A band without spread is only centred, for nothing else is defined."""
    missing = [band for band in bands if band not in source]
    if missing:
        raise BandstreamError(f"no statistics for {', '.join(missing)}: the set needs a train split, or name others")
    pairs = [
        source[band] if isinstance(source[band], tuple | list) else (source[band].mean, source[band].std)
        for band in bands
    ]
    mean, std = np.array(pairs, np.float64).T
    return mean, np.where(std > 0, std, 1.0)
