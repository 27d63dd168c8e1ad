"""Random numbers that are a function of integers: a counter-based hash over whole batches.

The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators",
with Stafford's variant 13 of the constants): a bijection of 64 bits that passes BigCrush on counters.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def mix(value: np.ndarray) -> np.ndarray:
    """Scramble uint64 values of any shape; every bit of the result depends on every bit of its argument."""
    with np.errstate(over="ignore"):
        value = value + _STEP
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed


def combine(names: str | Sequence[str], *numbers: int | np.ndarray) -> np.ndarray:
    """Hash a name and integers (or integer arrays, which broadcast) into uint64, one mixing round each.

    Several names make a first axis, each row as if it were hashed alone, at less than the cost of so many calls.
    """
    several = [names] if isinstance(names, str) else names
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in several]
    arrays = [np.array([n & (2**64 - 1)], np.uint64) if isinstance(n, int) else np.asarray(n) for n in numbers]
    value = np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)
    if not isinstance(names, str):
        value = value.reshape(-1, *[1] * max(array.ndim for array in arrays))
    for array in arrays:
        value = mix(value ^ mix(array.astype(np.uint64)))
    return value


def uniform(names: str | Sequence[str], *numbers: int | np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1), 53 bits each, from the same arguments as `combine`."""
    return (combine(names, *numbers) >> np.uint64(11)) * 2.0**-53
