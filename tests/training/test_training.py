"""Recipes, schedules, optimisers, checkpoints and the monitor."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shards.errors import BandstreamError
from training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from training.finetuning import FineTuning
from training.monitor import Monitor, read_metrics
from training.optimiser import build_optimiser, set_learning_rate
from training.recipe import Pretraining
from training.schedule import warmup_cosine

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_every_recipe_is_valid(path):
    tunes = path.stem.endswith(("-classify", "-segment", "-finetune", "-linear", "-supervised"))
    (FineTuning if tunes else Pretraining).read(path, {})


def test_options_override_the_recipe_and_reach_into_tables(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('encoder = "resnet50"\nepochs = 3\n[view]\nsize = 64\n')
    recipe = Pretraining.read(path, {"epochs": 5, "lr": None, "view.size": 32})
    assert (recipe.encoder, recipe.epochs, recipe.view.size, recipe.lr) == ("resnet50", 5, 32, 1e-3)
    assert FineTuning.read(None, {}).view.size is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epoch = 3", "epoch: Extra inputs"),
        ("epochs = 0", "epochs: Input should be greater than or equal to 1"),
        ("[view]\nblur = 2.0", "view.blur"),
        ("[view]\nsizes = 2", "view.sizes: Extra"),
        ("epochs = ", "cannot be read"),
    ],
)
def test_wrong_recipes_are_refused_by_name(tmp_path, text, named):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(BandstreamError, match=named):
        Pretraining.read(path, {})
    with pytest.raises(BandstreamError, match="cannot be read"):
        Pretraining.read(tmp_path / "missing.toml", {})
    path.write_text("view = 3")
    with pytest.raises(BandstreamError, match="view is a table"):
        Pretraining.read(path, {"view.size": 32})


def test_the_schedule_rises_straight_and_falls_like_a_cosine():
    rates = warmup_cosine(2.0, 110, 10)
    assert len(rates) == 110
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10 * 2)
    np.testing.assert_allclose(rates[10:], [1 + np.cos(np.pi * t / 100) for t in range(100)])
    assert warmup_cosine(1.0, 3, 10).tolist() == [1 / 3, 2 / 3, 1.0]
    assert warmup_cosine(1.0, 4, 0)[0] == 1.0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_and_biases_are_not_decayed(name):
    body, head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Linear(4, 2)
    optimiser = build_optimiser({body: 0.1, head: 1.0}, name, 0.3)
    set_learning_rate(optimiser, 2.0)
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0)
            assert group["lr"] == (0.2 if any(parameter is p for p in body.parameters()) else 2.0)
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for module in (body, head) for p in module.parameters()}
    body.requires_grad_(False)
    frozen = build_optimiser({body: 0.1, head: 1.0}, name, 0.3)
    assert sum(len(group["params"]) for group in frozen.param_groups) == 2


def test_the_newest_whole_checkpoint_is_found_and_old_ones_go(tmp_path):
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, step, {"step": step, "x": torch.arange(3)})
    (tmp_path / ".step-000000099.pt.123.tmp").write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000002.pt", "step-000000030.pt"]
    state = load_checkpoint(tmp_path)
    assert state["step"] == 30 and state["x"].tolist() == [0, 1, 2]
    with pytest.raises(BandstreamError, match="holds no checkpoint"):
        load_checkpoint(tmp_path / "none")


def test_checkpoints_that_are_damaged_or_hold_code_are_refused(tmp_path):
    import os
    import pickle

    path = save_checkpoint(tmp_path, 1, {"step": 1})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BandstreamError, match="step-000000001.pt cannot be read"):
        load_checkpoint(tmp_path)

    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BandstreamError, match="cannot be read"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_resumed_monitor_drops_what_came_after_the_checkpoint(tmp_path):
    with Monitor(tmp_path, 10) as monitor:
        for step in range(6):
            monitor.log(step, 0, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with Monitor(tmp_path, 10, step=4) as monitor:
        monitor.log(4, 1, {"loss": 40.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40)]
    with Monitor(tmp_path, 10, active=False) as silent:
        silent.log(9, 9, {"loss": 0.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5
