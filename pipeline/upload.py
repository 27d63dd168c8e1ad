"""Batches to a GPU: the bytes of all samples in one copy, on a stream of its own, beside whatever the GPU computes."""

from collections import deque
from collections.abc import Callable

import numpy as np
import torch


class Upload:
    """Splits what a source returns in two for DALI, which takes what is on the GPU and what is not by different inputs:
    `samples()` gives the first array, uint8 (N, bytes), as a tensor on this process's GPU, `rest()` the others.

    The array is taken to be in pinned memory, or the copy is a slow one, and may be written to anew once the source is
    asked again: that waits for the copy. Whatever reads the tensor does so on `stream`, where its memory is freed, too.
    """

    def __init__(self, source: Callable[[], tuple[np.ndarray, ...]]) -> None:
        self.stream = torch.cuda.Stream()
        self._source = source
        self._copied = torch.cuda.Event()
        self._samples: deque[torch.Tensor] = deque()
        self._rest: deque[list[np.ndarray]] = deque()

    def samples(self) -> torch.Tensor:
        """The samples of the next batch; StopIteration is the source's."""
        if not self._samples:
            self._fetch()
        return self._samples.popleft()

    def rest(self) -> list[np.ndarray]:
        """The other arrays of the next batch; StopIteration is the source's."""
        if not self._rest:
            self._fetch()
        return self._rest.popleft()

    def _fetch(self) -> None:
        self._copied.synchronize()
        samples, *rest = self._source()
        with torch.cuda.stream(self.stream):
            self._samples.append(torch.from_numpy(samples).to("cuda", non_blocking=True))
            self._copied.record()
        self._rest.append(rest)
