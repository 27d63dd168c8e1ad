"""Encoders that travel: into smp, into other bands, and not into anything else."""

import json
import math
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file

from models.encoder import build_encoder
from models.export import EncoderBand, load_encoder, save_encoder
from models.heads import Classifier, Segmenter
from shards.bands import SENTINEL2
from shards.errors import BandstreamError

BANDS = [name for name in SENTINEL2 if name != "B10"]


def export(folder, name="resnet18", bands=BANDS, view_size=64):
    torch.manual_seed(0)
    encoder = build_encoder(name, len(bands), view_size)
    with torch.no_grad():  # batch statistics that are not those of a fresh network
        encoder.train()(torch.randn(4, len(bands), view_size, view_size))
    save_encoder(
        folder,
        encoder.eval(),
        bands=[EncoderBand(name=b, wavelength_nm=SENTINEL2[b].wavelength_nm, mean=1000.0, std=500.0) for b in bands],
        view_size=view_size,
        reflectance={"scale": 1e-4, "offset": 0, "level": "L2A"},
        data={"name": "a test"},
        recipe={"seed": 0},
        scores={"loss": 1.0},
    )
    return encoder


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "tu-convnext_atto"])
def test_weights_load_strictly_into_a_unet_with_equal_features(tmp_path, name):
    encoder = export(tmp_path, name)
    unet = smp.Unet(name, encoder_weights=None, in_channels=12, classes=3)
    unet.encoder.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    x = torch.randn(2, 12, 64, 64)
    with torch.inference_mode():
        for mine, theirs in zip(encoder.net(x), unet.eval().encoder(x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        torch.testing.assert_close(encoder(x), unet.encoder(x)[-1].mean((2, 3)))


def test_a_transformer_travels_too(tmp_path):
    encoder = export(tmp_path, "vit_tiny_patch16_224")
    loaded, info = load_encoder(tmp_path)
    x = torch.randn(2, 12, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(x), encoder(x), rtol=0, atol=0)
    assert encoder(x).shape == (2, info.num_features)
    assert loaded(torch.randn(2, 12, 120, 120)).shape == (2, info.num_features)  # positions are interpolated


def test_loading_gives_the_same_features_and_says_what_was_trained(tmp_path):
    encoder = export(tmp_path)
    loaded, info = load_encoder(tmp_path)
    x = torch.randn(2, 12, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(x), encoder(x), rtol=0, atol=0)
    assert info.band_names == BANDS
    card = (tmp_path / "README.md").read_text()
    assert "resnet18" in card and "| B8A | 865 | 1000.0 | 500.0 |" in card


def test_bands_are_met_by_name(tmp_path):
    encoder = export(tmp_path)
    x = torch.randn(2, 12, 64, 64)
    with torch.inference_mode():
        backwards, _ = load_encoder(tmp_path, BANDS[::-1])
        torch.testing.assert_close(backwards.eval()(x.flip(1)), encoder(x), rtol=1e-4, atol=1e-5)
        some, info = load_encoder(tmp_path, ["B04", "B03", "B02"])
        rgb = torch.zeros_like(x)
        rgb[:, [3, 2, 1]] = x[:, [3, 2, 1]]
        stem = encoder.net.conv1(rgb) * info.adapted.scale
        torch.testing.assert_close(some.eval().net.conv1(x[:, [3, 2, 1]]), stem, rtol=1e-4, atol=1e-4)


def test_a_band_it_never_saw_is_named(tmp_path):
    export(tmp_path)
    with pytest.raises(BandstreamError, match="never saw B10, pan: it was trained on B01"):
        load_encoder(tmp_path, ["B02", "B10", "pan"])


def test_folders_that_hold_no_encoder_are_told_apart(tmp_path):
    with pytest.raises(BandstreamError, match="holds no encoder"):
        load_encoder(tmp_path)
    export(tmp_path)
    data = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(data[:1000])
    with pytest.raises(BandstreamError, match="cannot be read"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(data)
    info = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps(info | {"encoder": "resnet34"}))
    with pytest.raises(BandstreamError, match="is not of a resnet34"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps(info | {"surprise": 1}))
    with pytest.raises(BandstreamError, match="surprise|cannot be read"):
        load_encoder(tmp_path)


def hostile(folder, how):
    """Spoil an export in one way."""
    described, weights = folder / "encoder.json", folder / "encoder.safetensors"
    info = json.loads(described.read_text())
    state = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # not the file that is spoilt
    band = info["bands"][0]
    if how == "a tensor of another shape":
        state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    elif how == "a tensor too many":
        state["fc.weight"] = torch.zeros(10, 512)
    elif how == "a tensor missing":
        del state["layer4.1.bn2.running_var"]
    elif how == "numbers that are whole":
        state["bn1.bias"] = torch.zeros(64, dtype=torch.int32)
    elif how == "not a number":
        state["bn1.bias"][3] = math.nan
    elif how == "other bands than the weights":
        info["bands"] = info["bands"][:3]
    elif how == "a band twice":
        info["bands"][1] = band
    elif how == "deep":
        described.write_text("[" * 100_000)
        return
    elif how == "long":
        described.write_text(json.dumps(info | {"data": {"text": "x" * 5_000_000}}))
        return
    elif how == "a list":
        described.write_text("[1, 2]")
        return
    elif how == "bytes":
        described.write_bytes(bytes(range(256)))
        return
    elif how == "a pickle":
        torch.save(state, weights)
        return
    elif how == "a header that lies":
        data = weights.read_bytes()
        weights.write_bytes((2**62).to_bytes(8, "little") + data[8:])
        return
    elif how == "statistics of nothing":
        band["std"] = 0
    elif how == "a giant":
        info["encoder"], info["library"] = "vit_giant_patch14_224", "timm"
    elif how == "a view too large":
        info["view_size"] = 10**9
    elif how == "other features":
        info["num_features"] = 7
    elif how == "code":
        info["encoder"] = "hf-hub:someone/else"
    described.write_text(json.dumps(info))
    save_file(state, weights)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("a tensor of another shape", r"layer1.0.conv1.weight is \(64, 64, 5, 5\), not \(64, 64, 3, 3\)"),
        ("a tensor too many", "it has no fc.weight"),
        ("a tensor missing", "layer4.1.bn2.running_var is missing"),
        ("numbers that are whole", "bn1.bias is of type I32"),
        ("not a number", "not finite"),
        ("other bands than the weights", "resnet18 on 3 bands: conv1.weight"),
        ("a band twice", "names a band twice"),
        ("deep", "cannot be read"),
        ("long", "longer than 4 MiB"),
        ("a list", "cannot be read"),
        ("bytes", "cannot be read"),
        ("a pickle", "cannot be read"),
        ("a header that lies", "cannot be read"),
        ("statistics of nothing", "bands.0.std"),
        ("a giant", "vit_giant_patch14_224 on 12 bands: cls_token is missing"),
        ("a view too large", "view_size"),
        ("other features", "says 7 features"),
        ("code", "no encoder 'hf-hub:someone/else'"),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path, how, told):
    export(tmp_path)
    hostile(tmp_path, how)
    with pytest.raises(BandstreamError, match=told) as error:
        load_encoder(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_importing_the_room_is_cheap():
    code = "import sys, models; assert 'torch' not in sys.modules; models.load_encoder; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet19", "no encoder 'resnet19'.*resnet18"),
        ("tu-resnt10t", "no encoder 'tu-resnt10t'.*tu-resnet10t"),
        ("tu-vit_tiny_patch16_224", "cannot be built"),
        ("qqqqqqqqqq", "timm.list_models"),
    ],
)
def test_encoders_that_cannot_be_are_named_with_what_is_close(name, told):
    with pytest.raises(BandstreamError, match=told):
        build_encoder(name, 12, 64)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mixer_s32_224", "resnet10t"])
def test_timms_other_families_take_the_views_at_hand(name):
    encoder = build_encoder(name, 5, 64).eval()
    with torch.inference_mode():
        assert encoder(torch.randn(1, 5, 64, 64)).shape == (1, encoder.num_features)


@pytest.mark.parametrize("size", [120, 64, 45])
def test_segmentation_is_at_native_size(size):
    encoder = build_encoder("resnet18", 12).eval()
    model = Segmenter(encoder, 19).eval()
    x = torch.randn(1, 12, size, size)
    with torch.inference_mode():
        assert model(x).shape == (1, 19, size, size)
        if size == 64:
            torch.testing.assert_close(model(x), model.net(x), rtol=0, atol=0)
    for key, value in encoder.net.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[key], value, rtol=0, atol=0)
    with pytest.raises(BandstreamError, match="no feature maps"):
        Segmenter(build_encoder("vit_tiny_patch16_224", 3, 32), 2)


def test_a_classifier_has_an_output_a_class():
    assert Classifier(build_encoder("resnet18", 3), 10).eval()(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_stages_are_the_pooled_maps_side_by_side():
    encoder = build_encoder("resnet18", 12).eval()
    x = torch.randn(2, 12, 64, 64)
    with torch.inference_mode():
        found = encoder.stages(x)
        assert found.shape == (2, 64 + 64 + 128 + 256 + 512)
        torch.testing.assert_close(found[:, -512:], encoder(x))
        torch.testing.assert_close(found[:, :64], encoder.net.relu(encoder.net.bn1(encoder.net.conv1(x))).mean((2, 3)))
