"""Whether a run computes in bfloat16."""

from pathlib import Path

import torch

from shards.errors import BandstreamError

LEAST = 17
"""Pixels of the smallest views that a CPU trains on in bfloat16. Of smaller ones one pixel is left before the last
convolution of stride 2, whose gradient oneDNN then computes from memory that nobody wrote to (as found in torch 2.15).
"""


def in_bfloat16(precision: str, device: torch.device, view_size: int) -> bool:
    """What a recipe's `precision` means on a device, for views of so many pixels, the smallest of a step.

    `auto` is bfloat16 where the device has instructions for it (elsewhere it is emulated, slower than float32). Raises
    BandstreamError where bfloat16 was asked for and gradients would be wrong.
    """
    if precision == "float32":
        return False
    if device.type == "cuda":
        return precision == "bfloat16" or bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if view_size < LEAST:
        if precision == "bfloat16":
            raise BandstreamError(
                f"views of {view_size} pixels have wrong gradients in bfloat16 on a CPU: take --precision float32, or "
                f"views of {LEAST} pixels or more"
            )
        return False
    return precision == "bfloat16" or "bf16" in Path("/proc/cpuinfo").read_text()  # avx512_bf16, amx_bf16
