"""The peers of the loader's bench serve what they should: the same patches, bands, pixels and kind of views as ours."""

import importlib
import importlib.util
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from bench.ingest import chosen
from bench.loaders import OURS, PEERS
from bench.loaders.peer import batches_of
from bench.loaders.views import VIEWS, Definition
from bench.plain_ingest import FORMATS, GROUPS
from ingest.building.build import Options, ingest
from ingest.sources.bigearthnet import BigEarthNet
from pipeline.views import ViewRecipe
from shards.manifest import Manifest
from tests.pipeline.reference import resample

PATCHES = 24
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


@pytest.fixture(scope="module")
def data(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 patches of the made-up archive in every peer's format, as `bench.peer_data` lays them out."""
    folder = tmp_path_factory.mktemp("bench")
    part = chosen(archive, folder / "archive", 96, PATCHES)
    everything = {path.name: "train" for path in (part / "BigEarthNet-S2").glob("*/*")}
    ingest(BigEarthNet(part), folder / OURS, Options(shard_samples=16, split_file=everything))
    method = multiprocessing.get_start_method()
    for name, write in FORMATS.items():
        if name in {peer.folder for peer in PEERS.values()} and importlib.util.find_spec(name):
            (folder / name).mkdir()
            write(part, folder / name)
    multiprocessing.set_start_method(method, force=True)  # litdata changes it
    return folder


@pytest.fixture(scope="module")
def patches(data: Path) -> list[list[np.ndarray]]:
    """The arrays of every patch, as rasterio reads them from the archive."""
    return [
        [np.stack([plane(folder, band) for band in bands]) for bands in GROUPS.values()]
        for folder in sorted((data / "archive" / "BigEarthNet-S2").glob("*/*"))
    ]


def plane(folder: Path, band: str) -> np.ndarray:
    with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
        return file.read(1)


def which(pixels: np.ndarray, patches: list[list[np.ndarray]]) -> int:
    """The patch whose 10 m array this is."""
    found = [number for number, arrays in enumerate(patches) if np.array_equal(arrays[0], pixels)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("key", [key for key, peer in PEERS.items() if peer.reader])
def test_every_peer_reads_the_pixels_of_every_patch(key, workers, data, patches):
    peer = PEERS[key]
    pytest.importorskip(peer.package)
    knobs = [{knob: value} for knob, values in peer.reading_knobs.items() for value in values]
    for knob in knobs or [{}]:
        setting = {"workers": workers} | knob
        served = batches_of(key, data, 8, ViewRecipe.plain())("read", setting)
        seen = []
        for _ in range(PATCHES // 8):
            count, tensors = next(served)
            assert count == 8 and [tensor.dtype for tensor in tensors] == [torch.uint16] * 3
            for sample in zip(*(tensor.numpy() for tensor in tensors), strict=True):
                number = which(sample[0], patches)
                assert all(np.array_equal(own, true) for own, true in zip(sample, patches[number], strict=True))
                seen.append(number)
        served.close()
        if key not in ("webdataset", "streaming"):  # these draw from shards, or from many epochs, at once
            assert sorted(seen) == list(range(PATCHES))
            assert seen != sorted(seen)


@pytest.mark.parametrize("crop", ["slice", "resample"])
@pytest.mark.parametrize("key", PEERS)
def test_the_plain_view_is_the_standardised_patch_upsampled_in_the_bands_order(key, crop, data, patches):
    peer = PEERS[key]
    pytest.importorskip(peer.package)
    if "crop" not in peer.views_knobs and crop == "resample":
        pytest.skip("no such knob")
    setting = {"workers": 0, "in_workers": False, "crop": crop}
    served = batches_of(key, data, 4, ViewRecipe.plain())("views", setting)
    count, views = next(served)
    served.close()
    assert count == 4 and [tuple(view.shape) for view in views] == [(4, 12, 120, 120)] * 2
    statistics = Manifest.read(data / OURS).statistics
    mean, std = np.array([(statistics[band].mean, statistics[band].std) for band in BANDS]).T[:, :, None, None]
    held = [band for bands in GROUPS.values() for band in bands]
    true = []
    for arrays in patches:
        fine = np.concatenate([resample(array, np.zeros(2), np.ones(2), (120, 120)) for array in arrays])
        true.append((fine[[held.index(band) for band in BANDS]] - mean) / std)
    for view in views:
        assert view.dtype == torch.float32
        for sample in view.numpy():
            distances = [np.abs(sample - other).max() for other in true]
            assert min(distances) < 1e-3
            assert sorted(distances)[1] > 0.1


@pytest.mark.parametrize(("kind", "knobs"), [("KorniaViews", {"crop": "slice"}), ("KorniaViews", {"crop": "resample"}),
                                             ("GridSampleViews", {})])  # fmt: skip
def test_views_are_drawn_as_the_bench_says(kind, knobs, data):
    # a patch whose first bands are the coordinates tells where a view was cut out of it
    torch.manual_seed(0)
    manifest = Manifest.read(data / OURS)
    recipe = ViewRecipe(size=56, rotate90=0, gain=0.0)
    definition = Definition.of(manifest, recipe)
    definition = Definition(definition.order, torch.zeros(12, 1, 1), torch.ones(12, 1, 1), definition.grid, recipe)
    count = 400
    fine = np.zeros((count, 4, 120, 120), np.uint16)
    fine[:, 0], fine[:, 1] = np.arange(120) * 100, np.arange(120)[:, None] * 100
    arrays = [torch.from_numpy(fine)] + [
        torch.from_numpy(np.full((count, bands, side, side), 1000, np.uint16)) for bands, side in ((6, 60), (2, 20))
    ]
    with torch.no_grad():
        views = VIEWS[kind](definition, **knobs)(arrays)
    assert not torch.equal(*views)
    for view in views:
        assert tuple(view.shape) == (count, 12, 56, 56)
        across, down = view[:, BANDS.index("B02")].numpy(), view[:, BANDS.index("B03")].numpy()
        width = (across[:, 28, 36] - across[:, 28, 20]) / 16 * 56 / 100 / 120  # a share of the patch, negative: flipped
        height = (down[:, 36, 28] - down[:, 20, 28]) / 16 * 56 / 100 / 120
        area, ratio = np.abs(width * height), np.abs(width / height)
        assert 0.18 < area.min() < 0.3 and 0.8 < area.max() < 1.02
        assert 0.7 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.42
        assert 0.4 < (width < 0).mean() < 0.6 and 0.4 < (height < 0).mean() < 0.6
        centre = across[:, 28, 28] / 100 / 120
        assert centre.std() > 0.05 and abs(centre.mean() - 0.5) < 0.05
        assert np.allclose(view[:, BANDS.index("B09")], 1000, atol=0.1)


def test_gains_are_one_factor_a_band_of_each_sample(data):
    manifest = Manifest.read(data / OURS)
    definition = Definition.of(manifest, ViewRecipe(size=56, rotate90=0, gain=0.2))
    view = torch.full((500, 12, 2, 2), 1000.0)
    mean, std = definition.mean, definition.std
    gains = (definition.standardised(view) * std + mean) / 1000
    assert torch.allclose(gains.amin((2, 3)), gains.amax((2, 3)), atol=1e-4)
    assert 0.8 - 1e-3 < gains.min() < 0.81 and 1.19 < gains.max() < 1.2 + 1e-3
    assert gains[:, :, 0, 0].T.corrcoef().fill_diagonal_(0).abs().max() < 0.25


def test_each_peer_has_its_module():
    for peer in PEERS.values():
        assert importlib.util.find_spec(f"bench.loaders.{peer.format}")
        assert peer.views in VIEWS
