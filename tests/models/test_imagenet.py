"""ImageNet's weights: out of the libraries' own caches and files (with made-up numbers: no network), placed by band."""

import json

import huggingface_hub.constants
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from models.encoder import build_encoder
from models.stem import expected_variance, find_stem
from shards.bands import SENTINEL2
from shards.errors import BandstreamError

BANDS = ["B02", "B03", "B04", "B08", "B11"]
NANOMETRES = [SENTINEL2[band].wavelength_nm for band in BANDS]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub's, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache, repo, revision, state):
    """What huggingface_hub leaves of a repository that it fetched."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    (snapshot / "config.json").write_text(json.dumps({"num_classes": 1000}))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, snapshot / "model.safetensors")


def check(encoder, rgb):
    """`rgb`: the RGB stem's weight. Placed by name, others from the mean, and of the size it had."""
    stem = encoder.net.state_dict()[find_stem(encoder.net, len(BANDS), 64)]
    scale = encoder.adaptation.scale
    expected = torch.stack([rgb[:, 2], rgb[:, 1], rgb[:, 0], rgb.mean(1), rgb.mean(1)], 1)
    torch.testing.assert_close(stem, expected * scale)
    told = encoder.adaptation.sources
    assert told["B02"] == ["blue"] and told["B04"] == ["red"] and told["B11"] == ["red", "green", "blue"]
    assert expected_variance(stem, NANOMETRES) == pytest.approx(expected_variance(rgb, [665, 560, 492]), rel=1e-4)


def test_smps_weights_out_of_its_cache(cache):
    torch.manual_seed(3)
    source = smp.encoders.get_encoder("resnet18", in_channels=3, weights=None)
    settings = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    put(cache, settings["repo_id"], settings["revision"], source.state_dict())
    encoder = build_encoder("resnet18", 5, 64, "imagenet", BANDS)
    check(encoder, source.conv1.weight)
    for name, tensor in encoder.net.state_dict().items():
        assert name == "conv1.weight" or tensor.equal(source.state_dict()[name])


@pytest.mark.parametrize(
    "name", ["convnext_atto", "vit_tiny_patch16_224", "tu-convnext_atto", "swin_tiny_patch4_window7_224"]
)
def test_timms_weights_out_of_its_cache(cache, name):
    torch.manual_seed(3)
    source = timm.create_model(name.removeprefix("tu-"))
    put(cache, source.pretrained_cfg["hf_hub_id"], "a" * 40, source.state_dict())
    encoder = build_encoder(name, 5, 64, "imagenet", BANDS)
    check(encoder, source.get_parameter(f"{source.pretrained_cfg['first_conv']}.weight"))
    assert encoder(torch.randn(1, 5, 64, 64)).shape == (1, encoder.num_features)


@pytest.mark.parametrize("name", ["resnet18", "tu-convnext_atto", "convnext_atto"])
def test_weights_out_of_a_file(tmp_path, name):
    torch.manual_seed(3)
    if name == "resnet18":
        source = smp.encoders.get_encoder(name, in_channels=3, weights=None)
        rgb = source.conv1.weight
    else:
        source = timm.create_model("convnext_atto")
        rgb = source.stem[0].weight
    file = tmp_path / "rgb.safetensors"
    save_file(source.state_dict(), file)
    check(build_encoder(name, 5, 64, file, BANDS), rgb)
    save_file({"model." + key: tensor for key, tensor in source.state_dict().items()}, file)
    with pytest.raises(BandstreamError, match=f"not of a {name} for RGB"):
        build_encoder(name, 5, 64, file, BANDS)
    file.write_bytes(b"no tensors")
    with pytest.raises(BandstreamError, match="cannot be read"):
        build_encoder(name, 5, 64, file, BANDS)


def test_what_cannot_be_had_is_one_clear_line(cache, tmp_path):
    for name in ("resnet18", "tu-convnext_atto", "vit_tiny_patch16_224"):
        with pytest.raises(BandstreamError, match=f"ImageNet weights of {name} could not be fetched.*HF_HOME") as told:
            build_encoder(name, 5, 64, "imagenet", BANDS)
        assert "\n" not in str(told.value)
    with pytest.raises(BandstreamError, match="cnn has no ImageNet weights"):
        build_encoder("cnn", 5, 64, "imagenet", BANDS)
    with pytest.raises(BandstreamError, match="name the 5 bands"):
        build_encoder("resnet18", 5, 64, "imagenet")
    with pytest.raises(BandstreamError, match="take none, imagenet, or a .safetensors file"):
        build_encoder("resnet18", 5, 64, tmp_path / "pickled.pth", BANDS)
