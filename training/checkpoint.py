"""Checkpoints: complete, atomic, and never unpickled into anything but tensors and plain values."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from shards import atomic
from shards.errors import BandstreamError

KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `step-NNNNNNNNN.pt` (temporary name, fsync, rename) and keep the newest few."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = folder / f"step-{step:09d}.pt"
    atomic.write_bytes(path, buffer.getvalue())
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first; files under temporary names are none."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest checkpoint. Raises BandstreamError where there is none, or where it is damaged."""
    found = checkpoints(folder)
    if not found:
        raise BandstreamError(f"{folder} holds no checkpoint: start the run without --resume")
    try:
        state: dict[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise BandstreamError(
            f"{found[-1]} cannot be read ({first}): delete it to resume from the one before"
        ) from None
    return state


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Set the generators as `rng_state` found them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
