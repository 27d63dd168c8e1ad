"""Recipes, checkpoints and the monitor."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from models.encoder import build_encoder
from models.objectives import METHODS, build_objective
from shards.errors import BandstreamError
from training.checkpoint import checkpoints, load_checkpoint, name_checkpoint, newest_checkpoint, save_checkpoint
from training.distributed import Place, alone, distributed, join_norms
from training.finetuning import FineTuning
from training.monitor import Monitor, read_metrics, redraw
from training.recipe import Pretraining

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_every_recipe_is_valid(path):
    if path.stem.endswith(("-classify", "-segment", "-finetune", "-linear", "-supervised")):
        FineTuning.read(path, {})
    else:
        Pretraining.read(path, {}).resolved()


def test_options_override_the_recipe_and_reach_into_tables(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('encoder = "resnet50"\nepochs = 3\n[view]\nsize = 64\n')
    recipe = Pretraining.read(path, {"epochs": 5, "lr": None, "view.size": 32})
    assert (recipe.encoder, recipe.epochs, recipe.view.size, recipe.lr) == ("resnet50", 5, 32, None)
    assert FineTuning.read(None, {}).view.size is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epoch = 3", "epoch: Extra inputs"),
        ("epochs = 0", "epochs: Input should be greater than or equal to 1"),
        ("[view]\nblur = 2.0", "view.blur"),
        ("batch_size = 64\naccumulate = 3", "64 is not 3"),
        ("validate_epochs = 0\nearly_stopping = 3", "need validations"),
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


def test_what_a_recipe_leaves_out_is_as_in_the_methods_paper():
    simclr = Pretraining(batch_size=512, epochs=200).resolved()
    assert (simclr.optimiser, simclr.lr, simclr.peak_lr, simclr.warmup_epochs) == ("lars", 0.3, 0.6, 10)
    assert simclr.objective["temperature"] > 0 and simclr.momentum == 0.9
    assert simclr.resolved() == simclr
    assert Pretraining(epochs=5).resolved().warmup_epochs == 0.5  # a tenth of the run at most
    other = Pretraining(optimiser="adamw", weight_decay=0.5).resolved()  # LARS's rate would mean nothing to it
    assert (other.lr, other.peak_lr, other.weight_decay, other.lr_scaling) == (1e-3, 1e-3, 0.5, "none")
    assert Pretraining(lr=0.4, lr_scaling="sqrt", batch_size=64).resolved().peak_lr == pytest.approx(0.2)


def test_every_method_resolves_and_names_wrong_knobs():
    for method in METHODS:
        recipe = Pretraining(method=method).resolved()
        assert None not in (recipe.optimiser, recipe.lr, recipe.lr_scaling, recipe.weight_decay, recipe.momentum)
        assert Pretraining.model_validate(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(BandstreamError, match="temperatur: Extra"):
        Pretraining(objective={"temperatur": 1}).resolved()
    with pytest.raises(BandstreamError, match="no method 'simclt': did you mean simclr"):
        Pretraining(method="simclt").resolved()


def test_views_are_two_and_then_the_local_ones():
    recipe = Pretraining(local_views=3, local_view={"size": 24, "crop_scale": (0.1, 0.2)})
    assert [view.size for view in recipe.views] == [112, 112, 24, 24, 24]
    assert recipe.views[4].crop_scale == (0.1, 0.2) and recipe.views[0] == recipe.view


PLACE = Place(0, 1, torch.device("cpu"))


def test_the_newest_whole_checkpoint_is_found_and_old_ones_go(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    assert newest_checkpoint(tmp_path, PLACE) is None
    for step in (1, 2, 30):
        save_checkpoint(folder, step, {"step": step, "x": torch.arange(3)})
    (folder / ".step-000000099.pt.123.tmp").write_bytes(b"half")
    assert [path.name for path in checkpoints(folder)] == ["step-000000002.pt", "step-000000030.pt"]
    state = newest_checkpoint(tmp_path, PLACE)
    assert state["step"] == 30 and state["x"].tolist() == [0, 1, 2] and not capsys.readouterr().err

    with pytest.raises(BandstreamError, match="none that may be called so"):
        load_checkpoint(folder / "best.pt")


def test_a_damaged_checkpoint_is_set_aside_and_what_was_named_by_it(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 30):
        save_checkpoint(folder, step, {"step": step}, also=("best.pt",) * (step == 30) + ("good.pt",) * (step == 2))
    newest = checkpoints(folder)[-1]
    with newest.open("r+b") as file:  # and best.pt with it, a second name of the same file
        file.truncate(200)
    assert newest_checkpoint(tmp_path, PLACE)["step"] == 2
    told = capsys.readouterr().err
    assert "step-000000030.pt cannot be read" in told and "going on from step 2" in told and told.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == {"step-000000002.pt", "step-000000030.damaged", "good.pt"}
    assert newest_checkpoint(tmp_path, PLACE)["step"] == 2 and not capsys.readouterr().err
    save_checkpoint(folder, 3, {"step": 3}, keep=1)
    assert [path.name for path in checkpoints(folder)] == ["step-000000003.pt"]
    checkpoints(folder)[0].write_bytes(b"")
    with pytest.raises(BandstreamError, match="step-000000003.pt cannot be read.*begin anew"):
        newest_checkpoint(tmp_path, PLACE)


def test_what_is_not_shown_is_not_damaged(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", 1, {"step": 1})
    path.unlink()
    path.mkdir()
    with pytest.raises(BandstreamError, match="Is a directory"):
        newest_checkpoint(tmp_path, PLACE)


def test_a_named_checkpoint_outlives_the_newest(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"step": step}, keep=1, also=("best.pt",) * (step == 2))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000005.pt"]
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 2
    name_checkpoint(tmp_path / "step-000000005.pt", "best.pt")
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 5
    assert not list(tmp_path.glob(".*"))


def test_a_flipped_bit_in_the_weights_is_found(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"x": torch.zeros(9999)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BandstreamError, match="another checksum"):
        load_checkpoint(path)


def test_checkpoints_that_are_damaged_or_hold_code_are_refused(tmp_path):
    import os
    import pickle

    path = save_checkpoint(tmp_path, 1, {"step": 1})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BandstreamError, match="step-000000001.pt cannot be read"):
        load_checkpoint(path)

    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BandstreamError, match="cannot be read"):
        load_checkpoint(path)
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


def drawn(folder):
    """What TensorBoard reads: (name, step, value) of scalars, names of pictures, and of texts."""
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0}).Reload()
    told = events.Tags()
    scalars = {(n, e.step, round(e.value, 5)) for n in told["scalars"] for e in events.Scalars(n)}
    return scalars, told["images"], told["tensors"]


def test_tensorboard_is_redrawn_from_the_metrics_alone(tmp_path):
    rng = np.random.default_rng(0)
    with Monitor(tmp_path, 10) as monitor:
        for step in range(4):
            monitor.log(step, step // 2, {"loss": float(step), "knn": 0.5} | ({"event": "back"} if step == 3 else {}))
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / "views.png")
        monitor.picture("views")
        pictures = rng.integers(0, 255, (5, 6, 6, 3), np.uint8)
        monitor.embeddings(rng.normal(size=(5, 3)), ["a", "b", "", "a", "b"], pictures)
        assert monitor.last == {"step": 3, "epoch": 1, "loss": 3.0, "knn": 0.5, "event": "back"}
    first = drawn(tmp_path / "tensorboard")
    assert len(first[0]) == 12 and first[1] == ["views"] and len(first[2]) == 1
    shutil.rmtree(tmp_path / "tensorboard")
    redraw(tmp_path)
    assert drawn(tmp_path / "tensorboard") == first
    config = (tmp_path / "tensorboard" / "projector_config.pbtxt").read_text()
    assert 'tensor_name: "encoder' in config
    tensors = next((tmp_path / "tensorboard").rglob("tensors.tsv"))
    assert len(tensors.read_text().splitlines()) == 5


def test_ranks_and_micro_batches_need_two_samples_each():
    recipe = Pretraining(batch_size=16, accumulate=4)
    recipe.check_parts(2)
    with pytest.raises(BandstreamError, match="fewer than two samples to each of 4 processes' 4 micro-batches"):
        recipe.check_parts(4)


def test_a_range_of_local_views_that_is_none_is_refused(tmp_path):
    (tmp_path / "local.toml").write_text("local_views = 2\n[local_view]\ncrop_scale = [0.5, 0.2]\n")
    with pytest.raises(BandstreamError, match=r"local_view: .*no range within"):
        Pretraining.read(tmp_path / "local.toml", {})


def test_norms_are_joined_over_gpus_but_for_those_of_keys_and_activations_are_computed_again():
    """What ranks on GPUs make of an objective, but for the group that they would be in."""
    objective = build_objective("moco-v2", build_encoder("cnn", 3, 32), {"queue": 16})
    norms = {name: part for name, part in objective.named_modules() if isinstance(part, nn.BatchNorm2d)}
    kept = objective.encoder
    join_norms(objective)
    for name, part in objective.named_modules():
        if name in norms:
            assert isinstance(part, nn.SyncBatchNorm) != name.startswith("key_"), name
    assert objective.encoder is kept
    kept.checkpointing(True)
    assert all(part._forward_pre_hooks for part in kept.modules() if isinstance(part, nn.SyncBatchNorm))


@pytest.mark.parametrize("name", ["cnn", "resnet18", "timm-efficientnet-b0", "tu-regnety_002"])
def test_joined_norms_compute_what_they_did(name):
    """timm's norms hold their activation, which is not to be lost."""
    torch.manual_seed(0)
    objective = build_objective("simclr", build_encoder(name, 3, 32), {}).eval()
    view = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = objective.encoder(view)
        join_norms(objective)
        after = objective.encoder(view)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in objective.encoder.modules())
    assert torch.equal(before, after) and before.abs().max() > 0


@pytest.mark.parametrize("end", [None, SystemExit(143), BandstreamError("the disk is full"), KeyboardInterrupt()])
def test_the_group_is_left_but_after_an_error_that_others_may_not_have_met(monkeypatch, end):
    """NCCL would wait for them, and the error be read by nobody; there is none here to wait."""
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: calls.append(backend))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
    with nullcontext() if end is None else pytest.raises(type(end)), distributed("cpu") as place:
        assert place.world_size == 2
        if end is not None:
            raise end
    assert calls == (["gloo", "left"] if end is None or isinstance(end, SystemExit) else ["gloo"])


def test_work_of_one_process_is_not_begun_by_several(monkeypatch):
    assert alone("fine-tuning", "cpu").world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BandstreamError, match="fine-tuning runs in one process"):
        alone("fine-tuning", "cpu")
