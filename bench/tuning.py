"""A peer's quickest setting on this machine, found a knob at a time, with all that was tried."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from bench.loaders import Knobs

Setting = dict[str, Any]


def tuned(
    rate: Callable[[str, Setting], float], reading_knobs: Knobs, views_knobs: Knobs, cores: int
) -> dict[str, Any]:
    """The settings of a peer's `read` and `views`, and `tried`: every setting with its samples a second.

    `rate` measures a phase in a setting. Reading comes first: views begin from its knobs, with a worker a core.
    """
    tried: list[dict[str, Any]] = []

    def quickest(phase: str, setting: Setting, knobs: Sequence[Sequence[Setting]]) -> Setting:
        known: dict[str, float] = {}

        def rate_of(setting: Setting) -> float:
            told = json.dumps(setting, sort_keys=True)
            if told not in known:
                known[told] = rate(phase, setting)
                tried.append({"phase": phase, "setting": setting, "samples_per_s": known[told]})
            return known[told]

        for values in knobs:
            setting = max((setting | value for value in values), key=rate_of)
        return setting

    counts = sorted({0, 1, -(-cores // 2), cores})
    read = quickest(
        "read",
        _first(reading_knobs) | {"workers": cores},
        [*_values(reading_knobs), [{"workers": count} for count in counts]],
    )
    places = [
        {"workers": count, "in_workers": inside}
        for count in counts
        for inside in ((True, False) if count else (False,))
    ]
    views = quickest(
        "views",
        read | _first(views_knobs) | {"workers": cores, "in_workers": True},
        [*_values(views_knobs), places],
    )
    return {"read": read, "views": views, "tried": tried}


def _first(knobs: Knobs) -> Setting:
    return {knob: values[0] for knob, values in knobs.items()}


def _values(knobs: Knobs) -> list[list[Setting]]:
    return [[{knob: value} for value in values] for knob, values in knobs.items()]
