"""Encoders given away: to folders, and to and from a small server that speaks the Hub's own protocol."""

import json
import re
import shutil
import time

import huggingface_hub.constants
import pytest
import torch
import yaml
from click.testing import CliRunner

import models
from models.commands import push
from models.encoder import build_encoder
from models.export import EncoderBand, load_encoder, push_encoder, save_encoder
from models.hub import local_folder, repository
from shards.errors import BandstreamError
from tests.hub import serving

FILES = {"encoder.safetensors", "encoder.json", "README.md"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    bands = [EncoderBand(name=b, wavelength_nm=nm, mean=1, std=2) for b, nm in (("B04", 665), ("B08", 833))]
    save_encoder(folder, build_encoder("cnn", 2).eval(), bands=bands, view_size=64, reflectance={"scale": 1e-4},
                 data={"name": "made up"}, recipe={"seed": 0}, scores={"loss": 1.5})  # fmt: skip
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-1.pt").write_bytes(b"not to be given away")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_XET_CACHE", str(tmp_path / "xet"))
        yield hub


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_there_and_back_over_the_hub(run, hub, tmp_path):
    address = push_encoder(run, "someone/encoder", licence="cc-by-4.0", scores={"EuroSAT accuracy": 0.9}, private=True)
    assert address == f"{hub.endpoint}/someone/encoder"
    assert hub.repositories["someone/encoder"].keys() >= FILES
    assert "checkpoints/step-1.pt" not in hub.repositories["someone/encoder"]
    assert hub.private["someone/encoder"]
    encoder, info = models.load_encoder("someone/encoder", ["B08"])
    assert (info.licence, info.scores) == ("cc-by-4.0", {"loss": 1.5, "EuroSAT accuracy": 0.9})
    assert same(encoder, load_encoder(run, ["B08"])[0])
    # the folder in which huggingface_hub keeps it is an encoder's, too
    kept = tmp_path / "cache" / "models--someone--encoder"
    assert same(load_encoder(kept)[0], load_encoder(run)[0])
    card = hub.repositories["someone/encoder"]["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0" and "sentinel-2" in front["tags"]
    assert "given under cc-by-4.0" in card and "EuroSAT accuracy: 0.9" in card and "| B08 | 833 | 1.0 | 2.0 |" in card


def test_what_the_hub_refuses_is_one_line(run, hub, monkeypatch):
    def line(call, *arguments):
        with pytest.raises(BandstreamError) as told:
            call(*arguments)
        assert "\n" not in str(told.value)
        return str(told.value)

    assert "could not be fetched" in line(load_encoder, "someone/missing")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "HF_TOKEN may write" in line(push_encoder, run, "someone/encoder")
    hub.repositories["someone/else"] = {"README.md": b"no encoder"}
    assert "could not be fetched" in line(load_encoder, "someone/else")


def test_into_a_folder_and_onto_itself(run, tmp_path):
    there = tmp_path / "models" / "one"
    result = CliRunner().invoke(push, [str(run), str(there), "--licence", "mit"], catch_exceptions=False)
    assert result.output.strip() == str(there) and {path.name for path in there.iterdir()} == FILES
    assert same(load_encoder(there)[0], load_encoder(run)[0])
    push_encoder(there, there, licence="apache-2.0")
    assert load_encoder(there)[1].licence == "apache-2.0"
    with pytest.raises(BandstreamError, match="holds no encoder"):
        push_encoder(tmp_path / "nowhere", there)


def test_a_server_that_cannot_be_reached_is_told_at_once(run, tmp_path, monkeypatch, caplog):
    """What was fetched before is taken from the cache then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        push_encoder(run, "someone/encoder")
        load_encoder("someone/encoder")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    began = time.perf_counter()
    assert same(load_encoder("someone/encoder")[0], load_encoder(run)[0])
    with pytest.raises(BandstreamError, match="could not be fetched from .*Connect"):
        load_encoder("someone/other")
    assert time.perf_counter() - began < 10 and "Retry" not in caplog.text


def test_a_repository_is_told_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert repository("user/name") == ("user/name", None)
    assert repository("user/name@v1.0") == ("user/name", "v1.0")
    for folder in ("./user/name", "/user/name", "runs", "a/b/c", tmp_path):
        assert repository(folder) is None
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert repository("user/name") is None


def test_the_newest_snapshot_is_taken(run, tmp_path):
    for revision in ("a" * 40, "b" * 40):
        shutil.copytree(run, tmp_path / "snapshots" / revision)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("a" * 40)
    assert local_folder(tmp_path).name == "a" * 40


@pytest.mark.parametrize("name", ["cnn", "resnet18", "convnext_atto", "vit_tiny_patch16_224", "tu-convnext_atto",
                                  "swin_tiny_patch4_window7_224"])  # fmt: skip
def test_the_cards_own_code_runs(tmp_path, name):
    """Both snippets, as they stand: ours, and the library's, which loads strictly without us."""
    encoder = build_encoder(name, 3, 64).eval()
    bands = [EncoderBand(name=b, wavelength_nm=500 + i, mean=1, std=2) for i, b in enumerate(["B02", "B03", "B04"])]
    save_encoder(tmp_path, encoder, bands=bands, view_size=64, reflectance={}, data={}, recipe={}, scores={})
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.S)
    x = torch.randn(2, 3, 64, 64)
    for code in blocks:
        known = {"views": x}
        with torch.inference_mode():
            exec(code.replace("FOLDER", str(tmp_path)), known)
            expected = encoder(x)
            if "features" in known:
                torch.testing.assert_close(known["features"], expected, rtol=0, atol=0)
            elif encoder.library == "timm":
                torch.testing.assert_close(known["net"].eval()(x), expected, rtol=0, atol=0)
            else:
                torch.testing.assert_close(known["net"].encoder.eval()(x)[-1].mean((2, 3)), expected, rtol=0, atol=0)
    assert len(blocks) == 2
    assert json.loads((tmp_path / "encoder.json").read_text())["options"] == encoder.options
