"""MoCo v3 against algorithm 1 of its paper, the frozen patch projection, and the rising momentum."""

import math

import numpy as np
import pytest
import torch

from models.encoder import build_encoder
from models.objectives import build_objective
from models.stem import Adaptation
from tests.models.objectives.tiny import compare, cosine, randoms, tiny


def ctr(queries: np.ndarray, keys: np.ndarray, temperature: float) -> float:
    """`ctr` of algorithm 1: cross-entropy of all pairs with the diagonal, scaled by 2 τ."""
    total = 0.0
    for i in range(len(queries)):
        logits = [cosine(queries[i], keys[k]) / temperature for k in range(len(keys))]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[i]
    return 2 * temperature * total / len(queries)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_the_loss_is_the_papers(temperature):
    # queries q1, q2, keys k1, k2: loss = ctr(q1, k2) + ctr(q2, k1)
    objective = tiny("moco-v3", temperature=temperature)
    compare(
        objective, randoms(4, 4, 6), lambda e: ctr(e[0], e[3], temperature) + ctr(e[1], e[2], temperature), trained=2
    )


def test_local_views():
    def naive(e: list[np.ndarray]) -> float:
        pairs = [(0, 5), (1, 4), (2, 4), (2, 5), (3, 4), (3, 5)]
        return 2 * float(np.mean([ctr(e[query], e[key], 0.2) for query, key in pairs]))

    compare(tiny("moco-v3"), randoms(6, 3, 6), naive, trained=4)


def test_closed_forms():
    objective = tiny("moco-v3", temperature=0.5)
    same = torch.ones(6, 6)
    collapsed = objective.loss([same] * 4)
    assert collapsed.loss.item() == pytest.approx(2 * 2 * 0.5 * math.log(6), rel=1e-5)
    assert collapsed.metrics["top1"] == collapsed.metrics["top5"] == 0
    perfect = objective.loss([torch.eye(6)] * 4)
    assert perfect.loss.item() == pytest.approx(2 * 2 * 0.5 * math.log(1 + 5 * math.exp(-2)), rel=1e-5)
    assert perfect.metrics["top1"] == perfect.metrics["top5"] == 1


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patch_projection_of_a_vit_stays_random(frozen):
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", 3, 32)
    small = {"projection_hidden": 16, "projection_out": 8, "prediction_hidden": 16}
    objective = build_objective("moco-v3", encoder, {**small, "freeze_patches": frozen})
    patches = encoder.net.patch_embed.proj
    before = {name: value.clone() for name, value in encoder.net.named_parameters()}
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, 0.1)
    objective.loss(objective([torch.randn(2, 3, 32, 32) for _ in range(2)])).loss.backward()
    optimiser.step()
    objective.after_step(0, 10)
    assert patches.weight.requires_grad is not frozen
    for name, value in encoder.net.named_parameters():
        if name.startswith("patch_embed"):
            assert torch.equal(value, before[name]) is frozen, name
    assert not torch.equal(encoder.net.blocks[0].attn.qkv.weight, before["blocks.0.attn.qkv.weight"])
    assert not any(parameter.requires_grad for parameter in objective.key_encoder.parameters())


def test_a_patch_projection_that_was_fitted_from_other_bands_is_trained():
    """A band that the encoder never saw begins at zero, where it would stay."""
    encoder = build_encoder("test_vit", 3, 32)
    encoder.adaptation = Adaptation(trained=["B04"], sources={"B04": ["B04"], "B03": [], "B02": []}, scale=1.0)
    objective = build_objective("moco-v3", encoder, {"projection_hidden": 16, "prediction_hidden": 16})
    assert all(parameter.requires_grad for parameter in objective.encoder.net.patch_embed.parameters())
