"""What a run tells: `metrics.jsonl`, TensorBoard and one line of progress."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from shards import atomic

METRICS = "metrics.jsonl"


class Monitor:
    """Writes the numbers of a run; resumed at `step`, it drops the lines of `metrics.jsonl` from there on.

    On ranks other than the main one it is silent.
    """

    def __init__(self, folder: Path, total: int, step: int = 0, active: bool = True) -> None:
        self.total = total
        self.active = active
        self._begin = time.perf_counter()
        self._first = step
        self._shown = 0.0
        self.last: dict[str, Any] = {}
        """The newest line of `metrics.jsonl` from before `step`; empty where there is none."""
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS
        kept = [line for line in read_metrics(path) if line["step"] < step]
        self.last = kept[-1] if kept else {}
        atomic.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._file.close()
            self._board.close()
            if self._shown and sys.stderr.isatty():
                sys.stderr.write("\n")

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Record the numbers of a step (0 is the first)."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._progress(step + 1, values)

    def picture(self, name: str, image: Any, step: int) -> None:
        """Show a picture in TensorBoard: uint8 (H, W, 3)."""
        if self.active:
            self._board.add_image(name, image, step, dataformats="HWC")

    def _progress(self, done: int, values: dict[str, float]) -> None:
        now = time.perf_counter()
        if not sys.stderr.isatty() or (now - self._shown < 0.2 and done < self.total):
            return
        self._shown = now
        left = (now - self._begin) / (done - self._first) * (self.total - done)
        told = "  ".join(f"{name} {value:.3g}" for name, value in list(values.items())[:4])
        rate = f"{values['samples_per_s']:.0f} samples/s  " if "samples_per_s" in values else ""
        sys.stderr.write(f"\r\x1b[K{done}/{self.total}  {told}  {rate}{left // 60:.0f}:{left % 60:02.0f} left")
        sys.stderr.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
