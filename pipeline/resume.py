"""Where a loader stood, taken up by another: checked whole before any of it is believed."""

from collections.abc import Iterator, Mapping
from typing import Any

from shards.errors import BandstreamError

LONGEST, MOST = 100, 4
"""Characters of a value, and differences, in a message."""


def checked(state: Any, fingerprint: Mapping[str, Any], samples: int, elastic: bool) -> tuple[int, int]:
    """(epoch, cursor) of a saved state, for a loader with this fingerprint over so many samples.

    `elastic`: the batch size may be another. Raises BandstreamError naming what is missing, impossible or different.
    """
    if not isinstance(state, Mapping):
        raise BandstreamError(
            f"a loader's state is a mapping, not {_brief(repr(state))}: pass what state_dict() returned"
        )
    missing = [name for name in ("epoch", "cursor", "fingerprint") if name not in state]
    if missing:
        raise BandstreamError(f"this is no loader's state, it has no {', '.join(missing)}: pass what state_dict() gave")
    there = state["fingerprint"]
    if not isinstance(there, Mapping):
        raise BandstreamError(
            f"a loader's state with fingerprint {_brief(repr(there))} is damaged: take an earlier one"
        )
    if elastic:
        there = {**there, "batch size": fingerprint["batch size"]}
    different = list(_differences(there, fingerprint))
    if different:
        told = "; ".join(different[:MOST]) + (f"; and {len(different) - MOST} more" if len(different) > MOST else "")
        alone = len(different) == 1 and different[0].startswith("batch size")
        way = "restore what it was, or start a new run" + (", or go on with elastic=True" if alone else "")
        raise BandstreamError(f"cannot resume on other data ({told}): {way}")
    for name, most in (("epoch", None), ("cursor", samples)):
        value = state[name]
        if type(value) is not int or value < 0 or (most is not None and value > most):
            limit = "from 0" if most is None else f"from 0 to {most}"
            raise BandstreamError(
                f"a loader's state with {name} {_brief(repr(value))} is damaged, whole numbers {limit} are possible: "
                "take an earlier one"
            )
    return state["epoch"], state["cursor"]


def _differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in [*now, *(key for key in then if key not in now)]:
            yield from _differences(then.get(key, "nothing"), now.get(key, "nothing"), f"{name}.{key}".strip("."))
    elif then != now:
        yield f"{name}: {_brief(then)} then, {_brief(now)} now"


def _brief(value: Any) -> str:
    told = " ".join(str(value).split())
    return told if len(told) <= LONGEST else f"{told[: LONGEST - 1]}…"
