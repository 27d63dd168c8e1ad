"""What a run tells: `metrics.jsonl`, TensorBoard, which is drawn from it, and one line of progress.

python -m training.monitor RUN        draw RUN/tensorboard anew from metrics.jsonl and the pictures beside it
"""

import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from shards import atomic

METRICS, BOARD, PROJECTOR, PICTURES = "metrics.jsonl", "tensorboard", "embeddings.npz", ("views",)


class Monitor:
    """Writes the numbers of a run; resumed at `step`, it drops the lines of `metrics.jsonl` from there on.

    On ranks other than the main one it is silent.
    """

    def __init__(self, folder: Path, total: int, step: int = 0, active: bool = True) -> None:
        self.folder = folder
        self.total = total
        self.active = active
        self._begin = time.perf_counter()
        self._first = step
        self._shown = 0.0
        self.last: dict[str, Any] = {}
        """What is known of every number from before `step`, each from the newest line that has it."""
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS
        kept = [line for line in read_metrics(path) if line["step"] < step]
        for line in kept:
            self.last |= line
        atomic.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / BOARD), purge_step=step)

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

    def log(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Record the numbers of a step (0 is the first), or what happened at it, in words."""
        if not self.active:
            return
        line = {"step": step, "epoch": epoch, **values}
        self.last |= line
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        _draw_line(self._board, line)
        self._progress(step + 1, values)

    def picture(self, name: str) -> None:
        """Show NAME.png of the run in TensorBoard."""
        if self.active:
            _draw_picture(self._board, self.folder, name)

    def embeddings(self, features: np.ndarray, labels: Iterable[str], pictures: np.ndarray) -> None:
        """Keep features (n, D) with a label and a picture uint8 (n, S, S, 3) each, and show them in the projector."""
        if self.active:
            with atomic.replacing(self.folder / PROJECTOR) as file:
                np.savez(file, features=features.astype(np.float32), labels=np.array(list(labels)), pictures=pictures)
            _draw_embeddings(self._board, self.folder)

    def _progress(self, done: int, values: dict[str, Any]) -> None:
        now = time.perf_counter()
        if not sys.stderr.isatty() or (now - self._shown < 0.2 and done < self.total):
            return
        self._shown = now
        left = (now - self._begin) / max(done - self._first, 1) * (self.total - done)
        numbers = [(name, value) for name, value in values.items() if isinstance(value, float)]
        told = "  ".join(f"{name} {value:.3g}" for name, value in numbers[:4])
        rate = f"{values['samples_per_s']:.0f} samples/s  " if "samples_per_s" in values else ""
        sys.stderr.write(f"\r\x1b[K{done}/{self.total}  {told}  {rate}{left // 60:.0f}:{left % 60:02.0f} left")
        sys.stderr.flush()


class Pace:
    """How fast it goes, from one question to the next."""

    def __init__(self, step: int, waiting: float) -> None:
        self._before = time.perf_counter(), step, waiting

    def since(self, step: int, waiting: float, batch_size: int) -> dict[str, float]:
        """`samples_per_s`, and the share of the time that was spent `waiting` for data (given in s)."""
        (then, step_then, waiting_then), now = self._before, time.perf_counter()
        self._before = now, step, waiting
        seconds = max(now - then, 1e-9)
        return {
            "samples_per_s": (step - step_then) * batch_size / seconds,
            "waiting": (waiting - waiting_then) / seconds,
        }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def redraw(folder: Path) -> Path:
    """Draw a run's TensorBoard anew, from its metrics.jsonl, its pictures and its embeddings; where it lies."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / BOARD, ignore_errors=True)
    board = SummaryWriter(str(folder / BOARD))
    for line in read_metrics(folder / METRICS):
        _draw_line(board, line)
    for name in PICTURES:
        if (folder / f"{name}.png").exists():
            _draw_picture(board, folder, name)
    if (folder / PROJECTOR).exists():
        _draw_embeddings(board, folder)
    board.close()
    return folder / BOARD


def _draw_line(board: Any, line: dict[str, Any]) -> None:
    for name, value in line.items():
        if isinstance(value, str):
            board.add_text(name, value, line["step"])
        elif name != "step":
            board.add_scalar(name, value, line["step"])


def _draw_picture(board: Any, folder: Path, name: str) -> None:
    from PIL import Image

    board.add_image(name, np.asarray(Image.open(folder / f"{name}.png").convert("RGB")), 0, dataformats="HWC")


def _draw_embeddings(board: Any, folder: Path) -> None:
    import torch

    with np.load(folder / PROJECTOR) as held:
        pictures = torch.from_numpy(held["pictures"]).permute(0, 3, 1, 2).float() / 255
        board.add_embedding(held["features"], held["labels"].tolist(), pictures, tag="encoder")


if __name__ == "__main__":
    print(redraw(Path(sys.argv[1])))
