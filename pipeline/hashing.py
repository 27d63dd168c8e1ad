"""Random numbers that are a function of integers: a counter-based hash over whole batches.

The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators",
with Stafford's variant 13 of the constants): a bijection of 64 bits that passes BigCrush on counters.
"""

import hashlib

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


def combine(name: str, *numbers: int | np.ndarray) -> np.ndarray:
    """Hash a name and integers (or integer arrays, which broadcast) into uint64, one mixing round each."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    value = np.array([int.from_bytes(digest, "little")], np.uint64)
    for number in numbers:
        if isinstance(number, int):
            number = np.array([number & (2**64 - 1)], np.uint64)
        value = mix(value ^ mix(np.asarray(number).astype(np.uint64)))
    return value


def uniform(name: str, *numbers: int | np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1), 53 bits each, from the same arguments as `combine`."""
    return (combine(name, *numbers) >> np.uint64(11)) * 2.0**-53
