from pathlib import Path

import torch

from training.precision import in_bfloat16


def test_what_is_asked_for_is_taken():
    assert in_bfloat16("bfloat16", torch.device("cpu"))
    assert not in_bfloat16("float32", torch.device("cpu"))


def test_a_processor_is_asked_for_its_instructions():
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert in_bfloat16("auto", torch.device("cpu")) == any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))
