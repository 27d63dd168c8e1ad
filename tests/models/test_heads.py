"""Decoders on encoders: sizes, weights, dropout, and what does not go together; layers in their order."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from models.encoder import build_encoder
from models.heads import DECODERS, Classifier, Segmenter, with_head
from models.layers import layer_groups
from shards.errors import BandstreamError

VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "dpt"])
def test_every_decoder_takes_the_encoders_weights_and_scores_at_native_size(decoder: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 5)
    model = Segmenter(encoder, 7, decoder).eval()
    mine, theirs = encoder.net.state_dict(), model.body.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())
    x = torch.randn(2, 5, 40, 45)
    with torch.inference_mode():
        logits = model(x)
        assert logits.shape == (2, 7, 40, 45)
        whole = torch.randn(2, 5, 64, 64)
        torch.testing.assert_close(model(whole), model.net(whole), rtol=0, atol=0)
        assert model(torch.randn(2, 5, 10, 10)).shape == (2, 7, 10, 10)  # too small to be reflected so far
    there = {id(p) for p in model.parameters()}
    parts = [{id(p) for p in part.parameters()} for part in (model.body, *model.rest)]
    assert set().union(*parts) == there and sum(map(len, parts)) == len(there), "body and rest are the whole model"


@pytest.mark.parametrize(("name", "size"), [(VIT, 32), (VIT, 64), ("vit_small_patch8_224", 32)])
def test_dpt_is_for_transformers(name: str, size: int) -> None:
    encoder = build_encoder(name, 4, size)
    model = with_head(encoder, "segment", 3).eval()
    assert isinstance(model, Segmenter) and model.decoder == "dpt" and model.body is encoder.net
    x = torch.randn(1, 4, 40, 40)
    with torch.inference_mode():
        assert model(x).shape == (1, 3, 40, 40)


@pytest.mark.parametrize("name", ["mit_b0", "densenet121", "tu-convnext_atto"])
def test_encoders_of_other_families_take_a_decoder_with_their_weights(name: str) -> None:
    encoder = build_encoder(name, 4, 64)
    model = Segmenter(encoder, 3, "fpn")
    assert all(torch.equal(value, model.body.state_dict()[key]) for key, value in encoder.net.state_dict().items())
    assert model(torch.randn(2, 4, 40, 40)).shape == (2, 3, 40, 40)


def test_padding_is_even_and_cut_off_again() -> None:
    """The logits of a decoder that hands its input through are the input."""
    model = Segmenter(build_encoder("resnet18", 3), 3)
    model.net = nn.Module()
    model.net.encoder, model.net.decoder, model.net.segmentation_head = (nn.Identity() for _ in range(3))
    x = torch.randn(2, 3, 45, 120)
    assert torch.equal(model.eval()(x), x)


def test_dropout_is_off_in_evaluation_and_before_the_last_layer() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 3)
    x = torch.randn(4, 3, 32, 32)
    for model in (Classifier(encoder, 5, dropout=0.5).eval(), Segmenter(encoder, 5, dropout=0.5).eval()):
        with torch.inference_mode():
            assert torch.equal(model(x), model(x))
            model.dropout.train()
            assert not torch.equal(model(x), model(x))
    classifier = Classifier(encoder, 5, dropout=0.5).eval()
    classifier.dropout.train()
    with torch.inference_mode():
        torch.manual_seed(1)
        got = classifier(x)
        torch.manual_seed(1)
        kept = torch.nn.functional.dropout(encoder(x), 0.5, training=True)
        torch.testing.assert_close(got, kept @ classifier.head.weight.T + classifier.head.bias)


@pytest.mark.parametrize(
    ("name", "decoder", "told"),
    [
        (VIT, "unet", "no feature maps to unet: take decoder dpt"),
        ("resnet18", "dpt", "dpt is for vision transformers"),
        ("vit_base_patch14_dinov2", "dpt", "4, 8, 16 or 32"),
        ("resnet18", "linknet", "no decoder 'linknet': there are unet"),
        ("densenet121", "deeplabv3plus", "deeplabv3plus cannot be built on densenet121"),
    ],
)
def test_what_does_not_go_together_is_one_line(name: str, decoder: str, told: str) -> None:
    with pytest.raises(BandstreamError, match=told) as caught:
        Segmenter(build_encoder(name, 3, 28 if "14" in name else 32), 2, decoder)
    assert "\n" not in str(caught.value)


def names_of(net: nn.Module) -> list[set[str]]:
    held = dict(net.named_parameters())
    groups = layer_groups(net)
    assert all(held[name] is parameter for group in groups for name, parameter in group.items())
    return [set(group) for group in groups]


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 5), (VIT, 13), ("tu-convnext_atto", 5), ("tu-regnetx_002", 5), ("mit_b0", 4), ("tu-resnet10t", 5),
     ("efficientnet-b0", 17), ("densenet121", 5), ("vgg11_bn", 8)],
)  # fmt: skip
def test_layers_are_in_order_and_hold_each_parameter_once(name: str, count: int) -> None:
    net = build_encoder(name, 3, 32).net
    found = names_of(net)
    assert len(found) == count
    trained = sorted(name for name, weight in net.named_parameters() if weight.requires_grad)
    assert sorted(name for group in found for name in group) == trained
    order = [name for name, _ in net.named_parameters()]
    if name != "mit_b0":  # which lists all of its patch embeddings first
        first = [min(order.index(each) for each in group) for group in found]
        assert first == sorted(first)


def test_stem_and_last_stage_are_what_they_are_called() -> None:
    found = names_of(build_encoder("resnet18", 3).net)
    assert found[0] == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert {name.split(".")[0] for name in found[-1]} == {"layer4"}
    found = names_of(build_encoder(VIT, 3, 32).net)
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= found[0]
    assert {name.split(".")[0] for name in found[-1]} == {"blocks", "norm"}
    found = names_of(build_encoder("mit_b0", 3).net)
    assert {name.split(".")[0] for name in found[-1]} == {"patch_embed4", "block4", "norm4"}
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert names_of(plain) == [{"0.weight", "0.bias"}, {"2.weight", "2.bias"}]
    named = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    assert names_of(named) == [{"first.weight", "first.bias"}, {"second.weight", "second.bias"}]


def test_the_decoders_are_smps() -> None:
    assert set(DECODERS.values()) <= {getattr(smp, name) for name in smp.__all__}
