"""The bench of training takes train.py's steps, and counts what they compute."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from bench.step import TrainingStep
from bench.train import train
from pipeline.loader import Loader
from tests.pipeline.making import make_set
from training.distributed import Place
from training.recipe import Pretraining

RECIPE = {
    "encoder": "cnn", "batch_size": 8, "epochs": 1, "optimiser": "sgd", "lr": 0.05, "lr_scaling": "none",
    "schedule": "constant", "warmup_epochs": 0, "precision": "float32", "validate_epochs": 0, "clip": 1.0,
    "objective": {"projection_hidden": 16, "projection_out": 8}, "view": {"size": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("train") / "set", {"train": 32})


@pytest.mark.parametrize("own", [{}, {"method": "simsiam", "accumulate": 2}])
def test_a_step_is_one_of_train_py(shards, tmp_path, own):
    from train import pretrain

    recipe = Pretraining.model_validate(RECIPE | own).resolved()
    place = Place(0, 1, torch.device("cpu"))
    pretrain(shards, tmp_path / "run", recipe, place, threads=1)
    trained = load_file(tmp_path / "run" / "encoder.safetensors")

    torch.manual_seed(recipe.seed)
    step = TrainingStep(recipe, 12, "cpu")
    loader = Loader(shards, "train", 8, recipe.views, seed=recipe.seed)
    for batch in loader:
        loss = step(batch.views)
    assert loss.isfinite() and step.steps == 4
    for name, value in step.objective.encoder.net.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=1e-6)


def test_the_record(shards, tmp_path):
    output = tmp_path / "new" / "train.json"
    knobs = ['encoder = "cnn"', "batch_size = 8", 'precision = "float32"', "[view]", "size = 32", "[objective]"]
    (tmp_path / "recipe.toml").write_text("\n".join([*knobs, "projection_hidden = 16"]))
    told = ["--recipe", str(tmp_path / "recipe.toml"), "--device", "cpu", "--threads", "1", "--json", str(output)]
    result = CliRunner().invoke(train, [str(shards), "--repeats", "2", "--seconds", "0.2", *told])
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    real, kept = ([run["samples_per_s"] for run in record["runs"][name]["each"]] for name in ("real data", "replayed"))
    assert record["ratio"]["n"] == 2
    assert {record["ratio"]["min"], record["ratio"]["max"]} == {real[0] / kept[0], real[1] / kept[1]}
    assert record["flops_a_step"] == flops_of_a_step(16)
    use = record["utilisation"]["max"]
    assert use == pytest.approx(max(kept) / 8 * record["flops_a_step"] / record["matmul_flops_per_s"])
    assert 0 < use < 1.5
    assert "of replayed" in result.output


def flops_of_a_step(views: int) -> int:
    """Of SimCLR with the plain CNN at 12 bands and 32 pixels: every layer forward, and backward twice, by its inputs
    and by its weights; but the first has no inputs to go back to. And of the similarities, forward and backward."""
    from models.encoder import build_encoder

    total, first = 0, True
    net = build_encoder("cnn", 12, 32).net
    side = 32
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            side = -(-side // layer.stride[0])
            own = 2 * views * side**2 * layer.weight.numel()
            total += own * (2 if first else 3)
            first = False
    for inner, outer in ((256, 16), (16, 128)):
        total += 3 * 2 * views * inner * outer
    return total + 3 * 2 * views * views * 128
