"""Stems met by band name: against NumPy loops, in every family, and on pictures that look real."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ingest.synthetic.archive import make_patch
from models.encoder import build_encoder
from models.export import EncoderBand, load_encoder, save_encoder
from models.stem import adapt_stem, band_correlation, expected_variance, find_stem, match_bands, rgb_sources
from shards.bands import SENTINEL2
from shards.errors import BandstreamError

L2A = [name for name in SENTINEL2 if name != "B10"]
L1C = list(SENTINEL2)
RGB = ["B04", "B03", "B02"]
STEMS = ["cnn", "resnet18", "resnet50", "convnext_atto", "tu-convnext_atto", "tu-resnet10t", "tu-regnetx_002",
         "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]  # fmt: skip


def wavelengths(bands):
    return {band: float(SENTINEL2[band].wavelength_nm) for band in bands}


def export(folder, name, bands=L2A):
    torch.manual_seed(0)
    encoder = build_encoder(name, len(bands), 64)
    with torch.no_grad():  # batch statistics that are not those of a fresh network
        encoder.train()(torch.randn(4, len(bands), 64, 64))
    described = [
        EncoderBand(name=b, wavelength_nm=SENTINEL2[b].wavelength_nm, mean=100.0 * i, std=10.0 + i)
        for i, b in enumerate(bands)
    ]
    save_encoder(folder, encoder.eval(), bands=described, view_size=64, reflectance={}, data={}, recipe={}, scores={})
    return encoder


def truth(weight, nanometres):
    """The variance of the output, tap by tap: sum of w w' times the correlation of their bands and of their pixels."""
    table = {(0, 0): 0.9, (0, 1): 0.5, (0, 2): 0.8, (1, 1): 0.95, (1, 2): 0.65, (2, 2): 0.95}
    region = [0 if nm < 725 else 1 if nm < 1200 else 2 for nm in nanometres]
    total = 0.0
    outs, bands, side, _ = weight.shape
    for o in range(outs):
        taps = [(b, i, j) for b in range(bands) for i in range(side) for j in range(side)]
        for b, i, j in taps:
            for c, k, m in taps:
                spectral = 1.0 if nanometres[b] == nanometres[c] else table[tuple(sorted((region[b], region[c])))]
                spatial = math.exp(-math.hypot(i - k, j - m) / 18)
                total += weight[o, b, i, j] * weight[o, c, k, m] * spectral * spatial
    return total / outs


@pytest.mark.parametrize("wanted", [RGB, ["B08", "B02", "B12"], L1C[:4]])
def test_the_scale_is_the_one_that_keeps_the_outputs_variance(wanted):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 5, 3, 3)) + 0.3
    trained = wavelengths(["B02", "B03", "B04", "B08", "B12"])
    sources = match_bands(trained, wanted, "wavelength")
    fitted, told = adapt_stem(torch.tensor(weight), trained, sources)
    columns = [list(trained).index(sources[band][0]) for band in wanted]
    picked = weight[:, columns]
    scale = math.sqrt(truth(weight, list(trained.values())) / truth(picked, [wavelengths(L1C)[b] for b in wanted]))
    assert told.scale == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(fitted.numpy(), picked * scale, rtol=1e-9)


def test_bands_all_alike_scale_by_their_number_and_unrelated_ones_by_its_root():
    weight = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    alike = dict.fromkeys("abcd", 500.0)  # equal wavelengths: correlation 1
    assert adapt_stem(weight, alike, {"a": ["a"]})[1].scale == pytest.approx(4)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)[None, :, None, None]
    # opposed weights on nearly equal bands see their small difference alone: 2 - 2 · 0.9
    assert expected_variance(signs, [492.0, 560.0]) == pytest.approx(0.2)
    assert torch.linalg.eigvalsh(band_correlation([b.wavelength_nm for b in SENTINEL2.values()])).min() > 0


def test_another_order_alone_is_exact():
    weight = torch.randn(8, 12, 7, 7)
    trained = wavelengths(L2A)
    fitted, told = adapt_stem(weight, trained, match_bands(trained, L2A[::-1]))
    assert told.scale == 1 and fitted.equal(weight.flip(1))


@pytest.mark.parametrize("name", STEMS)
def test_features_without_bands_are_those_of_views_with_zeros_there(tmp_path, name):
    encoder = export(tmp_path, name)
    x = torch.randn(2, 12, 64, 64)
    keep = [L2A.index(band) for band in RGB]
    zeroed = torch.zeros_like(x)
    zeroed[:, keep] = x[:, keep]
    some, info = load_encoder(tmp_path, RGB)
    assert info.band_names == RGB and info.adapted.sources == {band: [band] for band in RGB}
    backwards, turned = load_encoder(tmp_path, L2A[::-1])
    assert turned.adapted.scale == 1 and [band.std for band in turned.bands] == [10.0 + i for i in range(11, -1, -1)]
    stem = find_stem(some.net, 3, 64)
    state = some.net.state_dict()
    state[stem] = state[stem] / info.adapted.scale
    some.net.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(some.eval()(x[:, keep]), encoder(zeroed), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backwards.eval()(x.flip(1)), encoder(x), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def views():
    """Eight made-up patches (8, 12, 120, 120), standardised by band; a landscape's bands and pixels go together."""
    patches = []
    for index in range(8):
        planes = make_patch(3, index)[1]
        side = len(planes["B02"])
        patches.append(np.stack([np.kron(planes[b], np.ones((k := side // len(planes[b]), k))) for b in L2A]))
    pixels = np.stack(patches)
    return torch.tensor((pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True))


@pytest.mark.parametrize("kernels", ["random", "smooth", "edges", "alike"])
@pytest.mark.parametrize("wanted", [RGB, ["B8A"], ["B11", "B04", "B08"], L2A[2:]])
def test_outputs_keep_their_size_on_a_landscape(views, kernels, wanted):
    rng = np.random.default_rng(1)
    weight = torch.tensor(rng.standard_normal((32, 12, 7, 7)))
    if kernels == "smooth":
        weight = nn.functional.avg_pool2d(weight, 3, 1, 1)
    elif kernels == "edges":
        weight[..., 4:] = -weight[..., :3].flip(-1)
        weight[..., 3] = 0
    elif kernels == "alike":  # as from the mean of ImageNet's three
        weight = weight[:, :1].expand(-1, 12, -1, -1) + 0.2 * weight
    trained = wavelengths(L2A)
    fitted, _ = adapt_stem(weight, trained, match_bands(trained, wanted))
    before = nn.functional.conv2d(views, weight, stride=4).std()
    after = nn.functional.conv2d(views[:, [L2A.index(b) for b in wanted]], fitted, stride=4).std()
    # found: .86 to 1.22; by the number of bands it would be up to 3.3, by its root down to .35
    assert after / before == pytest.approx(1, abs=0.25)


def test_a_net_that_takes_its_bands_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            return self.one(x) + self.other(x)

    with pytest.raises(BandstreamError, match="no single convolution over its 4 bands"):
        find_stem(Twice(), 4, 16)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(BandstreamError, match="no single convolution"):
        find_stem(grouped, 4, 16)

    # the first that runs, not the first that is listed, nor the first of a fitting shape
    class Misleading(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.stem = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.late(self.stem(x))

    assert find_stem(Misleading().train(), 4, 16) == "stem.weight"


def test_bands_that_were_never_seen_are_errors_or_stand_ins_within_the_limit():
    trained = wavelengths([b for b in L2A if b not in ("B8A", "B01")])
    with pytest.raises(BandstreamError, match="never saw B01, B8A, B10: it was trained on B02"):
        match_bands(trained, ["B01", "B02", "B8A", "B10"])
    found = match_bands(trained, ["B01", "B02", "B8A"], "wavelength")
    assert found == {"B01": ["B02"], "B02": ["B02"], "B8A": ["B08"]}
    with pytest.raises(BandstreamError, match=r"B10 \(nearest is B11, 241 nm away\) within 60 nm"):
        match_bands(trained, L1C, "wavelength")
    assert match_bands(trained, ["B02", "B10"], "zero") == {"B02": ["B02"], "B10": []}
    assert match_bands({"red": 665.0}, ["B04"]) == {"B04": ["red"]}
    assert match_bands({"B02": 492.0, "B04": 665.0}, ["red", "blue"]) == {"red": ["B04"], "blue": ["B02"]}
    assert match_bands({"B04": 665.0, "red": 665.0}, ["red"]) == {"red": ["red"]}
    with pytest.raises(BandstreamError, match="never saw green"):
        match_bands({"B02": 492.0, "B04": 665.0}, ["red", "green"])
    for wanted, fallback, message in (
        (["B02", "thermal"], "wavelength", "never saw thermal"),
        (["B02", "B02"], "none", "once"),
        ([], "none", "at least one"),
        (["thermal"], "zero", "none of thermal"),
        (["B02"], "nearest", "fallback 'nearest'"),
    ):
        with pytest.raises(BandstreamError, match=message):
            match_bands(trained, wanted, fallback)


def test_level_1c_meets_an_encoder_of_level_2a(tmp_path):
    encoder = export(tmp_path, "cnn")
    with pytest.raises(BandstreamError, match="never saw B10"):
        load_encoder(tmp_path, L1C)
    more, info = load_encoder(tmp_path, L1C, "zero")
    assert info.adapted.scale == pytest.approx(1) and "B10 from zero" in str(info.adapted)
    assert info.bands[10].name == "B10" and info.bands[10].wavelength_nm == 1373
    assert (info.bands[10].mean, info.bands[10].std) == (1000.0, 20.0)  # of its nearest, B11
    x = torch.randn(2, 13, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            more.eval()(x), encoder(x[:, [i for i in range(13) if i != 10]]), rtol=1e-5, atol=1e-5
        )


def test_stand_ins_are_told_in_the_description_and_the_card_of_what_they_become(tmp_path):
    export(tmp_path / "a", "cnn", ["B02", "B03", "B04", "B08"])
    encoder, info = load_encoder(tmp_path / "a", ["B04", "B8A"], "wavelength")
    assert info.adapted.sources == {"B04": ["B04"], "B8A": ["B08"]}
    stand_in = info.bands[1]
    assert (stand_in.name, stand_in.wavelength_nm, stand_in.mean, stand_in.std) == ("B8A", 865, 300.0, 13.0)
    save_encoder(tmp_path / "b", encoder, bands=info.bands, view_size=64, reflectance={}, data={}, recipe={}, scores={})
    assert "B8A from B08; left out: B02, B03; weights ×" in (tmp_path / "b" / "README.md").read_text()
    assert load_encoder(tmp_path / "b")[1].adapted == info.adapted


def test_weights_of_pictures_are_placed_by_name():
    assert rgb_sources(["B02", "B08", "red", "B03"]) == {
        "B02": ["blue"], "B08": ["red", "green", "blue"], "red": ["red"], "B03": ["green"]
    }  # fmt: skip
