"""Self-supervised objectives, a file each: an encoder with its heads, embeddings of views, and a loss of those.

A new one is a file with a subclass of `Objective`; its `name` is what `--method` says.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from models.encoder import Encoder
from models.objectives.objective import Embedded, Objective, ObjectiveKnobs, Outcome
from shards.errors import BandstreamError

__all__ = ["METHODS", "Embedded", "Objective", "ObjectiveKnobs", "Outcome", "build_objective"]


def _methods() -> dict[str, type[Objective]]:
    found: dict[str, type[Objective]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for thing in vars(importlib.import_module(module.name)).values():
            # also one that builds on another, which is then imported there, too
            if isinstance(thing, type) and issubclass(thing, Objective) and "name" in vars(thing):
                found[thing.name] = thing
    return dict(sorted(found.items()))


METHODS = _methods()
"""Name → objective."""


def build_objective(name: str, encoder: Encoder, knobs: Mapping[str, Any]) -> Objective:
    """The objective of this name around an encoder, with heads of random weights.

    Raises BandstreamError naming an unknown method, or the knobs that it does not have or that are out of range.
    """
    if name not in METHODS:
        raise BandstreamError(f"no method {name!r}: there are {', '.join(METHODS)}")
    method = METHODS[name]
    try:
        chosen = method.Knobs.model_validate(dict(knobs))
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise BandstreamError(f"[objective] of {name}: {told}") from None
    return method(encoder, chosen)
