"""The parts of fine-tuning: recipes of phases, what is frozen, mixing, plateaus, and folders of seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.encoder import build_encoder
from models.heads import Classifier
from models.layers import layer_groups
from shards.errors import BandstreamError
from training.finetuning import FineTuning
from training.mixing import mix
from training.optimiser import build_optimiser, set_learning_rate
from training.schedule import Plateau
from training.seeds import RESULTS, SETTINGS, finished, parse_seeds, write_summary
from training.unfreezing import learning_rate_groups, training_mode, unfreeze

PHASES = """
epochs = 100
[[unfreeze]]
epoch = 10
stages = 1
[[unfreeze]]
epoch = 20
"""


def read(tmp_path: Path, text: str) -> FineTuning:
    (tmp_path / "recipe.toml").write_text(text)
    return FineTuning.read(tmp_path / "recipe.toml", {})


def test_phases_say_how_many_stages_are_trained(tmp_path: Path) -> None:
    recipe = read(tmp_path, PHASES)
    assert [recipe.stages(epoch) for epoch in (0, 9, 10, 19, 20, 99)] == [0, 0, 1, 1, None, None]
    assert recipe.last_phase == 20 and recipe.frozen == "progressive"
    assert [FineTuning(freeze=freeze).stages(0) for freeze in (None, "none", "encoder")] == [None, None, 0]
    for freeze, stages in (("none", None), ("encoder", 0)):
        other = FineTuning.read(tmp_path / "recipe.toml", {"freeze": freeze})
        assert other.frozen == freeze and other.last_phase == 0
        assert {other.stages(epoch) for epoch in range(100)} == {stages}, "one recipe, three ways"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('freeze = "progressive"', "progressive unfreezing takes phases"),
        ("[[unfreeze]]\nepoch = 3\n[[unfreeze]]\nepoch = 3", "each must begin after the one before"),
        ("[[unfreeze]]\nepoch = 3\nstage = 3", "unfreeze.0.stage: Extra"),
        ('task = "segment"\nmixup = 0.2', "mixup and cutmix are for single labels"),
        ("[loss]\nlovasz = 1.0", "loss.lovasz"),
        ("[loss]\nce = -1.0", "loss.ce"),
        ('bands = ["B02", "B02"]', "bands B02, B02: name each once"),
        ("seed = -1", "seed"),
        ('decoder = "linknet"', "decoder: Input should be 'unet'"),
        ("batch_size = 1", "batch_size"),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BandstreamError, match=told) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_what_is_frozen_keeps_weights_statistics_and_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = Classifier(build_encoder("resnet18", 3), 4, dropout=0.1)
    layers = layer_groups(model.body)
    optimiser = build_optimiser(learning_rate_groups(layers, model.rest, 1.0, 1.0), "adamw", 0.1)
    set_learning_rate(optimiser, 1e-3)
    for stages in (None, 0, 1, None):  # all first, so that the optimiser has moments of what is frozen then
        unfreeze(layers, stages)
        training_mode(model)
        assert model.dropout.training and model.training and model.encoder.training == (stages != 0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for _ in range(2):  # the first step opens the residual blocks, which begin as identities
            nn.functional.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8) % 4).backward()
            optimiser.step()
            optimiser.zero_grad()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert "head.weight" in changed
        for part in ("layer3.", "layer4."):
            there = {name for name in before if name.startswith(f"encoder.net.{part}")}
            trained = stages is None or (part == "layer4." and stages == 1)
            assert (there <= changed) == trained and bool(there & changed) == trained, (stages, part)
        frozen = {name for name in before if name.startswith("encoder.net.bn1")}
        assert bool(frozen & changed) == (stages is None), "running statistics too"


def test_learning_rates_fall_from_the_head_to_the_stem() -> None:
    model = Classifier(build_encoder("resnet18", 3), 4)
    layers = layer_groups(model.body)
    optimiser = build_optimiser(learning_rate_groups(layers, model.rest, 0.5, 0.8), "sgd", 0.0)
    set_learning_rate(optimiser, 2.0)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    net = model.encoder.net
    expected = {net.layer4[0].conv1: 0.8, net.layer3[0].conv1: 0.8**2, net.layer1[0].conv1: 0.8**4, net.conv1: 0.8**5}
    for module, decay in expected.items():
        assert rates[id(module.weight)] == pytest.approx(2 * 0.5 * decay)
    assert rates[id(model.head.weight)] == rates[id(model.head.bias)] == 2.0


def test_mixup_blends_each_sample_with_another() -> None:
    views, shares = torch.randn(6, 2, 4, 4), torch.eye(6)
    mixed, soft = mix(views, shares, 0.4, 0.0, np.random.default_rng(0))
    again, _ = mix(views, shares, 0.4, 0.0, np.random.default_rng(0))
    assert torch.equal(mixed, again)
    # shares are of the samples themselves here, so they say what each view must be
    torch.testing.assert_close(mixed, torch.einsum("nm,mchw->nchw", soft, views))
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert (soft.diagonal() < 1).any()


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels() -> None:
    seen = set()
    for seed in range(30):
        views = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 2, 8, 10).contiguous()
        given = views.clone()
        mixed, soft = mix(views, torch.eye(5), 0.0, 1.0, np.random.default_rng(seed))
        assert torch.equal(views, given), "the loader's own memory is left alone"
        for n in range(5):
            own = (mixed[n] == n).float().mean().item()
            partners = set(mixed[n].unique().tolist()) - {n}
            assert len(partners) <= 1
            for partner in partners:
                assert soft[n, int(partner)].item() == pytest.approx(1 - own, abs=1e-6)
                rows, columns = torch.where(mixed[n, 0] == partner)
                area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
                assert area == len(rows), "a rectangle"
            seen.add(round(own, 2))
    assert len(seen) > 10


def test_plateau_lowers_as_torch_does() -> None:
    rng = np.random.default_rng(0)
    for patience in (1, 3):
        plateau, optimiser = Plateau(patience, 0.5), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "max", factor=0.5, patience=patience)
        for score in rng.uniform(0, 1, 60).round(1).tolist():
            plateau.update(-score)
            theirs.step(score)
            assert plateau.factor == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-8)
        assert plateau.factor < 1e-2


def test_a_finished_run_is_known_by_its_settings(tmp_path: Path) -> None:
    out, settings = tmp_path / "run", {"init": "scratch", "recipe": {"lr": 0.1, "view": {"size": 3}, "bands": ("a",)}}
    assert finished(out, settings) is None
    out.mkdir()
    assert finished(out, settings) is None
    (out / SETTINGS).write_text(json.dumps(settings))
    assert finished(out, settings) is None, "begun, not finished"
    (out / RESULTS).write_text('{"val": 1}')
    assert finished(out, settings) == {"val": 1}
    other = {"init": "x", "recipe": {"lr": 0.1, "view": {"size": 4}, "bands": ("a",)}}
    with pytest.raises(BandstreamError, match="another init, recipe.view.size: name another folder"):
        finished(out, other)
    (out / SETTINGS).write_text("{")
    with pytest.raises(BandstreamError, match="cannot be read"):
        finished(out, settings)
    (out / SETTINGS).unlink()
    with pytest.raises(BandstreamError, match="not empty"):
        finished(out, settings)


def test_a_summary_has_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    same = {"score": "accuracy", "task": "classify", "kind": "single", "target": "t", "init": "scratch",
            "label_fraction": 0.1, "encoder": "cnn", "classes": ["a"]}  # fmt: skip
    runs = [
        same | {"seed": seed, "val": score / 2, "test": {"accuracy": score, "macro_f1": 0.5, "confusion": []}}
        for seed, score in ((3, 0.2), (1, 0.4), (2, 0.9))
    ]
    summary = write_summary(tmp_path, runs)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["seeds"] == [3, 1, 2] and set(summary["scores"]) == {
        "test_accuracy",
        "test_macro_f1",
        "val_accuracy",
    }
    found = summary["scores"]["test_accuracy"]
    assert found["mean"] == pytest.approx(0.5) and found["std"] == pytest.approx(np.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert parse_seeds("0, 1,2,") == [0, 1, 2] and parse_seeds("") == []
    with pytest.raises(BandstreamError, match="--seeds 0;1"):
        parse_seeds("0;1")
    with pytest.raises(BandstreamError, match="--seeds 0,-1"):
        parse_seeds("0,-1")


def test_few_labels_are_trained_for_more_epochs(tmp_path: Path) -> None:
    recipe = read(tmp_path, "epochs = 10\nmin_steps = 101")
    assert [recipe.lengthened(steps).epochs for steps in (1, 10, 11, 500)] == [101, 11, 10, 10]
    assert FineTuning().lengthened(1).epochs == FineTuning().epochs
