from pathlib import Path

import pytest
import torch

from models.encoder import Encoder, build_encoder
from shards.errors import BandstreamError
from training.precision import LEAST, in_bfloat16

CPU = torch.device("cpu")


def test_what_is_asked_for_is_taken():
    assert in_bfloat16("bfloat16", CPU, 64)
    assert not in_bfloat16("float32", CPU, 64)


def test_a_processor_is_asked_for_its_instructions():
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert in_bfloat16("auto", CPU, 64) == any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))


def test_views_too_small_for_it_are_trained_on_in_float32():
    assert not in_bfloat16("auto", CPU, LEAST - 1)
    with pytest.raises(BandstreamError, match="views of 16 pixels have wrong gradients.*--precision float32"):
        in_bfloat16("bfloat16", CPU, LEAST - 1)


def bfloat16_gradients(encoder: Encoder, views: torch.Tensor, left: float) -> dict[str, torch.Tensor]:
    """By parameter; `left` is what the memory holds that is free when the backward pass begins."""
    encoder.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(views)
    freed = [torch.full((4**power,), left) for power in range(3, 11) for _ in range(6)]
    del freed
    (features.float() * torch.arange(features.shape[1])).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize("name", ["cnn", "resnet18", "tu-regnetx_002"])
def test_of_the_smallest_views_gradients_do_not_depend_on_what_memory_held(name: str):
    encoder = build_encoder(name, 3, LEAST).train().to(memory_format=torch.channels_last)
    views = torch.randn(16, 3, LEAST, LEAST).to(memory_format=torch.channels_last)
    first, second = (bfloat16_gradients(encoder, views, left) for left in (0.0, float("nan")))
    for key, gradient in first.items():
        assert gradient.isfinite().all() and torch.equal(gradient, second[key]), key
