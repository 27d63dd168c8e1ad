"""Batches on a GPU that work may still be queued with."""

from collections import deque
from typing import Any

import torch

IN_FLIGHT = 2
"""Batches that are held, and so steps that a host may be ahead of its GPU."""


class Held:
    """Keeps a batch until the GPU has done what was queued with it.

    A batch lies in memory of DALI's, which takes it for another one as soon as nobody holds it: that kernels of
    another library are yet to read it, DALI cannot know. (torch's own memory is freed in the order of its stream.)
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[torch.cuda.Event, Any]] = deque()

    def add(self, batch: Any) -> None:
        """Hold a batch with which nothing more will be queued on the current stream; let go of those that are done,
        and wait for the oldest where there are more than IN_FLIGHT."""
        done = torch.cuda.Event()
        done.record()
        self._batches.append((done, batch))
        while self._batches and (len(self._batches) > IN_FLIGHT or self._batches[0][0].query()):
            self._batches.popleft()[0].synchronize()

    def clear(self) -> None:
        """Wait for all that was queued, and let go of every batch."""
        while self._batches:
            self._batches.popleft()[0].synchronize()
