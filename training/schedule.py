"""A schedule is data: one number a step, computed before the first."""

import numpy as np


def warmup_cosine(peak: float, steps: int, warmup: int, final: float = 0.0) -> np.ndarray:
    """Learning rates float64 (steps,): linear from peak / warmup to `peak`, then half a cosine down to `final`.

    The cosine of Loshchilov and Hutter 2017 (SGDR) without restarts; its last step is one before `final`.
    """
    warmup = min(warmup, steps)
    rising = peak * (np.arange(warmup) + 1) / max(warmup, 1)
    falling = np.arange(steps - warmup) / max(steps - warmup, 1)
    return np.concatenate([rising, final + (peak - final) * (1 + np.cos(np.pi * falling)) / 2])
