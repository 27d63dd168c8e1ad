"""Checkpoints: complete, atomic, and never unpickled into anything but tensors and plain values."""

import os
import pickle
import re
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shards import atomic
from shards.errors import BandstreamError
from training.distributed import Place, any_rank, same_on_all_ranks

BEST, GOOD = "best.pt", "good.pt"
"""Second names (hard links) of checkpoints: that of the best validation; the newest that nothing is said against."""
FREE = ("log_steps", "checkpoint_steps", "keep", "on_nan")
"""Knobs that do not bear on the weights: a run may be resumed with others."""
FORMAT = 2
"""Of what a run's checkpoint holds; with each change of it, runs that were begun before cannot go on."""
STALE_S = 3600
"""Age from which a temporary file is that of a process which was killed, not of one that writes."""
_NAME = re.compile(r"step-(\d{9})\.pt")


class Checkpoints:
    """The checkpoints of a run: the state of each of its `parts`, by name, with step, recipe and random generators.

    `learnt` names the parts that go back to an earlier state when training breaks; the others go on.
    """

    def __init__(
        self, out: Path, recipe: Mapping[str, Any], parts: Mapping[str, Any], learnt: Sequence[str], place: Place
    ) -> None:
        self.out, self.folder = out, out / "checkpoints"
        self.recipe, self.parts, self.learnt, self.place = recipe, parts, learnt, place

    def save(self, step: int, best: bool, good: bool) -> None:
        """Write one, on the main rank; all ranks have to ask. `best` and `good`: whether to name it so, too."""
        random = rng_states(self.place)
        if self.place.is_main:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            adaptation = self.parts["model"].encoder.adaptation
            state |= {"format": FORMAT, "step": step, "recipe": dict(self.recipe), "rng": random}
            state["adaptation"] = adaptation.model_dump() if adaptation else None
            save_checkpoint(self.folder, step, state, self.recipe["keep"], (BEST,) * best + (GOOD,) * good)

    def resume(self, saved: dict[str, Any]) -> int:
        """Put every part where a checkpoint has it; its step. Raises BandstreamError where recipe or format differ."""
        if saved.get("format") != FORMAT:
            raise BandstreamError(f"{self.out} was begun by another version: finish it with that one, or begin anew")
        check_recipe(saved["recipe"], self.recipe, self.out)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        set_rng_state(saved["rng"], self.place)
        step, best = saved["step"], saved["best"]["step"]
        gone = any_rank(not (self.folder / BEST).exists(), self.place)  # where it was damaged
        if gone and 0 < best != step:
            self.parts["best"].forget(step)
        if self.place.is_main:
            # it may have been killed before it named them
            good = step == 0 or self.parts["watch"].is_well(step) or not (self.folder / GOOD).exists()
            for name, fits in ((BEST, 0 < step == best), (GOOD, good)):
                if fits:
                    name_checkpoint(self.folder / f"step-{step:09d}.pt", name)
            # and while it wrote
            for left in self.folder.glob(f".step-*{atomic.TEMPORARY}"):
                if time.time() - left.stat().st_mtime > STALE_S:
                    left.unlink(missing_ok=True)
        return int(step)

    def go_back(self, name: str) -> int:
        """Put what is learnt where the checkpoint of that name has it; its step."""
        saved = load_checkpoint(self.folder / name)
        for part in self.learnt:
            self.parts[part].load_state_dict(saved[part])
        step: int = saved["step"]
        return step


def all_finite(module: torch.nn.Module) -> bool:
    """Whether all weights and buffers are. Waits for the device."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return bool(torch.stack([t.detach().isfinite().all() for t in tensors]).all())


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2, also: tuple[str, ...] = ()) -> Path:
    """Write `step-NNNNNNNNN.pt` (temporary name, fsync, rename), `also` under these names; keep the newest few."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    with atomic.replacing(path) as file:
        torch.save(state, file)
    for name in also:
        name_checkpoint(path, name)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def name_checkpoint(path: Path, name: str) -> None:
    """Give a checkpoint a second name, atomically: it then outlives the newest few."""
    temporary = path.with_name(f".{name}{atomic.TEMPORARY}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        temporary.replace(path.with_name(name))
    except OSError:  # a file system without hard links
        atomic.write_bytes(path.with_name(name), path.read_bytes())
    atomic.sync_folder(path.parent)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first; files under temporary names are none."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def newest_checkpoint(out: Path, place: Place) -> dict[str, Any] | None:
    """The newest checkpoint of a run that is whole, or None where it has none yet. All ranks have to ask.

    Damaged ones are told of and set aside, and so are what the run's best and good ones were, if they are damaged or
    newer. Raises BandstreamError where all are damaged, or where ranks find different ones.
    """
    folder = out / "checkpoints"
    damaged: list[Damaged] = []
    state = None
    for path in reversed(checkpoints(folder)):
        try:
            state = load_checkpoint(path)
            break
        except Damaged as error:
            damaged.append(error)
    if damaged and state is None:
        raise BandstreamError(f"{damaged[-1]}, nor can any other: begin anew in another folder")
    step: int = state["step"] if state else -1
    if not same_on_all_ranks(step, place):
        raise BandstreamError(f"{folder} shows other checkpoints to other processes: they need one folder, all of it")
    if any_rank(bool(damaged), place):
        if place.is_main:
            for found in damaged:
                print(f"warning: {found}: set aside, going on from step {step}", file=sys.stderr)
                found.path.replace(found.path.with_suffix(".damaged"))
            for name in (BEST, GOOD):
                _set_aside_unless_whole(folder / name, step)
        any_rank(False, place)  # nobody looks before that is done
    return state


def _set_aside_unless_whole(path: Path, step: int) -> None:
    """Unlink a checkpoint that is damaged, or of a later step."""
    try:
        whole = not path.exists() or load_checkpoint(path)["step"] <= step
    except Damaged:
        whole = False
    if not whole:
        path.unlink()


class Damaged(BandstreamError):
    """A checkpoint that is not whole."""

    def __init__(self, path: Path, why: Exception) -> None:
        super().__init__(f"{path} cannot be read ({(str(why).splitlines() or [type(why).__name__])[0]})")
        self.path = path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint. Raises Damaged where it is not whole, and BandstreamError where it is not there, or not shown."""
    try:
        with zipfile.ZipFile(path) as file:  # torch does not look at the checksums that it writes
            if (damaged := file.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BandstreamError(f"{path} is no checkpoint: none that may be called so was saved yet") from None
    except OSError as error:
        raise BandstreamError(f"{path} cannot be read ({error.strerror})") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as error:
        raise Damaged(path, error) from None
    return state


def check_recipe(saved: Mapping[str, Any], recipe: Mapping[str, Any], out: Path) -> None:
    """Raises BandstreamError naming the knobs with which a run was started otherwise."""
    changed = [name for name in recipe if name not in FREE and saved.get(name) != recipe[name]]
    if changed:
        raise BandstreamError(
            f"{out} was started with another {', '.join(changed)}: resume with the same recipe and options"
        )


def rng_states(place: Place) -> list[dict[str, torch.Tensor]]:
    """The states of torch's generators on every rank. All ranks have to ask."""
    state = {"cpu": torch.get_rng_state()}
    if place.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    if place.world_size == 1:
        return [state]
    states: list[Any] = [None] * place.world_size
    dist.all_gather_object(states, state)
    return states


def set_rng_state(states: list[dict[str, torch.Tensor]], place: Place) -> None:
    """Set this rank's generators as `rng_states` found them; on another number of ranks they stay as they are."""
    if len(states) != place.world_size:
        return
    state = states[place.rank]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and place.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
