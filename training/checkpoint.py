"""Checkpoints: complete, atomic, and never unpickled into anything but tensors and plain values."""

import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shards import atomic
from shards.errors import BandstreamError
from training.distributed import Place

BEST, GOOD = "best.pt", "good.pt"
"""Second names (hard links) of checkpoints: that of the best validation; the newest that nothing is said against."""
FREE = ("log_steps", "checkpoint_steps", "keep", "on_nan")
"""Knobs that do not bear on the weights: a run may be resumed with others."""
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
        if place.is_main:  # half-written files of a process that was killed
            for left in [*out.glob(f".*{atomic.TEMPORARY}"), *self.folder.glob(f".*{atomic.TEMPORARY}")]:
                left.unlink(missing_ok=True)

    def save(self, step: int, best: bool, good: bool) -> None:
        """Write one, on the main rank; all ranks have to ask. `best` and `good`: whether to name it so, too."""
        random = rng_states(self.place)
        if self.place.is_main:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            adaptation = self.parts["model"].encoder.adaptation
            state |= {"step": step, "recipe": dict(self.recipe), "rng": random}
            state["adaptation"] = adaptation.model_dump() if adaptation else None
            save_checkpoint(self.folder, step, state, self.recipe["keep"], (BEST,) * best + (GOOD,) * good)

    def resume(self, saved: dict[str, Any]) -> int:
        """Put every part where a checkpoint has it; its step. Raises BandstreamError if the recipe was another."""
        check_recipe(saved["recipe"], self.recipe, self.out)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        set_rng_state(saved["rng"], self.place)
        step: int = saved["step"]
        if self.place.is_main:  # it may have been killed before it named them
            good = step == 0 or self.parts["watch"].is_well(step)
            for name, fits in ((BEST, 0 < step == saved["best"]["step"]), (GOOD, good)):
                if fits:
                    name_checkpoint(self.folder / f"step-{step:09d}.pt", name)
        return step

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
    """The newest checkpoint of a run that is whole, or None where it has none yet; of damaged ones it warns.

    Raises BandstreamError where all are damaged.
    """
    found = checkpoints(out / "checkpoints")
    for path in reversed(found):
        try:
            return load_checkpoint(path)
        except BandstreamError as error:
            if path == found[0]:
                raise BandstreamError(f"{error}, and none before it can: begin anew in another folder") from None
            if place.is_main:
                print(f"warning: {error}: going on from the one before", file=sys.stderr)
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint. Raises BandstreamError where there is none, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as file:  # torch does not look at the checksums that it writes
            if (damaged := file.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BandstreamError(f"{path} is no checkpoint: none that may be called so was saved yet") from None
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise BandstreamError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None
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
