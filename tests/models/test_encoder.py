"""Every family of encoders: shapes, odd sizes, determinism, stages, and activation checkpointing."""

import copy

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from models.encoder import build_encoder
from models.stem import find_stem
from shards.errors import BandstreamError

# name → (the weight that meets the bands, features, weights in millions at 12 bands)
FAMILIES = {
    "cnn": ("stage1.0.0.weight", 256, 1.1),
    "resnet18": ("conv1.weight", 512, 11.2),
    "resnet34": ("conv1.weight", 512, 21.3),
    "resnet50": ("conv1.weight", 2048, 23.5),
    "convnext_atto": ("stem.0.weight", 320, 3.4),
    "tu-convnext_tiny": ("model.stem_0.weight", 768, 27.8),
    "tu-regnetx_002": ("model.stem.conv.weight", 368, 2.3),
    "swin_tiny_patch4_window7_224": ("patch_embed.proj.weight", 768, 27.5),
    "vit_small_patch16_224": ("patch_embed.proj.weight", 384, 22.5),
    "vit_small_patch8_224": ("patch_embed.proj.weight", 384, 21.7),
    "vit_small_patch14_dinov2": ("patch_embed.proj.weight", 384, 22.2),
    "vit_base_patch16_224": ("patch_embed.proj.weight", 768, 87.5),
}
SIZES = [112, 120, 64, 96]


@pytest.fixture(scope="module")
def built():
    kept = {}

    def build(name):
        if name not in kept:
            torch.manual_seed(0)
            kept[name] = build_encoder(name, 12, 112).eval()
        return kept[name]

    return build


@pytest.mark.parametrize("name", FAMILIES)
def test_features_have_one_shape_at_every_size_and_are_the_same_twice(built, name):
    stem, width, millions = FAMILIES[name]
    encoder = built(name)
    assert encoder.num_features == width
    assert sum(p.numel() for p in encoder.net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    for size in SIZES:
        x = torch.randn(2, 12, size, size)
        with torch.inference_mode():
            found = encoder(x)
            assert found.shape == (2, width) and found.isfinite().all()
            if size == 64:
                torch.testing.assert_close(encoder(x), found, rtol=0, atol=0)
                torch.testing.assert_close(encoder(x[:1]), found[:1], rtol=1e-4, atol=1e-4)
    assert find_stem(encoder.net, 12, 112) == stem
    assert encoder.net.state_dict()[stem].shape[1] == 12
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize("name", ["cnn", "convnext_atto", "vit_tiny_patch16_224"])
def test_a_seed_gives_the_same_weights(name):
    first, second = [], []
    for states in (first, second):
        torch.manual_seed(7)
        states.extend(build_encoder(name, 5, 64).state_dict().values())
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_the_last_stage_of_timms_models_is_their_features(name):
    encoder = build_encoder(name, 3, 64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        stages, pooled = encoder.stages(x), encoder(x)
    torch.testing.assert_close(stages[:, -encoder.num_features :], pooled)
    assert stages.shape[1] > pooled.shape[1]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "tu-resnet18"])
def test_residual_blocks_begin_as_identities(name):
    net = build_encoder(name, 4).net.eval()
    blocks = [part for part in net.modules() if type(part).__name__ in ("BasicBlock", "Bottleneck")]
    assert len(blocks) == 16 if "50" in name else 8
    for block in blocks:
        x = torch.rand(2, block.conv1.in_channels, 8, 8)
        with torch.inference_mode():
            skipped = block.downsample(x) if block.downsample else x
            assert torch.equal(block(x), skipped.relu())


@pytest.mark.parametrize(
    "name", ["efficientnet-b0", "timm-efficientnet-b0", "resnet18", "densenet121", "mit_b0", "cnn"]
)
def test_every_weight_that_is_trained_gets_a_gradient(name):
    encoder = build_encoder(name, 4, 64).eval()
    trained = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(encoder(torch.rand(2, 4, 64, 64)).sum(), list(trained.values()), allow_unused=True)
    assert [name for name, gradient in zip(trained, found, strict=True) if gradient is None] == []


def test_a_transformers_stages_are_its_tokens_along_its_depth():
    encoder = build_encoder("vit_tiny_patch16_224", 3, 64).eval()
    tokens = []
    hooks = [encoder.net.blocks[k].register_forward_hook(lambda m, i, o: tokens.append(o)) for k in (2, 5, 8)]
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        stages = encoder.stages(x)
    [hook.remove() for hook in hooks]
    truth = torch.cat([each[:, 1:].mean(1) for each in tokens], 1)  # without the class token
    torch.testing.assert_close(stages[:, : 3 * 192], truth)


def test_the_plain_cnn_serves_in_a_unet_and_loads_strictly():
    encoder = build_encoder("cnn", 12).eval()
    unet = smp.Unet("cnn", encoder_weights=None, in_channels=12, classes=4).eval()
    unet.encoder.load_state_dict(encoder.net.state_dict(), strict=True)
    x = torch.randn(1, 12, 64, 64)
    with torch.inference_mode():
        assert unet(x).shape == (1, 4, 64, 64)
        maps = unet.encoder(x)
        torch.testing.assert_close(encoder(x), maps[-1].mean((2, 3)))
    assert [m.shape[1:] for m in maps] == [
        (12, 64, 64), (32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (256, 2, 2)
    ]  # fmt: skip


def kept_for_the_way_back(encoder, x):
    """Bytes of activations that autograd keeps, and the loss's gradients and buffers afterwards."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = encoder(x).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    return sum(kept), gradients, dict(encoder.named_buffers())


@pytest.mark.parametrize("name", ["cnn", "resnet18", "tu-regnetx_002", "tu-convnext_atto", "vit_tiny_patch16_224",
                                  "swin_tiny_patch4_window7_224"])  # fmt: skip
def test_checkpointing_keeps_less_and_changes_nothing(name):
    torch.manual_seed(0)
    plain = build_encoder(name, 4, 64).train()
    saving = copy.deepcopy(plain)
    saving.checkpointing()
    saving = copy.deepcopy(saving)  # as a momentum encoder is made
    x = torch.randn(4, 4, 64, 64)
    more, gradients, buffers = kept_for_the_way_back(plain, x)
    less, found, after = kept_for_the_way_back(saving, x)
    assert less < 0.8 * more
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-7, msg=key)
    for key, buffer in buffers.items():  # running statistics count a batch once
        torch.testing.assert_close(after[key], buffer, msg=key)
    assert saving.state_dict().keys() == plain.state_dict().keys()
    saving.checkpointing(False)
    saving.zero_grad()
    assert kept_for_the_way_back(saving, x)[0] == more
    assert all(norm.track_running_stats for norm in saving.modules() if isinstance(norm, nn.BatchNorm2d))


def test_an_encoder_without_blocks_says_that_it_cannot():
    with pytest.raises(BandstreamError, match="mobilenet_v2 has no activation checkpointing"):
        build_encoder("mobilenet_v2", 3).checkpointing()
