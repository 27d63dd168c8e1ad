"""A peer's phases: reading alone, and two views, made in the workers or in the main process."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.loaders import OURS, PEERS
from bench.loaders.views import VIEWS, Definition
from bench.plain_ingest import GROUPS
from pipeline.views import ViewRecipe
from shards.errors import BandstreamError
from shards.manifest import Manifest


def batches_of(
    key: str, data: Path, batch_size: int, recipe: ViewRecipe, device: str = "cpu"
) -> Callable[[str, dict[str, Any]], Iterator[tuple[int, list[Any]]]]:
    """(phase, setting) → endless (samples, tensors).

    A setting holds `workers`; for `views` also `in_workers`, whether the views are made there; and whatever is among
    the knobs of the format or of the views. On a `cuda` device, views end there: they are made there from the arrays,
    which are copied, or in the workers, and copied then.
    """
    peer = PEERS[key]
    reader = importlib.import_module(f"bench.loaders.{peer.format}")
    make_views = VIEWS[peer.views]
    manifest = Manifest.read(data / OURS)
    held = [tuple(array.bands) for array in manifest.arrays.values()]
    if peer.folder != OURS and held != list(GROUPS.values()):
        raise BandstreamError(f"{data / OURS} holds {held}, {peer.name} {list(GROUPS.values())}: no bands to compare")
    definition = Definition.of(manifest, recipe)
    make_views(definition)  # imports Kornia before anything is measured

    def batches(phase: str, setting: dict[str, Any]) -> Iterator[tuple[int, list[Any]]]:
        own = {knob: value for knob, value in setting.items() if knob in peer.reading_knobs}
        views = None
        if phase == "views":
            home = definition if setting["in_workers"] else definition.to(device)
            views = make_views(home, **{k: v for k, v in setting.items() if k in peer.views_knobs})
        in_workers = views is not None and setting["in_workers"]
        finish = views if in_workers else _as_they_are
        for found in reader.batches(data / peer.folder, batch_size, setting["workers"], finish, **own):
            tensors = found if views is None else [each.to(device, non_blocking=True) for each in found]
            if views is not None and not in_workers:
                tensors = views(tensors)
            yield len(tensors[0]), list(tensors)

    return batches


def _as_they_are(arrays: Any) -> Any:
    return arrays
