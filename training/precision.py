"""Whether a run computes in bfloat16."""

from pathlib import Path

import torch


def in_bfloat16(precision: str, device: torch.device) -> bool:
    """What a recipe's `precision` means on a device.

    `auto` is bfloat16 where the device has instructions for it (elsewhere it is emulated, slower than float32).
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return "bf16" in Path("/proc/cpuinfo").read_text()  # avx512_bf16, amx_bf16
